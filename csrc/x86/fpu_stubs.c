/* The host's FP instructions, one stub each, and the calls that run one on saved state.
 *
 * Owns: the tables of stubs. Called by: exec_sse.c, exec_mmx.c, exec_x87.c, through fpu.h. No state, no locks.
 *
 * A stub is `instruction; ret`, 8 bytes apart (x87: 4), in tables that .rept writes: address = table + number * 8. Operands are fixed:
 * modrm C1 is "0, 1", which means xmm0, xmm1 or mm0, mm1 or xmm0, ecx or eax, xmm1 as the opcode has it. A table covers a range of opcodes
 * and so also holds instructions that are none of ours; a stub that no row of forms_sse.def names is never called.
 *
 * All are naked functions: the compiler must neither add to them nor see through them (noipa: it would find that the asm names no clobbered
 * registers and keep values in them across the call).
 */
#include "x86/fpu.h"

#if defined(__x86_64__)
#if defined(__clang__)
#define NAKED __attribute__((naked, noinline, used))
#else
#define NAKED __attribute__((naked, noinline, noipa, used))
#endif
#if defined(__CET__)
#define TABLE NAKED __attribute__((nocf_check, aligned(64))) static     /* an endbr64 in front would shift the stubs */
#else
#define TABLE NAKED __attribute__((aligned(64))) static
#endif
#define ENTRY(table) ((const u8 *)(uintptr_t)(table))

/* n stubs for the opcodes from `first` on: bytes before the opcode as given. */
#define STUBS(bytes, first, n)                                                                                          \
    ".set .Lfpu_op, " #first "\n .rept " #n "\n .balign 8, 0xcc\n .byte " bytes ".Lfpu_op, 0xc1, 0xc3\n"                \
    ".set .Lfpu_op, .Lfpu_op + 1\n .endr\n .balign 8, 0xcc\n"

enum { FIRST_0F = 0x10, NR_0F = 0xf0, FIRST_W = 0x2a, NR_W = 4, NR_0F38 = 0x100, NR_IMM = 256 };

/* Map 0F by prefix (none, 66, F3, F2), opcodes 10-FF. */
TABLE void stubs_0f(void)
{
    asm(STUBS("0x0f, ", 0x10, 0xf0) STUBS("0x66, 0x0f, ", 0x10, 0xf0) STUBS("0xf3, 0x0f, ", 0x10, 0xf0) STUBS("0xf2, 0x0f, ", 0x10, 0xf0));
}

/* Map 0F with REX.W: 2A-2D after F3, F2: conversions from and to 64-bit integers. */
TABLE void stubs_w(void)
{
    asm(STUBS("0xf3, 0x48, 0x0f, ", 0x2a, 4) STUBS("0xf2, 0x48, 0x0f, ", 0x2a, 4));
}

/* Map 0F38 without prefix and after 66. */
TABLE void stubs_0f38(void)
{
    asm(STUBS("0x0f, 0x38, ", 0, 0x100) STUBS("0x66, 0x0f, 0x38, ", 0, 0x100));
}

/* Instructions with an immediate, 256 stubs each: X(prefix, its bytes, map, its bytes, opcode). */
#define IMM_STUBS(X)                                                                                                    \
    X(NP, "", 0F, "0x0f", 70) X(66, "0x66, ", 0F, "0x0f", 70) X(F3, "0xf3, ", 0F, "0x0f", 70) X(F2, "0xf2, ", 0F, "0x0f", 70)           \
    X(NP, "", 0F, "0x0f", C2) X(66, "0x66, ", 0F, "0x0f", C2) X(F3, "0xf3, ", 0F, "0x0f", C2) X(F2, "0xf2, ", 0F, "0x0f", C2)           \
    X(NP, "", 0F, "0x0f", C6) X(66, "0x66, ", 0F, "0x0f", C6) X(NP, "", 0F3A, "0x0f, 0x3a", 0F)                         \
    IMM_3A(X, 08) IMM_3A(X, 09) IMM_3A(X, 0A) IMM_3A(X, 0B) IMM_3A(X, 0C) IMM_3A(X, 0D) IMM_3A(X, 0E) IMM_3A(X, 0F) IMM_3A(X, 21)      \
    IMM_3A(X, 40) IMM_3A(X, 41) IMM_3A(X, 42) IMM_3A(X, 44) IMM_3A(X, 60) IMM_3A(X, 61) IMM_3A(X, 62) IMM_3A(X, 63) IMM_3A(X, DF)
#define IMM_3A(X, opcode) X(66, "0x66, ", 0F3A, "0x0f, 0x3a", opcode)

TABLE void stubs_imm(void)
{
#define X(prefix, prefix_bytes, map, map_bytes, opcode)                                                                 \
    ".set .Lfpu_imm, 0\n .rept 256\n .balign 8, 0xcc\n .byte " prefix_bytes map_bytes ", 0x" #opcode ", 0xc1, .Lfpu_imm, 0xc3\n"       \
    ".set .Lfpu_imm, .Lfpu_imm + 1\n .endr\n .balign 8, 0xcc\n"
    asm(IMM_STUBS(X));
#undef X
}

enum imm_number {
    IMM_NONE,
#define X(prefix, prefix_bytes, map, map_bytes, opcode) IMM_##prefix##_##map##_##opcode,
    IMM_STUBS(X)
#undef X
};
static const u8 imm_numbers[X86_NR_MAPS][PFX_66F2][256] = {
#define X(prefix, prefix_bytes, map, map_bytes, opcode) [X86_MAP_##map][PFX_##prefix][0x##opcode] = IMM_##prefix##_##map##_##opcode,
    IMM_STUBS(X)
#undef X
};

/* D8-DF: eight memory forms on (%rdi), then 64 register forms. */
TABLE void stubs_x87(void)
{
    asm(".set .Lfpu_op, 0xd8\n .rept 8\n"
        ".set .Lfpu_rm, 0x07\n .rept 8\n .byte .Lfpu_op, .Lfpu_rm, 0xc3, 0xcc\n .set .Lfpu_rm, .Lfpu_rm + 8\n .endr\n"
        ".set .Lfpu_rm, 0xc0\n .rept 64\n .byte .Lfpu_op, .Lfpu_rm, 0xc3, 0xcc\n .set .Lfpu_rm, .Lfpu_rm + 1\n .endr\n"
        ".set .Lfpu_op, .Lfpu_op + 1\n .endr\n");
}

fpu_stub *fpu_stub_0f(unsigned prefix, unsigned opcode)
{
    return ENTRY(stubs_0f) + ((prefix - PFX_NP) * NR_0F + opcode - FIRST_0F) * 8;
}

fpu_stub *fpu_stub_of(const struct x86_insn *i)
{
    const struct x86_form *f = &x86_forms[i->form];
    if (f->map == X86_MAP_0F38)
        return ENTRY(stubs_0f38) + ((f->prefix - PFX_NP) * NR_0F38 + i->opcode) * 8;
    if ((i->rex & 8) && f->prefix >= PFX_F3 && (u8)(i->opcode - FIRST_W) < NR_W)
        return ENTRY(stubs_w) + ((f->prefix - PFX_F3) * NR_W + i->opcode - FIRST_W) * 8;
    return fpu_stub_0f(f->prefix, i->opcode);
}

fpu_stub *fpu_stub_imm(const struct x86_insn *i)
{
    const struct x86_form *f = &x86_forms[i->form];
    return ENTRY(stubs_imm) + ((imm_numbers[f->map][f->prefix][i->opcode] - 1) * NR_IMM + (u8)i->imm) * 8;
}

fpu_stub *fpu_stub_x87(unsigned opcode, unsigned modrm)
{
    return ENTRY(stubs_x87) + ((opcode - 0xd8) * 72 + (modrm >= 0xc0 ? 8 + (modrm & 63) : modrm >> 3 & 7)) * 4;
}

/* ---- calls. Arguments: rdi, rsi, rdx, rcx; the stubs change none of them but rcx (pcmpestri), rax, rdx -------------- */

NAKED void fpu_call_int(fpu_stub *stub, union x86_vec *dst, const union x86_vec *src)
{
    asm("movups (%rsi), %xmm0\n movups (%rdx), %xmm1\n call *%rdi\n movups %xmm0, (%rsi)\n ret");
}

NAKED struct fpu_result fpu_call_fp(fpu_stub *stub, union x86_vec *dst, const union x86_vec *src, u32 *mxcsr)
{
    asm("movups (%rsi), %xmm0\n movups (%rdx), %xmm1\n mov %rcx, %r8\n mov (%rdx), %rcx\n"
        "sub $8, %rsp\n stmxcsr (%rsp)\n ldmxcsr (%r8)\n"
        "call *%rdi\n"
        "stmxcsr (%r8)\n ldmxcsr (%rsp)\n pushfq\n pop %rdx\n add $8, %rsp\n"
        "movups %xmm0, (%rsi)\n ret");
}

NAKED u64 fpu_call_string(fpu_stub *stub, union x86_vec *dst, const union x86_vec *src, u32 regs[3])
{
    asm("movups (%rsi), %xmm0\n movups (%rdx), %xmm1\n mov %rcx, %r8\n mov (%r8), %eax\n mov 4(%r8), %edx\n mov 8(%r8), %ecx\n"
        "call *%rdi\n"
        "pushfq\n pop %rax\n mov %ecx, 8(%r8)\n movups %xmm0, (%rsi)\n ret");
}

NAKED u32 fpu_call_mmx(fpu_stub *stub, u64 *dst, const u64 *src)
{
    asm("movq (%rsi), %mm0\n movq (%rdx), %mm1\n call *%rdi\n movq %mm0, (%rsi)\n emms\n ret");
}

STATIC_ASSERT(offsetof(struct fpu_cvt, mm0) == 32 && offsetof(struct fpu_cvt, mxcsr) == 48);
NAKED void fpu_call_cvt(fpu_stub *stub, struct fpu_cvt *regs)
{
    asm("movups (%rsi), %xmm0\n movups 16(%rsi), %xmm1\n movq 32(%rsi), %mm0\n movq 40(%rsi), %mm1\n"
        "sub $8, %rsp\n stmxcsr (%rsp)\n ldmxcsr 48(%rsi)\n"
        "call *%rdi\n"
        "stmxcsr 48(%rsi)\n ldmxcsr (%rsp)\n add $8, %rsp\n"
        "movups %xmm0, (%rsi)\n movq %mm0, 32(%rsi)\n emms\n ret");
}

/* The image brings the guest's MXCSR along, exceptions unmasked or not; no SSE instruction runs under it. A pending x87 exception that it
 * brings, or that the stub raises, does not fault: the next x87 instruction that waits would, and fxsave64, fninit do not wait. */
NAKED u64 fpu_call_x87(void *buf, struct x86_fx *fx, fpu_stub *stub, u64 flags)
{
    asm("sub $8, %rsp\n fnstcw (%rsp)\n stmxcsr 4(%rsp)\n"
        "fxrstor64 (%rsi)\n push %rcx\n popfq\n"
        "call *%rdx\n"
        "pushfq\n pop %rax\n fxsave64 (%rsi)\n"
        "fninit\n fldcw (%rsp)\n ldmxcsr 4(%rsp)\n add $8, %rsp\n ret");
}

#else   /* A host that has no such instructions offers no such features (cpuid.c), so nothing here is reached. */

fpu_stub *fpu_stub_0f(unsigned prefix, unsigned opcode) { return NULL; }
fpu_stub *fpu_stub_of(const struct x86_insn *i) { return NULL; }
fpu_stub *fpu_stub_imm(const struct x86_insn *i) { return NULL; }
fpu_stub *fpu_stub_x87(unsigned opcode, unsigned modrm) { return NULL; }
void fpu_call_int(fpu_stub *stub, union x86_vec *dst, const union x86_vec *src) { }
struct fpu_result fpu_call_fp(fpu_stub *stub, union x86_vec *dst, const union x86_vec *src, u32 *mxcsr) { return (struct fpu_result){ 0 }; }
u64 fpu_call_string(fpu_stub *stub, union x86_vec *dst, const union x86_vec *src, u32 regs[3]) { return 0; }
u32 fpu_call_mmx(fpu_stub *stub, u64 *dst, const u64 *src) { return 0; }
void fpu_call_cvt(fpu_stub *stub, struct fpu_cvt *regs) { }
u64 fpu_call_x87(void *buf, struct x86_fx *fx, fpu_stub *stub, u64 flags) { return flags; }

#endif
