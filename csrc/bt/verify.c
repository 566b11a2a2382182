/* Checks of emitted code, independent of what emits it.
 *
 * Owns: what translated code may do. Called by: translate.c under BT_VERIFY, dump.c. No locks. No state but the caller's stack.
 *
 * Each guest instruction's host code is followed along every path from its first byte, with symbolic values (value.h) in registers and in the
 * fields of struct bt that code uses for its own purposes. Between two guest instructions all values are where internal.h's conventions have them, so
 * the instructions of a block are checked one by one; where the loop comes back (bt_exit.again, behind) is a first byte as well. A path
 * is in order if it reaches the next instruction or an exit, having done exactly what the guest instruction does, or nothing:
 *  - the instruction itself is there once (ACTS), with the same operands, registers where they are kept, memory through the MMU;
 *    or the values that pushes, branches and their like produce are those that effect_of works out from the guest's bytes;
 *  - host memory is reached only at "linear address + addend", where a test has shown that the entry that has the addend is for the
 *    page of all the bytes; its linear address is the guest operand's. Stores need an entry for stores;
 *  - what else touches memory names a field of struct bt, in the direction that FIELDS allows;
 *  - time has been taken, the exit's record says what really has happened, and jumps lead to where the guest's do;
 *  - every other instruction is mov, lea, pext or a jump: no flag changes, nothing privileged, nothing that writes rsp.
 */
#include "bt/verify.h"
#include "x86/decode.h"

#if defined(__x86_64__)

#define FORM(op, ...) extern const struct x86_op x86_op_##op;
#include "x86/forms.def"
#include "x86/forms_sse.def"
#undef FORM

/* ---- the copied instruction -------------------------------------------------------------------------------------- */

/* All guest registers are where they are kept: else what looks like the instruction is not (a sahf that makes flags again, say). */
static bool all_in_place(struct check *c, const struct path *p)
{
    for (unsigned n = 0; n < 16; n++)
        if (home(p, n) != guest(c, n))
            return false;
    return true;
}

static bool act(struct check *c, struct path *p, const struct x86_insn *h, const u8 slots[16], u32 at)
{
    const struct x86_insn *g = c->g;
    u8 flags = c->effect.act_flags;
    if (p->acted)
        return verify_refuse(c, "the instruction is done twice");
    if (flags & X87 && !p->x87)
        return verify_refuse(c, "the x87's registers may not be the guest's");
    if (p->flags != FL_GUEST && !(flags & (KEEPS | SETS)))
        return verify_refuse(c, "the instruction uses flags that are lost");
    if (!(flags & KEEPS))
        p->flags = FL_GUEST, p->saved = false;
    for (unsigned k = 0; k < g->nr_ops; k++)
        if (g->op[k].kind == X86_MEM) {
            const struct x86_op *op = x86_forms[g->form].op;
            bool write = k < 2 && flags & (k ? W1 : W0);
            unsigned size = g->op[k].size, align = size == 16 && !(flags & UNALIGNED) ? 16 : 1;
            value lin;
            if (!size || size > 16 || h->mem_seg >= X86_FS || op == &x86_op_lea)
                return verify_refuse(c, "no access to memory is copied in this form");
            if (!verify_access(c, p, verify_host_address(c, p, h, at), size, write, align, &lin))
                return false;
            if (lin != verify_linear(c, true))
                return verify_refuse(c, "the access is not at the guest's address");
        }
    p->acted = true;
    for (unsigned n = 0; n < R_13; n++)
        p->reg[home_of(n)] = result(c, n);
    for (unsigned r = R_14; r <= R_15; r++)
        if (slots[r])
            p->reg[r] = c->effect.reg[slots[r]] ? result(c, slots[r]) : guest(c, slots[r]);
    return true;
}

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

static bool check_from(struct check *c, u32 entry, int taken, bool lost, bool saved, bool x87, bool carried, const struct path *left);

/* Where the loop comes back after exit x is the next instruction, or what is behind the last: bt_verify_why looks at that. */
static bool returns_well(struct check *c, const struct path *p, const struct bt_exit *x)
{
    if (x->behind)
        c->saved &= p->saved && !c->effect.forbidden, c->x87 &= p->x87, c->fell = true;
    if (x->behind && !c->next && c->g)
        c->behind = x->behind;
    return !x->behind || (x->behind == c->next && c->next_off == c->off + (int)c->len) || (!c->next && c->g) || verify_refuse(c, "goes on elsewhere than behind the instruction");
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
static bool goes_to(struct check *c, const struct path *p, value target)
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
        return leaves_at(c, p, x) && (x->again == c->entry || check_from(c, x->again, p->taken, false, p->saved, p->x87, false, p));
    case EXIT_STEP: case EXIT_BRANCH: case EXIT_TIME:
        return leaves_at(c, p, x);
    case EXIT_CHAIN:
        if (!p->from || p->from != x->patch)
            return verify_refuse(c, "another jump would be patched");
        /* fall through */
    case EXIT_LINK: case EXIT_NEXT:
        if (!goes_to(c, p, value_const(&c->values, x->target)))
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
        p->reg[R_14] = 0, p->x87 = true;
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
            if (!leaves_at(c, &left, x))
                return false;
            if (x->again != c->entry && !check_from(c, x->again, p->taken, false, p->saved, p->x87, false, p))
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

/* switch_level does syscall or sysret in the place of the interpreter: the exit says which, and that nothing has happened. */
static bool switches_level(struct check *c, const struct path *p)
{
    const struct bt_exit *x = &c->t->exits[p->exit];
    const struct x86_op *op = c->g ? x86_forms[c->g->form].op : NULL;
    bool sysret = op == &x86_op_sysret && c->g->size == 8 && !(c->b->context & CTX_CPL);
    return (x->kind == EXIT_BRANCH && x->off == c->off && !(c->b->context & CTX_32) && (sysret || (op == &x86_op_syscall && c->len == 2)) && x->size == sysret) ||
           verify_refuse(c, "no switch between levels");
}

/* A jump through the jump cache to the block of guest address `target`. */
static bool jumps_through(struct check *c, const struct path *p, value to)
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
        return p->in_time ? goes_to(c, p, target) : verify_refuse(c, "jumps on without time");
    }
    return verify_refuse(c, "jumps to an entry of the jump cache that was not compared");
}

/* ---- paths ------------------------------------------------------------------------------------------------------- */

static bool follow(struct check *c, struct path p, u32 at);

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
            return p->in_time ? goes_to(c, p, value_const(&c->values, x->target)) : verify_refuse(c, "jumps on without time");
    return verify_refuse(c, "jumps to what is neither the block's own nor a routine nor chained");
}

/* jmp [gs:link]: as long as the link is empty it leads behind itself. */
static bool jumps_by_link(struct check *c, struct path *p, u32 field, u32 behind)
{
    u32 n = (field - GS(link)) / 8;
    if (field < GS(link) || field % 8 || n >= c->t->nr_links || c->t->link_exit[n] != behind)
        return verify_refuse(c, "jumps through what is no link of this place");
    if (!p->in_time)
        return verify_refuse(c, "jumps on without time");
    p->link = n + 1;
    return follow(c, *p, behind);       /* the exit there says where to */
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
        q.x87 = true;
    return facts_add(c, &q, ZERO, decides, 0) && facts_add(c, p, NONZERO, decides, 0) && follow(c, q, target) && follow(c, *p, behind);
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
        return (own ? follow(c, q, target) : is_chained(c, &q, behind - 4, target)) && follow(c, *p, behind);
    }
    const struct value_node *n = &c->values.v[p->flag_value];
    if (own && p->flags == FL_CMP && condition == A && p->flag_value && n->kind == VAL_SUM && !n->nr && n->n > p->flag_n)
        return follow(c, q, target);    /* always */
    if (own && p->flags == FL_FRAME && condition == NE && p->flag_value) {
        p->framed = p->flag_value;
        return follow(c, q, target) && follow(c, *p, behind);
    }
    if (own && p->flags == FL_BOTTOM && condition == E) {
        p->has_frame = true;
        return follow(c, q, target) && follow(c, *p, behind);
    }
    bool ok = own && ((p->flags == FL_CMP && condition == A && facts_add(c, p, BELOW, p->flag_value, p->flag_n)) ||
                      (p->flags == FL_TEST && condition == NE && facts_add(c, p, ~p->flag_n ? CLEAR : ZERO, p->flag_value, p->flag_n)) ||
                      (p->flags == FL_SIGN && condition == S && p->flag_value == p->own[OWN_LEFT]));
    if (!ok)
        return verify_refuse(c, "a jump by a condition that does not occur");
    p->in_time |= p->flags == FL_SIGN;
    return follow(c, q, target) && follow(c, *p, behind);
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
    bool ok = follow(c, p, at + sizeof DROP);
    c->g = g, c->nr--, c->off -= (int)c->len;
    c->effect = effect;
    return ok;
}

/* call, with the first word of the frame pushed. `target`: cache offset, or 0: the one that bt->entry names. */
static bool calls(struct check *c, struct path *p, u32 target, u32 behind)
{
    struct path q = *p;
    bool own = target > c->b->code && target < c->b->code + c->b->code_len;
    q.pushed = false, q.from = behind - 4;
    if (!lands(c, behind))
        return false;
    return !target ? jumps_through(c, &q, q.own[OWN_ENTRY]) : own ? follow(c, q, target) : is_chained(c, &q, behind - 4, target);
}

enum { POPPED = 8 };            /* added to VAL_FLAGS's n: the flags that popf has popped, instead of the guest's as they were */

/* ---- inserted instructions --------------------------------------------------------------------------------------- */

static bool remakes(struct check *c, struct path *p, const struct x86_insn *h, value a, value b);

/* Arithmetic without a memory operand. */
static bool computes(struct check *c, struct path *p, const struct x86_insn *h)
{
    struct values *v = &c->values;
    const struct x86_op *op = x86_forms[h->form].op;
    value *rax = &p->reg[R_AX];
    unsigned dst = h->op[0].reg / 8u;
    bool imm = h->op[1].kind == X86_IMM;
    u64 bits = h->size == 8 ? ~0ul : (1ul << 8 * h->size) - 1;
    if (op == &x86_op_lahf || op == &x86_op_setcc) {            /* rax: the guest's flags as bt->saved_flags has them, in two steps */
        bool first = op == &x86_op_lahf;
        if (p->flags != FL_GUEST || p->acted || (!first && ((h->opcode & 15) || h->op[0].kind != X86_REG || h->op[0].reg)))
            return verify_refuse(c, "flags are saved that are not the guest's");
        value stored = value_atom(v, VAL_FLAGS, 0, 1, 0);
        *rax = first ? stored : *rax == stored ? value_atom(v, VAL_FLAGS, 0, 2, 0) : 0;
        return true;
    }
    if (op == &x86_op_rorx && h->size == 8 && h->op[0].reg == 8 * R_15 && h->op[1].kind == X86_REG && h->op[1].reg == 8 * R_14) {
        p->wanted = p->reg[R_14];
        p->reg[R_15] = p->wanted ? value_atom(v, VAL_ROTATED, p->wanted, h->imm & 63, 0) : 0;
        return true;
    }
    if (op == &x86_op_and && h->size == 4 && h->op[0].kind == X86_REG && h->op[0].reg == 8 * R_15 && imm && (u32)h->imm == (L1 - 1) << 3) {
        const struct value_node *n = &v->v[p->reg[R_15]];
        p->reg[R_15] = n->kind == VAL_ROTATED && n->n == PAGE_SHIFT - 3 ? value_atom(v, VAL_L1_INDEX, n->term[0], 0, 0) : 0;
        p->flags = FL_LOST;
        return true;
    }
    if (op == &x86_op_sahf) {
        bool popped = *rax && *rax == value_atom(v, VAL_FLAGS, 0, POPPED + 3, 0);
        p->flags = popped || (*rax && *rax == value_atom(v, VAL_FLAGS, 0, 3, 0)) ? FL_GUEST : FL_LOST;
        p->popped |= popped;
        return true;
    }
    if (op == &x86_op_not && h->size == 8 && h->op[0].kind == X86_REG && dst != R_SP)
        return p->reg[dst] = p->reg[dst] ? value_atom(v, VAL_NOT, p->reg[dst], 0, 0) : 0, true;
    if (h->nr_ops < 2 || h->op[0].kind != X86_REG || h->op[0].reg % 8 || dst == R_SP || (!imm && (h->op[1].kind != X86_REG || h->op[1].reg % 8)))
        return verify_refuse(c, "an instruction that the translator does not insert");
    value a = p->reg[dst], b = imm ? value_const(v, h->imm & bits) : p->reg[h->op[1].reg / 8];
    for (u64 n = 2; n <= POPPED + 2; n += POPPED)
        if (op == &x86_op_add && h->size == 1 && !dst && imm && h->imm % 256 == 0x7f && *rax && *rax == value_atom(v, VAL_FLAGS, 0, n, 0)) {
            *rax = value_atom(v, VAL_FLAGS, 0, n + 1, 0), p->flags = FL_LOST;
            return true;
        }
    return remakes(c, p, h, a, b);
}

/* Arithmetic on a scratch register, or a comparison: op dst, b. */
static bool remakes(struct check *c, struct path *p, const struct x86_insn *h, value a, value b)
{
    struct values *v = &c->values;
    const struct x86_op *op = x86_forms[h->form].op;
    unsigned dst = h->op[0].reg / 8u;
    bool scratch = dst == R_14 || dst == R_15, imm = h->op[1].kind == X86_IMM;
    bool made = verify_makes_flags(c, p, h, a, b), shift = op == &x86_op_shl || op == &x86_op_shr || op == &x86_op_sar;
    p->flags = made ? FL_GUEST : FL_LOST;
    if (shift && scratch)
        return p->reg[dst] = 0, made || verify_refuse(c, "an instruction that the translator does not insert");
    if (op == &x86_op_cmp || op == &x86_op_test) {
        if (!made && scratch && imm && h->size == 8)
            p->flags = op == &x86_op_cmp ? FL_CMP : FL_TEST, p->flag_value = a, p->flag_n = h->imm;
        return true;
    }
    if (!scratch || (op != &x86_op_add && op != &x86_op_sub))
        return verify_refuse(c, "an instruction that the translator does not insert");
    if (made || !a || !b)
        p->reg[dst] = 0;
    else if (op == &x86_op_add && h->size == 8 && v->v[a].kind == VAL_FIELD && v->v[a].n != GS(flag_a) && v->v[a].n != GS(flag_b))
        p->reg[dst] = value_add(v, a, b, 0, 0);
    else
        p->reg[dst] = value_atom(v, VAL_DONE, a, (op == &x86_op_sub) | (u64)h->size << 1 | (u64)b << 8, 0);
    return true;
}

/* An instruction that the translator put there. *end: the path ends well here. *at: the next instruction. */
static bool inserted(struct check *c, struct path *p, const struct x86_insn *h, u32 *at, bool *end)
{
    struct values *v = &c->values;
    const struct x86_op *op = x86_forms[h->form].op;
    u32 here = *at, next = here + h->len, field;
    unsigned dst = h->op[0].reg / 8u, src = h->op[1].reg / 8u;
    bool reg0 = h->op[0].kind == X86_REG && !(h->op[0].reg % 8) && dst != R_SP;
    bool reg1 = h->op[1].kind == X86_REG && !(h->op[1].reg % 8);
    u32 from = p->from;
    p->from = 0;
    *at = next;
    if (p->pushfq) {            /* pop r15, and nothing else, follows pushfq */
        p->pushfq = false;
        if (op != &x86_op_pop || h->size != 8 || !reg0 || dst != R_15)
            return verify_refuse(c, "the host's stack is used");
        return p->reg[R_15] = value_atom(v, VAL_HOST_FLAGS, 0, 0, 0), true;
    }
    if (op == &x86_op_pushf)
        return p->pushfq = h->size == 8 && p->flags == FL_GUEST, p->pushfq || verify_refuse(c, "flags are pushed that are not the guest's");
    if (h->op[0].kind == X86_REL) {
        u32 target = next + (u32)h->imm;
        bool own = target > c->b->code && target < c->b->code + c->b->code_len;        /* its first byte: chained to itself */
        *end = true;
        if (op == &x86_op_call && p->pushed)
            return calls(c, p, target, next);
        if (op == &x86_op_call)
            return *end = false, looks_up(c, p, target);
        if (op == &x86_op_jcxz && own && target > here)
            return forks_by_rcx(c, p, h->addr_mask != ~0ul, target, next);
        if (op == &x86_op_jcc)
            return forks_by_flags(c, p, h, target, next);
        if (op != &x86_op_jmp || (h->len != 5 && target >= c->b->code + c->b->code_len))
            return verify_refuse(c, "a jump of a kind that does not occur");
        if (target == c->t->leave || target == c->t->switch_level)
            return p->from = from, leaves(c, p) && (target == c->t->leave || switches_level(c, p));
        if (!own)
            return is_chained(c, p, next - 4, target);
        p->from = h->len == 5 ? next - 4 : 0;
        *end = false, *at = target;
        return true;
    }
    if (is_gs(h)) {
        bool whole = gs_field(h, &field);
        if (op == &x86_op_call && whole && p->pushed && field == GS(entry))
            return *end = true, calls(c, p, 0, next);
        if (op == &x86_op_cmp && whole && h->size == 8 && field == GS(bottom) && h->op[0].kind == X86_REG && h->op[0].reg == 8 * R_SP)
            return p->flags = FL_BOTTOM, true;
        if (op == &x86_op_jmp && whole) {
            *end = true;
            return field == GS(entry) ? jumps_through(c, p, p->own[OWN_ENTRY]) : jumps_by_link(c, p, field, next);
        }
        if (op == &x86_op_pext && h->op[2].kind == X86_MEM && whole && is_mask(field) && reg0) {
            p->reg[dst] = p->reg[src] ? value_atom(v, VAL_PEXT, p->reg[src], field, h->size) : 0;
            return true;
        }
        if (op == &x86_op_pdep && h->op[2].kind == X86_MEM && whole && is_mask(field) && reg0 && h->size == 8)
            return p->reg[dst] = verify_deposit(c, p->reg[src], field), true;
        if (h->size == 8 && reg0 && h->op[1].kind == X86_MEM && !whole && h->base == X86_ZERO && h->scale == 3) {     /* the jump cache */
            value index = p->reg[h->index];
            u32 set = (c->b->context & CTX_SET) * JUMPS * 8;
            field = (u32)h->disp;
            if (v->v[index].kind != VAL_PEXT || v->v[index].n != GS(mask_jump) || c->t->mask_jump != JUMP_MASK ||
                (field != GS(jump_host) + set && field != GS(jump_negated) + set))
                return verify_refuse(c, "reads a table with what is no index of it");
            value entry = value_atom(v, VAL_INDEXED, index, field, 8);
            if (op == &x86_op_mov)
                return p->reg[dst] = entry, true;
            if (op != &x86_op_add || (dst != R_14 && dst != R_15))
                return verify_refuse(c, "uses a field in a way that does not occur");
            p->reg[dst] = value_add(v, p->reg[dst], entry, 0, 0);
            p->flags = FL_TEST, p->flag_value = p->reg[dst], p->flag_n = ~0ul;
            return true;
        }
        bool operand = field == GS(flag_a) || field == GS(flag_b);
        if (whole && operand && h->op[1].kind == X86_MEM && reg0 && (op == &x86_op_add || op == &x86_op_sub || op == &x86_op_cmp || op == &x86_op_test))
            return remakes(c, p, h, p->reg[dst], p->own[field == GS(flag_a) ? OWN_FLAG_A : OWN_FLAG_B]);
        if (whole && operand && op == &x86_op_test && h->op[0].kind == X86_MEM && reg1)
            return remakes(c, p, h, p->reg[src], p->own[field == GS(flag_a) ? OWN_FLAG_A : OWN_FLAG_B]);
        if (op == &x86_op_add && whole && h->size == 8 && (dst == R_14 || dst == R_15) && h->op[1].kind == X86_MEM) {
            value x;
            p->flags = FL_LOST;
            return verify_read_field(c, p, field, &x) && (p->reg[dst] = value_add(v, p->reg[dst], x, 0, 0), true);
        }
        if (op == &x86_op_sub && whole && h->size == 8 && field == GS(left) && h->op[1].kind == X86_IMM) {
            if (!verify_write_field(c, p, field, value_plus(v, p->own[OWN_LEFT], -h->imm)))
                return false;
            p->flags = FL_SIGN, p->flag_value = p->own[OWN_LEFT];
            return true;
        }
        if ((op == &x86_op_add || op == &x86_op_sub) && !whole && h->size == 8 && dst == R_14 && reg0 && h->op[1].kind == X86_MEM &&
            h->base == R_15 && h->index == X86_ZERO && v->v[p->reg[R_15]].kind == VAL_L1_INDEX) {
            u64 n = (u64)h->disp, tables = GS(l1_negated), half = L1 * 8;
            if (n < tables || n >= tables + sizeof c->t->l1_negated + sizeof c->t->l1_addend + sizeof c->t->l1_host || (n - tables) % half)
                return verify_refuse(c, "reads a table with what is no index of it");
            value entry = value_atom(v, VAL_INDEXED, p->reg[R_15], n, 8);
            p->flags = FL_LOST;
            if (op == &x86_op_add)
                p->reg[R_14] = value_add(v, p->reg[R_14], entry, 0, 0);
            else if (!value_without(v, p->reg[R_14], entry, &p->reg[R_14]))
                p->reg[R_14] = 0;
            return true;
        }
        if (op != &x86_op_mov || !whole)
            return verify_refuse(c, "uses a field in a way that does not occur");
        if (field == GS(saved_flags) && h->size == 4 && reg0 && h->op[1].kind == X86_MEM)
            return p->reg[dst] = p->popping ? value_atom(v, VAL_FLAGS, 0, POPPED + 2, 0) : p->saved ? value_atom(v, VAL_FLAGS, 0, 2, 0) : 0, true;
        if (field == GS(saved_flags) && h->size == 4 && h->op[0].kind == X86_MEM && reg1 && c->effect.popf && p->reg[src] == c->effect.saved_flags)
            return p->popping = p->reg[src] != 0, p->saved = false, true;
        if (field == GS(saved_flags) && h->size == 4 && h->op[0].kind == X86_MEM && reg1)
            return p->saved = p->flags == FL_GUEST && p->reg[src] && p->reg[src] == value_atom(v, VAL_FLAGS, 0, 2, 0), true;
        if (h->op[0].kind == X86_MEM && h->op[1].kind == X86_IMM && h->size == 4 && field == GS(exit))
            return p->exit = (u32)h->imm, p->from = from, true;
        if (h->size == 8 && reg0 && h->op[1].kind == X86_MEM)
            return verify_read_field(c, p, field, &p->reg[dst]);
        if (h->size == 8 && h->op[0].kind == X86_MEM && reg1)
            return verify_write_field(c, p, field, p->reg[src]);
        return verify_refuse(c, "uses a field in a way that does not occur");
    }
    bool calls = c->g && x86_forms[c->g->form].op == &x86_op_call, returns = c->g && x86_forms[c->g->form].op == &x86_op_ret;
    if (op == &x86_op_push && calls && h->size == 8 && !p->pushed && h->op[0].kind != X86_MEM) {
        value pushed = h->op[0].kind == X86_IMM ? value_const(v, h->imm) : p->reg[dst];
        p->pushed = true;
        return pushed == c->effect.next || verify_refuse(c, "the frame of a call has another address");
    }
    if (op == &x86_op_cmp && returns && h->size == 8 && h->op[0].kind == X86_REG && h->op[0].reg == 8 * R_14 && h->op[1].kind == X86_MEM &&
        h->base == R_SP && h->index == X86_ZERO && h->disp == 8 && h->addr_mask == ~0ul && h->mem_seg < X86_FS)
        return p->flags = FL_FRAME, p->flag_value = p->reg[R_14], true;
    if (op == &x86_op_lea && returns && h->size == 8 && h->op[0].reg == 8 * R_SP && h->base == R_SP && h->index == X86_ZERO && h->disp == 16 &&
        h->addr_mask == ~0ul && p->has_frame)
        return p->has_frame = false, true;
    if (op == &x86_op_ret && returns && !h->nr_ops && p->framed) {
        *end = true;
        return p->in_time ? goes_to(c, p, p->framed) : verify_refuse(c, "jumps on without time");
    }
    if (op == &x86_op_jmp && h->op[0].kind == X86_REG)
        return *end = true, jumps_through(c, p, p->reg[dst]);
    if (op == &x86_op_lea && reg0 && h->size >= 4 && h->mem_seg < X86_FS) {
        value a = verify_host_address(c, p, h, here);
        p->reg[dst] = h->size == 8 ? a : value_cut(v, a);
        return true;
    }
    if ((op == &x86_op_mov || op == &x86_op_movzx) && x86_has_mem(h)) {
        bool other;
        if (!verify_cpu_access(c, p, h, here, &other))
            return false;
        if (!other)
            return true;
    }
    if (op == &x86_op_mov && x86_has_mem(h)) {
        value lin, a = verify_host_address(c, p, h, here);
        bool store = h->op[0].kind == X86_MEM;
        unsigned width = verify_width(c);
        if (h->size != width || h->mem_seg >= X86_FS || !(store ? reg1 || h->op[1].kind == X86_IMM : reg0) || c->effect.act || !c->g)
            return verify_refuse(c, "memory is accessed in a way that does not occur");
        if (!verify_access(c, p, a, width, store, 1, &lin))
            return false;
        if (!store) {
            p->reg[dst] = value_atom(v, VAL_LOADED, lin, 0, width);
            return !p->stored || verify_refuse(c, "a load behind a store");
        }
        if (p->stored)
            return verify_refuse(c, "a second store");
        value x = reg1 ? p->reg[src] : value_const(v, h->imm);
        p->stored = true, p->store_at = lin, p->store_value = width == 8 ? x : value_cut(v, x);
        return true;
    }
    if (op == &x86_op_mov && reg0 && reg1 && h->size == 8 && !x86_has_mem(h) && src != R_SP)
        return p->reg[dst] = p->reg[src], true;
    if (op == &x86_op_mov && reg0 && h->op[1].kind == X86_IMM && h->size >= 4)
        return p->reg[dst] = value_const(v, h->size == 8 ? h->imm : (u32)h->imm), true;
    if (op == &x86_op_nop && c->g && x86_forms[c->g->form].op == op)
        return true;            /* a fence */
    return computes(c, p, h);
}

static bool follow(struct check *c, struct path p, u32 at)
{
    const struct bt_block *b = c->b;
    for (;;) {
        struct x86_insn h;
        u8 slots[16] = { 0 };
        if (c->next && at == c->next) {         /* the next guest instruction */
            const struct effect *f = &c->effect;
            if ((f->conditional && !p.decided) || p.taken || !verify_slot_is_whole(c, &p))
                return verify_refuse(c, "a branch falls through, or time was taken too early");
            if (value_const(&c->values, b->va + c->next_off) != (f->branch && (p.sent || !f->conditional) ? f->target : f->next))
                return verify_refuse(c, "the next instruction is not the guest's");
            verify_carry(c, &p);
            c->kept &= verify_kept(c, &p);
            c->fell = true, c->lost |= p.flags != FL_GUEST, c->saved &= p.saved, c->x87 &= p.x87;
            return verify_is_after(c, &p) || verify_refuse(c, "goes on with the instruction undone or done wrongly");
        }
        c->at = c->why ? c->at : at;
        if (++c->steps > MAX_STEPS)
            return verify_refuse(c, "too many paths");
        if (at < b->code || at >= b->code + b->code_len)
            return verify_refuse(c, "runs out of the block");
        u32 left = b->code + b->code_len - at;
        if (x86_decode(&h, c->t->rw + at, left < 15 ? left : 15, 64, ~0ul) <= 0)
            return verify_refuse(c, "no instruction");
        const struct x86_form *form = &x86_forms[h.form];
        if (form->attr & F_CPL0)
            return verify_refuse(c, "a privileged instruction");
        if (c->g && c->effect.act && !p.acted && all_in_place(c, &p) && verify_corresponds(c, &p, &h, c->effect.act_flags, slots)) {
            if (c->effect.forbidden)
                return verify_refuse(c, "an instruction that the interpreter has to do");
            if (!verify_divides(c, &p))
                return verify_refuse(c, "a division that may raise #DE");
            struct path acted = p;
            u8 kept = c->kept, lost = c->lost, saved = c->saved, x87 = c->x87, fell = c->fell, carries = c->carries;
            struct carried carried = c->next_carried;
            acted.from = 0;
            if (act(c, &acted, &h, slots, at) && follow(c, acted, at + h.len))
                return true;
            if (form->op != &x86_op_mov || x86_has_mem(&h))
                return false;
            c->why = NULL, c->kept = kept, c->lost = lost, c->saved = saved, c->x87 = x87, c->fell = fell, c->carries = carries, c->next_carried = carried;   /* mov r15, rax may be the guest's or not: it does the same */
        }
        bool end = false;
        u32 next = at;
        if (!inserted(c, &p, &h, &next, &end))
            return false;
        if (end)
            return true;
        at = next;
    }
}

static bool check_from(struct check *c, u32 entry, int taken, bool lost, bool saved, bool x87, bool carried, const struct path *left)
{
    struct path p;
    u32 before = c->entry;
    verify_path_start(c, &p, carried);
    if (left)                   /* the loop comes back: it leaves these alone */
        p.own[OWN_FLAG_A] = left->own[OWN_FLAG_A], p.own[OWN_FLAG_B] = left->own[OWN_FLAG_B];
    p.taken = taken, p.flags = lost ? FL_LOST : FL_GUEST, p.saved = saved, p.x87 = x87;
    c->entry = entry;           /* an `again` in there leads here */
    bool ok = follow(c, p, entry);
    c->entry = before;
    return ok;
}

/* ---- blocks ------------------------------------------------------------------------------------------------------ */

/* What counts executions, in front of the first instruction: the one access to host memory by its address. */
static bool counts_hits(struct check *c, u32 at, u32 end)
{
    struct path p = { 0 };
    value hits = value_const(&c->values, (u64)&c->b->hits);
    while (at < end) {
        struct x86_insn h;
        c->at = at;
        if (x86_decode(&h, c->t->rw + at, end - at < 15 ? end - at : 15, 64, ~0ul) <= 0)
            return verify_refuse(c, "no instruction");
        const struct x86_op *op = x86_forms[h.form].op;
        bool mem = x86_has_mem(&h), store = mem && h.op[0].kind == X86_MEM;
        unsigned r = store ? h.op[1].reg / 8u : h.op[0].reg / 8u;
        value a = mem ? verify_host_address(c, &p, &h, at) : 0;
        if ((r != R_14 && r != R_15) || h.size < 4 || (mem && h.mem_seg >= X86_FS) || (op != &x86_op_mov && op != &x86_op_lea))
            return verify_refuse(c, "an instruction that does not count executions");
        if (op == &x86_op_mov && mem && (a != hits || h.size != 8))
            return verify_refuse(c, "memory is accessed at an address that is no guest's");
        p.reg[r] = store ? p.reg[r] : op == &x86_op_lea ? a : !mem && h.op[1].kind == X86_IMM ? value_const(&c->values, h.imm) : 0;
        at += h.len;
    }
    return at == end || verify_refuse(c, "no instruction");
}

const char *bt_verify_why(const struct bt *t, const struct bt_block *b, u32 *at)
{
    struct check c;
    c.t = t, c.b = b, c.why = NULL, c.at = b->code, c.behind = 0, c.g = NULL, c.known.op = NULL, c.carried.on = c.shadow = false;
    c.nr = c.steps = c.lookups = 0, c.off = 0;
    const struct bt_map *map = &t->maps[b->first_map];
    int off = 0;
    bool lost = false, saved = false, x87 = false;
    values_clear(&c.values);
    bool ok = !b->nr || counts_hits(&c, b->code, map[0].code);
    for (unsigned n = 0; ok && n < b->nr; n++) {
        struct x86_insn g;
        u8 bytes[15];
        off = map[n].off;
        unsigned left = PAGE_SIZE - (unsigned)((b->va + (u64)off) % PAGE_SIZE);
        memcpy(bytes, b->host + off, left < 15 ? left : 15);
        int len = x86_decode(&g, bytes, left < 15 ? left : 15, context_mode(b->context), t->features);
        c.at = map[n].code;
        if (len != map[n].len || off < b->low || off + map[n].len > b->low + b->bytes || (!n && off)) {
            ok = verify_refuse(&c, "the map of instructions is not the guest's");
            break;
        }
        values_clear(&c.values);
        c.g = &g, c.nr = n, c.off = off, c.len = (unsigned)len, c.steps = 0, c.lookups = 0;
        c.next = n + 1 < b->nr ? map[n + 1].code : 0, c.entry = map[n].code, c.next_off = n + 1 < b->nr ? map[n + 1].off : 0;
        if (!verify_effect(&c))             /* only is_before will do */
            c.effect = (struct effect){ .act = true, .branch = true, .forbidden = true };
        c.lost = c.fell = c.carries = false, c.saved = c.x87 = true, c.kept = 0xff;
        ok = check_from(&c, map[n].code, 0, lost, saved, x87, true, NULL) && (!n || check_from(&c, map[n].code, 0, lost, saved, x87, false, NULL));
        c.carried = c.carries ? c.next_carried : (struct carried){ .on = false };
        c.known = verify_known_behind(&c, c.fell ? c.kept : 0);
        lost = c.lost, saved = c.fell && c.saved, x87 = c.fell && c.x87;
        c.shadow = !c.effect.forbidden && x86_forms[g.form].op == &x86_op_sti;
        off += len;
    }
    if (ok && c.behind) {
        values_clear(&c.values);
        c.g = NULL, c.shadow = false, c.nr = b->nr, c.off = off, c.len = 0, c.steps = c.lookups = 0, c.next = 0, c.entry = c.behind;
        verify_effect(&c);
        ok = check_from(&c, c.behind, 0, false, saved, x87, false, NULL);
    }
    *at = c.at;
    return ok ? NULL : c.why;
}

bool bt_verify(const struct bt *t, const struct bt_block *b)
{
    u32 at;
    return !bt_verify_why(t, b, &at);
}

#else

bool bt_verify(const struct bt *t, const struct bt_block *b) { return true; }
const char *bt_verify_why(const struct bt *t, const struct bt_block *b, u32 *at) { return NULL; }

#endif
