/* The guest's flags across inserted code: where they may be destroyed, and how they are made again.
 *
 * Owns: struct recipe. Called by: translate.c, memory.c. Flags are seen whenever something faults, so they are never dead; but those of cmp, test, and,
 * or, xor, add and sub follow from registers as long as these keep their values, so that destroying them costs nothing until somebody looks: the cold
 * stub of the access that misses, or an instruction that reads flags. Others can be saved (lahf, seto) where that pays: two or more sequences
 * before the next instruction that writes them.
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

void flags_emit(struct emit *e, const struct recipe *r)
{
    switch (r->kind) {
    case FLAGS_SAVED:
        e_mov(e, SCRATCH2, R_AX);
        e_gs(e, false, 0x8b, R_AX, GS(saved_flags));
        e8(e, 0x04), e8(e, 0x7f), e8(e, 0x9e);                          /* add al, 7fh; sahf */
        e_mov(e, R_AX, SCRATCH2);
        return;
    case FLAGS_AGAIN:
        e_alu(e, r->op, r->size, r->a, r, r->b);
        return;
    case FLAGS_OF_RESULT:
        e_alu(e, 8, r->size, r->a, r, r->a);
        return;
    case FLAGS_OF_ADD: case FLAGS_OF_SUB: {
        unsigned undo = r->kind == FLAGS_OF_ADD ? 5 : 0;
        e_mov(e, SCRATCH2, r->a);
        e_alu(e, undo, r->size, SCRATCH2, r, r->b);
        e_alu(e, 5 - undo, r->size, SCRATCH2, r, r->b);
        return;
    }
    default:
        return;
    }
}

void flags_restore(struct translation *tr)
{
    if (tr->lost)
        flags_emit(&tr->e, &tr->flags);
    tr->lost = false;
}

static void save(struct translation *tr)
{
    struct emit *e = &tr->e;
    e_mov(e, SCRATCH2, R_AX);
    e8(e, 0x9f), e8(e, 0x0f), e8(e, 0x90), e8(e, 0xc0);                 /* lahf; seto al */
    e_gs(e, false, 0x89, R_AX, GS(saved_flags));
    e_mov(e, R_AX, SCRATCH2);
    tr->flags = (struct recipe){ .kind = FLAGS_SAVED };
}

void flags_before(struct translation *tr, unsigned following)
{
    enum flag_use use = flags_use(tr->i);
    if (op_of(tr->i) == OP(jcc) && !tr->step && tr->flags.kind != FLAGS_ONLY_HERE) {
        tr->keep = false;               /* it uses them last of all: the time may be taken before (translate.c) */
        return;
    }
    tr->keep = use == FLAGS_USED || tr->step || (use == FLAGS_UNTOUCHED && written(tr->i) & tr->flags.regs);
    if (tr->keep) {
        flags_restore(tr);
    } else if (tr->flags.kind == FLAGS_ONLY_HERE && following >= 2) {
        save(tr);
    }
}

/* What the instruction, which wrote flags, allows to make of them. */
static struct recipe recipe_of(const struct x86_insn *i)
{
    static const struct { const struct x86_op *op; u8 kind, code; } KINDS[] = {
        { OP(cmp), FLAGS_AGAIN, 7 }, { OP(test), FLAGS_AGAIN, 8 }, { OP(and), FLAGS_OF_RESULT, 0 }, { OP(or), FLAGS_OF_RESULT, 0 },
        { OP(xor), FLAGS_OF_RESULT, 0 }, { OP(add), FLAGS_OF_ADD, 0 }, { OP(sub), FLAGS_OF_SUB, 0 },
    };
    struct recipe r = { .size = i->size, .b = 0xff };
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
    tr->flags = use == FLAGS_WRITTEN && !tr->step ? recipe_of(tr->i) : (struct recipe){ .kind = FLAGS_ONLY_HERE };
}

#endif
