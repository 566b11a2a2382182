/* Whether the CPU's code can be translated, and for which context.
 *
 * Owns: bt->mode. Called by: run.c, between the guest's instructions. No locks.
 */
#ifndef XL_BT_CONTEXT_H
#define XL_BT_CONTEXT_H

#include <string.h>

#include "bt/internal.h"
#include "x86/fpu.h"
#include "x86/system.h"

/* Data can be read and written anywhere in 4 GiB. */
static bool no_limit(const struct x86_seg *s)
{
    enum { DATA = X86_ATTR_UNUSABLE | X86_SEG_CODE | X86_SEG_EC | X86_SEG_RW };
    return s->limit == 0xffffffff && (s->attr & DATA) == X86_SEG_RW;
}

/* Code whose offsets are linear addresses, and that no segment ever stops. */
static bool is_flat(const struct x86_cpu *c)
{
    const struct x86_seg *s = c->seg;
    return !c->real && !(s[X86_ES].base | s[X86_CS].base | s[X86_SS].base | s[X86_DS].base) && s[X86_CS].limit == 0xffffffff &&
           s[X86_SS].attr & X86_ATTR_DB && no_limit(&s[X86_ES]) && no_limit(&s[X86_SS]) && no_limit(&s[X86_DS]);
}

static inline bool can_translate(const struct x86_cpu *c) { return !c->strict && (likely(c->mode == 64) || (c->mode == 32 && is_flat(c))); }

/* All that decides on the context of 64-bit code. */
static inline struct bt_mode mode_of(const struct x86_cpu *c)
{
    struct bt_mode m = { .cr0 = c->cr0, .cr4 = c->cr4,
                         .masks = (u64)(c->fx.mxcsr & MXCSR_MASKS) << 32 | (u64)(c->fx.fcw & X87_FLAGS) << 16 | (c->fx.fsw & X87_ES) };
    memcpy(&m.level, &c->tlb_set, sizeof m.level);
    return m;
}

static u16 find_context(const struct x86_cpu *c)
{
    bool sse = !(c->cr0 & (X86_CR0_EM | X86_CR0_TS)) && c->cr4 & X86_CR4_OSFXSR;
    bool masked = (c->fx.mxcsr & MXCSR_MASKS) == MXCSR_MASKS;
    u16 context = (u16)((c->tlb_set ? CTX_SET : 0) | (c->cpl ? CTX_CPL : 0) | (sse ? CTX_SSE : 0) | (sse && masked ? CTX_FP : 0));
    if (!(c->cr0 & (X86_CR0_EM | X86_CR0_TS)) && !(c->fx.fsw & X87_ES) && (c->fx.fcw & X87_FLAGS) == X87_FLAGS)
        context |= CTX_X87;
    if (unlikely(c->mode == 32))
        context |= (u16)(CTX_32 | (no_limit(&c->seg[X86_FS]) ? CTX_FS : 0) | (no_limit(&c->seg[X86_GS]) ? CTX_GS : 0));
    return context;
}

/* Most instructions that the interpreter does, or Xen, leave it as it was. */
static inline u16 context_of(struct bt *t)
{
    const struct x86_cpu *c = t->cpu;
    struct bt_mode now = mode_of(c), *old = &t->mode;
    if (likely(now.level == old->level && now.cr0 == old->cr0 && now.cr4 == old->cr4 && now.masks == old->masks && c->mode == 64))
        return old->context;
    *old = now;
    return old->context = find_context(c);
}

#endif
