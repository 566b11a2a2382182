/* Accesses near by: runs of instructions that reach memory at constant distances from one base register, so that one look at the TLB serves all of them.
 *
 * Owns: struct run, struct carry between instructions. Called by: translate.c, memory.c. The first access of a run looks for the entry of the page of the
 * lowest one (in memory.c), and leaves the page's addend in r14, the distance from the page's beginning in r15; the others only compare r15. What
 * it takes: nothing in between that needs r14 or r15, and a base that only constants are added to.
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

/* Guest register `base` may be changed; *by: by so much. */
static bool changes(const struct x86_insn *i, unsigned base, s64 *by, bool *constant)
{
    const struct x86_op *op = x86_forms[i->form].op;
    bool first = i->nr_ops && i->op[0].kind == X86_REG && (i->op[0].reg % 8 ? i->op[0].reg / 8 : i->op[0].reg / 8) == base;
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

struct run near_run(struct translation *tr, unsigned base, s32 disp, bool write)
{
    struct run run = { disp, write };
    const struct x86_insn *i = tr->i;
    bool branched = false, constant;
    s64 moved = 0, by;
    for (unsigned k = 0; k < tr->nr_rest; k++) {
        struct near n;
        if (changes(i, base, &by, &constant)) {
            if (!constant)
                break;
            moved += by;
        }
        i = &tr->rest[k];
        if (!tr_near(tr, i, &n) || (n.access && n.base != base))
            break;
        branched |= n.branch;
        if (!n.access)
            continue;
        s64 d = n.disp + moved;
        if (d < (s64)disp - NEAR || d > (s64)disp + NEAR || (n.write && !run.write && branched))
            break;                      /* what is stored on some paths only does not make loads stores */
        run.write |= n.write;
        run.low = d < run.low ? (s32)d : run.low;
    }
    return run;
}

void near_after(struct translation *tr)
{
    struct carry *k = &tr->carry;
    bool constant;
    s64 by;
    if (!k->on || !changes(tr->i, k->base, &by, &constant))
        return;
    by = (s64)k->bias - by;
    k->on = constant && by == (s32)by;
    k->bias = (s32)by;
}

#endif
