/* One guest instruction of a block, by its rule.
 *
 * Owns: the code of each rule but branches (branch.c) and system instructions (system.c), and what of it near.c has to know. Called by:
 * translate.c; near.c for tr_near; branch.c and system.c for loads, stores and the stack. No locks.
 */
#include "bt/translate.h"

#if defined(__x86_64__)

extern const struct x86_op x86_op_movu, x86_op_insertps, x86_op_pcmpstr, x86_op_bt, x86_op_xchg, x86_op_xadd, x86_op_cmpxchg;
extern const struct x86_op x86_op_x87, x86_op_x87_load, x86_op_x87_store;

void tr_load(struct translation *tr, unsigned width, unsigned reg) { tr_operand(tr, width, 0x8b, reg); }
void tr_store(struct translation *tr, unsigned width, unsigned reg) { tr_operand(tr, width, 0x89, reg); }
void tr_store_imm(struct translation *tr, u64 imm)
{
    unsigned width = tr_width(tr);
    if (width == 4 || imm == (u64)(s64)(s32)imm) {
        tr_operand(tr, width, 0xc7, 0), e32(&tr->e, (u32)imm);
    } else {
        carry_end(tr);
        e_mov_imm(&tr->e, SCRATCH2, imm);
        tr_store(tr, 8, SCRATCH2);
    }
}
void tr_move_sp(struct translation *tr, s32 by) { e_lea(&tr->e, tr_width(tr) == 8, GUEST_SP, GUEST_SP, NO_INDEX, 0, by); }
void tr_push_address(struct translation *tr) { tr_access_at(tr, R_SP, -(s32)tr_width(tr), true); }

static bool op_aligned(const struct x86_op *op, unsigned size)
{
    return size == 16 && op != &x86_op_movu && op != &x86_op_insertps && op != &x86_op_pcmpstr;
}

/* Operand k, in memory, is written. */
static bool is_store(const struct x86_insn *i, enum rule rule, unsigned k)
{
    const struct x86_op *op = x86_forms[i->form].op;
    return (k == 0 && (rule == MODIFY || rule == MOVE || (rule == BITS && op != &x86_op_bt))) ||
           (rule == MODIFY && (op == &x86_op_xchg || op == &x86_op_xadd || op == &x86_op_cmpxchg));
}

static bool moves(unsigned n) { return n >= R_13 && n <= R_15; }

void tr_near(const struct translation *tr, struct near *n)
{
    const struct x86_insn *i = tr->i;
    enum rule rule = tr_rule(tr);
    bool wide = i->addr_mask == ~0ul && i->base < R_13, stays = true;
    unsigned k = 0;
    const struct x86_operand *mem = mem_operand(i, &k);
    *n = (struct near){ .of = place_of(R_SP), .size = (u8)tr_width(tr), .branch = rule == JCC, .step = rule == STEP };
    for (unsigned k = 0; k < i->nr_ops; k++)
        stays &= i->op[k].kind != X86_REG || !moves(i->op[k].reg / 8);
    switch (rule) {
    case NOTHING: case SAME: case JCC:
        n->keeps = stays;
        break;
    case LEA:
        n->keeps = stays && wide && !moves(i->index);
        break;
    case PUSH: case CALL:
        n->access = n->write = true, n->disp = -(s64)tr_width(tr);
        n->keeps = stays && !mem;
        break;
    case POP: case RET:
        n->access = true;
        n->keeps = stays && (rule == RET || i->op[0].reg / 8 != R_SP);
        break;
    case LEAVE:
        n->access = true, n->of = place_of(R_BP);
        break;
    case JMP:
        n->mem = mem != NULL;
        break;
    case MODIFY: case READ: case MOVE: case BITS:
        n->mem = mem != NULL;
        if (mem)
            n->write = is_store(i, rule, k), n->aligned = op_aligned(x86_forms[i->form].op, mem->size), n->size = (u8)mem->size;
        if (mem && tr_has_place(i)) {
            n->access = true;
            n->of = (struct place){ i->base, i->index, i->scale }, n->disp = (s64)i->disp;
        }
        n->keeps = stays && (!mem || (n->access && !n->aligned && is_plain_place(n->of)));
        break;
    default:
        break;
    }
}

/* Loads the guest's x87 registers unless that has been done. */
static void x87_begin(struct translation *tr)
{
    struct emit *e = &tr->e;
    if (tr->x87)
        return;
    carry_end(tr);
    e_mov(e, SCRATCH2, R_CX);
    e_load(e, R_CX, GS(x87_out));
    u32 live = e_jrcxz(e);
    e_call(e, tr->t->x87_in);
    e_here(e, live);
    e_mov(e, R_CX, SCRATCH2);
    tr->x87 = true;
}

/* FIP is that of the last instruction that is no control instruction. */
static void x87_end(struct translation *tr)
{
    const struct x86_op *op = x86_forms[tr->i->form].op;
    if (op != &x86_op_x87 && op != &x86_op_x87_load && op != &x86_op_x87_store)
        return;
    carry_end(tr);
    e_mov_imm(&tr->e, SCRATCH2, tr->va + tr->off);
    e_store(&tr->e, SCRATCH2, GS(x87_ip));
}

static enum bt_treatment plain(struct translation *tr, enum rule rule)
{
    const struct x86_insn *i = tr->i;
    unsigned k = 0;
    const struct x86_operand *mem = mem_operand(i, &k);
    u32 before = tr->e.at;
    bool sse = tr->t->form_rule[i->form] & SSE;
    tr->t->uses_fp |= sse || uses_x87(i);
    if (uses_x87(i))
        x87_begin(tr);
    if (sse && !tr->vectors)
        e_store_imm32(&tr->e, GS(vectors), 1);
    tr->vectors |= sse;
    if (mem) {
        const struct x86_op *op = x86_forms[i->form].op;
        tr_access(tr, mem->size, is_store(i, rule, k), op_aligned(op, mem->size));
    }
    tr_encode(tr);
    if (uses_x87(i))
        x87_end(tr);
    return !mem && tr->e.at - before == i->len && !memcmp(tr->e.p - i->len, tr->bytes, i->len) ? BT_COPIED : BT_REWRITTEN;
}

static void lea(struct translation *tr)
{
    const struct x86_insn *i = tr->i;
    struct emit *e = &tr->e;
    unsigned dst = i->op[0].reg / 8;
    if ((i->addr_mask == ~0ul || (i->addr_mask == 0xffffffff && i->size == 4)) && dst < R_13 && i->base < R_13 &&
        (i->index < R_13 || i->index == X86_ZERO)) {
        e_lea(e, i->size == 8, tr_get(tr, dst, 0), (int)tr_get(tr, i->base, 0), i->index == X86_ZERO ? NO_INDEX : (int)i->index, i->scale,
              (s32)i->disp);
        return;
    }
    tr_address(tr, false);              /* ends what was carried */
    if (i->size == 4)
        e_lea(e, false, SCRATCH, SCRATCH, NO_INDEX, 0, 0);
    tr_set(tr, dst, SCRATCH);
}

static void push(struct translation *tr)
{
    const struct x86_insn *i = tr->i;
    struct emit *e = &tr->e;
    unsigned width = tr_width(tr);
    if (i->op[0].kind == X86_MEM) {
        unsigned rest = tr->nr_rest;
        tr->nr_rest = 0;                /* no run begins here: r15, which would carry it, is to hold the value */
        tr_access(tr, width, false, false);
        tr_load(tr, width, SCRATCH2);
        e_store(e, SCRATCH2, GS(entry));        /* tmp, tmp2 are L1's */
        carry_end(tr);
        tr_push_address(tr);
        tr->nr_rest = rest;
        e_load(e, SCRATCH2, GS(entry));
        tr_store(tr, width, SCRATCH2);
        carry_end(tr);
    } else {
        tr_push_address(tr);
        if (i->op[0].kind == X86_IMM)
            tr_store_imm(tr, i->imm);
        else
            tr_store(tr, width, tr_get(tr, i->op[0].reg / 8, SCRATCH2));
    }
    tr_move_sp(tr, -(s32)width);
}

static void pop(struct translation *tr, unsigned dst)
{
    unsigned width = tr_width(tr);
    tr_access_at(tr, R_SP, 0, false);
    if (dst < R_13 && dst != R_SP) {
        tr_load(tr, width, dst);
        tr_move_sp(tr, (s32)width);
        return;
    }
    carry_end(tr);
    tr_load(tr, width, SCRATCH2);
    tr_move_sp(tr, (s32)width);
    tr_set(tr, dst, SCRATCH2);
}

static void leave(struct translation *tr)
{
    struct emit *e = &tr->e;
    unsigned width = tr_width(tr);
    tr_access_at(tr, R_BP, 0, false);
    tr_load(tr, width, SCRATCH2);
    carry_end(tr);
    e_lea(e, width == 8, GUEST_SP, R_BP, NO_INDEX, 0, (s32)width);
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
    carry_end(tr);
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

static void call_out(struct translation *tr, enum bt_exit_kind kind)
{
    tr_leave_at(tr, e_jmp_later(&tr->e), kind, 0);
    struct cold *c = &tr->cold[tr->nr_cold - 1];
    struct bt_exit *x = &tr->t->exits[c->exit];
    x->drops = true;
    x->size = (u8)tr_light(tr);
    c->light = x->size != 0;
}

enum bt_treatment tr_instruction(struct translation *tr, unsigned n, bool *ended)
{
    const struct x86_insn *i = tr->i;
    struct emit *e = &tr->e;
    enum rule rule = tr_rule(tr);
    switch (rule) {
    case STEP:
        *ended = x86_forms[i->form].attr & F_BRANCH && !route_comes_back(tr->t, tr->context, i);
        call_out(tr, *ended ? EXIT_BRANCH : EXIT_STEP);
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
    case SYSTEM: tr_system(tr); return BT_INLINE;
    default:
        *ended = true;
        tr_branch(tr, rule, n);
        return BT_ENDING;
    }
}

#endif
