/* Addresses that follow from the instructions alone: what a register can be at most, and operands that are within one page whatever it
 * is. And numbers of hypercalls.
 *
 * Owns: struct range, near.fixed, near.ordinary. Called by: translate.c, before anything is emitted. No locks.
 *
 * A table of constants is read by an index that was masked, shifted or extended just before; a variable is at an address that is in the
 * instruction. If all bytes that such an operand may reach are in one page it needs one test for the page, which holds for the whole block,
 * where a span would need one each time its register is computed anew (access_fixed in memory.c). A block begins with nothing known of any
 * register.
 */
#include "bt/translate.h"

#if defined(__x86_64__)

extern const struct x86_op x86_op_mov, x86_op_movzx, x86_op_xor, x86_op_sub, x86_op_and, x86_op_shl, x86_op_shr, x86_op_add, x86_op_lea;

static const struct range UNKNOWN;
static struct range exactly(u64 x) { return (struct range){ true, 63, x, 0 }; }
static u64 last(const struct range *r) { return r->low + r->width; }

/* r, if it says something that is worth keeping and does not go round at `all`. */
static struct range sound(struct range r, u64 all)
{
    return r.on && r.low <= all && r.width <= 0xffffffff && r.width <= all - r.low ? r : UNKNOWN;
}

static struct range shifted(const struct range *old, bool left, unsigned by, u64 all)
{
    if (!by)
        return *old;
    if (!old->on)
        return left ? UNKNOWN : sound((struct range){ true, 0, 0, all >> by }, all);
    if (left) {
        u8 zeros = (u8)(old->zeros + by < 63 ? old->zeros + by : 63);
        return last(old) > all >> by ? UNKNOWN : sound((struct range){ true, zeros, old->low << by, old->width << by }, all);
    }
    bool exact = !(old->low & ((1ul << by) - 1)) && old->zeros >= by;
    return (struct range){ true, exact ? (u8)(old->zeros - by) : 0, old->low >> by, (last(old) >> by) - (old->low >> by) };
}

static struct range masked(const struct range *old, u64 mask)
{
    struct range r = { true, (u8)(mask ? __builtin_ctzl(mask) : 63), 0, mask };
    if (mask > 0x7fffffff)
        return UNKNOWN;
    if (old->on && !old->low) {
        r.width = old->width < mask ? old->width : mask;
        r.zeros = old->zeros > r.zeros ? old->zeros : r.zeros;
    }
    return r;
}

/* Of the general register that the instruction, at `va`, writes as its first operand. */
static struct range written_range(const struct x86_insn *i, const struct range *r, u64 va)
{
    const struct x86_op *op = x86_forms[i->form].op;
    const struct x86_operand *a = &i->op[0], *b = &i->op[1];
    u64 all = i->size == 8 ? ~0ul : 0xffffffff;
    if (i->size < 4 || i->nr_ops < 2 || a->reg % 8)
        return UNKNOWN;
    struct range old = sound(r[a->reg / 8], all);
    bool same = b->kind == X86_REG && b->reg == a->reg;
    if (op == &x86_op_movzx)
        return (struct range){ true, 0, 0, b->size == 1 ? 0xff : 0xffff };
    if (same && (op == &x86_op_xor || op == &x86_op_sub))
        return exactly(0);
    if (op == &x86_op_mov && b->kind == X86_REG)
        return sound(r[b->reg / 8], all);
    if (op == &x86_op_lea && i->size == 8 && i->addr_mask == ~0ul && i->index == X86_ZERO) {
        struct range from = i->base == X86_RIP ? exactly(va) : i->base == X86_ZERO ? exactly(0) : r[i->base];
        from.low += (u64)i->disp;
        return sound(from, all);
    }
    if (b->kind != X86_IMM)
        return UNKNOWN;
    if (op == &x86_op_mov)
        return exactly(i->imm & all);
    if (op == &x86_op_and)
        return masked(&old, i->imm & all);
    if (op == &x86_op_shl || op == &x86_op_shr)
        return shifted(&old, op == &x86_op_shl, i->imm & (i->size == 8 ? 63 : 31), all);
    if (op == &x86_op_add || op == &x86_op_sub) {
        old.low += op == &x86_op_add ? i->imm : -i->imm;
        return sound(old, all);
    }
    return UNKNOWN;
}

/* All bytes of the memory operand, of n->size, are in one page, which is near enough to 0 for its address to be in an instruction. */
static void find_page(const struct x86_insn *i, const struct range *r, u64 va, struct near *n)
{
    struct range at = UNKNOWN;
    if (i->index != X86_ZERO && i->index < R_13 && i->base == X86_ZERO)
        at = shifted(&r[i->index], true, i->scale, ~0ul);
    else if (i->index == X86_ZERO)
        at = i->base == X86_RIP ? exactly(va) : i->base == X86_ZERO ? exactly(0) : i->base < R_13 && i->base != R_SP ? r[i->base] : UNKNOWN;
    u64 low = at.low + (u64)i->disp, page = low & ~(u64)(PAGE_SIZE - 1);
    if (!at.on || i->addr_mask != ~0ul || i->mem_seg == X86_FS || i->mem_seg == X86_GS || at.width >= PAGE_SIZE ||
        low - page + at.width + n->size > PAGE_SIZE || (n->aligned && (low % 16 || (at.width && at.zeros < 4))))
        return;
    s64 reach = (s64)page;
    n->fixed = reach >= -(1l << 31) + PAGE_SIZE && reach < (1l << 31) - PAGE_SIZE && (i->base == X86_RIP || i->disp == (s32)i->disp);
    n->page = page;
}

void range_next(const struct translation *tr, struct range r[16], struct near *n, u64 va)
{
    const struct x86_insn *i = tr->i;
    if (tr->context & CTX_32)
        return;
    if (n->mem)
        find_page(i, r, va, n);
    n->ordinary = r[R_AX].on && !r[R_AX].width && !(r[R_AX].low < 64 && tr->t->cpu->ops->quick >> r[R_AX].low & 1);
    struct range to = i->nr_ops && i->op[0].kind == X86_REG ? written_range(i, r, va) : UNKNOWN;
    for (unsigned k = 0; k < 16; k++) {
        bool constant;
        s64 by;
        if (r[k].on && (n->step || near_changes(i, k, &by, &constant)))
            r[k] = UNKNOWN;
    }
    if (to.on && !n->step && i->op[0].reg / 8 != R_SP)
        r[i->op[0].reg / 8] = to;
}

#endif
