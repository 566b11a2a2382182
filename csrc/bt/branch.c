/* Ways out of a block: branches, calls, returns, and what is left to the loop.
 *
 * Owns: the exits' records as they are made (tr_exit), the list of cold code (tr_cold). Called by: translate.c, insn.c; memory.c and
 * system.c for exits, memory.c for the cold code of branches. No locks.
 *
 * Before a block is left for another its time is taken (tr_take_time). A target that is known becomes a chain or a link, one that is not is
 * looked up in the jump cache; a call pushes a frame on the host's stack too, so that its return is the host's.
 */
#include "bt/translate.h"

#if defined(__x86_64__)

u32 tr_exit(struct translation *tr, enum bt_exit_kind kind, u64 target)
{
    u32 n = tr->t->nr_exits++;
    tr->t->exits[n] = (struct bt_exit){ .kind = kind, .k = tr->k, .block = tr->b, .off = tr->off, .target = target, .again = tr->again,
                                        .shadow = tr->shadow && (kind == EXIT_TIME || kind == EXIT_BRANCH) };
    return n;
}

struct cold *tr_cold(struct translation *tr, enum cold_kind kind, u32 from, u32 exit)
{
    struct cold *c = &tr->cold[tr->nr_cold++];
    *c = (struct cold){ .kind = kind, .from = from, .exit = exit, .off = tr->off, .again = tr->again, .k = tr->k, .shadow = tr->shadow };
    return c;
}

void tr_leave_at(struct translation *tr, u32 from, enum bt_exit_kind kind, u64 target)
{
    tr_cold(tr, COLD_EXIT, from, tr_exit(tr, kind, target));
}

void tr_go_to(struct translation *tr, u32 from, u64 target)
{
    s16 k = tr->k;
    tr->k = 0;                          /* everything has retired and been subtracted */
    if (tr->t->options & BT_NO_CHAIN) {
        tr_leave_at(tr, from, EXIT_NEXT, target);
    } else if ((target ^ tr->va) >> PAGE_SHIFT == 0) {
        u32 x = tr_exit(tr, EXIT_CHAIN, target);
        tr->t->exits[x].patch = from;
        tr_cold(tr, COLD_EXIT, from, x);
    } else {
        tr_cold(tr, COLD_LINK, from, tr_exit(tr, EXIT_LINK, target));
    }
    tr->k = k;
}

void tr_take_time(struct translation *tr, unsigned n)
{
    struct emit *e = &tr->e;
    tr->k -= (s16)n;
    if (flags_may_go(tr)) {
        e8(e, 0x65), e8(e, 0x48), e8(e, n < 128 ? 0x83 : 0x81), e8(e, 0x2c), e8(e, 0x25), e32(e, GS(left));     /* sub [left], n */
        n < 128 ? e8(e, (u8)n) : e32(e, n);
        tr->lost = true;
        u32 late = e_jcc_later(e, 8);                                   /* js */
        tr_cold(tr, COLD_EXIT, late, tr_exit(tr, EXIT_TIME, 0))->flags = tr->flags;
    } else {
        carry_end(tr);
        e_mov(e, SCRATCH2, R_CX);
        e_load(e, R_CX, GS(left));
        e_lea(e, true, R_CX, R_CX, NO_INDEX, 0, -(s32)n);
        e_store(e, R_CX, GS(left));
        e_pext(e, true, R_CX, R_CX, GS(mask_sign));
        u32 ok = e_jrcxz(e), late = e_jmp_later(e);
        e_here(e, ok);
        e_mov(e, R_CX, SCRATCH2);
        tr_cold(tr, COLD_EXIT, late, tr_exit(tr, EXIT_TIME, 0))->restore_rcx = true;
    }
    tr->again = e->at;
}

/* A conditional branch forward, in the middle of a block: its time is taken where it leaves, and the block goes on if it does not. */
void tr_side_code(struct translation *tr, const struct cold *c)
{
    u64 target = c->target;
    unsigned n = c->slot;
    tr->flags = c->flags, tr->lost = tr->keep = tr->shadow = false;
    tr->off = (s32)(target - tr->va);   /* where a lack of time is noticed: behind the branch */
    tr->k = (s16)n;
    tr_take_time(tr, n);
    flags_restore(tr);
    tr_go_to(tr, e_jmp_later(&tr->e), target);
}

/* r14: a guest address, then where its translation is, flags restored. Leaves for the interpreter to do the branch if the jump cache does
 * not know. */
static void look_up(struct translation *tr)
{
    struct emit *e = &tr->e;
    u32 negated = GS(jump_negated) + tr->set * JUMPS * 8, host = GS(jump_host) + tr->set * JUMPS * 8;
    carry_end(tr);
    if (flags_may_go(tr)) {
        e_pext(e, false, SCRATCH2, SCRATCH, GS(mask_jump));
        e8(e, 0x65), e8(e, 0x4e), e8(e, 0x03), e8(e, 0x34), e8(e, 0xfd), e32(e, negated);       /* add r14, [gs:r15*8 + negated] */
        tr->lost = true;
        u32 miss = e_jcc_later(e, 5);
        tr_cold(tr, COLD_EXIT, miss, tr_exit(tr, EXIT_BRANCH, 0))->flags = tr->flags;
        e_load_index8(e, SCRATCH, SCRATCH2, host);
        flags_restore(tr);
        return;
    }
    e_store(e, R_CX, GS(tmp));
    e_pext(e, false, R_CX, SCRATCH, GS(mask_jump));
    e_load_index8(e, SCRATCH2, R_CX, host);
    e_load_index8(e, R_CX, R_CX, negated);
    e_lea(e, true, R_CX, R_CX, SCRATCH, 0, 0);
    e_mov(e, SCRATCH, SCRATCH2);
    u32 hit = e_jrcxz(e);
    e_load(e, R_CX, GS(tmp));
    tr_leave_at(tr, e_jmp_later(e), EXIT_BRANCH, 0);
    e_here(e, hit);
    e_load(e, R_CX, GS(tmp));
}

static void jump_to_scratch(struct emit *e) { e8(e, 0x41), e8(e, 0xff), e8(e, 0xe6); }          /* jmp r14 */
/* dst := an address that is in a register. */
static void address_from(struct translation *tr, unsigned dst, unsigned from)
{
    if (tr_width(tr) == 8)
        e_mov(&tr->e, dst, from);
    else
        e_lea(&tr->e, false, dst, (int)from, NO_INDEX, 0, 0);
}

/* r14 := target of a jump or call through a register or memory. */
static void indirect_target(struct translation *tr)
{
    const struct x86_insn *i = tr->i;
    if (i->op[0].kind == X86_MEM) {
        tr_access(tr, tr_width(tr), false, false);
        tr_load(tr, tr_width(tr), SCRATCH);
    } else {
        unsigned r = tr_get(tr, i->op[0].reg / 8, SCRATCH);
        if (r != SCRATCH)
            address_from(tr, SCRATCH, r);
    }
}

static void push_return_address(struct translation *tr)
{
    unsigned width = tr_width(tr);
    u64 next = tr->va + tr->off + tr->i->len;
    tr_push_address(tr);
    tr_store_imm(tr, width == 8 ? next : (u32)next);
    flags_restore(tr);                  /* they may be those of an addition to rsp */
    tr_move_sp(tr, -(s32)width);
    tr->flags = (struct recipe){ .kind = FLAGS_ONLY_HERE };
}

/* The host's frame for a call. */
static void push_frame(struct translation *tr)
{
    u64 next = tr->va + tr->off + tr->i->len;
    if (next == (u64)(s64)(s32)next) {
        e8(&tr->e, 0x68), e32(&tr->e, (u32)next);                       /* push next */
    } else {
        e_mov_imm(&tr->e, SCRATCH2, next);
        e8(&tr->e, 0x41), e8(&tr->e, 0x57);                             /* push r15 */
    }
}

/* Behind the host's call: where the guest goes on when it has returned. */
static void land(struct translation *tr)
{
    e_bytes(&tr->e, (const u8[]){ 0x48, 0x8d, 0x64, 0x24, 0x08 }, 5);   /* lea rsp, [rsp + 8] */
    tr_go_to(tr, e_jmp_later(&tr->e), tr->va + tr->off + tr->i->len);
}

/* A return to r14, which is not where the last call came from: its frame is dropped, if there is one. */
void tr_return_code(struct translation *tr, const struct cold *c)
{
    struct emit *e = &tr->e;
    tr->off = c->off, tr->k = c->k, tr->again = c->again, tr->shadow = c->shadow;
    tr->flags = c->flags, tr->keep = false, tr->lost = true;
    e_gs(e, true, 0x3b, R_SP, GS(bottom));                              /* cmp rsp, [bottom] */
    e8(e, 0x0f), e8(e, 0x84), e32(e, 5);                                /* je */
    e_bytes(e, (const u8[]){ 0x48, 0x8d, 0x64, 0x24, 0x10 }, 5);        /* lea rsp, [rsp + 16] */
    look_up(tr);
    tr_move_sp(tr, c->disp);
    jump_to_scratch(e);
}

void tr_branch(struct translation *tr, enum rule rule, unsigned n)
{
    const struct x86_insn *i = tr->i;
    struct emit *e = &tr->e;
    u64 next = tr->va + tr->off + i->len;
    tr_take_time(tr, n);
    switch (rule) {
    case JCC:
        flags_restore(tr);
        tr_go_to(tr, e_jcc_later(e, i->opcode & 15), branch_target(tr));
        tr_go_to(tr, e_jmp_later(e), next);
        return;
    case JCXZ: case LOOP:
        flags_restore(tr);
        if (rule == LOOP)
            e_lea(e, tr_width(tr) == 8, R_CX, R_CX, NO_INDEX, 0, -1);
        {
            u32 zero = tr_width(tr) == 8 ? e_jrcxz(e) : e_jecxz(e);
            tr_go_to(tr, e_jmp_later(e), rule == LOOP ? branch_target(tr) : next);
            e_here(e, zero);
            tr_go_to(tr, e_jmp_later(e), rule == LOOP ? next : branch_target(tr));
        }
        return;
    case JMP: case CALL:
        if (is_rel(i)) {
            if (rule == CALL) {
                push_return_address(tr);
                push_frame(tr);
                tr_go_to(tr, e_call_later(e), branch_target(tr));
                land(tr);
                return;
            }
            flags_restore(tr);
            tr_go_to(tr, e_jmp_later(e), branch_target(tr));
            return;
        }
        indirect_target(tr);
        look_up(tr);
        if (rule == CALL) {
            e_store(e, SCRATCH, GS(entry));
            push_return_address(tr);
            push_frame(tr);
            e_call_gs(e, GS(entry));
            land(tr);
        } else {
            jump_to_scratch(e);
        }
        return;
    default:
        tr_access_at(tr, R_SP, 0, false);
        tr_load(tr, tr_width(tr), SCRATCH);
        if (flags_may_go(tr)) {
            e_bytes(e, (const u8[]){ 0x4c, 0x3b, 0x74, 0x24, 0x08 }, 5);        /* cmp r14, [rsp + 8] */
            tr->lost = true;
            struct cold *c = tr_cold(tr, COLD_RETURN, e_jcc_later(e, 5), 0);
            c->flags = tr->flags, c->disp = (s32)tr_width(tr) + (s32)(i->imm & 0xffff);
            flags_restore(tr);
            tr_move_sp(tr, c->disp);
            e8(e, 0xc3);
            return;
        }
        look_up(tr);
        tr_move_sp(tr, (s32)tr_width(tr) + (s32)(i->imm & 0xffff));
        jump_to_scratch(e);
    }
}

#endif
