/* FXSAVE, FXRSTOR, LDMXCSR, STMXCSR.
 *
 * Owns: these ops. Called by: the interpreter; x86_fx_sanitize also by whoever fills x86_cpu.fx from outside. Locks: none.
 * Sources: SDM vol. 1, 10.5, 11.6; vol. 2, FXSAVE; vol. 3, 13.
 */
#include "x86/fpu.h"

#define FX_OP(name) static void name(struct x86_cpu *c, const struct x86_insn *i); X86_OP_ALL(name, name); \
                    static void name(struct x86_cpu *c, const struct x86_insn *i)

void x86_fx_sanitize(struct x86_fx *fx)
{
    fx->mxcsr &= MXCSR_VALID;
    fx->mxcsr_mask = MXCSR_VALID;
    fx->fcw = (fx->fcw & X87_CW_VALID) | X87_CW_ONE;
    fx->fop &= 0x7ff;
    fx->pad0 = 0;
    for (unsigned n = 0; n < 8; n++)
        memset(fx->st[n].b + 10, 0, 6);
    memset(fx->pad1, 0, sizeof fx->pad1);
    x87_update_es(fx);
}

/* Bytes of the image that are the processor's: xmm8-15 exist in 64-bit mode only; the rest of the 512 is left alone. */
static unsigned image_size(const struct x86_cpu *c) { return offsetof(struct x86_fx, xmm) + (c->mode == 64 ? 16 : 8) * 16; }

FX_OP(fxsave)
{
    u64 off = x86_ea(c, i);
    struct x86_fx fx = c->fx;
    x87_check(c, false);
    x86_linear(c, i->mem_seg, off, 16, true);           /* unlike SSE's operands: #SS comes before #GP of a misaligned one */
    x86_check_aligned(c, i, off);
    if (!(i->rex & 8))
        fx.fip = (u32)fx.fip, fx.fdp = (u32)fx.fdp;     /* and FCS, FDS: 0 */
    x86_probe_write(c, i->mem_seg, off, sizeof fx);
    x86_store_bytes(c, i->mem_seg, off, &fx, image_size(c));
}

FX_OP(fxrstor)
{
    u64 off = x86_ea(c, i);
    struct x86_fx fx;
    x87_check(c, false);
    x86_linear(c, i->mem_seg, off, 16, false);
    x86_check_aligned(c, i, off);
    x86_load_bytes(c, i->mem_seg, off, &fx, sizeof fx);
    if (fx.mxcsr & ~MXCSR_VALID)
        x86_raise_error(c, X86_GP, 0);
    if (!(i->rex & 8))
        fx.fip = (u32)fx.fip, fx.fdp = (u32)fx.fdp;
    x86_fx_sanitize(&fx);
    memcpy(&c->fx, &fx, image_size(c));
}

FX_OP(ldmxcsr)
{
    x86_sse_check(c);
    u32 mxcsr = x86_load32(c, i->mem_seg, x86_ea(c, i));
    if (mxcsr & ~MXCSR_VALID)
        x86_raise_error(c, X86_GP, 0);
    c->fx.mxcsr = mxcsr;
}

FX_OP(stmxcsr)
{
    x86_sse_check(c);
    x86_store32(c, i->mem_seg, x86_ea(c, i), c->fx.mxcsr);
}
