/* The guest's flags across inserted code: where they may be destroyed, and how they are made again.
 *
 * Owns: struct recipe. Called by: translate.c, memory.c. Flags are seen whenever something faults, so they are dead only where nothing can,
 * every access being in a page that has been tested (tr_is_known). But those of cmp, test, and, or, xor, add and sub follow from registers
 * as long as these keep their values, so that destroying them costs nothing until somebody looks: the cold stub of the access that misses,
 * or an instruction that reads flags. Others can be saved (lahf, seto) where that pays: two or more sequences before the next instruction
 * that writes them.
 */
#include "bt/translate.h"

#if defined(__x86_64__)

#define FORM(op, ...) extern const struct x86_op x86_op_##op;
#include "x86/forms.def"
#include "x86/forms_sse.def"
#undef FORM

#define OP(name) &x86_op_##name
static const struct x86_op *const WRITES[] = {
    OP(add), OP(or), OP(and), OP(sub), OP(xor), OP(cmp), OP(test), OP(neg), OP(imul), OP(mul), OP(popcnt), OP(xadd), OP(cmpxchg), OP(sse_flags),
    OP(pcmpstr),
};
static const struct x86_op *const LEAVES[] = {
    OP(mov), OP(movzx), OP(movsx), OP(movsxd), OP(lea), OP(push), OP(pop), OP(leave), OP(xchg), OP(bswap), OP(not), OP(cbw), OP(cwd), OP(movbe), OP(nop),
    OP(shlx), OP(sarx), OP(shrx), OP(rorx), OP(mulx), OP(pdep), OP(pext), OP(crc32), OP(mova), OP(movu), OP(movscalar), OP(movq), OP(movd),
    OP(movl), OP(movh), OP(pextr), OP(pinsr), OP(sse), OP(sse_imm), OP(sse_shift), OP(sse_dqshift), OP(insertps), OP(blendv), OP(sse_fp),
    OP(sse_fp_imm), OP(sse_gpr), OP(jmp), OP(call), OP(ret), OP(loop), OP(jcxz),
};

static const struct x86_op *op_of(const struct x86_insn *i) { return x86_forms[i->form].op; }

enum flag_use flags_use(const struct x86_insn *i)
{
    if (uses_x87(i))
        return x87_has_flags(i) ? FLAGS_USED : FLAGS_UNTOUCHED;
    for (unsigned n = 0; n < ARRAY_SIZE(WRITES); n++)
        if (op_of(i) == WRITES[n])
            return FLAGS_WRITTEN;
    for (unsigned n = 0; n < ARRAY_SIZE(LEAVES); n++)
        if (op_of(i) == LEAVES[n])
            return FLAGS_UNTOUCHED;
    return FLAGS_USED;
}

/* Host register of a guest register that has one, else 0 bits. */
static u32 bit_of(unsigned guest) { return guest == R_SP ? 1u << GUEST_SP : guest < R_13 ? 1u << guest : 0; }

/* Host registers that the instruction may write. */
static u32 written(const struct x86_insn *i)
{
    const struct x86_op *op = op_of(i);
    u32 regs = 0;
    for (unsigned k = 0; k < i->nr_ops; k++)
        if (i->op[k].kind == X86_REG)
            regs |= bit_of(i->op[k].reg / 8);           /* its sources too: a little much */
    if (op == OP(mov) || op == OP(movzx) || op == OP(movsx) || op == OP(movsxd) || op == OP(lea) || op == OP(push))
        regs = op != OP(push) && i->op[0].kind == X86_REG ? bit_of(i->op[0].reg / 8) : 0;
    if (op == OP(push) || op == OP(pop) || op == OP(leave))   /* call and ret restore the flags before they move it */
        regs |= 1u << GUEST_SP;
    if (op == OP(leave))
        regs |= 1u << R_BP;
    if (op == OP(cbw) || op == OP(cwd) || op == OP(mulx) || op == OP(xchg))
        regs |= 1u << R_AX | 1u << R_DX;
    return regs;
}

/* op a, [gs:field], op as in e_alu */
static void e_alu_gs(struct emit *e, unsigned op, unsigned size, unsigned a, u32 field)
{
    e8(e, 0x65);
    if (size == 2)
        e8(e, 0x66);
    e8(e, 0x40 | (size == 8) << 3 | (a >> 3) << 2);
    e8(e, op == 8 ? 0x84 | (size > 1) : op << 3 | 2 | (size > 1));
    e8(e, (a & 7) << 3 | 4), e8(e, 0x25), e32(e, field);
}

/* op a, b or op a, imm at the recipe's size; op as in opcodes 00-3f (0 add, 5 sub, 7 cmp), 8: test. */
static void e_alu(struct emit *e, unsigned op, unsigned size, unsigned a, const struct recipe *r, unsigned b)
{
    bool byte = size == 1, imm = r->has_imm && b == 0xff;
    if (size == 2)
        e8(e, 0x66);
    u8 rex = 0x40 | (size == 8) << 3 | (imm ? 0 : (b >> 3) << 2) | a >> 3;
    if (rex != 0x40 || byte)
        e8(e, rex);
    if (imm) {
        e8(e, op == 8 ? 0xf6 | !byte : 0x80 | !byte);
        e8(e, 0xc0 | (op == 8 ? 0 : op) << 3 | (a & 7));
        if (byte)
            e8(e, (u8)r->imm);
        else if (size == 2)
            e8(e, (u8)r->imm), e8(e, (u8)(r->imm >> 8));
        else
            e32(e, (u32)r->imm);
    } else {
        e8(e, (op == 8 ? 0x84 : op << 3) | !byte);
        e8(e, 0xc0 | (b & 7) << 3 | (a & 7));
    }
}

static void e_with_b(struct emit *e, unsigned op, unsigned a, const struct recipe *r)
{
    if (r->b_saved || r->old)
        e_alu_gs(e, op, r->size, a, r->old ? GS(flag_a) : GS(flag_b));
    else
        e_alu(e, op, r->size, a, r, r->b);
}

void flags_emit(struct emit *e, const struct recipe *r)
{
    switch (r->kind) {
    case FLAGS_SAVED:
        e_mov(e, SCRATCH2, R_AX);
        e_gs(e, false, 0x8b, R_AX, GS(saved_flags));
        e8(e, 0x04), e8(e, 0x7f), e8(e, 0x9e);                          /* add al, 7fh; sahf */
        e_mov(e, R_AX, SCRATCH2);
        return;
    case FLAGS_AGAIN: case FLAGS_OF_RESULT: {
        unsigned a = r->a_saved ? SCRATCH2 : r->a;
        if (r->a_saved)
            e_load(e, SCRATCH2, GS(flag_a));
        if (r->kind == FLAGS_OF_RESULT)
            e_alu(e, 8, r->size, a, r, a);
        else
            e_with_b(e, r->op, a, r);
        return;
    }
    case FLAGS_OF_ADD: case FLAGS_OF_SUB: {
        unsigned undo = r->kind == FLAGS_OF_ADD ? 5 : 0;
        if (r->a_saved)
            e_load(e, SCRATCH2, GS(flag_a));
        else
            e_mov(e, SCRATCH2, r->a);
        e_with_b(e, undo, SCRATCH2, r);
        e_with_b(e, 5 - undo, SCRATCH2, r);
        return;
    }
    case FLAGS_OF_SHIFT:
        e_load(e, SCRATCH2, GS(flag_a));
        e8(e, 0x41 | (r->size == 8) << 3), e8(e, 0xc1), e8(e, 0xc0 | r->op << 3 | (SCRATCH2 & 7)), e8(e, (u8)r->imm);
        return;
    default:
        return;
    }
}

void flags_restore(struct translation *tr)
{
    if (tr->lost) {
        flags_emit(&tr->e, &tr->flags);
        if ((tr->flags.kind != FLAGS_AGAIN && tr->flags.kind != FLAGS_OF_RESULT) || tr->flags.a_saved)
            carry_end(tr);
    }
    tr->lost = false;
}

static void save(struct translation *tr)
{
    struct emit *e = &tr->e;
    carry_end(tr);
    e_mov(e, SCRATCH2, R_AX);
    e8(e, 0x9f), e8(e, 0x0f), e8(e, 0x90), e8(e, 0xc0);                 /* lahf; seto al */
    e_gs(e, false, 0x89, R_AX, GS(saved_flags));
    e_mov(e, R_AX, SCRATCH2);
    tr->flags = (struct recipe){ .kind = FLAGS_SAVED };
}

/* Registers that the recipe needs are about to be overwritten. False: that cannot be helped. */
static bool save_operands(struct translation *tr, u32 regs)
{
    struct recipe *r = &tr->flags;
    if (r->old)
        return false;
    if (regs & 1u << r->a && !r->a_saved) {
        e_store(&tr->e, r->a, GS(flag_a));
        r->a_saved = true;
        r->regs &= ~(1u << r->a);
    }
    if (r->b != 0xff && regs & 1u << r->b && !r->b_saved) {
        e_store(&tr->e, r->b, GS(flag_b));
        r->b_saved = true;
        r->regs &= ~(1u << r->b);
    }
    if (r->b != 0xff && !r->b_saved)
        r->regs |= 1u << r->b;          /* it was the same register as a */
    return !(r->regs & regs);
}

static bool is_shift(const struct x86_op *op) { return op == OP(shl) || op == OP(shr) || op == OP(sar); }

/* Flags that follow from what the first operand is before the instruction: shifts by a constant, and the addition of what is in memory. */
static bool wants_old(const struct x86_insn *i)
{
    const struct x86_op *op = op_of(i);
    const struct x86_operand *a = &i->op[0], *b = &i->op[1];
    if (i->size < 4 || i->nr_ops < 2 || a->kind != X86_REG || !bit_of(a->reg / 8) || a->reg / 8 == R_SP)
        return false;
    return op == OP(add) ? b->kind == X86_MEM : is_shift(op) && b->kind == X86_IMM && i->imm & (i->size == 8 ? 63 : 31);
}

void flags_before(struct translation *tr, int following, int behind)
{
    enum flag_use use = flags_use(tr->i);
    tr->old = false;
    if (op_of(tr->i) == OP(jcc) && !tr->step && tr->flags.kind != FLAGS_ONLY_HERE) {
        tr->keep = false;               /* it uses them last of all: the time may be taken before (translate.c) */
        return;
    }
    tr->keep = use == FLAGS_USED || tr->step;
    if (!following && !tr->keep) {
        tr->flags = (struct recipe){ .kind = FLAGS_ONLY_HERE };
        tr->lost = false;               /* nobody will ask */
        return;
    }
    if (!tr->keep && use == FLAGS_UNTOUCHED && written(tr->i) & tr->flags.regs)
        tr->keep = !save_operands(tr, written(tr->i));
    if (tr->keep) {
        flags_restore(tr);
    } else if (tr->flags.kind == FLAGS_ONLY_HERE && following >= (tr->opens ? 1 : 2)) {
        save(tr);
    }
    bool in_use = !tr->keep && (tr->flags.a_saved || tr->flags.old || tr->flags.kind == FLAGS_OF_SHIFT);
    tr->old = behind > 0 && !tr->step && !in_use && wants_old(tr->i);
    if (tr->old)
        e_store(&tr->e, tr->i->op[0].reg / 8, GS(flag_a));
}

/* What the instruction, which wrote flags, allows to make of them. */
static struct recipe recipe_of(const struct x86_insn *i, bool old)
{
    static const struct { const struct x86_op *op; u8 kind, code; } KINDS[] = {
        { OP(cmp), FLAGS_AGAIN, 7 }, { OP(test), FLAGS_AGAIN, 8 }, { OP(and), FLAGS_OF_RESULT, 0 }, { OP(or), FLAGS_OF_RESULT, 0 },
        { OP(xor), FLAGS_OF_RESULT, 0 }, { OP(add), FLAGS_OF_ADD, 0 }, { OP(sub), FLAGS_OF_SUB, 0 },
    };
    struct recipe r = { .size = i->size, .b = 0xff };
    if (old) {
        unsigned a = i->op[0].reg / 8;
        if (op_of(i) == OP(add))
            return (struct recipe){ .kind = FLAGS_OF_ADD, .a = (u8)a, .b = 0xff, .old = true, .size = i->size, .regs = 1u << a };
        return (struct recipe){ .kind = FLAGS_OF_SHIFT, .op = i->modrm >> 3 & 7, .b = 0xff, .size = i->size, .imm = (s32)i->imm };
    }
    const struct x86_operand *a = &i->op[0], *b = &i->op[1];
    for (unsigned n = 0; n < ARRAY_SIZE(KINDS); n++) {
        if (op_of(i) != KINDS[n].op)
            continue;
        if (a->kind != X86_REG || a->reg % 8 || !bit_of(a->reg / 8))
            break;
        r.a = a->reg / 8 == R_SP ? GUEST_SP : a->reg / 8;
        r.regs = 1u << r.a;
        r.op = KINDS[n].code;
        if (KINDS[n].kind == FLAGS_OF_RESULT) {
            r.kind = FLAGS_OF_RESULT;
            break;
        }
        if (b->kind == X86_IMM) {
            r.has_imm = true;
            r.imm = (s32)i->imm;
        } else if (b->kind == X86_REG && b->reg % 8 == 0 && bit_of(b->reg / 8)) {
            r.b = b->reg / 8 == R_SP ? GUEST_SP : b->reg / 8;
            r.regs |= 1u << r.b;
            if (r.b == r.a && op_of(i) == OP(test)) {
                r.b = 0xff;
                r.kind = FLAGS_OF_RESULT;
                break;
            }
            if (r.b == r.a && KINDS[n].kind != FLAGS_AGAIN)
                break;                  /* the other operand is gone */
        } else {
            break;
        }
        r.kind = KINDS[n].kind;
        break;
    }
    return r;
}

void flags_after(struct translation *tr)
{
    enum flag_use use = flags_use(tr->i);
    if (use == FLAGS_UNTOUCHED && !(written(tr->i) & tr->flags.regs) && !tr->step)
        return;
    tr->lost = false;
    tr->flags = (use == FLAGS_WRITTEN || tr->old) && !tr->step ? recipe_of(tr->i, tr->old) : (struct recipe){ .kind = FLAGS_ONLY_HERE };
}

#endif
