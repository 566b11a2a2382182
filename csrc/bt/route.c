/* Which instructions a block is made of.
 *
 * Owns: the way a block takes through its page (struct route). Called by: translate.c. No locks. It goes by the bytes and the ops' rules
 * alone: nothing is emitted here.
 */
#include "bt/translate.h"
#include "x86/decode.h"
#include "x86/system.h"

#if defined(__x86_64__)

extern const struct x86_op x86_op_syscall;

enum { FOLLOW = 512 };           /* bytes that a jump may skip and still be followed: they become the block's too */

bool route_comes_back(const struct bt *t, u16 context, const struct x86_insn *i)
{
    return x86_forms[i->form].op == &x86_op_syscall && i->mode == 64 && !(context & CTX_SET) && t->cpu->ops->syscall != x86_syscall_native;
}

static bool visits(const struct route *p, s64 off)
{
    for (unsigned k = 0; k < p->nr; k++)
        if (p->off[k] == off)
            return true;
    return false;
}

static bool is_taken(const struct loop_path *loop, s64 off)
{
    for (unsigned k = 0; loop && k < loop->nr; k++)
        if (loop->taken[k] == off)
            return true;
    return false;
}

/* How many instructions of a loop of so many make a block: a number of rounds that often divides how many there are, so that the loop is
 * left where its block ends; and enough of them that what the block does once, at its head, is little. */
static unsigned unrolled(unsigned once)
{
    enum { ENOUGH = 8 };
    unsigned n = once;
    while (2 * n <= (n < ENOUGH * once ? BT_MAX_BLOCK : BT_STRAIGHT))
        n *= 2;
    return n;
}

/* Up to a branch that leads nobody knows where. Followed are conditional branches, as not taken, unless the path of the loop says
 * otherwise or they close one; jumps to what is near; and the branch that closes the loop around the whole block, for as often as there
 * is room. */
void route_decode(const struct bt *t, const u8 *page, u64 va, u16 context, const struct loop_path *loop, struct route *p)
{
    unsigned mode = context_mode(context);
    int first = (int)(va % PAGE_SIZE), at = 0, from = -first, end = PAGE_SIZE - first;
    unsigned max = t->options & BT_ONE ? 1 : BT_STRAIGHT, once = 0;
    p->nr = 0, p->low = p->high = 0;
    while (p->nr < max) {
        int left = end - at;
        struct x86_insn *i = &p->i[p->nr];
        if (once && p->nr >= once)
            *i = p->i[p->nr - once];
        else if (left <= 0 || x86_decode(i, page + first + at, left < 15 ? (unsigned)left : 15, mode, t->features) <= 0)
            break;
        s64 off = at;
        p->off[p->nr++] = (s16)at;
        p->low = at < p->low ? at : p->low;
        at += i->len;
        p->high = at > p->high ? at : p->high;
        if (!(x86_forms[i->form].attr & F_BRANCH) || route_comes_back(t, context, i))
            continue;
        u8 rule = t->form_rule[i->form];
        s64 to = at + (s64)i->imm;
        bool jump = rule == JMP && i->op[0].kind == X86_REL;
        if (mode == 32 && i->size != 4)
            break;                      /* cuts the address to 16 bits */
        if ((rule == JCC || jump) && !to && loop) {
            if (!once)
                once = p->nr, max = t->options & BT_ONE ? 1 : unrolled(once);
            if (p->nr + once > max)
                break;
            at = 0;
        } else if ((jump || (rule == JCC && is_taken(loop, off))) && to >= from && to < end && to >= at - FOLLOW && to < at + FOLLOW &&
                   (once || !visits(p, to))) {
            at = (int)to;
        } else if (rule != JCC || !i->imm || (!once && visits(p, to)) || !is_plain(va + (u64)to, mode)) {
            break;                      /* the last: the interpreter does it, so the block ends there (tr_rule) */
        }
    }
    p->off[p->nr] = (s16)at;
}

#endif
