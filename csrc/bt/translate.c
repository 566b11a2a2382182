/* From guest instructions to a block of host code.
 *
 * Owns: which ops are translated, and how (RULES). Called by: run.c. An op that has no rule is the interpreter's (EXIT_STEP), and costs nothing but time.
 *
 * A block: instructions of one page up to a branch, conditional ones forward excepted, at most BT_MAX_BLOCK, with the time they take subtracted before the
 * last changes anything or, where the last is no branch, behind it. Then its ways out, then cold code.
 */
#include "bt/translate.h"
#include "machine/frame.h"
#include "x86/decode.h"

#if defined(__x86_64__)

#define FORM(op, ...) extern const struct x86_op x86_op_##op;
#include "x86/forms.def"
#include "x86/forms_sse.def"
#undef FORM

enum rule {
    STEP,                       /* the interpreter does it */
    NOTHING,                    /* nop, prefetch */
    SAME,                       /* no operand in memory or in a register that moves: copied with its prefixes */
    MODIFY,                     /* memory as first operand: read and written; else read */
    READ,                       /* memory is read */
    MOVE,                       /* memory as first operand: written; else read */
    BITS,                       /* as MODIFY, but a bit number in a register reaches beyond the operand */
    LEA, PUSH, POP, LEAVE, JMP, JCC, CALL, RET, LOOP, JCXZ, DIV,
    FP = 0x40, SSE = 0x80,      /* flags: uses xmm registers; computes in floating point (MXCSR) */
    RULE = 0x3f,
};

static const struct { const struct x86_op *op; u8 rule; } RULES[] = {
#define OP(name, rule) { &x86_op_##name, rule }
    OP(add, MODIFY), OP(or, MODIFY), OP(adc, MODIFY), OP(sbb, MODIFY), OP(and, MODIFY), OP(sub, MODIFY), OP(xor, MODIFY),
    OP(inc, MODIFY), OP(dec, MODIFY), OP(not, MODIFY), OP(neg, MODIFY), OP(rol, MODIFY), OP(ror, MODIFY), OP(rcl, MODIFY), OP(rcr, MODIFY),
    OP(shl, MODIFY), OP(shr, MODIFY), OP(sar, MODIFY), OP(shld, MODIFY), OP(shrd, MODIFY), OP(xchg, MODIFY), OP(xadd, MODIFY),
    OP(cmpxchg, MODIFY), OP(bts, BITS), OP(btr, BITS), OP(btc, BITS), OP(bt, BITS),
    OP(cmp, READ), OP(test, READ), OP(movzx, READ), OP(movsx, READ), OP(movsxd, READ), OP(imul, READ), OP(mul, READ), OP(cmovcc, READ),
    OP(popcnt, READ), OP(tzcnt, READ), OP(lzcnt, READ), OP(bsf, READ), OP(bsr, READ), OP(crc32, READ), OP(adcx, READ), OP(adox, READ),
    OP(andn, READ), OP(blsr, READ), OP(blsmsk, READ), OP(blsi, READ), OP(bzhi, READ), OP(pext, READ), OP(pdep, READ), OP(mulx, READ),
    OP(bextr, READ), OP(shlx, READ), OP(sarx, READ), OP(shrx, READ), OP(rorx, READ),
    OP(mov, MOVE), OP(movbe, MOVE), OP(setcc, MOVE), OP(bswap, READ), OP(cbw, SAME), OP(cwd, SAME), OP(sahf, SAME), OP(lahf, SAME),
    OP(cmc, SAME), OP(clc, SAME), OP(stc, SAME), OP(nop, NOTHING), OP(lea, LEA), OP(push, PUSH), OP(pop, POP), OP(leave, LEAVE),
    OP(jmp, JMP), OP(jcc, JCC), OP(call, CALL), OP(ret, RET), OP(div, DIV), OP(idiv, DIV), OP(loop, LOOP), OP(jcxz, JCXZ),
    OP(mova, MOVE | SSE), OP(movu, MOVE | SSE), OP(movscalar, MOVE | SSE), OP(movq, MOVE | SSE), OP(movd, MOVE | SSE), OP(movl, MOVE | SSE),
    OP(movh, MOVE | SSE), OP(pextr, MOVE | SSE), OP(pinsr, READ | SSE), OP(sse, READ | SSE), OP(sse_imm, READ | SSE), OP(sse_shift, READ | SSE),
    OP(sse_dqshift, READ | SSE), OP(insertps, READ | SSE), OP(blendv, READ | SSE), OP(pcmpstr, READ | SSE),
    OP(sse_fp, READ | SSE | FP), OP(sse_fp_imm, READ | SSE | FP), OP(sse_flags, READ | SSE | FP), OP(sse_gpr, READ | SSE | FP),
#undef OP
};

void bt_rules(struct bt *t)
{
    for (unsigned f = 0; f < x86_nr_forms && f < sizeof t->form_rule; f++)
        for (unsigned n = 0; n < ARRAY_SIZE(RULES); n++)
            if (x86_forms[f].op == RULES[n].op)
                t->form_rule[f] = RULES[n].rule;
}

u32 tr_exit(struct translation *tr, enum bt_exit_kind kind, u64 target)
{
    u32 n = tr->t->nr_exits++;
    tr->t->exits[n] = (struct bt_exit){ .kind = kind, .k = tr->k, .block = tr->b, .off = tr->off, .target = target, .again = tr->again };
    return n;
}

struct cold *tr_cold(struct translation *tr, enum cold_kind kind, u32 from, u32 exit)
{
    struct cold *c = &tr->cold[tr->nr_cold++];
    *c = (struct cold){ .kind = kind, .from = from, .exit = exit };
    return c;
}

/* ---- what an instruction is to be -------------------------------------------------------------------------------- */

static const struct x86_operand *mem_operand(const struct x86_insn *i, unsigned *number)
{
    for (unsigned k = 0; k < i->nr_ops; k++)
        if (i->op[k].kind == X86_MEM) {
            *number = k;
            return &i->op[k];
        }
    return NULL;
}

static bool canonical(u64 va) { return (u64)((s64)(va << 16) >> 16) == va; }
static u64 branch_target(const struct translation *tr) { return tr->va + tr->off + tr->i->len + tr->i->imm; }
static bool is_rel(const struct x86_insn *i) { return i->op[0].kind == X86_REL; }

/* The rule for an instruction as it stands here; STEP where the op's does not cover it. */
static enum rule rule_of(const struct translation *tr)
{
    const struct x86_insn *i = tr->i;
    u8 r = tr->t->form_rule[i->form];
    enum rule rule = r & RULE;
    unsigned k = 0;
    const struct x86_operand *mem = mem_operand(i, &k);
    if ((r & SSE && !(tr->context & CTX_SSE)) || (r & FP && !(tr->context & CTX_FP)))
        return STEP;
    switch (rule) {
    case STEP: case NOTHING: case SAME:
        return rule;
    case BITS: case MODIFY: case READ: case MOVE:
        if (rule == BITS && mem && i->op[1].kind != X86_IMM)
            return STEP;
        if (mem && (!mem->size || mem->size > 16 || mem->size & (mem->size - 1)))
            return STEP;
        return tr_can_encode(tr) ? rule : STEP;
    case LEA:
        return i->size >= 4 ? rule : STEP;
    case PUSH: case LEAVE:
        return i->size == 8 ? rule : STEP;
    case POP:
        return i->size == 8 && !mem ? rule : STEP;
    case JMP: case CALL: case JCC:
        return is_rel(i) && !canonical(branch_target(tr)) ? STEP : rule;
    case DIV:                           /* of registers that stay, with what compilers put into rdx */
        return i->op[0].kind == X86_REG && i->size >= 4 && i->op[0].reg / 8 < R_13 && i->op[0].reg / 8 != R_SP ? rule : STEP;
    case LOOP: case JCXZ:
        return i->addr_mask == ~0ul && canonical(branch_target(tr)) ? rule : STEP;
    default:
        return rule;
    }
}

/* ---- ways out ---------------------------------------------------------------------------------------------------- */

static void leave_at(struct translation *tr, u32 from, enum bt_exit_kind kind, u64 target)
{
    tr_cold(tr, COLD_EXIT, from, tr_exit(tr, kind, target));
}

/* The jump whose rel32 is at `from` goes to a guest address that is known. */
static void go_to(struct translation *tr, u32 from, u64 target)
{
    s8 k = tr->k;
    tr->k = 0;                          /* everything has retired and been subtracted */
    if (tr->t->options & BT_NO_CHAIN) {
        leave_at(tr, from, EXIT_NEXT, target);
    } else if ((target ^ tr->va) >> PAGE_SHIFT == 0) {
        u32 x = tr_exit(tr, EXIT_CHAIN, target);
        tr->t->exits[x].patch = from;
        tr_cold(tr, COLD_EXIT, from, x);
    } else {
        tr_cold(tr, COLD_LINK, from, tr_exit(tr, EXIT_LINK, target));
    }
    tr->k = k;
}

/* Takes the time of n instructions; leaves if too little remains to promise any block its own. */
static void take_time(struct translation *tr, unsigned n)
{
    struct emit *e = &tr->e;
    tr->k -= (s8)n;
    if (flags_may_go(tr)) {
        e8(e, 0x65), e8(e, 0x48), e8(e, 0x83), e8(e, 0x2c), e8(e, 0x25), e32(e, GS(left)), e8(e, (u8)n);        /* sub [left], n */
        tr->lost = true;
        u32 late = e_jcc_later(e, 8);                                   /* js */
        tr_cold(tr, COLD_EXIT, late, tr_exit(tr, EXIT_TIME, 0))->flags = tr->flags;
    } else {
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
    tr->flags = c->flags, tr->lost = tr->keep = false;
    tr->off = (u32)(target - tr->va);   /* where a lack of time is noticed: behind the branch */
    tr->k = (s8)n;
    take_time(tr, n);
    flags_restore(tr);
    go_to(tr, e_jmp_later(&tr->e), target);
}

/* r14: a guest address, then where its translation is, flags restored. Leaves for the interpreter to do the branch if the jump cache does not know. */
static void look_up(struct translation *tr)
{
    struct emit *e = &tr->e;
    u32 negated = GS(jump_negated) + tr->set * JUMPS * 8, host = GS(jump_host) + tr->set * JUMPS * 8;
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
    leave_at(tr, e_jmp_later(e), EXIT_BRANCH, 0);
    e_here(e, hit);
    e_load(e, R_CX, GS(tmp));
}

static void jump_to_scratch(struct emit *e) { e8(e, 0x41), e8(e, 0xff), e8(e, 0xe6); }          /* jmp r14 */
static void load_at_scratch(struct emit *e, unsigned reg)                                       /* mov reg, [r14] */
{
    e8(e, 0x49 | (reg >> 3) << 2), e8(e, 0x8b), e8(e, (reg & 7) << 3 | (SCRATCH & 7));
}
static void store_at_scratch(struct emit *e, unsigned reg)
{
    e8(e, 0x49 | (reg >> 3) << 2), e8(e, 0x89), e8(e, (reg & 7) << 3 | (SCRATCH & 7));
}
static void move_sp(struct emit *e, s32 by) { e_lea(e, true, GUEST_SP, GUEST_SP, NO_INDEX, 0, by); }

/* r14 := host address of the 8 bytes that a push writes. */
static void push_address(struct translation *tr)
{
    e_lea(&tr->e, true, SCRATCH, GUEST_SP, NO_INDEX, 0, -8);
    tr_access(tr, 8, true, false, SLOT_STACK);
}

/* ---- instructions ------------------------------------------------------------------------------------------------ */

static enum bt_treatment plain(struct translation *tr, enum rule rule)
{
    const struct x86_insn *i = tr->i;
    unsigned k = 0;
    const struct x86_operand *mem = mem_operand(i, &k);
    u32 before = tr->e.at;
    if (mem) {
        const struct x86_op *op = x86_forms[i->form].op;
        bool aligned = mem->size == 16 && op != &x86_op_movu && op != &x86_op_insertps && op != &x86_op_pcmpstr;
        bool write = k == 0 && (rule == MODIFY || rule == MOVE || (rule == BITS && op != &x86_op_bt));
        if (rule == MODIFY && (op == &x86_op_xchg || op == &x86_op_xadd || op == &x86_op_cmpxchg))
            write = true;
        tr_address(tr, true);
        tr_access(tr, mem->size, write, aligned, tr_slot(tr));
    }
    tr_encode(tr);
    return !mem && tr->e.at - before == i->len && !memcmp(tr->e.p - i->len, tr->bytes, i->len) ? BT_COPIED : BT_REWRITTEN;
}

static void lea(struct translation *tr)
{
    const struct x86_insn *i = tr->i;
    struct emit *e = &tr->e;
    unsigned dst = i->op[0].reg / 8;
    if (i->addr_mask == ~0ul && dst < R_13 && i->base < R_13 && (i->index < R_13 || i->index == X86_ZERO)) {
        e_lea(e, i->size == 8, tr_get(tr, dst, 0), (int)tr_get(tr, i->base, 0), i->index == X86_ZERO ? NO_INDEX : (int)i->index, i->scale, (s32)i->disp);
        return;
    }
    tr_address(tr, false);
    if (i->size == 4)
        e_lea(e, false, SCRATCH, SCRATCH, NO_INDEX, 0, 0);
    tr_set(tr, dst, SCRATCH);
}

static void push(struct translation *tr)
{
    const struct x86_insn *i = tr->i;
    struct emit *e = &tr->e;
    if (i->op[0].kind == X86_MEM) {
        tr_address(tr, true);
        tr_access(tr, 8, false, false, tr_slot(tr));
        load_at_scratch(e, SCRATCH2);
        e_store(e, SCRATCH2, GS(entry));        /* tmp, tmp2 are L1's */
        push_address(tr);
        e_load(e, SCRATCH2, GS(entry));
        store_at_scratch(e, SCRATCH2);
    } else {
        push_address(tr);
        if (i->op[0].kind == X86_IMM) {
            e_mov_imm(e, SCRATCH2, i->imm);
            store_at_scratch(e, SCRATCH2);
        } else {
            store_at_scratch(e, tr_get(tr, i->op[0].reg / 8, SCRATCH2));
        }
    }
    move_sp(e, -8);
}

static void pop(struct translation *tr, unsigned dst)
{
    struct emit *e = &tr->e;
    e_mov(e, SCRATCH, GUEST_SP);
    tr_access(tr, 8, false, false, SLOT_STACK);
    load_at_scratch(e, SCRATCH2);
    move_sp(e, 8);
    tr_set(tr, dst, SCRATCH2);
}

static void leave(struct translation *tr)
{
    struct emit *e = &tr->e;
    e_mov(e, SCRATCH, R_BP);
    tr_access(tr, 8, false, false, SLOT_STACK);
    load_at_scratch(e, SCRATCH2);
    e_lea(e, true, GUEST_SP, R_BP, NO_INDEX, 0, 8);
    e_mov(e, R_BP, SCRATCH2);
}

/* The interpreter's turn if rcx is zero; r15 is what rcx is to be. */
static void step_if_zero(struct translation *tr, bool zero)
{
    struct emit *e = &tr->e;
    u32 is_zero = e_jrcxz(e);
    if (zero) {
        e8(e, 0xeb), e8(e, 5);
        e_here(e, is_zero);
    }
    u32 slow = e_jmp_later(e);
    if (!zero)
        e_here(e, is_zero);
    tr_cold(tr, COLD_EXIT, slow, tr_exit(tr, EXIT_STEP, 0))->restore_rcx = true;
}

static void mov_rcx(struct emit *e, unsigned size, unsigned from) { e_lea(e, size == 8, R_CX, (int)from, NO_INDEX, 0, 0); }

/* div and idiv that cannot raise #DE: the dividend's upper half only extends the lower, the divisor is not 0, nor -1 if signed. */
static void divide(struct translation *tr)
{
    const struct x86_insn *i = tr->i;
    struct emit *e = &tr->e;
    unsigned divisor = i->op[0].reg / 8;
    bool is_signed = (i->modrm >> 3 & 7) == 7;
    e_mov(e, SCRATCH2, R_CX);
    mov_rcx(e, i->size, divisor);
    step_if_zero(tr, true);
    if (is_signed) {
        e_lea(e, i->size == 8, R_CX, R_CX, NO_INDEX, 0, 1);
        step_if_zero(tr, true);
        e_pext(e, true, R_CX, R_AX, i->size == 8 ? GS(mask_sign) : GS(mask_sign32));
        e_lea(e, i->size == 8, R_CX, R_CX, R_DX, 0, 0);
    } else {
        mov_rcx(e, i->size, R_DX);
    }
    step_if_zero(tr, false);
    e_mov(e, R_CX, SCRATCH2);
    tr_encode(tr);
}

/* r14 := target of a jump or call through a register or memory. */
static void indirect_target(struct translation *tr)
{
    const struct x86_insn *i = tr->i;
    if (i->op[0].kind == X86_MEM) {
        tr_address(tr, true);
        tr_access(tr, 8, false, false, tr_slot(tr));
        load_at_scratch(&tr->e, SCRATCH);
    } else {
        unsigned r = tr_get(tr, i->op[0].reg / 8, SCRATCH);
        if (r != SCRATCH)
            e_mov(&tr->e, SCRATCH, r);
    }
}

static void push_return_address(struct translation *tr)
{
    push_address(tr);
    e_mov_imm(&tr->e, SCRATCH2, tr->va + tr->off + tr->i->len);
    store_at_scratch(&tr->e, SCRATCH2);
    flags_restore(tr);                  /* they may be those of an addition to rsp */
    move_sp(&tr->e, -8);
    tr->flags = (struct recipe){ .kind = FLAGS_ONLY_HERE };
}

static void branch(struct translation *tr, enum rule rule, unsigned n)
{
    const struct x86_insn *i = tr->i;
    struct emit *e = &tr->e;
    u64 next = tr->va + tr->off + i->len;
    take_time(tr, n);
    switch (rule) {
    case JCC:
        flags_restore(tr);
        go_to(tr, e_jcc_later(e, i->opcode & 15), branch_target(tr));
        go_to(tr, e_jmp_later(e), next);
        return;
    case JCXZ: case LOOP:
        flags_restore(tr);
        if (rule == LOOP)
            e_lea(e, true, R_CX, R_CX, NO_INDEX, 0, -1);
        {
            u32 zero = e_jrcxz(e);
            go_to(tr, e_jmp_later(e), rule == LOOP ? branch_target(tr) : next);
            e_here(e, zero);
            go_to(tr, e_jmp_later(e), rule == LOOP ? next : branch_target(tr));
        }
        return;
    case JMP: case CALL:
        if (is_rel(i)) {
            if (rule == CALL)
                push_return_address(tr);
            flags_restore(tr);
            go_to(tr, e_jmp_later(e), branch_target(tr));
            return;
        }
        indirect_target(tr);
        look_up(tr);
        if (rule == CALL) {
            e_store(e, SCRATCH, GS(entry));
            push_return_address(tr);
            e_jmp_gs(e, GS(entry));
        } else {
            jump_to_scratch(e);
        }
        return;
    default:
        e_mov(e, SCRATCH, GUEST_SP);
        tr_access(tr, 8, false, false, SLOT_STACK);
        load_at_scratch(e, SCRATCH);
        look_up(tr);
        move_sp(e, 8 + (s32)(i->imm & 0xffff));
        jump_to_scratch(e);
    }
}

/* One instruction of a block; n: instructions up to and with it. *ended: it was a branch. */
static enum bt_treatment instruction(struct translation *tr, unsigned n, bool *ended)
{
    const struct x86_insn *i = tr->i;
    struct emit *e = &tr->e;
    enum rule rule = rule_of(tr);
    switch (rule) {
    case STEP:
        *ended = x86_forms[i->form].attr & F_BRANCH;
        leave_at(tr, e_jmp_later(e), *ended ? EXIT_BRANCH : EXIT_STEP, 0);
        return BT_CALLED_OUT;
    case NOTHING:
        if (i->opcode == 0xae)          /* fences */
            e_bytes(e, tr->bytes, i->len);
        return BT_COPIED;
    case SAME:
        if (i->prefixes & X86_OPSIZE)
            e8(e, 0x66);
        if (i->rex & 8)
            e8(e, 0x48);
        e8(e, i->opcode);
        return BT_COPIED;
    case MODIFY: case READ: case MOVE: case BITS: return plain(tr, rule);
    case DIV: divide(tr); return BT_REWRITTEN;
    case LEA: lea(tr); return BT_REWRITTEN;
    case PUSH: push(tr); return BT_REWRITTEN;
    case POP: pop(tr, i->op[0].reg / 8); return BT_REWRITTEN;
    case LEAVE: leave(tr); return BT_REWRITTEN;
    default:
        *ended = true;
        branch(tr, rule, n);
        return BT_ENDING;
    }
}

/* ---- blocks ------------------------------------------------------------------------------------------------------ */

enum { COPY = BT_MAX_BLOCK * 15 + 15 };

/* Decodes up to a branch. Returns how many instructions; *bytes: how long they are. */
static unsigned decode_block(const struct bt *t, const u8 *copy, unsigned n, struct x86_insn *i, unsigned *bytes)
{
    unsigned nr = 0, at = 0, max = t->options & BT_ONE ? 1 : BT_MAX_BLOCK;
    while (nr < max) {
        unsigned left = n - at;
        int len = left ? x86_decode(&i[nr], copy + at, left < 15 ? left : 15, 64, t->features) : 0;
        if (len <= 0)
            break;
        at += (unsigned)len;
        const struct x86_insn *last = &i[nr++];
        bool forward = t->form_rule[last->form] == JCC && (s64)last->imm > 0;
        if (x86_forms[last->form].attr & F_BRANCH && !forward)
            break;
    }
    *bytes = at;
    return nr;
}

/* How many sequences come before the flags are written next: whether it pays to save them. */
static unsigned accesses_to_come(const struct translation *tr, const struct x86_insn *i, unsigned n)
{
    unsigned accesses = 0;
    for (unsigned k = 0; k < n; k++) {
        enum rule rule = tr->t->form_rule[i[k].form] & RULE;
        enum flag_use use = flags_use(&i[k]);
        if (rule == STEP || use == FLAGS_USED)
            return accesses;
        accesses += (x86_has_mem(&i[k]) && rule != LEA && rule != NOTHING) + (rule == PUSH || rule == POP || rule == LEAVE);
        if (use == FLAGS_WRITTEN)
            return accesses;
    }
    return accesses + 1;
}

static void emit_block(struct translation *tr, const struct x86_insn *insns, unsigned nr, const u8 *copy)
{
    struct bt *t = tr->t;
    struct emit *e = &tr->e;
    bool ended = false;
    if (t->options & BT_PROFILE) {      /* lea leaves the flags alone */
        e_mov_imm(e, SCRATCH, (u64)&t->block[tr->b].hits);
        load_at_scratch(e, SCRATCH2);
        e_lea(e, true, SCRATCH2, SCRATCH2, NO_INDEX, 0, 1);
        store_at_scratch(e, SCRATCH2);
    }
    for (unsigned n = 0; n < nr; n++) {
        u32 first = t->nr_exits;
        struct bt_map *m = &t->maps[t->nr_maps++];
        tr->i = &insns[n], tr->bytes = copy + tr->off, tr->k = (s8)n, tr->again = e->at;
        m->code = e->at, m->off = (u16)tr->off, m->len = insns[n].len;
        tr->step = rule_of(tr) == STEP;
        if (tr->t->form_rule[insns[n].form] == JCC && !tr->step && n + 1 < nr) {
            flags_restore(tr);
            struct cold *c = tr_cold(tr, COLD_SIDE, e_jcc_later(e, insns[n].opcode & 15), 0);
            c->slot = n + 1, c->target = branch_target(tr), c->flags = tr->flags;
            m->treatment = BT_ENDING;
            tr->off += insns[n].len;
            continue;
        }
        flags_before(tr, accesses_to_come(tr, insns + n, nr - n));
        tr->again = e->at;              /* a restart finds the flags in order */
        m->treatment = (u8)instruction(tr, n + 1, &ended);
        if (!ended)
            flags_after(tr);
        for (u32 x = first; x < t->nr_exits && !ended; x++)
            t->exits[x].behind = e->at;
        tr->off += insns[n].len;
    }
    if (!ended) {
        tr->k = (s8)nr;
        take_time(tr, nr);
        flags_restore(tr);
        go_to(tr, e_jmp_later(e), tr->va + tr->off);
    }
    tr_cold_code(tr);
}

/* There is room for the largest block. */
static bool has_room(const struct bt *t)
{
    return t->used + CACHE_SLACK <= CACHE_BYTES && t->nr_blocks < NR_BLOCKS && t->nr_exits + 4 * BT_MAX_BLOCK < NR_EXITS &&
           t->nr_links + 2 <= LINKS && t->nr_pages < CODE_PAGES && t->nr_maps + BT_MAX_BLOCK < NR_MAPS &&
           !(t->options & BT_FLUSH && t->nr_blocks > 64);
}

u32 bt_translate(struct bt *t, const u8 *host, u64 va, u8 context)
{
    struct x86_insn insns[BT_MAX_BLOCK];
    u8 copy[COPY];
    unsigned in_page = va % PAGE_SIZE, n = PAGE_SIZE - in_page < COPY ? PAGE_SIZE - in_page : COPY, bytes;
    if (!has_room(t))
        bt_forget(t);
    memcpy(copy, host, n);              /* once: another CPU may be writing there */
    unsigned nr = decode_block(t, copy, n, insns, &bytes);
    struct bt_page *page = bt_page_claim(t, host, in_page, bytes ? bytes : 1);
    if (!page || memcmp(copy, host, bytes))
        return 0;

    u32 b = t->nr_blocks++;
    struct translation tr = { .e = { t, t->rw + t->used, t->used }, .t = t, .b = b, .set = context & CTX_SET, .va = va, .context = context };
    struct bt_block *block = &t->block[b];
    *block = (struct bt_block){ .host = host, .va = va, .code = t->used, .bytes = (u16)bytes, .nr = (u16)nr, .context = context,
                                .first_map = t->nr_maps };
    tr.i = insns, tr.bytes = copy;
    if (!nr || rule_of(&tr) == STEP) {          /* known to be none */
        block->nr = 0;
        bt_block_insert(t, b, page);
        return b;
    }
    block->entry_exit = tr_exit(&tr, EXIT_NEXT, va);
    emit_block(&tr, insns, nr, copy);
    block->code_len = tr.e.at - t->used;
    block->nr_exits = t->nr_exits - block->entry_exit;
    t->used = ALIGN_UP(tr.e.at, 16);
    bt_block_insert(t, b, page);
    t->stats.blocks++;
    t->stats.translated += nr;
    t->stats.host_bytes += block->code_len;
    t->stats.guest_bytes += bytes;
    if (t->options & BT_VERIFY && !bt_verify(t, block)) {
        t->stats.rejected++;
        t->rejected = *block;           /* for who looks into it */
        block->nr = 0;
    }
    return b;
}

#endif
