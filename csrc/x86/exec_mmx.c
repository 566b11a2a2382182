/* MMX, with its extensions in SSE, SSE2 and SSSE3; conversions between mm and xmm registers.
 *
 * Owns: the mmx_* ops of forms_sse.def, emms. Called by: the interpreter. Locks: none.
 *
 * MMi is the significand of the x87's *physical* register i; an MMX instruction makes TOP 0 and all registers valid (vol. 1, 9.5.1; vol. 3,
 * 12.2), after which the image's stack positions are the physical numbers. Everything that can fault comes before enter().
 */
#include "x86/fpu.h"

#define MMX_OP(name) static void name(struct x86_cpu *c, const struct x86_insn *i); X86_OP_ALL(name, name); \
                     static void name(struct x86_cpu *c, const struct x86_insn *i)

_Noreturn void x86_mmx_unavailable(struct x86_cpu *c)
{
    x86_raise(c, c->cr0 & X86_CR0_EM ? X86_UD : c->cr0 & X86_CR0_TS ? X86_NM : X86_MF);
}

static void enter(struct x86_cpu *c)
{
    x87_set_top(&c->fx, 0);
    c->fx.ftw = 0xff;
}

static u64 mm_get(const struct x86_cpu *c, unsigned n)      /* at any TOP */
{
    u64 v;
    memcpy(&v, c->fx.st[(n - x87_top(&c->fx)) & 7].b, 8);
    return v;
}

/* After enter(): a register that is written gets a sign and exponent of all ones. */
static void mm_set(struct x86_cpu *c, unsigned n, u64 v)
{
    memcpy(c->fx.st[n].b, &v, 8);
    memset(c->fx.st[n].b + 8, 0xff, 2);
}

/* Operand n, an mm or general register or memory, zero-extended. */
static u64 source(struct x86_cpu *c, const struct x86_insn *i, unsigned n)
{
    const struct x86_operand *o = &i->op[n];
    if (o->kind == X86_MMX)
        return mm_get(c, o->reg);
    if (o->kind == X86_REG)
        return o->size == 8 ? x86_get64(c, o->reg) : x86_get32(c, o->reg);
    union x86_vec v;
    x86_fp_load(c, i, o->size, &v);
    return v.q[0];
}

/* mm = stub(mm, src). */
static void run(struct x86_cpu *c, unsigned reg, fpu_stub *stub, u64 src)
{
    u64 dst = mm_get(c, reg);
    fpu_call_mmx(stub, &dst, &src);
    enter(c);
    mm_set(c, reg, dst);
}

MMX_OP(mmx)
{
    x86_mmx_check(c);
    run(c, i->op[0].reg, fpu_stub_of(i), source(c, i, 1));
}

MMX_OP(mmx_imm)                         /* pshufw, palignr */
{
    x86_mmx_check(c);
    run(c, i->op[0].reg, fpu_stub_imm(i), source(c, i, 1));
}

MMX_OP(mmx_shift)                       /* 0F 71-73 ib: as sse_shift */
{
    x86_mmx_check(c);
    run(c, i->op[0].reg, fpu_stub_0f(PFX_NP, 0xc0 + (i->modrm & 0x38) + (i->opcode & 3)), (u8)i->imm);
}

MMX_OP(mmx_gpr)                         /* pmovmskb */
{
    x86_mmx_check(c);
    u64 unused = 0, src = source(c, i, 1);
    x86_set64(c, i->op[0].reg, fpu_call_mmx(fpu_stub_of(i), &unused, &src));
    enter(c);
}

/* movd, movq, movntq: between mm registers, general registers, memory. */
MMX_OP(mmx_movq)
{
    x86_mmx_check(c);
    const struct x86_operand *d = &i->op[0];
    u64 v = source(c, i, 1);
    if (d->kind == X86_MEM)
        x86_fp_store(c, i, d->size, &(union x86_vec){ .q = { v } });
    else if (d->kind == X86_REG)
        x86_set64(c, d->reg, d->size == 8 ? v : (u32)v);
    enter(c);
    if (d->kind == X86_MMX)
        mm_set(c, d->reg, v);
}

MMX_OP(mmx_pinsrw)
{
    x86_mmx_check(c);
    unsigned shift = (i->imm & 3) * 16, reg = i->op[0].reg;
    u64 word = (u16)source(c, i, 1), v = (mm_get(c, reg) & ~(0xfffful << shift)) | word << shift;
    enter(c);
    mm_set(c, reg, v);
}

MMX_OP(mmx_pextrw)
{
    x86_mmx_check(c);
    x86_set64(c, i->op[0].reg, (u16)(source(c, i, 1) >> (i->imm & 3) * 16));
    enter(c);
}

MMX_OP(mmx_maskmov)                     /* maskmovq */
{
    x86_mmx_check(c);
    u64 v = mm_get(c, i->op[0].reg), mask = mm_get(c, i->op[1].reg);
    x86_store_masked(c, i, (const u8 *)&v, (const u8 *)&mask, 8);
    enter(c);
}

MMX_OP(emms)
{
    x86_mmx_check(c);
    x87_set_top(&c->fx, 0);
    c->fx.ftw = 0;
}

/* ---- mm and xmm ----------------------------------------------------------------------------------------------------- */

/* These obey both sets of rules; SSE's come first (vol. 3, table 23-5 ff.). CPUs enter the MMX state even if #XM follows. */
static void check_both(struct x86_cpu *c)
{
    x86_sse_check(c);
    x86_mmx_check(c);
}

MMX_OP(mmx_movq2dq)
{
    check_both(c);
    union x86_vec v = { .q = { mm_get(c, i->op[1].reg), 0 } };
    *x86_xmm(c, i->op[0].reg) = v;
    enter(c);
}

MMX_OP(mmx_movdq2q)
{
    check_both(c);
    u64 v = x86_xmm(c, i->op[1].reg)->q[0];
    enter(c);
    mm_set(c, i->op[0].reg, v);
}

static u32 cvt_mxcsr(const struct x86_cpu *c) { return (c->fx.mxcsr & (MXCSR_RC | MXCSR_DAZ)) | MXCSR_MASKS; }

/* cvtpi2ps, cvtpi2pd. No MMX instruction if the source is in memory: vol. 2 says so of the latter, CPUs do so for both. */
MMX_OP(mmx_cvt_from)
{
    bool mmx = i->op[1].kind == X86_MMX;
    x86_sse_check(c);
    if (mmx)
        x86_mmx_check(c);
    struct fpu_cvt r = { .xmm0 = *x86_xmm(c, i->op[0].reg), .mm1 = source(c, i, 1), .mxcsr = cvt_mxcsr(c) };
    fpu_call_cvt(fpu_stub_of(i), &r);
    if (mmx)
        enter(c);
    x86_mxcsr_raise(c, r.mxcsr);
    *x86_xmm(c, i->op[0].reg) = r.xmm0;
}

MMX_OP(mmx_cvt_to)                      /* cvt[t]ps2pi, cvt[t]pd2pi */
{
    check_both(c);
    struct fpu_cvt r = { .mxcsr = cvt_mxcsr(c) };
    if (i->op[1].kind == X86_XMM) {
        r.xmm1 = *x86_xmm(c, i->op[1].reg);
    } else {
        if (i->op[1].size == 16)
            x86_check_aligned(c, i, x86_ea(c, i));
        x86_fp_load(c, i, i->op[1].size, &r.xmm1);
    }
    fpu_call_cvt(fpu_stub_of(i), &r);
    enter(c);
    x86_mxcsr_raise(c, r.mxcsr);
    mm_set(c, i->op[0].reg, r.mm0);
}
