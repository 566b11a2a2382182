/* What a guest register can be, by the instructions before it in the block: as verify_access.c wants it for operands within one page.
 *
 * Owns: check.range. Called by: verify.c behind each instruction; verify_access.c. Independent of range.c, which must not be cleverer.
 */
#include "bt/verify.h"

#if defined(__x86_64__)

#define FORM(op, ...) extern const struct x86_op x86_op_##op;
#include "x86/forms.def"
#include "x86/forms_sse.def"
#undef FORM

static u64 step_of(u64 x) { return x & -x; }

/* What the instruction makes of its first operand, register a; `from` is what that was. False: it may be anything. */
static bool becomes(const struct check *c, unsigned a, const struct known_range *from, struct known_range *to)
{
    const struct x86_insn *g = c->g;
    const struct x86_op *op = x86_forms[g->form].op;
    const struct x86_operand *b = &g->op[1];
    u64 all = g->size == 8 ? ~0ul : 0xffffffff, imm = g->imm & all;
    unsigned by = (unsigned)(imm & (g->size == 8 ? 63 : 31));
    bool whole = from->on && from->high <= all;
    *to = (struct known_range){ .on = true };
    if (op == &x86_op_movzx)
        return to->high = (1ul << 8 * b->size) - 1, to->step = 1, b->size <= 2;
    if ((op == &x86_op_xor || op == &x86_op_sub) && b->kind == X86_REG && b->reg == 8 * a)
        return true;
    if (op == &x86_op_mov && b->kind == X86_REG && !(b->reg % 8))
        return *to = c->range[b->reg / 8], to->on && to->high <= all;
    if (op == &x86_op_lea && g->size == 8 && g->addr_mask == ~0ul && g->index == X86_ZERO) {
        if (g->base < 16)
            *to = c->range[g->base];
        else if (g->base == X86_RIP)
            to->low = to->high = c->b->va + (u64)c->off;
        to->low += (u64)g->disp, to->high += (u64)g->disp;
        return to->on && to->low <= to->high;
    }
    if (b->kind != X86_IMM)
        return false;
    if (op == &x86_op_mov)
        return to->low = to->high = imm, true;
    if (op == &x86_op_and) {
        to->high = whole && from->high < imm ? from->high : imm, to->step = step_of(imm);
        if (whole && !from->low && (!from->step || from->step > to->step))
            to->step = from->step;
        return true;
    }
    if (op == &x86_op_shl && whole && from->high << by >> by == from->high && from->high << by <= all)
        return to->low = from->low << by, to->high = from->high << by, to->step = from->step << by, true;
    if (op == &x86_op_shr) {
        to->low = whole ? from->low >> by : 0, to->high = (whole ? from->high : all) >> by, to->step = 1;
        if (whole && !(((from->low | from->step) & ((1ul << by) - 1))))
            to->step = from->step >> by;
        return true;
    }
    if ((op == &x86_op_add || op == &x86_op_sub) && whole) {
        u64 more = op == &x86_op_add ? imm : -imm;
        *to = *from, to->low = (to->low + more) & all, to->high = (to->high + more) & all;
        return to->low <= to->high;
    }
    return false;
}

void verify_ranges(struct check *c, bool any)
{
    struct known_range now[16] = { 0 };
    const struct x86_insn *g = c->g;
    for (unsigned n = 0; n < 16 && !any && verify_width(c) == 8; n++) {
        bool first = n != R_SP && g->op[0].kind == X86_REG && g->op[0].reg == 8 * n && g->nr_ops > 1 && g->size >= 4;
        if (verify_behind(c, n) == guest(c, n))
            now[n] = c->range[n];
        else if (!first || !becomes(c, n, &c->range[n], &now[n]))
            now[n].on = false;
    }
    memcpy(c->range, now, sizeof now);
}

bool verify_lies_in(const struct check *c, value lin, unsigned size, unsigned align, u64 page)
{
    struct value_node sum = c->values.v[lin];
    if (sum.kind != VAL_SUM)
        memset(&sum, 0, sizeof sum), sum.kind = VAL_SUM, sum.nr = 1, sum.term[0] = lin;
    u64 low = sum.n, width = size, loose = 0;
    for (unsigned k = 0; k < sum.nr; k++) {
        const struct value_node *term = &c->values.v[sum.term[k]];
        const struct known_range *r = &c->range[term->n % 16];
        if (term->kind != VAL_GUEST || !r->on || r->high - r->low > PAGE_SIZE || sum.shift[k] > 3)
            return false;
        low += r->low << sum.shift[k], width += (r->high - r->low) << sum.shift[k];
        loose |= r->high > r->low ? r->step << sum.shift[k] : 0;
    }
    return lin && low - page < PAGE_SIZE && low - page + width <= PAGE_SIZE && !((low | loose) % align);
}

#endif
