/* From guest instructions to a block of host code.
 *
 * Owns: which ops are translated, and how (RULES). Called by: run.c. An op that has no rule is the interpreter's (EXIT_STEP), and costs nothing but time.
 *
 * A block: instructions of one page in the order in which they will probably be executed (decode_block), at most BT_MAX_BLOCK, with the time they take
 * subtracted before the last changes anything or, where the last is no branch, behind it. Then its ways out, then cold code. A block that has led to itself
 * HOT times is made again, unrolled (run.c).
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
    SYSTEM,                     /* system.c */
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
    OP(cli, SYSTEM), OP(sti, SYSTEM), OP(cld, SYSTEM), OP(std, SYSTEM), OP(pushf, SYSTEM), OP(popf, SYSTEM), OP(mov_cr, SYSTEM),
    OP(mov_from_seg, SYSTEM), OP(push_seg, SYSTEM), OP(sldt, SYSTEM), OP(str, SYSTEM), OP(smsw, SYSTEM), OP(swapgs, SYSTEM),
    OP(mova, MOVE | SSE), OP(movu, MOVE | SSE), OP(movscalar, MOVE | SSE), OP(movq, MOVE | SSE), OP(movd, MOVE | SSE), OP(movl, MOVE | SSE),
    OP(movh, MOVE | SSE), OP(pextr, MOVE | SSE), OP(pinsr, READ | SSE), OP(sse, READ | SSE), OP(sse_imm, READ | SSE), OP(sse_shift, READ | SSE),
    OP(sse_dqshift, READ | SSE), OP(insertps, READ | SSE), OP(blendv, READ | SSE), OP(pcmpstr, READ | SSE),
    OP(x87, READ), OP(x87_load, READ), OP(x87_store, MOVE), OP(fnstcw, MOVE), OP(fnstsw, MOVE), OP(fnclex, READ),
    OP(mmx, READ), OP(mmx_imm, READ), OP(mmx_shift, READ), OP(mmx_gpr, READ), OP(mmx_movq, MOVE), OP(emms, READ),
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

static u64 branch_target(const struct translation *tr) { return tr->va + tr->off + tr->i->len + tr->i->imm; }
/* False: #GP(0), or in 32-bit code an address that has to be cut. */
static bool target_is_plain(const struct translation *tr)
{
    u64 target = branch_target(tr);
    return tr->context & CTX_32 ? target == (u32)target : va_canonical(target);
}

/* In 32-bit code: the memory operand is one of the segments that the context says can be used, by a 32-bit address. */
static bool operand_is_flat(const struct translation *tr)
{
    const struct x86_insn *i = tr->i;
    if (!(tr->context & CTX_32) || !x86_has_mem(i))
        return true;
    return i->addr_mask == 0xffffffff && i->mem_seg != X86_CS && (i->mem_seg != X86_FS || tr->context & CTX_FS) &&
           (i->mem_seg != X86_GS || tr->context & CTX_GS);
}
static bool is_rel(const struct x86_insn *i) { return i->op[0].kind == X86_REL; }

/* The rule for an instruction as it stands here; STEP where the op's does not cover it. */
static enum rule rule_of(const struct translation *tr)
{
    const struct x86_insn *i = tr->i;
    u8 r = tr->t->form_rule[i->form];
    enum rule rule = r & RULE;
    unsigned k = 0;
    const struct x86_operand *mem = mem_operand(i, &k);
    unsigned width = tr_width(tr);
    if ((r & SSE && !(tr->context & CTX_SSE)) || (r & FP && !(tr->context & CTX_FP)))
        return STEP;
    if (rule != NOTHING && !operand_is_flat(tr))
        return STEP;
    if (uses_x87(i) && !(tr->context & CTX_X87))
        return STEP;
    switch (rule) {
    case STEP: case NOTHING: case SAME:
        return rule;
    case BITS: case MODIFY: case READ: case MOVE:
        if (rule == BITS && mem && i->op[1].kind != X86_IMM)
            return STEP;
        if (i->size == 2 && (x86_forms[i->form].op == &x86_op_shld || x86_forms[i->form].op == &x86_op_shrd))
            return STEP;                /* by more than 16: CPUs differ */
        if (mem && (!mem->size || mem->size > 16 || mem->size & (mem->size - 1)))
            return STEP;
        return tr_can_encode(tr) ? rule : STEP;
    case SYSTEM:
        return tr_system_rule(tr) ? rule : STEP;
    case LEA:
        return i->size >= 4 ? rule : STEP;
    case PUSH: case LEAVE:
        return i->size == width ? rule : STEP;
    case POP:
        return i->size == width && !mem ? rule : STEP;
    case JMP: case CALL: case JCC: case RET:
        return i->size != width || (is_rel(i) && !target_is_plain(tr)) ? STEP : rule;
    case DIV:                           /* of registers that stay, with what compilers put into rdx */
        return i->op[0].kind == X86_REG && i->size >= 4 && i->op[0].reg / 8 < R_13 && i->op[0].reg / 8 != R_SP ? rule : STEP;
    case LOOP: case JCXZ:
        return i->size == width && i->addr_mask >> (8 * width - 1) == 1 && target_is_plain(tr) ? rule : STEP;
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
    leave_at(tr, e_jmp_later(e), EXIT_BRANCH, 0);
    e_here(e, hit);
    e_load(e, R_CX, GS(tmp));
}

static void jump_to_scratch(struct emit *e) { e8(e, 0x41), e8(e, 0xff), e8(e, 0xe6); }          /* jmp r14 */
void tr_load(struct translation *tr, unsigned width, unsigned reg) { tr_operand(tr, width, 0x8b, reg); }
void tr_store(struct translation *tr, unsigned width, unsigned reg) { tr_operand(tr, width, 0x89, reg); }
static void store_operand_imm(struct translation *tr, u64 imm)
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
static void move_sp(struct translation *tr, s32 by) { e_lea(&tr->e, tr_width(tr) == 8, GUEST_SP, GUEST_SP, NO_INDEX, 0, by); }
/* dst := an address that is in a register. */
static void address_from(struct translation *tr, unsigned dst, unsigned from)
{
    if (tr_width(tr) == 8)
        e_mov(&tr->e, dst, from);
    else
        e_lea(&tr->e, false, dst, (int)from, NO_INDEX, 0, 0);
}

void tr_push_address(struct translation *tr) { tr_access_at(tr, R_SP, -(s32)tr_width(tr), true); }

/* ---- instructions ------------------------------------------------------------------------------------------------ */

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

bool tr_near(struct translation *tr, const struct x86_insn *i, struct near *n)
{
    const struct x86_insn *own = tr->i;
    bool wide = i->addr_mask == ~0ul && i->base < R_13;
    tr->i = i;
    enum rule rule = rule_of(tr);
    tr->i = own;
    *n = (struct near){ .base = R_SP, .branch = rule == JCC };
    for (unsigned k = 0; k < i->nr_ops; k++)
        if (i->op[k].kind == X86_REG && moves(i->op[k].reg / 8))
            return false;
    switch (rule) {
    case NOTHING: case SAME: case JCC:
        return true;
    case LEA:
        return wide && !moves(i->index);
    case PUSH: case CALL:
        n->access = n->write = true, n->disp = -(s64)tr_width(tr);
        return i->op[0].kind != X86_MEM;
    case POP: case RET:
        n->access = true;
        return rule == RET || i->op[0].reg / 8 != R_SP;
    case MODIFY: case READ: case MOVE: case BITS: {
        unsigned k = 0;
        const struct x86_operand *mem = mem_operand(i, &k);
        if (!mem)
            return true;
        *n = (struct near){ true, is_store(i, rule, k), false, i->base, i->disp };
        return wide && i->index == X86_ZERO && i->mem_seg != X86_FS && i->mem_seg != X86_GS && !op_aligned(x86_forms[i->form].op, mem->size);
    }
    default:
        return false;
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
    if (uses_x87(i))
        x87_begin(tr);
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
    if ((i->addr_mask == ~0ul || (i->addr_mask == 0xffffffff && i->size == 4)) && dst < R_13 && i->base < R_13 && (i->index < R_13 || i->index == X86_ZERO)) {
        e_lea(e, i->size == 8, tr_get(tr, dst, 0), (int)tr_get(tr, i->base, 0), i->index == X86_ZERO ? NO_INDEX : (int)i->index, i->scale, (s32)i->disp);
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
            store_operand_imm(tr, i->imm);
        else
            tr_store(tr, width, tr_get(tr, i->op[0].reg / 8, SCRATCH2));
    }
    move_sp(tr, -(s32)width);
}

static void pop(struct translation *tr, unsigned dst)
{
    unsigned width = tr_width(tr);
    tr_access_at(tr, R_SP, 0, false);
    if (dst < R_13 && dst != R_SP) {
        tr_load(tr, width, dst);
        move_sp(tr, (s32)width);
        return;
    }
    carry_end(tr);
    tr_load(tr, width, SCRATCH2);
    move_sp(tr, (s32)width);
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
    store_operand_imm(tr, width == 8 ? next : (u32)next);
    flags_restore(tr);                  /* they may be those of an addition to rsp */
    move_sp(tr, -(s32)width);
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
    go_to(tr, e_jmp_later(&tr->e), tr->va + tr->off + tr->i->len);
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
    move_sp(tr, c->disp);
    jump_to_scratch(e);
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
            e_lea(e, tr_width(tr) == 8, R_CX, R_CX, NO_INDEX, 0, -1);
        {
            u32 zero = tr_width(tr) == 8 ? e_jrcxz(e) : e_jecxz(e);
            go_to(tr, e_jmp_later(e), rule == LOOP ? branch_target(tr) : next);
            e_here(e, zero);
            go_to(tr, e_jmp_later(e), rule == LOOP ? next : branch_target(tr));
        }
        return;
    case JMP: case CALL:
        if (is_rel(i)) {
            if (rule == CALL) {
                push_return_address(tr);
                push_frame(tr);
                go_to(tr, e_call_later(e), branch_target(tr));
                land(tr);
                return;
            }
            flags_restore(tr);
            go_to(tr, e_jmp_later(e), branch_target(tr));
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
            move_sp(tr, c->disp);
            e8(e, 0xc3);
            return;
        }
        look_up(tr);
        move_sp(tr, (s32)tr_width(tr) + (s32)(i->imm & 0xffff));
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
        if (tr_switches_level(tr)) {
            struct cold *c = &tr->cold[tr->nr_cold - 1];
            c->switches_level = true;
            tr->t->exits[c->exit].size = x86_forms[i->form].op == &x86_op_sysret;
        }
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
        branch(tr, rule, n);
        return BT_ENDING;
    }
}

/* ---- blocks ------------------------------------------------------------------------------------------------------ */

enum { FOLLOW = 512 };           /* bytes that a jump may skip and still be followed: they become the block's too */

struct route {                  /* the instructions of a block: in the order of execution, as far as that can be foreseen */
    struct x86_insn i[BT_MAX_BLOCK];
    s16 off[BT_MAX_BLOCK + 1];  /* where each is; [nr]: where it goes on behind the last */
    unsigned nr;
    int low, high;              /* the bytes they are in, from the first one's address */
};

static bool visits(const struct route *p, s64 off)
{
    for (unsigned k = 0; k < p->nr; k++)
        if (p->off[k] == off)
            return true;
    return false;
}

/* Decodes what is at `first` of a page, up to a branch that leads nobody knows where. Followed are conditional branches, as not taken, unless they close
 * a loop; jumps to what is near; and if `unroll`, the branch that closes a loop around the whole block, for as often as there is room. */
static void decode_block(const struct bt *t, const u8 *page, int first, unsigned mode, bool unroll, struct route *p)
{
    int at = 0, from = -first, end = PAGE_SIZE - first;
    unsigned max = t->options & BT_ONE ? 1 : BT_MAX_BLOCK, once = 0;
    p->nr = 0, p->low = p->high = 0;
    while (p->nr < max) {
        int left = end - at;
        struct x86_insn *i = &p->i[p->nr];
        if (once && p->nr >= once)
            *i = p->i[p->nr - once];
        else if (left <= 0 || x86_decode(i, page + first + at, left < 15 ? (unsigned)left : 15, mode, t->features) <= 0)
            break;
        p->off[p->nr++] = (s16)at;
        p->low = at < p->low ? at : p->low;
        at += i->len;
        p->high = at > p->high ? at : p->high;
        if (!(x86_forms[i->form].attr & F_BRANCH))
            continue;
        u8 rule = t->form_rule[i->form];
        s64 to = at + (s64)i->imm;
        bool jump = rule == JMP && i->op[0].kind == X86_REL;
        if (mode == 32 && i->size != 4)
            break;                      /* cuts the address to 16 bits */
        if ((rule == JCC || jump) && !to && unroll) {
            once = once ? once : p->nr;
            if (p->nr + once > max)
                break;
            at = 0;
        } else if (jump && to >= from && to < end && to >= at - FOLLOW && to < at + FOLLOW && (once || !visits(p, to))) {
            at = (int)to;
        } else if (rule != JCC || !i->imm || (!once && visits(p, to))) {
            break;
        }
    }
    p->off[p->nr] = (s16)at;
}

/* How many sequences come before the flags are written next: whether it pays to save them. 0: they are dead; -1: none, but they are read. */
static int accesses_to_come(const struct translation *tr, const struct x86_insn *i, unsigned n)
{
    int accesses = 0;
    for (unsigned k = 0; k < n; k++) {
        enum rule rule = tr->t->form_rule[i[k].form] & RULE;
        enum flag_use use = flags_use(&i[k]);
        if (rule == STEP || use == FLAGS_USED)
            return accesses ? accesses : -1;
        accesses += (x86_has_mem(&i[k]) && rule != LEA && rule != NOTHING) + (rule == PUSH || rule == POP || rule == LEAVE) + 2 * (rule == CALL || rule == RET);
        if (use == FLAGS_WRITTEN)
            return accesses;
    }
    return accesses + 1;
}

static void emit_block(struct translation *tr, const struct route *route, const u8 *copy)
{
    struct bt *t = tr->t;
    struct emit *e = &tr->e;
    const struct x86_insn *insns = route->i;
    unsigned nr = route->nr;
    bool ended = false;
    if (t->options & BT_PROFILE) {      /* lea leaves the flags alone */
        e_mov_imm(e, SCRATCH, (u64)&t->block[tr->b].hits);
        tr->operand.base = -1;
        tr_load(tr, 8, SCRATCH2);
        e_lea(e, true, SCRATCH2, SCRATCH2, NO_INDEX, 0, 1);
        tr_store(tr, 8, SCRATCH2);
    }
    for (unsigned n = 0; n < nr; n++) {
        u32 first = t->nr_exits;
        struct bt_map *m = &t->maps[t->nr_maps++];
        tr->off = route->off[n];
        tr->rest = &insns[n + 1], tr->nr_rest = nr - n - 1;
        tr->i = &insns[n], tr->bytes = copy + (int)(tr->va % PAGE_SIZE) + tr->off, tr->k = (s8)n, tr->again = e->at;
        m->code = e->at, m->off = (s16)tr->off, m->len = insns[n].len;
        tr->last = n + 1 == nr;
        tr->step = rule_of(tr) == STEP;
        if (tr->t->form_rule[insns[n].form] == JCC && !tr->step && n + 1 < nr) {
            u64 behind = tr->va + tr->off + insns[n].len;
            bool taken = tr->va + route->off[n + 1] != behind;
            flags_restore(tr);
            struct cold *c = tr_cold(tr, COLD_SIDE, e_jcc_later(e, (insns[n].opcode & 15) ^ taken), 0);
            c->slot = n + 1, c->target = taken ? behind : branch_target(tr), c->flags = tr->flags;
            m->treatment = BT_ENDING;
            tr->shadow = false;
            continue;
        }
        if (tr->t->form_rule[insns[n].form] == JMP && n + 1 < nr) {
            m->treatment = BT_ENDING;   /* followed: nothing is left of it */
            tr->shadow = false;
            continue;
        }
        flags_before(tr, accesses_to_come(tr, insns + n, nr - n), accesses_to_come(tr, insns + n + 1, nr - n - 1));
        tr->again = e->at;              /* a restart finds the flags in order */
        m->treatment = (u8)instruction(tr, n + 1, &ended);
        if (tr->step)
            carry_end(tr);
        near_after(tr);
        if (!ended)
            flags_after(tr);
        for (u32 x = first; x < t->nr_exits && !ended; x++)
            t->exits[x].behind = e->at;
        tr->shadow = m->treatment == BT_INLINE && x86_forms[insns[n].form].op == &x86_op_sti;
    }
    tr->off = route->off[nr];
    if (!ended) {
        tr->k = (s8)nr;
        tr->shadow = false;
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

u32 bt_translate(struct bt *t, const u8 *host, u64 va, u16 context, bool unroll)
{
    struct route route;
    u8 copy[PAGE_SIZE];
    unsigned in_page = va % PAGE_SIZE;
    if (!has_room(t))
        bt_forget(t);
    memcpy(copy, host - in_page, PAGE_SIZE);    /* once: another CPU may be writing there */
    decode_block(t, copy, (int)in_page, context_mode(context), unroll, &route);
    unsigned nr = route.nr, low = in_page + (unsigned)route.low, bytes = (unsigned)(route.high - route.low);
    struct bt_page *page = bt_page_claim(t, host, low, bytes ? bytes : 1);
    if (!page || memcmp(copy + low, host - in_page + low, bytes))
        return 0;

    u32 b = t->nr_blocks++;
    struct translation tr = { .e = { t, t->rw + t->used, t->used }, .t = t, .b = b, .set = context & CTX_SET, .va = va, .context = context };
    struct bt_block *block = &t->block[b];
    *block = (struct bt_block){ .host = host, .va = va, .code = t->used, .bytes = (u16)bytes, .low = (s16)route.low, .nr = (u16)nr, .context = context,
                                .first_map = t->nr_maps, .unrolled = unroll };
    tr.i = route.i, tr.bytes = copy + in_page;
    if (!nr) {                  /* known to be none */
        block->nr = 0;
        bt_block_insert(t, b, page);
        return b;
    }
    block->entry_exit = tr_exit(&tr, EXIT_NEXT, va);
    emit_block(&tr, &route, copy);
    block->code_len = tr.e.at - t->used;
    block->nr_exits = t->nr_exits - block->entry_exit;
    t->used = ALIGN_UP(tr.e.at, 16);
    bt_block_insert(t, b, page);
    t->stats.blocks++;
    t->stats.translated += nr;
    t->stats.host_bytes += block->code_len;
    t->stats.guest_bytes += bytes;
    if (t->options & BT_VERIFY) {
        block->host = copy + in_page;   /* what was translated: in memory another CPU may be changing it */
        bool ok = bt_verify(t, block);
        block->host = host;
        if (!ok) {
            t->stats.rejected++;
            t->rejected = *block;       /* for who looks into it */
            block->nr = 0;
        }
    }
    return b;
}

#endif
