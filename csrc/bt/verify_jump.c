/* Where translated code goes: the ends of a path.
 *
 * Owns: what a jump, a call and an exit have to be, and to say, for the guest to go on as it would. Called by: verify.c, verify_inserted.c;
 * calls back into verify.c (verify_follow, verify_from) where a path forks. No locks. No state but the caller's stack.
 */
#include "bt/verify.h"

#if defined(__x86_64__)

extern const struct x86_op x86_op_call, x86_op_jcc, x86_op_jcxz, x86_op_jmp, x86_op_syscall, x86_op_sysret, x86_op_iret;

/* ---- ways out ---------------------------------------------------------------------------------------------------- */

static const struct bt_exit *exit_of(struct check *c, const struct path *p)
{
    const struct bt_exit *x = &c->t->exits[p->exit];
    if (p->exit >= c->t->nr_exits || &c->t->block[x->block] != c->b) {
        verify_refuse(c, "leaves without an exit of this block");
        return NULL;
    }
    return x;
}

/* Where the loop comes back after exit x is the next instruction, or what is behind the last: bt_verify_why looks at that. */
static bool returns_well(struct check *c, const struct path *p, const struct bt_exit *x)
{
    if (x->behind)
        verify_spans(c, x->drops ? NULL : p, true);
    if (x->behind)
        c->to.saved &= p->saved && !c->effect.forbidden, c->to.live &= p->live, c->to.fell = true;
    if (x->behind && !c->next && c->g)
        c->behind = x->behind;
    return !x->behind || (x->behind == c->next && c->next_off == c->off + (int)c->len) || (!c->next && c->g) ||
           verify_refuse(c, "goes on elsewhere than behind the instruction");
}

/* rip as the exit has it: the instruction's, nothing having happened, or the next one's. */
static bool leaves_at(struct check *c, const struct path *p, const struct bt_exit *x)
{
    const struct effect *f = &c->effect;
    if (x->kind == EXIT_TIME && f->branch && p->flags == FL_GUEST && verify_is_after(c, p) && x->k == (int)c->nr + 1 - p->taken &&
        f->conditional && p->decided && value_const(&c->values, c->b->va + x->off) == (p->sent ? f->target : f->next))
        return returns_well(c, p, x);   /* behind the branch */
    bool before = x->off == c->off && x->k == (int)c->nr - p->taken && verify_is_before(c, p);
    bool after = x->off == c->off + (int)c->len && x->k == (int)c->nr + 1 - p->taken && verify_is_after(c, p) && !c->effect.branch;
    if (p->flags != FL_GUEST)
        return verify_refuse(c, "leaves with the flags lost");
    if (x->shadow != (before && c->shadow && (x->kind == EXIT_TIME || x->kind == EXIT_BRANCH)))
        return verify_refuse(c, "the exit's record is wrong about the shadow of sti");
    return before || after ? returns_well(c, p, x) : verify_refuse(c, "the exit's record is not what has happened");
}

/* All is done, and where it goes to is the guest's successor. */
bool verify_goes_to(struct check *c, const struct path *p, value target)
{
    const struct effect *f = &c->effect;
    bool sent = p->sent, decided = p->decided;
    value rcx = guest(c, R_CX), zero = f->reg[R_CX] ? f->reg[R_CX] : verify_width(c) == 8 ? rcx : value_cut(&c->values, rcx);
    unsigned done = c->nr + (c->g ? 1 : 0);
    if (f->conditional && x86_forms[c->g->form].op != &x86_op_jcc) {
        bool is_loop = f->reg[R_CX] != 0;
        if (facts_have(p, ZERO, zero))
            decided = true, sent = !is_loop;
        if (facts_have(p, NONZERO, zero))
            decided = true, sent = is_loop;
    }
    if (f->conditional && !decided)
        return verify_refuse(c, "the branch is not decided");
    if (!verify_is_after(c, p))
        return verify_refuse(c, "goes on with the instruction undone or done wrongly");
    if (target != (f->branch && (sent || !f->conditional) ? f->target : f->next))
        return verify_refuse(c, "goes to another address than the guest");
    if (p->flags != FL_GUEST)
        return verify_refuse(c, "goes on with the flags lost");
    return (unsigned)p->taken == done || verify_refuse(c, "no time is taken, or wrong");
}

/* jmp leave */
static bool leaves(struct check *c, const struct path *p)
{
    const struct bt_exit *x = exit_of(c, p);
    if (!x)
        return false;
    if (!verify_slot_is_whole(c, p))
        return verify_refuse(c, "an L0 entry is half replaced");
    switch (x->kind) {
    case EXIT_MISS:                     /* L1 was asked in line */
        if (!p->wanted || p->reg[R_14] != p->wanted)
            return verify_refuse(c, "r14 is not the address that was missed");
        if (x->slid != p->wanted_slid)
            return verify_refuse(c, "the exit's record is not of this lookup");
        return leaves_at(c, p, x) && (x->again == c->entry || verify_from(c, x->again, p->taken, false, p->saved, p->live, false, p));
    case EXIT_STEP: case EXIT_BRANCH: case EXIT_TIME: case EXIT_MISFIT:
        return leaves_at(c, p, x);
    case EXIT_CHAIN:
        if (!p->from || p->from != x->patch)
            return verify_refuse(c, "another jump would be patched");
        /* fall through */
    case EXIT_LINK: case EXIT_NEXT:
        if (!verify_goes_to(c, p, value_const(&c->values, x->target)))
            return false;
        if (x->k || (x->kind != EXIT_NEXT && !p->in_time))
            return verify_refuse(c, "the exit's record is not what has happened");
        if (x->kind == EXIT_CHAIN && (x->target ^ c->b->va) >> PAGE_SHIFT)
            return verify_refuse(c, "a jump to another page would be patched");
        return x->kind != EXIT_LINK || p->link == x->patch + 1 || verify_refuse(c, "another link would be filled");
    default:
        return verify_refuse(c, "the exit is of a kind that is not left through here");
    }
}

/* call of a routine: the lookups in L1. */
static bool looks_up(struct check *c, struct path *p, u32 target)
{
    struct values *v = &c->values;
    unsigned set = c->b->context & CTX_SET;
    if (target && target == c->t->x87_in && c->b->context & CTX_X87) {
        p->reg[R_14] = 0, p->live |= LIVE_X87;
        return true;
    }
    for (unsigned w = 0; w < 2; w++)
        for (unsigned k = 0; k < 17; k++) {
            if (!target || c->t->l1_code[set][w][k] != target)
                continue;
            struct path left = *p;
            const struct bt_exit *x = exit_of(c, p);
            left.reg[R_CX] = p->reg[R_15];      /* the routine's, if it leaves */
            if (!x || x->kind != EXIT_MISS || x->write != w || x->align != (k == 16) || x->size != (k == 16 ? 16 : k + 1))
                return verify_refuse(c, "the exit's record is not of this lookup");
            if (x->slid || x->early != (w && p->reg[R_14] != verify_stored_at(c)))
                return verify_refuse(c, "the exit says a load is a store, or the other way round");
            if (!leaves_at(c, &left, x))
                return false;
            if (x->again != c->entry && !verify_from(c, x->again, p->taken, false, p->saved, p->live, false, p))
                return false;
            unsigned width = (k == 16 ? 16 | 4 : (unsigned)__builtin_ctz(k + 1)) | w << 5;
            p->own[OWN_TMP] = p->reg[R_15], p->own[OWN_TMP2] = 0;
            p->reg[R_CX] = value_atom(v, VAL_L1_NEGATED, p->reg[R_14], c->lookups, width);
            p->reg[R_15] = p->reg[R_14] ? value_atom(v, VAL_L1_ADDEND, p->reg[R_14], c->lookups, width) : 0;
            c->lookups++;
            return true;
        }
    return verify_refuse(c, "calls what is no routine");
}

/* light_call does syscall, sysret or iret in the place of the interpreter, or a hypercall, behind which the block goes on: the exit says
 * which, and that nothing has happened. */
static bool is_light_call(struct check *c, const struct path *p)
{
    const struct bt_exit *x = &c->t->exits[p->exit];
    const struct x86_op *op = c->g ? x86_forms[c->g->form].op : NULL;
    bool back = op && c->g->size == 8 && !(c->b->context & CTX_CPL), pv = c->t->cpu->ops->quick;
    unsigned how = op == &x86_op_syscall && c->len == 2 ? pv ? LIGHT_HYPERCALL : LIGHT_SYSCALL : 0;
    if (back && !pv && (op == &x86_op_sysret || op == &x86_op_iret))
        how = op == &x86_op_sysret ? LIGHT_SYSRET : LIGHT_IRET;
    bool kind = how == LIGHT_HYPERCALL ? x->kind == EXIT_STEP && x->drops && !(c->b->context & CTX_SET) : x->kind == EXIT_BRANCH;
    return (kind && x->off == c->off && !(c->b->context & CTX_32) && how && x->size == how) || verify_refuse(c, "no light call");
}

/* A jump through the jump cache to the block of guest address `target`. */
bool verify_jumps_through(struct check *c, const struct path *p, value to)
{
    struct values *v = &c->values;
    unsigned set = c->b->context & CTX_SET;
    const struct value_node *n = &v->v[to];
    if (n->kind != VAL_INDEXED || n->n != GS(jump_host) + set * JUMPS * 8)
        return verify_refuse(c, "jumps to what is not from the jump cache");
    value negated = value_atom(v, VAL_INDEXED, n->term[0], GS(jump_negated) + set * JUMPS * 8, 8);
    for (unsigned k = 0; k < p->nr_facts; k++) {
        value target;
        if (p->fact[k].kind != ZERO || !value_without(v, p->fact[k].of, negated, &target))
            continue;
        return p->in_time ? verify_goes_to(c, p, target) : verify_refuse(c, "jumps on without time");
    }
    return verify_refuse(c, "jumps to an entry of the jump cache that was not compared");
}

/* ---- jumps ------------------------------------------------------------------------------------------------------- */

/* The jump with its rel32 at `rel` was patched: to the block that one of its block's CHAIN exits names. */
static bool is_chained(struct check *c, const struct path *p, u32 rel, u32 target)
{
    const struct bt *t = c->t;
    const struct bt_exit *x = NULL;
    u32 self = (u32)(c->b - t->block);
    for (u32 n = c->b->entry_exit; n < t->nr_exits && t->exits[n].block == self; n++)
        if (t->exits[n].kind == EXIT_CHAIN && t->exits[n].patch == rel)
            x = &t->exits[n];
    for (u32 n = 1; x && n < t->nr_blocks; n++)
        if (t->block[n].code == target && t->block[n].va == x->target && t->block[n].nr && t->block[n].context == c->b->context)
            return p->in_time ? verify_goes_to(c, p, value_const(&c->values, x->target)) : verify_refuse(c, "jumps on without time");
    return verify_refuse(c, "jumps to what is neither the block's own nor a routine nor chained");
}

/* jmp [gs:link]: as long as the link is empty it leads behind itself. */
bool verify_jumps_by_link(struct check *c, struct path *p, u32 field, u32 behind)
{
    u32 n = (field - GS(link)) / 8;
    if (field < GS(link) || field % 8 || n >= c->t->nr_links || c->t->link_exit[n] != behind)
        return verify_refuse(c, "jumps through what is no link of this place");
    if (!p->in_time)
        return verify_refuse(c, "jumps on without time");
    p->link = n + 1;
    return verify_follow(c, *p, behind);       /* the exit there says where to */
}

static bool forks_by_rcx(struct check *c, struct path *p, bool narrow, u32 target, u32 behind)
{
    struct path q = *p;
    value decides = narrow ? value_cut(&c->values, p->reg[R_CX]) : p->reg[R_CX];
    value time = p->own[OWN_LEFT] ? value_atom(&c->values, VAL_PEXT, p->own[OWN_LEFT], GS(mask_sign), 8) : 0;
    if (!decides)
        return verify_refuse(c, "a jump by an unknown value");
    if (decides == time && mask_at(c, GS(mask_sign)) == 1ul << 63)
        q.in_time = true;
    if (decides == value_atom(&c->values, VAL_FIELD, 0, GS(x87_out), 8))
        q.live |= LIVE_X87;
    return facts_add(c, &q, ZERO, decides, 0) && facts_add(c, p, NONZERO, decides, 0) && verify_follow(c, q, target) &&
           verify_follow(c, *p, behind);
}

/* A conditional jump: the guest's, or one behind an inserted comparison. */
static bool forks_by_flags(struct check *c, struct path *p, const struct x86_insn *h, u32 target, u32 behind)
{
    struct path q = *p;
    bool own = target > c->b->code && target < c->b->code + c->b->code_len;        /* its first byte: chained to itself */
    unsigned condition = h->opcode & 15;
    enum { E = 4, NE = 5, A = 7, S = 8 };
    q.from = behind - 4;
    if (h->len != 6)
        return verify_refuse(c, "a jump of a kind that does not occur");
    if (p->flags == FL_GUEST) {
        if (!c->g || x86_forms[c->g->form].op != &x86_op_jcc || (h->opcode ^ c->g->opcode) & 14 || p->decided)
            return verify_refuse(c, "jumps by another condition than the guest");
        bool inverted = (h->opcode ^ c->g->opcode) & 1;
        p->decided = q.decided = true, p->sent = inverted, q.sent = !inverted;
        return (own ? verify_follow(c, q, target) : is_chained(c, &q, behind - 4, target)) && verify_follow(c, *p, behind);
    }
    const struct value_node *n = &c->values.v[p->flag_value];
    if (own && p->flags == FL_CMP && condition == A && p->flag_value && n->kind == VAL_SUM && !n->nr && n->n > p->flag_n)
        return verify_follow(c, q, target);    /* always */
    if (own && p->flags == FL_FRAME && condition == NE && p->flag_value) {
        p->framed = p->flag_value;
        return verify_follow(c, q, target) && verify_follow(c, *p, behind);
    }
    if (own && p->flags == FL_BOTTOM && condition == E) {
        p->has_frame = true;
        return verify_follow(c, q, target) && verify_follow(c, *p, behind);
    }
    bool ok = own && ((p->flags == FL_CMP && condition == NE && p->flag_value && facts_add(c, p, EQUAL, p->flag_value, p->flag_n)) ||
                      (p->flags == FL_CMP && condition == A && facts_add(c, p, BELOW, p->flag_value, p->flag_n)) ||
                      (p->flags == FL_TEST && condition == NE && facts_add(c, p, ~p->flag_n ? CLEAR : ZERO, p->flag_value, p->flag_n)) ||
                      (p->flags == FL_SLIDE && condition == NE && facts_add(c, p, SLIDE, p->flag_value, 0)) ||
                      (p->flags == FL_SIGN && condition == S && p->flag_value == p->own[OWN_LEFT]));
    if (!ok)
        return verify_refuse(c, "a jump by a condition that does not occur");
    p->in_time |= p->flags == FL_SIGN;
    return verify_follow(c, q, target) && verify_follow(c, *p, behind);
}

/* Code behind the host's call at `at`: drops the frame, and goes on behind the guest's. */
static bool lands(struct check *c, u32 at)
{
    static const u8 DROP[] = { 0x48, 0x8d, 0x64, 0x24, 0x08 };      /* lea rsp, [rsp + 8] */
    struct effect effect = c->effect;
    const struct x86_insn *g = c->g;
    struct path p;
    if (at + sizeof DROP > c->b->code + c->b->code_len || memcmp(c->t->rw + at, DROP, sizeof DROP))
        return verify_refuse(c, "the frame of a call is not dropped");
    verify_path_start(c, &p, false);
    c->effect = (struct effect){ .next = effect.next };
    c->g = NULL, c->nr++, c->off += (int)c->len;
    p.taken = (int)c->nr;
    bool ok = verify_follow(c, p, at + sizeof DROP);
    c->g = g, c->nr--, c->off -= (int)c->len;
    c->effect = effect;
    return ok;
}

bool verify_calls(struct check *c, struct path *p, u32 target, u32 behind)
{
    struct path q = *p;
    bool own = target > c->b->code && target < c->b->code + c->b->code_len;
    q.pushed = false, q.from = behind - 4;
    if (!lands(c, behind))
        return false;
    return !target ? verify_jumps_through(c, &q, q.own[OWN_ENTRY]) :
           own ? verify_follow(c, q, target) : is_chained(c, &q, behind - 4, target);
}

bool verify_relative(struct check *c, struct path *p, const struct x86_insn *h, u32 here, u32 from, u32 *at, bool *end)
{
    const struct x86_op *op = x86_forms[h->form].op;
    u32 next = here + h->len;
    u32 target = next + (u32)h->imm;
    bool own = target > c->b->code && target < c->b->code + c->b->code_len;        /* its first byte: chained to itself */
    *end = true;
    if (op == &x86_op_call && p->pushed)
        return verify_calls(c, p, target, next);
    if (op == &x86_op_call)
        return *end = false, looks_up(c, p, target);
    if (op == &x86_op_jcxz && own && target > here)
        return forks_by_rcx(c, p, h->addr_mask != ~0ul, target, next);
    if (op == &x86_op_jcc)
        return forks_by_flags(c, p, h, target, next);
    if (op != &x86_op_jmp || (h->len != 5 && target >= c->b->code + c->b->code_len))
        return verify_refuse(c, "a jump of a kind that does not occur");
    if (target == c->t->leave || target == c->t->light_call)
        return p->from = from, leaves(c, p) && (target == c->t->leave || is_light_call(c, p));
    if (!own)
        return is_chained(c, p, next - 4, target);
    p->from = h->len == 5 ? next - 4 : 0;
    *end = false, *at = target;
    return true;
}

#endif
