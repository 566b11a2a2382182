/* The FP side of the interpreter: saved state, checks before an instruction, and the host's instructions that execute it.
 *
 * Owns: nothing; the state is x86_cpu.fx. Included by exec_sse.c, exec_mmx.c, exec_x87.c, exec_fxsave.c, fpu_stubs.c. No locks.
 *
 * An FP instruction runs as the host's own instruction on the guest's saved values (fpu_stubs.c): the results are a real CPU's, to the last
 * bit and flag, and a new instruction needs a row in forms_sse.def, no code. Nothing is generated at run time: the stubs are a table that
 * the assembler wrote. What the stubs run on is registers of the host that C code must find as it left them: MXCSR's control bits, the
 * x87 control word, an empty x87 stack.
 *
 * Invariants of x86_cpu.fx: fsw.ES and fsw.B say whether an unmasked exception is pending (x87_update_es after any change of fcw or fsw);
 * mxcsr has no reserved bit set; bytes 10-15 of each st[] are 0. Who fills it from outside calls x86_fx_sanitize (cpu.h).
 */
#ifndef XL_X86_FPU_H
#define XL_X86_FPU_H

#include "x86/mem.h"

/* ---- state -------------------------------------------------------------------------------------------------------- */

union x86_vec { u8 b[16]; u16 w[8]; u32 d[4]; u64 q[2]; };
STATIC_ASSERT(sizeof(struct x86_fx) == 512 && offsetof(struct x86_fx, st) == 32 && offsetof(struct x86_fx, xmm) == 160);

enum { MXCSR_IE = 1, MXCSR_DE = 2, MXCSR_ZE = 4, MXCSR_OE = 8, MXCSR_UE = 16, MXCSR_PE = 32, MXCSR_FLAGS = 0x3f, MXCSR_DAZ = 1 << 6,
       MXCSR_MASKS = 0x3f << 7, MXCSR_RC = 3 << 13, MXCSR_FTZ = 1 << 15, MXCSR_VALID = 0xffff, MXCSR_RESET = 0x1f80 };
enum { X87_FLAGS = 0x3f, X87_SF = 1 << 6, X87_ES = 1 << 7, X87_TOP = 7 << 11, X87_B = 1 << 15,
       X87_CW_ONE = 0x40, X87_CW_VALID = 0x1f3f };     /* bit 6 reads as 1, bits 7 and 13-15 as 0 */

static inline union x86_vec *x86_xmm(struct x86_cpu *c, unsigned n) { return (union x86_vec *)c->fx.xmm[n].b; }
static inline unsigned x87_top(const struct x86_fx *fx) { return fx->fsw >> 11 & 7; }
static inline void x87_update_es(struct x86_fx *fx)
{
    fx->fsw = fx->fsw & ~fx->fcw & X87_FLAGS ? fx->fsw | X87_ES | X87_B : fx->fsw & ~(X87_ES | X87_B);
}
/* Another TOP: the physical registers stay what they are, so the image, which is by stack position, turns. */
void x87_set_top(struct x86_fx *fx, unsigned top);

/* ---- before an instruction (vol. 3, tables 2-1 and 13-1) ----------------------------------------------------------- */

_Noreturn void x86_sse_unavailable(struct x86_cpu *c);
_Noreturn void x86_mmx_unavailable(struct x86_cpu *c);

static inline void x86_sse_check(struct x86_cpu *c)
{
    if (unlikely((c->cr0 & (X86_CR0_EM | X86_CR0_TS)) || !(c->cr4 & X86_CR4_OSFXSR)))
        x86_sse_unavailable(c);
}

static inline void x86_mmx_check(struct x86_cpu *c)
{
    if (unlikely((c->cr0 & (X86_CR0_EM | X86_CR0_TS)) || (c->fx.fsw & X87_ES)))
        x86_mmx_unavailable(c);
}

/* wait: all but fninit, fnclex, fnstcw, fnstsw, fnstenv, fnsave, fxsave, fxrstor. CR0.NE = 0 (the FERR# pin) has no effect: always #MF. */
static inline void x87_check(struct x86_cpu *c, bool wait)
{
    if (unlikely(c->cr0 & (X86_CR0_EM | X86_CR0_TS)))
        x86_raise(c, X86_NM);
    if (unlikely(wait && (c->fx.fsw & X87_ES)))
        x86_raise(c, X86_MF);
}

/* #GP(0) unless the memory operand, at offset off, is aligned to 16 bytes. */
static inline void x86_check_aligned(struct x86_cpu *c, const struct x86_insn *i, u64 off)
{
    if (unlikely((c->lin_base[i->mem_seg] + off) & 15))
        x86_raise_error(c, X86_GP, 0);
}

/* ---- operands ------------------------------------------------------------------------------------------------------ */

static inline void x86_load128(struct x86_cpu *c, unsigned seg, u64 off, void *out)
{
    const u8 *p = likely(c->mode == 64) ? x86_inline_ptr(c, c->lin_base[seg] + off, 16, false) : NULL;
    if (likely(p != NULL))
        memcpy(out, p, 16);
    else
        x86_load_bytes(c, seg, off, out, 16);
}

static inline void x86_store128(struct x86_cpu *c, unsigned seg, u64 off, const void *in)
{
    u8 *p = likely(c->mode == 64) ? x86_inline_ptr(c, c->lin_base[seg] + off, 16, true) : NULL;
    if (likely(p != NULL))
        memcpy(p, in, 16);
    else
        x86_store_bytes(c, seg, off, in, 16);
}

/* The memory operand's `size` (1, 2, 4, 8, 10, 16) bytes, into or out of p. 16 bytes: of any alignment. */
static inline void x86_fp_load(struct x86_cpu *c, const struct x86_insn *i, unsigned size, union x86_vec *p)
{
    u64 off = x86_ea(c, i);
    p->q[0] = p->q[1] = 0;
    switch (size) {
    case 1: p->b[0] = x86_load8(c, i->mem_seg, off); break;
    case 2: p->w[0] = x86_load16(c, i->mem_seg, off); break;
    case 4: p->d[0] = x86_load32(c, i->mem_seg, off); break;
    case 8: p->q[0] = x86_load64(c, i->mem_seg, off); break;
    case 16: x86_load128(c, i->mem_seg, off, p); break;
    default: x86_load_bytes(c, i->mem_seg, off, p, size);
    }
}

static inline void x86_fp_store(struct x86_cpu *c, const struct x86_insn *i, unsigned size, const union x86_vec *p)
{
    u64 off = x86_ea(c, i);
    switch (size) {
    case 1: x86_store8(c, i->mem_seg, off, p->b[0]); break;
    case 2: x86_store16(c, i->mem_seg, off, p->w[0]); break;
    case 4: x86_store32(c, i->mem_seg, off, p->d[0]); break;
    case 8: x86_store64(c, i->mem_seg, off, p->q[0]); break;
    case 16: x86_store128(c, i->mem_seg, off, p); break;
    default: x86_store_bytes(c, i->mem_seg, off, p, size);
    }
}

/* Stores the bytes of v that mask selects (bit 7 of each) at DS:rDI: maskmovq, maskmovdqu. All or nothing. */
void x86_store_masked(struct x86_cpu *c, const struct x86_insn *i, const u8 *v, const u8 *mask, unsigned n);

/* ---- stubs (fpu_stubs.c) ------------------------------------------------------------------------------------------- */

typedef const void fpu_stub;            /* entry of a stub; only the calls below may be given one */
struct fpu_result { u64 rax, flags; };

/* The stub of the instruction's row: [prefix] [REX.W] 0F [38] opcode with modrm C1; with its immediate (x86_insn.imm) for the latter,
 * which must have a line in fpu_stubs.c; of an explicit prefix and opcode of map 0F. */
fpu_stub *fpu_stub_of(const struct x86_insn *i);
fpu_stub *fpu_stub_imm(const struct x86_insn *i);
fpu_stub *fpu_stub_0f(unsigned prefix /* PFX_* */, unsigned opcode);
/* x87: opcode D8-DF, modrm of a register form or (mod 0) of the memory form of that modrm.reg. */
fpu_stub *fpu_stub_x87(unsigned opcode, unsigned modrm);

/* xmm0 = *dst, xmm1 = *src, rcx = first 8 bytes of *src; afterwards *dst = xmm0. */
void fpu_call_int(fpu_stub *stub, union x86_vec *dst, const union x86_vec *src);
/* The same with *mxcsr in MXCSR, its exceptions masked; afterwards *mxcsr = MXCSR; returns eax/rax and rflags. */
struct fpu_result fpu_call_fp(fpu_stub *stub, union x86_vec *dst, const union x86_vec *src, u32 *mxcsr);
/* pcmpestr*, pcmpistr*: xmm0, xmm1, eax = regs[0], edx = regs[1]; afterwards xmm0, regs[2] = ecx. Returns rflags. */
u64 fpu_call_string(fpu_stub *stub, union x86_vec *dst, const union x86_vec *src, u32 regs[3]);
/* mm0 = *dst, mm1 = *src; afterwards *dst = mm0. Returns eax. */
u32 fpu_call_mmx(fpu_stub *stub, u64 *dst, const u64 *src);
/* Conversions between the two: xmm = src or dst if it is an xmm register, mm likewise; exceptions as in fpu_call_fp. */
struct fpu_cvt { union x86_vec xmm0, xmm1; u64 mm0, mm1; u32 mxcsr; };
void fpu_call_cvt(fpu_stub *stub, struct fpu_cvt *regs);
/* The x87 instruction on *fx, with rdi = buf, the memory operand; takes and returns rflags. It leaves the host's rip in fx->fip, and
 * fx->fop, fx->fdp, fx->mxcsr_mask of no use. fx must satisfy the invariants. */
u64 fpu_call_x87(void *buf, struct x86_fx *fx, fpu_stub *stub, u64 flags);

/* exec_sse.c: runs an arithmetic stub under the guest's MXCSR: *dst, flags, and #XM (or #UD) with neither changed but for MXCSR's flags. */
struct fpu_result x86_sse_run(struct x86_cpu *c, fpu_stub *stub, union x86_vec *dst, const union x86_vec *src);
/* Takes the exceptions `raised` into the guest's MXCSR; raises if one is unmasked. */
void x86_mxcsr_raise(struct x86_cpu *c, u32 raised);

#endif
