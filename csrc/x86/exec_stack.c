/* push pop pusha popa pushf popf enter leave, segment registers on the stack.
 *
 * Owns: nothing. Called by: the interpreter through x86_op tables. No locks. rSP changes last: an instruction that faults has not moved it.
 */
#include "x86/operand.h"

X86_SLOW push_slow(struct x86_cpu *c, unsigned size, u64 x)
{
    u64 sp = c->r[X86_RSP];
    x86_push_at(c, &sp, size, x);
    x86_set_sp(c, sp);
}

X86_INLINE void push(struct x86_cpu *c, unsigned size, u64 x)
{
    u64 sp = c->r[X86_RSP] - size;
    u8 *p = x86_fast_stack(c, sp, size, true);
    if (unlikely(!p))
        return push_slow(c, size, x);
    x86_host_set(p, size, x);
    c->r[X86_RSP] = sp;
}

X86_INLINE void exec_push(struct x86_cpu *c, const struct x86_insn *i, bool mem, unsigned size)
{
    push(c, size, x86_operand_get(c, i, 0, mem, size));
}
X86_OP_SIZES(push, exec_push);

/* A destination in memory that is addressed by rSP is so by its value after the pop (vol. 2, POP). */
X86_SLOW pop_slow(struct x86_cpu *c, const struct x86_insn *i)
{
    u64 before = c->r[X86_RSP], sp = before, x = x86_pop_at(c, &sp, i->size);
    if (i->op[0].kind == X86_MEM) {
        x86_set_sp(c, sp);
        u64 off = x86_ea(c, i);
        c->r[X86_RSP] = before;
        x86_store_slow(c, i->mem_seg, off, i->size, x);
        x86_set_sp(c, sp);
    } else {
        x86_set_sp(c, sp);                                      /* first: pop rsp has the value popped */
        x86_reg_set(c, i->op[0].reg, i->size, x);
    }
}

X86_INLINE void exec_pop(struct x86_cpu *c, const struct x86_insn *i, bool mem, unsigned size)
{
    u64 sp = c->r[X86_RSP];
    u8 *p = mem ? NULL : x86_fast_stack(c, sp, size, false);
    if (unlikely(!p))
        return pop_slow(c, i);
    c->r[X86_RSP] = sp + size;
    x86_reg_set(c, i->op[0].reg, size, x86_host_get(p, size));
}
X86_OP_SIZES(pop, exec_pop);

/* ---- segment registers -------------------------------------------------------------------------------------------------- */

/* With operand size 32 only two of the four bytes are written, as by all recent Intel cores (vol. 2, PUSH). */
static void exec_push_seg(struct x86_cpu *c, const struct x86_insn *i)
{
    u64 sp = c->r[X86_RSP] - i->size;
    x86_store_slow(c, X86_SS, sp & x86_stack_mask(c), i->size == 4 ? 2 : i->size, c->seg[i->op[0].reg].sel);
    x86_set_sp(c, sp);
}
X86_OP_ALL(push_seg, exec_push_seg);

static void exec_pop_seg(struct x86_cpu *c, const struct x86_insn *i)
{
    u64 sp = c->r[X86_RSP], mask = x86_stack_mask(c);
    u16 sel = (u16)x86_load_slow(c, X86_SS, sp & mask, i->size == 4 ? 2 : i->size);
    x86_load_segment(c, i->op[0].reg, sel);
    x86_reg_set_masked(c, X86_RSP, mask, sp + i->size);         /* by the old stack's width if this was pop ss */
    if (i->op[0].reg == X86_SS)
        c->slow |= X86_SLOW_SHADOW;
}
X86_OP_ALL(pop_seg, exec_pop_seg);

/* ---- all registers ---------------------------------------------------------------------------------------------------------- */

static void exec_pusha(struct x86_cpu *c, const struct x86_insn *i)
{
    u64 sp = c->r[X86_RSP], mask = x86_stack_mask(c);
    for (unsigned n = 1; n <= 8; n++)
        x86_probe_write(c, X86_SS, (sp - n * i->size) & mask, i->size);
    for (unsigned n = 0; n < 8; n++)
        x86_push_at(c, &sp, i->size, c->r[n] & x86_mask(i->size));      /* rSP itself: as it was before */
    x86_set_sp(c, sp);
}
X86_OP_ALL(pusha, exec_pusha);

static void exec_popa(struct x86_cpu *c, const struct x86_insn *i)
{
    u64 sp = c->r[X86_RSP], x[8];
    for (int n = 7; n >= 0; n--)
        x[n] = x86_pop_at(c, &sp, i->size);
    for (unsigned n = 0; n < 8; n++)
        if (n != X86_RSP)
            x86_reg_set(c, n * 8, i->size, x[n]);
    x86_set_sp(c, sp);
}
X86_OP_ALL(popa, exec_popa);

/* ---- flags (vol. 2, PUSHF and POPF) ------------------------------------------------------------------------------------------- */

static bool vm86_restricted(const struct x86_cpu *c) { return c->rflags & X86_VM && (c->rflags & X86_IOPL) != X86_IOPL; }

static void exec_pushf(struct x86_cpu *c, const struct x86_insn *i)
{
    u64 x = c->rflags & ~(u64)(X86_VM | X86_RF), sp = c->r[X86_RSP];
    if (vm86_restricted(c)) {
        if (!(c->cr4 & X86_CR4_VME) || i->size != 2)
            x86_raise_error(c, X86_GP, 0);
        x = x86_flags_merge(x, X86_IF, x & X86_VIF ? X86_IF : 0) | X86_IOPL;
    }
    x86_push_at(c, &sp, i->size, x & x86_mask(i->size));
    x86_set_sp(c, sp);
}
X86_OP_ALL(pushf, exec_pushf);

static void exec_popf(struct x86_cpu *c, const struct x86_insn *i)
{
    u64 mask = X86_ARITH_FLAGS | X86_TF | X86_DF | X86_NT | X86_AC | X86_ID, sp = c->r[X86_RSP], x;
    bool restricted = vm86_restricted(c);
    if (restricted && (!(c->cr4 & X86_CR4_VME) || i->size != 2))
        x86_raise_error(c, X86_GP, 0);
    x = x86_pop_at(c, &sp, i->size);
    if (restricted) {                                           /* VIF stands in for IF */
        if (x & X86_TF || (x & X86_IF && c->rflags & X86_VIP))
            x86_raise_error(c, X86_GP, 0);
        x = x86_flags_merge(x, X86_VIF, x & X86_IF ? X86_VIF : 0);
    } else if (!(c->cr0 & X86_CR0_PE) || (c->cpl == 0 && !(c->rflags & X86_VM))) {
        mask |= X86_IF | X86_IOPL;
    } else if (c->rflags & X86_VM || c->cpl <= (c->rflags >> 12 & 3)) {
        mask |= X86_IF;
    }
    if (i->size == 2)
        mask &= 0xffff;                                         /* AC, ID stay */
    x86_set_sp(c, sp);
    x86_set_flags(c, x, mask | (restricted ? X86_VIF : 0));
}
X86_OP_ALL(popf, exec_popf);

/* ---- frames --------------------------------------------------------------------------------------------------------------------- */

/* A fault halfway, the last of which is that of a store at the new top of the stack, leaves what was pushed below rSP in memory, as on
 * hardware, and the registers unchanged. Later levels may read what was pushed before. */
static void exec_enter(struct x86_cpu *c, const struct x86_insn *i)
{
    unsigned level = i->sel & 31, size = i->size;
    u64 mask = x86_stack_mask(c), sp = c->r[X86_RSP], bp = c->r[X86_RBP], frame = sp - size, last;
    if (mask == 0xffff)
        frame = x86_flags_merge(sp, mask, frame & mask);        /* as the push leaves ESP: operand size 32 takes all of it */
    last = frame - (u64)level * size - (i->imm & 0xffff);
    x86_push_at(c, &sp, size, bp & x86_mask(size));
    for (unsigned n = 1; n < level; n++) {
        bp -= size;
        x86_push_at(c, &sp, size, x86_load_slow(c, X86_SS, bp & mask, size));
    }
    if (level)
        x86_push_at(c, &sp, size, frame & x86_mask(size));
    x86_probe_write(c, X86_SS, last & mask, size);
    x86_reg_set(c, X86_RBP * 8, size, frame);
    x86_set_sp(c, last);
}
X86_OP_ALL(enter, exec_enter);

X86_SLOW leave_slow(struct x86_cpu *c, const struct x86_insn *i)
{
    u64 sp = c->r[X86_RBP], x = x86_pop_at(c, &sp, i->size);
    x86_set_sp(c, sp);
    x86_reg_set(c, X86_RBP * 8, i->size, x);
}

X86_INLINE void exec_leave(struct x86_cpu *c, const struct x86_insn *i, unsigned size)
{
    u64 sp = c->r[X86_RBP];
    u8 *p = x86_fast_stack(c, sp, size, false);
    if (unlikely(!p))
        return leave_slow(c, i);
    c->r[X86_RSP] = sp + size;
    x86_reg_set(c, X86_RBP * 8, size, x86_host_get(p, size));
}
X86_OP_SIZES_ANY(leave, exec_leave);
