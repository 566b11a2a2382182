/* Accesses near by: runs of instructions that reach memory at constant distances from one base register, so that one look at the TLB serves
 * all of them.
 *
 * Owns: struct span, struct run, struct carry between instructions. Called by: translate.c, memory.c.
 *
 * Most pages of most guests are at the same distance from their place in the host, bt->slide. A span: the first access by a register tests
 * that all bytes which the instructions behind it will reach by that register are in one page that has bt->slide. The others test nothing,
 * and any number of registers can have one. What it takes: a base that only constants are added to. Base and index are a place as well,
 * which has a span if it pays.
 *
 * A run, where the slide is not expected (expects_slide in memory.c): the first access looks for the entry of the page of the lowest one,
 * and leaves the page's addend in r14, the distance from the page's beginning in r15; the others only compare r15. What it takes besides:
 * nothing in between that needs r14 or r15.
 */
#include "bt/translate.h"

#if defined(__x86_64__)

#define FORM(op, ...) extern const struct x86_op x86_op_##op;
#include "x86/forms.def"
#include "x86/forms_sse.def"
#undef FORM

#define OP(name) &x86_op_##name
/* Ops that write no general register but their first operand. */
static const struct x86_op *const EXPLICIT[] = {
    OP(mov), OP(movzx), OP(movsx), OP(movsxd), OP(lea), OP(add), OP(or), OP(adc), OP(sbb), OP(and), OP(sub), OP(xor), OP(inc), OP(dec), OP(not),
    OP(neg), OP(rol), OP(ror), OP(rcl), OP(rcr), OP(shl), OP(shr), OP(sar), OP(shld), OP(shrd), OP(setcc), OP(cmovcc), OP(bts), OP(btr), OP(btc),
    OP(bswap), OP(movbe), OP(popcnt), OP(tzcnt), OP(lzcnt), OP(bsf), OP(bsr), OP(andn), OP(blsr), OP(blsmsk), OP(blsi), OP(bzhi), OP(shlx), OP(sarx),
    OP(shrx), OP(rorx), OP(mova), OP(movu), OP(movscalar), OP(movq), OP(movd), OP(movl), OP(movh), OP(pextr), OP(pinsr), OP(sse), OP(sse_imm),
    OP(sse_shift), OP(sse_dqshift), OP(sse_fp), OP(sse_fp_imm), OP(sse_gpr), OP(pop),
}, *const NONE[] = { OP(cmp), OP(test), OP(bt), OP(nop), OP(jcc), OP(jmp), OP(push), OP(sse_flags) };

static bool is_in(const struct x86_op *op, const struct x86_op *const *list, unsigned n)
{
    for (unsigned k = 0; k < n; k++)
        if (list[k] == op)
            return true;
    return false;
}

bool near_changes(const struct x86_insn *i, unsigned base, s64 *by, bool *constant)
{
    const struct x86_op *op = x86_forms[i->form].op;
    bool first = i->nr_ops && i->op[0].kind == X86_REG && i->op[0].reg / 8u == base;
    *constant = false;
    if (op == OP(push) || (op == OP(pop) && !first)) {
        *constant = base == R_SP, *by = op == OP(push) ? -8 : 8;
        return base == R_SP;
    }
    if (is_in(op, NONE, ARRAY_SIZE(NONE)))
        return false;
    if (!is_in(op, EXPLICIT, ARRAY_SIZE(EXPLICIT)) && !(op == OP(imul) && i->nr_ops > 1))
        return true;
    if (!first)
        return false;
    if ((op == OP(add) || op == OP(sub)) && i->size == 8 && i->op[1].kind == X86_IMM)
        *constant = true, *by = op == OP(add) ? (s64)i->imm : -(s64)i->imm;
    if (op == OP(lea) && i->size == 8 && i->base == base && i->index == X86_ZERO && i->addr_mask == ~0ul)
        *constant = true, *by = i->disp;
    return true;
}

/* The same of a place. */
static bool changes_place(const struct x86_insn *i, struct place of, s64 *by, bool *constant)
{
    s64 more = 0;
    bool also = true, changed;
    *by = 0, *constant = true;
    changed = of.base < R_13 && near_changes(i, of.base, by, constant);
    if (of.index >= R_13 || !near_changes(i, of.index, &more, &also))
        return changed;
    *constant &= also, *by = (changed ? *by : 0) + (s64)((u64)more << of.scale);
    return true;
}

/* A look at the instructions behind tr->i, for as long as only constants are added to the registers of a place. */
struct ahead { const struct x86_insn *i; unsigned k; s64 moved; bool branched; };      /* moved: the constants so far; branched: a branch came before */

/* The next instruction, in ahead->i. NULL: there is none, or the place will be something else. */
static const struct near *look_ahead(const struct translation *tr, struct place of, struct ahead *a)
{
    bool constant;
    s64 by;
    if (a->k == tr->nr_rest)
        return NULL;
    if (changes_place(a->i, of, &by, &constant)) {
        if (!constant)
            return NULL;
        a->moved += by;
    }
    const struct near *n = &tr->rest_near[a->k];
    a->i = &tr->rest[a->k++];
    a->branched |= n->branch;
    return n;
}

struct run near_run(struct translation *tr, unsigned base, s32 disp, bool write)
{
    struct run run = { disp, write };
    struct ahead a = { .i = tr->i };
    const struct near *n;
    while ((n = look_ahead(tr, place_of(base), &a)) && n->keeps && (!n->access || same_place(n->of, place_of(base)))) {
        s64 d = n->disp + a.moved;
        if (!n->access)
            continue;
        if (d < (s64)disp - NEAR || d > (s64)disp + NEAR || (n->write && !run.write && a.branched))
            break;                      /* what is stored on some paths only does not make loads stores */
        run.write |= n->write;
        run.low = d < run.low ? (s32)d : run.low;
    }
    return run;
}

static s32 round_up_16(s64 n) { return (s32)((n + 15) & ~15); }

/* s with the access in it. False: it has no place there. */
static bool include(struct span *s, const struct near *n, s64 disp, s64 most)
{
    struct span with = *s;
    s64 low = disp < s->low ? disp : s->low, high = disp + n->size > s->high ? disp + n->size : s->high;
    if (high - low > most || (n->aligned && s->whole && (disp - s->low) % 16))
        return false;
    with.whole |= n->aligned;
    s64 at = s->whole ? s->low : disp;  /* where it is a multiple of 16 */
    with.low = with.whole ? (s32)at - round_up_16(at - low) : (s32)low;
    with.high = (s32)high;
    if (with.high - with.low > most)
        return false;
    *s = with;
    return true;
}

bool near_address(const struct translation *tr, struct place of, u64 *va)
{
    *va = 0;
    for (unsigned k = 0; k < 2; k++) {
        unsigned n = k ? of.index : of.base;
        if (n == X86_ZERO)
            continue;
        if (n >= R_13 || !tr->known[n])
            return false;
        *va += (tr->t->cpu->r[n] + (u64)tr->moved[n]) << (k ? of.scale : 0);
    }
    return true;
}

/* How long a span may be: one that has to fit where the place may be anywhere, or that fits where it is now. */
static s64 longest(const struct translation *tr, struct place of, s64 disp)
{
    enum { ANYWHERE = 256 };
    u64 now;
    return near_address(tr, of, &now) ? (s64)(PAGE_SIZE - (now + (u64)disp) % PAGE_SIZE) : ANYWHERE;
}

struct span near_span(struct translation *tr, struct place of, s32 disp, unsigned size, bool write, bool aligned)
{
    struct span s = { true, write, aligned, disp, disp + (s32)size, of, 0 };
    struct ahead a = { .i = tr->i };
    const struct near *n;
    while ((n = look_ahead(tr, of, &a)) && !n->step) {
        s64 d = n->disp + a.moved, low = d < s.low ? d : s.low;
        if (!n->access || !same_place(n->of, of) || d != (s32)d || (n->write && !s.write && a.branched))
            continue;                   /* what is stored on some paths only does not make loads stores */
        if (include(&s, n, d, longest(tr, of, low)))
            s.write |= n->write, s.others++;
    }
    return s;
}

/* A constant was added to a register that this is about. False: it cannot be said any more. */
static bool move_span(struct span *s, s64 by)
{
    s64 low = s->low - by, high = s->high - by;
    s->low = (s32)low, s->high = (s32)high;
    return low == (s32)low && high == (s32)high;
}

void near_after(struct translation *tr)
{
    struct carry *k = &tr->carry;
    for (struct span *s = tr->wide; s < tr->wide + WIDE; s++) {
        bool constant;
        s64 by;
        if (s->on && changes_place(tr->i, s->of, &by, &constant))
            s->on = constant && move_span(s, by);
    }
    for (unsigned base = 0; base < R_13; base++) {
        bool constant;
        s64 by;
        if ((!tr->span[base].on && !tr->known[base] && !(k->on && k->base == base)) || !near_changes(tr->i, base, &by, &constant))
            continue;
        tr->known[base] &= constant;
        tr->moved[base] += constant ? by : 0;
        tr->span[base].on &= constant && move_span(&tr->span[base], by);
        if (k->on && k->base == base) {
            s64 bias = (s64)k->bias - by;
            k->on = constant && bias == (s32)bias;
            k->bias = (s32)bias;
        }
    }
}

#endif
