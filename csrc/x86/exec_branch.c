/* Near branches: jmp jcc call ret, loop loope loopne jcxz; bound. (into: exec_far.c.)
 *
 * Owns: nothing. Called by: the interpreter through x86_op tables. No locks. A branch sets next_rip; the target is checked before
 * anything changes.
 */
#include "x86/operand.h"

X86_INLINE u64 branch_rel(struct x86_cpu *c, const struct x86_insn *i, unsigned size) { return x86_branch_target(c, c->next_rip + i->imm, size); }

X86_INLINE u64 branch_operand(struct x86_cpu *c, const struct x86_insn *i, bool mem, unsigned size)
{
    return !mem && i->op[0].kind == X86_REL ? branch_rel(c, i, size) : x86_branch_target(c, x86_operand_get(c, i, 0, mem, size), size);
}

X86_INLINE void exec_jmp(struct x86_cpu *c, const struct x86_insn *i, bool mem, unsigned size) { c->next_rip = branch_operand(c, i, mem, size); }
X86_OP_SIZES(jmp, exec_jmp);

X86_INLINE void exec_jcc(struct x86_cpu *c, const struct x86_insn *i, unsigned size)
{
    if (x86_condition(c->rflags, x86_cond(i)))
        c->next_rip = branch_rel(c, i, size);
}
X86_OP_SIZES_ANY(jcc, exec_jcc);

X86_SLOW call_slow(struct x86_cpu *c, unsigned size, u64 target)
{
    u64 sp = c->r[X86_RSP];
    x86_push_at(c, &sp, size, c->next_rip & x86_mask(size));
    x86_set_sp(c, sp);
    c->next_rip = target;
}

X86_INLINE void exec_call(struct x86_cpu *c, const struct x86_insn *i, bool mem, unsigned size)
{
    u64 target = branch_operand(c, i, mem, size), sp = c->r[X86_RSP] - size;
    u8 *p = x86_fast_stack(c, sp, size, true);
    if (unlikely(!p))
        return call_slow(c, size, target);
    x86_host_set(p, size, c->next_rip);
    c->r[X86_RSP] = sp;
    c->next_rip = target;
}
X86_OP_SIZES(call, exec_call);

X86_SLOW ret_slow(struct x86_cpu *c, const struct x86_insn *i)
{
    u64 sp = c->r[X86_RSP], target = x86_branch_target(c, x86_pop_at(c, &sp, i->size), i->size);
    x86_set_sp(c, sp + (i->imm & 0xffff));
    c->next_rip = target;
}

X86_INLINE void exec_ret(struct x86_cpu *c, const struct x86_insn *i, unsigned size)
{
    u64 sp = c->r[X86_RSP];
    u8 *p = x86_fast_stack(c, sp, size, false);
    if (unlikely(!p))
        return ret_slow(c, i);
    c->next_rip = x86_branch_target(c, x86_host_get(p, size), size);
    c->r[X86_RSP] = sp + size + (i->imm & 0xffff);
}
X86_OP_SIZES_ANY(ret, exec_ret);

/* rCX by the address size; no flags change. want: 0 loop, else ZF must be (want == 1). */
X86_INLINE void exec_loop(struct x86_cpu *c, const struct x86_insn *i, unsigned size, unsigned want)
{
    u64 count = (c->r[X86_RCX] - 1) & i->addr_mask;
    bool zf = c->rflags & X86_ZF;
    if (count && (!want || zf == (want == 1)))
        c->next_rip = branch_rel(c, i, size);
    x86_reg_set_masked(c, X86_RCX, i->addr_mask, count);
}
X86_OP_SIZES_ANY(loop, exec_loop, 0);
X86_OP_SIZES_ANY(loope, exec_loop, 1);
X86_OP_SIZES_ANY(loopne, exec_loop, 2);

X86_INLINE void exec_jcxz(struct x86_cpu *c, const struct x86_insn *i, unsigned size)
{
    if (!(c->r[X86_RCX] & i->addr_mask))
        c->next_rip = branch_rel(c, i, size);
}
X86_OP_SIZES_ANY(jcxz, exec_jcxz);

/* Signed index against the pair of bounds in memory. */
static void exec_bound(struct x86_cpu *c, const struct x86_insn *i)
{
    u64 off = x86_ea(c, i);
    s64 index = (s64)x86_sext(x86_reg_get(c, i->op[0].reg, i->size), i->size);
    s64 low = (s64)x86_sext(x86_load_slow(c, i->mem_seg, off, i->size), i->size);
    s64 high = (s64)x86_sext(x86_load_slow(c, i->mem_seg, (off + i->size) & i->addr_mask, i->size), i->size);
    if (index < low || index > high)
        x86_raise(c, X86_BR);
}
X86_OP_ALL(bound, exec_bound);
