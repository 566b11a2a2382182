/* SSE to SSE4.2, AES, PCLMULQDQ: moves in C, everything else by the host's instruction (fpu.h).
 *
 * Owns: the ops of forms_sse.def that work on xmm registers. Called by: the interpreter. Locks: none.
 * Sources: SDM vol. 1, chapters 10-12; vol. 2; vol. 3, chapter 13.
 */
#include "x86/fpu.h"

#define SSE_OP(name) static void name(struct x86_cpu *c, const struct x86_insn *i); X86_OP_ALL(name, name); \
                     static void name(struct x86_cpu *c, const struct x86_insn *i)

_Noreturn void x86_sse_unavailable(struct x86_cpu *c)
{
    x86_raise(c, (c->cr0 & X86_CR0_EM) || !(c->cr4 & X86_CR4_OSFXSR) ? X86_UD : X86_NM);
}

/* ---- operands ------------------------------------------------------------------------------------------------------ */

/* Operand n as a source: the xmm register itself, or *buf with the general register's or memory operand's value, zero-extended. */
static inline const union x86_vec *source(struct x86_cpu *c, const struct x86_insn *i, unsigned n, bool aligned, union x86_vec *buf)
{
    const struct x86_operand *o = &i->op[n];
    if (o->kind == X86_XMM)
        return x86_xmm(c, o->reg);
    if (o->kind == X86_REG) {
        buf->q[0] = x86_get64(c, o->reg);
        buf->q[1] = 0;
        return buf;
    }
    if (aligned && o->size == 16)
        x86_check_aligned(c, i, x86_ea(c, i));
    x86_fp_load(c, i, o->size, buf);
    return buf;
}

static inline union x86_vec *dest(struct x86_cpu *c, const struct x86_insn *i) { return x86_xmm(c, i->op[0].reg); }

/* ---- moves --------------------------------------------------------------------------------------------------------- */

static inline void move16(struct x86_cpu *c, const struct x86_insn *i, bool aligned)
{
    x86_sse_check(c);
    if (i->op[0].kind == X86_XMM) {
        union x86_vec buf;
        *dest(c, i) = *source(c, i, 1, aligned, &buf);
    } else {
        u64 off = x86_ea(c, i);
        if (aligned)
            x86_check_aligned(c, i, off);
        x86_store128(c, i->mem_seg, off, x86_xmm(c, i->op[1].reg));
    }
}

SSE_OP(mova) { move16(c, i, true); }    /* movaps, movapd, movdqa, movnt* */
SSE_OP(movu) { move16(c, i, false); }   /* movups, movupd, movdqu, lddqu */

SSE_OP(movscalar)                       /* movss, movsd: a load clears the rest of the register, a register's value leaves it */
{
    union x86_vec v;
    x86_sse_check(c);
    if (i->op[0].kind != X86_XMM)
        x86_fp_store(c, i, i->op[0].size, x86_xmm(c, i->op[1].reg));
    else if (i->op[1].kind == X86_XMM)
        memcpy(dest(c, i), x86_xmm(c, i->op[1].reg), i->op[1].size);
    else
        *dest(c, i) = *source(c, i, 1, false, &v);
}

SSE_OP(movq)                            /* the upper half of a register becomes 0 */
{
    union x86_vec v;
    x86_sse_check(c);
    if (i->op[0].kind == X86_XMM) {
        v.q[0] = source(c, i, 1, false, &v)->q[0];
        v.q[1] = 0;
        *dest(c, i) = v;
    } else {
        x86_fp_store(c, i, 8, x86_xmm(c, i->op[1].reg));
    }
}

SSE_OP(movd)                            /* movd, movq with a general register or memory */
{
    union x86_vec v = { { 0 } };
    x86_sse_check(c);
    if (i->op[0].kind == X86_XMM) {
        memcpy(&v, source(c, i, 1, false, &(union x86_vec){ { 0 } }), i->op[1].size);
        *dest(c, i) = v;
    } else if (i->op[0].kind == X86_REG) {
        memcpy(&v, x86_xmm(c, i->op[1].reg), i->op[0].size);
        x86_set64(c, i->op[0].reg, v.q[0]);
    } else {
        x86_fp_store(c, i, i->op[0].size, x86_xmm(c, i->op[1].reg));
    }
}

SSE_OP(movl)                            /* movlps, movlpd, movhlps */
{
    x86_sse_check(c);
    if (i->op[0].kind != X86_XMM)
        x86_store64(c, i->mem_seg, x86_ea(c, i), x86_xmm(c, i->op[1].reg)->q[0]);
    else
        dest(c, i)->q[0] = i->op[1].kind == X86_XMM ? x86_xmm(c, i->op[1].reg)->q[1] : x86_load64(c, i->mem_seg, x86_ea(c, i));
}

SSE_OP(movh)                            /* movhps, movhpd, movlhps */
{
    x86_sse_check(c);
    if (i->op[0].kind != X86_XMM)
        x86_store64(c, i->mem_seg, x86_ea(c, i), x86_xmm(c, i->op[1].reg)->q[1]);
    else
        dest(c, i)->q[1] = i->op[1].kind == X86_XMM ? x86_xmm(c, i->op[1].reg)->q[0] : x86_load64(c, i->mem_seg, x86_ea(c, i));
}

/* Which bytes are stored at all is known before any is: runs of selected bytes are probed, then stored. No byte selected: no access. */
void x86_store_masked(struct x86_cpu *c, const struct x86_insn *i, const u8 *v, const u8 *mask, unsigned n)
{
    for (unsigned pass = 0; pass < 2; pass++) {
        for (unsigned first = 0, end; first < n; first = end + 1) {
            for (end = first; end < n && mask[end] & 0x80; end++)
                ;
            u64 off = (c->r[X86_RDI] + first) & i->addr_mask;
            if (end == first)
                continue;
            if (pass == 0)
                x86_probe_write(c, i->mem_seg, off, end - first);
            else
                x86_store_bytes(c, i->mem_seg, off, v + first, end - first);
        }
    }
}

SSE_OP(maskmov)                         /* maskmovdqu */
{
    x86_sse_check(c);
    x86_store_masked(c, i, dest(c, i)->b, x86_xmm(c, i->op[1].reg)->b, 16);
}

/* ---- integer operations on the host --------------------------------------------------------------------------------- */

SSE_OP(sse)
{
    union x86_vec buf;
    x86_sse_check(c);
    const union x86_vec *src = source(c, i, 1, true, &buf);
    fpu_call_int(fpu_stub_of(i), dest(c, i), src);
}

SSE_OP(sse_imm)
{
    union x86_vec buf;
    x86_sse_check(c);
    const union x86_vec *src = source(c, i, 1, true, &buf);
    fpu_call_int(fpu_stub_imm(i), dest(c, i), src);
}

SSE_OP(insertps)                        /* which element of the source is meant is for a register only: memory has one */
{
    union x86_vec buf;
    struct x86_insn in = *i;
    x86_sse_check(c);
    const union x86_vec *src = source(c, i, 1, false, &buf);
    if (i->op[1].kind != X86_XMM)
        in.imm &= 0x3f;
    fpu_call_int(fpu_stub_imm(&in), dest(c, i), src);
}

SSE_OP(sse_shift)                       /* 0F 71-73 /2 /4 /6 ib do what D1-D3, E1-E3, F1-F3 do with the count in a register */
{
    union x86_vec count = { .q = { (u8)i->imm, 0 } };
    x86_sse_check(c);
    fpu_call_int(fpu_stub_0f(PFX_66, 0xc0 + (i->modrm & 0x38) + (i->opcode & 3)), dest(c, i), &count);
}

SSE_OP(sse_dqshift)                     /* psrldq, pslldq */
{
    union x86_vec v = { { 0 } };
    unsigned n = (u8)i->imm;
    x86_sse_check(c);
    if (n < 16 && (i->modrm & 0x38) == 3 << 3)
        memcpy(v.b, dest(c, i)->b + n, 16 - n);
    else if (n < 16)
        memcpy(v.b + n, dest(c, i)->b, 16 - n);
    *dest(c, i) = v;
}

SSE_OP(blendv)                          /* in C: its mask is in xmm0, which is the destination of the stubs */
{
    union x86_vec buf, *d = dest(c, i);
    unsigned size = i->opcode == 0x10 ? 1 : i->opcode == 0x14 ? 4 : 8;
    x86_sse_check(c);
    const union x86_vec *src = source(c, i, 1, true, &buf), mask = *x86_xmm(c, 0);
    for (unsigned n = 0; n < 16; n += size)
        if (mask.b[n + size - 1] & 0x80)
            memmove(d->b + n, src->b + n, size);
}

/* Size of the element that pinsr*, pextr*, extractps access. */
static unsigned element_size(const struct x86_insn *i)
{
    switch (i->opcode) {
    case 0x14: case 0x20: return 1;                     /* pextrb, pinsrb */
    case 0xc4: case 0xc5: case 0x15: return 2;          /* pinsrw, pextrw */
    case 0x17: return 4;                                /* extractps */
    default: return i->rex & 8 ? 8 : 4;
    }
}

SSE_OP(pinsr)
{
    union x86_vec buf;
    unsigned size = element_size(i), n = (u8)i->imm & (16 / size - 1);
    x86_sse_check(c);
    memcpy(dest(c, i)->b + n * size, source(c, i, 1, false, &buf), size);
}

SSE_OP(pextr)
{
    union x86_vec v = { { 0 } };
    unsigned size = element_size(i), n = (u8)i->imm & (16 / size - 1);
    x86_sse_check(c);
    memcpy(&v, x86_xmm(c, i->op[1].reg)->b + n * size, size);
    if (i->op[0].kind == X86_REG)
        x86_set64(c, i->op[0].reg, v.q[0]);
    else
        x86_fp_store(c, i, size, &v);
}

/* rax or rdx as a length for pcmpestr*: the stub takes 32 bits; lengths beyond 16 in size mean 16, so saturating changes nothing. */
static u32 string_length(u64 reg, bool wide)
{
    s64 n = wide ? (s64)reg : (s32)reg;
    return n > 16 ? 16 : n < -16 ? (u32)-16 : (u32)n;
}

SSE_OP(pcmpstr)                         /* 60-63: pcmpestrm, pcmpestri, pcmpistrm, pcmpistri; memory operands of any alignment */
{
    union x86_vec buf, d;
    bool wide = i->rex & 8;
    x86_sse_check(c);
    const union x86_vec *src = source(c, i, 1, false, &buf);
    u32 regs[3] = { string_length(c->r[X86_RAX], wide), string_length(c->r[X86_RDX], wide), 0 };
    d = *dest(c, i);
    u64 flags = fpu_call_string(fpu_stub_imm(i), &d, src, regs);
    if (i->opcode & 1)
        x86_set64(c, X86_RCX * 8, regs[2]);
    else
        *x86_xmm(c, 0) = d;             /* the destination is xmm0, in the stub as in the instruction */
    c->rflags = (c->rflags & ~(u64)X86_ARITH_FLAGS) | (flags & X86_ARITH_FLAGS);
}

/* ---- floating point ------------------------------------------------------------------------------------------------- */

void x86_mxcsr_raise(struct x86_cpu *c, u32 raised)
{
    u32 unmasked = ~c->fx.mxcsr >> 7 & raised & MXCSR_FLAGS;
    /* An unmasked exception of the operands leaves no result, so that there are no exceptions of the result (vol. 1, 11.5.3). */
    if (unlikely(unmasked & (MXCSR_IE | MXCSR_DE | MXCSR_ZE)))
        raised &= MXCSR_IE | MXCSR_DE | MXCSR_ZE;
    c->fx.mxcsr |= raised & MXCSR_FLAGS;
    if (unlikely(unmasked))
        x86_raise(c, c->cr4 & X86_CR4_OSXMMEXCPT ? X86_XM : X86_UD);
}

/* The host runs with everything masked, and the guest's mask is applied to the flags that come out. That differs from running unmasked in
 * two respects. Underflow: masked, it is flagged if the result is tiny and inexact; unmasked, if it is tiny. Flush-to-zero flags every tiny
 * result, has no effect on others, and is itself without effect when underflow is unmasked: so it serves to find out. Precision: beside an
 * unmasked underflow or overflow, PE tells whether the result with its exponent wrapped is inexact; here it is always set then. (dpps, dppd
 * with unmasked exceptions: which of the exceptions of their steps are seen differs between CPUs anyway, vol. 2.) */
struct fpu_result x86_sse_run(struct x86_cpu *c, fpu_stub *stub, union x86_vec *dst, const union x86_vec *src)
{
    u32 mxcsr = (c->fx.mxcsr & (MXCSR_RC | MXCSR_DAZ | MXCSR_FTZ)) | MXCSR_MASKS;
    if (unlikely(!(c->fx.mxcsr & MXCSR_UE << 7)))
        mxcsr |= MXCSR_FTZ;
    union x86_vec out = *dst;
    struct fpu_result r = fpu_call_fp(stub, &out, src, &mxcsr);
    if (mxcsr & MXCSR_FLAGS)
        x86_mxcsr_raise(c, mxcsr);
    *dst = out;
    return r;
}

SSE_OP(sse_fp)
{
    union x86_vec buf;
    x86_sse_check(c);
    const union x86_vec *src = source(c, i, 1, true, &buf);
    x86_sse_run(c, fpu_stub_of(i), dest(c, i), src);
}

SSE_OP(sse_fp_imm)
{
    union x86_vec buf;
    x86_sse_check(c);
    const union x86_vec *src = source(c, i, 1, true, &buf);
    x86_sse_run(c, fpu_stub_imm(i), dest(c, i), src);
}

SSE_OP(sse_flags)                       /* comis*, ucomis*, ptest */
{
    union x86_vec buf, a = *dest(c, i);
    x86_sse_check(c);
    const union x86_vec *src = source(c, i, 1, true, &buf);
    struct fpu_result r = x86_sse_run(c, fpu_stub_of(i), &a, src);
    c->rflags = (c->rflags & ~(u64)X86_ARITH_FLAGS) | (r.flags & X86_ARITH_FLAGS);
}

SSE_OP(sse_gpr)                         /* cvt*2si, movmsk*, pmovmskb: a general register is the destination */
{
    union x86_vec buf, unused = { { 0 } };
    x86_sse_check(c);
    const union x86_vec *src = source(c, i, 1, true, &buf);
    struct fpu_result r = x86_sse_run(c, fpu_stub_of(i), &unused, src);
    x86_set64(c, i->op[0].reg, i->op[0].size == 8 ? r.rax : (u32)r.rax);
}
