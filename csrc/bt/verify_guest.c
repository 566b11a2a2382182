/* What guest instructions do, as verify.c wants to see it done.
 *
 * Owns: ACTS, which says what may be copied. Called by: verify.c. Independent of translate.c's rules: an op that is added there is added
 * here.
 */
#include "bt/verify.h"
#include "x86/decode.h"

#if defined(__x86_64__)

#define FORM(op, ...) extern const struct x86_op x86_op_##op;
#include "x86/forms.def"
#include "x86/forms_sse.def"
#undef FORM

/* ---- what may be copied ------------------------------------------------------------------------------------------ */

static const struct { const struct x86_op *op; u8 flags; } ACTS[] = {
#define A(name, flags) { &x86_op_##name, flags }
    A(add, W0 | SETS), A(or, W0 | SETS), A(and, W0 | SETS), A(sub, W0 | SETS), A(xor, W0 | SETS), A(cmp, SETS), A(test, SETS),
    A(neg, W0 | SETS), A(adc, W0), A(sbb, W0), A(inc, W0), A(dec, W0), A(not, W0 | KEEPS), A(rol, W0), A(ror, W0), A(rcl, W0), A(rcr, W0),
    A(shl, W0), A(shr, W0), A(sar, W0), A(shld, W0), A(shrd, W0), A(bts, W0), A(btr, W0), A(btc, W0), A(bt, 0), A(xchg, W0 | W1 | KEEPS),
    A(xadd, W0 | W1 | SETS), A(cmpxchg, W0 | SETS), A(mul, SETS), A(div, 0), A(idiv, 0), A(imul, W0 | SETS), A(mov, W0 | PURE | KEEPS),
    A(movbe, W0 | KEEPS), A(setcc, W0), A(cmovcc, W0), A(movzx, W0 | PURE | KEEPS), A(movsx, W0 | PURE | KEEPS),
    A(movsxd, W0 | PURE | KEEPS), A(popcnt, W0 | SETS), A(tzcnt, W0), A(lzcnt, W0), A(bsf, W0), A(bsr, W0), A(crc32, W0 | KEEPS),
    A(adcx, W0), A(adox, W0), A(andn, W0), A(blsr, W0), A(blsmsk, W0), A(blsi, W0), A(bzhi, W0), A(pext, W0 | KEEPS), A(pdep, W0 | KEEPS),
    A(mulx, W0 | W1 | KEEPS), A(bextr, W0), A(shlx, W0 | KEEPS), A(sarx, W0 | KEEPS), A(shrx, W0 | KEEPS), A(rorx, W0 | KEEPS),
    A(bswap, W0 | KEEPS), A(cbw, KEEPS), A(cwd, KEEPS), A(sahf, 0), A(lahf, 0), A(cmc, 0), A(clc, 0), A(stc, 0),
    A(mova, W0 | KEEPS), A(movu, W0 | KEEPS | UNALIGNED), A(movscalar, W0 | KEEPS), A(movq, W0 | KEEPS), A(movd, W0 | KEEPS),
    A(movl, W0 | KEEPS), A(movh, W0 | KEEPS), A(pextr, W0 | KEEPS), A(pinsr, W0 | KEEPS), A(sse, W0 | KEEPS), A(sse_imm, W0 | KEEPS),
    A(sse_shift, W0 | KEEPS), A(sse_dqshift, W0 | KEEPS), A(insertps, W0 | KEEPS | UNALIGNED), A(blendv, W0 | KEEPS),
    A(pcmpstr, SETS | UNALIGNED),
    A(sse_fp, W0 | FP | KEEPS), A(sse_fp_imm, W0 | FP | KEEPS), A(sse_flags, FP | SETS), A(sse_gpr, W0 | FP | KEEPS),
    A(x87, X87), A(x87_load, X87), A(x87_store, W0 | X87), A(fnstcw, W0 | X87), A(fnstsw, W0 | X87), A(fnclex, X87), A(mmx, W0 | X87),
    A(mmx_imm, W0 | X87), A(mmx_shift, W0 | X87), A(mmx_gpr, W0 | X87), A(mmx_movq, W0 | X87), A(emms, X87),
#undef A
};

/* fcmov (da, db: c0-df) and fcomi, fucomi (db, df: e8-f7); no other x87 instruction has to do with flags. */
static bool is_x87_with_flags(const struct x86_insn *g)
{
    u8 m = g->modrm;
    if (x86_forms[g->form].attr & F_MMX)
        return false;
    return (g->opcode == 0xda && m >= 0xc0 && m < 0xe0) || (g->opcode == 0xdb && ((m >= 0xc0 && m < 0xe0) || (m >= 0xe8 && m < 0xf8))) ||
           (g->opcode == 0xdf && m >= 0xe8 && m < 0xf8);
}

static int act_of(const struct x86_op *op)
{
    for (unsigned n = 0; n < ARRAY_SIZE(ACTS); n++)
        if (ACTS[n].op == op)
            return ACTS[n].flags;
    return -1;
}

/* Ops that write no general register but their operands: others are taken to write rax, rcx and rdx too. */
static bool has_implicit(const struct x86_insn *g)
{
    static const struct x86_op *const IMPLICIT[] = {
        &x86_op_mul, &x86_op_div, &x86_op_idiv, &x86_op_cmpxchg, &x86_op_lahf, &x86_op_cbw, &x86_op_cwd, &x86_op_pcmpstr,
    };
    for (unsigned n = 0; n < ARRAY_SIZE(IMPLICIT); n++)
        if (x86_forms[g->form].op == IMPLICIT[n])
            return true;
    return x86_forms[g->form].op == &x86_op_imul && g->nr_ops == 1;
}

value verify_behind(struct check *c, unsigned n)
{
    const struct x86_insn *g = c->g;
    const struct x86_op *op = x86_forms[g->form].op;
    if (!c->effect.act)
        return c->effect.reg[n] ? c->effect.reg[n] : guest(c, n);
    if (has_implicit(g) && (n == R_AX || n == R_CX || n == R_DX))
        return 0;
    if (!c->effect.reg[n])
        return guest(c, n);
    if ((op == &x86_op_add || op == &x86_op_sub) && g->size == 8 && g->op[0].kind == X86_REG && g->op[0].reg == 8 * n &&
        g->op[1].kind == X86_IMM)
        return value_plus(&c->values, guest(c, n), op == &x86_op_add ? g->imm : -g->imm);
    return 0;
}

void verify_carry(struct check *c, const struct path *p)
{
    struct values *v = &c->values;
    struct carried k = { .on = false };
    const struct value_node *a = &v->v[p->reg[R_14]];
    value negated = 0, rest;
    if (p->reg[R_15] == value_const(v, ~0ul) && p->reg[R_14] == verify_slide(c))
        return;                         /* where the loop came in: goes with any */
    if (a->kind == VAL_FIELD && verify_entry(c, (u32)a->n, &k.write))
        negated = value_atom(v, VAL_FIELD, 0, a->n - 8, 8);
    if (a->kind == VAL_L1_ADDEND)
        k.write = a->width & 32, negated = value_atom(v, VAL_L1_NEGATED, a->term[0], a->n, a->width);
    if (a->kind == VAL_CARRIED_ADDEND)
        k.write = a->n, negated = value_atom(v, VAL_CARRIED_NEGATED, 0, a->n, 0);
    if (c->g && negated && value_without(v, p->reg[R_15], negated, &rest)) {
        bool stack = !x86_has_mem(c->g);
        k.base = c->carried.on ? c->carried.base : stack ? R_SP : c->g->base;
        k.on = k.base < R_13 && value_apart(v, rest, verify_behind(c, k.base), &k.bias);
        if (!k.on) {                    /* a new run, or none */
            k.base = stack ? R_SP : c->g->base;
            k.on = k.base < R_13 && value_apart(v, rest, verify_behind(c, k.base), &k.bias);
        }
    }
    if (!k.on)
        k = (struct carried){ .on = false };
    if (c->to.carries && (c->to.carried.on != k.on || c->to.carried.write != k.write || c->to.carried.base != k.base ||
                          c->to.carried.bias != k.bias))
        k = (struct carried){ .on = false };
    c->to.carried = k, c->to.carries = true;
}

void verify_path_start(struct check *c, struct path *p, bool carried)
{
    *p = (struct path){ .exit = ~0u, .in_time = true };
    for (unsigned n = 0; n < 16; n++)
        if (n < R_13)
            p->reg[home_of(n)] = guest(c, n);
        else
            p->own[OWN_HI + n - R_13] = guest(c, n);
    p->own[OWN_LEFT] = value_atom(&c->values, VAL_FIELD, 0, GS(left), 8);
    p->own[OWN_FLAG_A] = value_atom(&c->values, VAL_FIELD, 0, GS(flag_a), 8);
    p->own[OWN_FLAG_B] = value_atom(&c->values, VAL_FIELD, 0, GS(flag_b), 8);
    p->reg[R_SP] = 0;
    p->reg[R_14] = !carried || c->spans.slid ? verify_slide(c) : 0;
    p->reg[R_15] = carried ? 0 : value_const(&c->values, ~0ul);
    if (carried && c->carried.on) {
        value negated = value_atom(&c->values, VAL_CARRIED_NEGATED, 0, c->carried.write, 0);
        p->reg[R_14] = value_atom(&c->values, VAL_CARRIED_ADDEND, 0, c->carried.write, 0);
        p->reg[R_15] = value_add(&c->values, guest(c, c->carried.base), negated, 0, c->carried.bias);
    }
    verify_spans_start(c, p);
}

/* Nothing has happened yet: the instruction can begin again, or be left to the interpreter. */
bool verify_is_before(struct check *c, const struct path *p)
{
    for (unsigned n = 0; n < 16; n++)
        if (home(p, n) != guest(c, n))
            return false;
    return !p->acted && !p->stored && !p->ip_set && verify_state_is_before(p);
}

/* The guest instruction has happened. */
bool verify_is_after(struct check *c, const struct path *p)
{
    const struct effect *f = &c->effect;
    if (p->acted != f->act || p->stored != (f->store_at != 0) || p->ip_set != f->sets_ip || !verify_state_is_after(c, p))
        return false;
    if (p->stored && (p->store_at != f->store_at || p->store_value != f->store_value))
        return false;
    for (unsigned n = 0; n < 16; n++) {
        value want = f->reg[n] ? f->reg[n] : guest(c, n);
        if (f->act && (n < R_13 || f->reg[n]))
            want = result(c, n);
        if (home(p, n) != want)
            return false;
    }
    return true;
}

/* ---- what the guest's instruction does --------------------------------------------------------------------------- */

/* Linear address of the memory operand. */
value verify_linear(struct check *c, bool segment)
{
    const struct x86_insn *g = c->g;
    struct values *v = &c->values;
    u64 va = c->b->va + c->off, disp = (u64)g->disp;
    value a = value_const(v, 0);
    if (g->base == X86_RIP)
        disp += va;
    else if (g->base != X86_ZERO)
        a = guest(c, g->base);
    if (g->index != X86_ZERO)
        a = value_add(v, a, guest(c, g->index), g->scale, 0);
    a = value_plus(v, a, disp);
    if (g->addr_mask != ~0ul)
        a = value_cut(v, a);
    if (segment && (g->mem_seg == X86_FS || g->mem_seg == X86_GS))
        a = verify_fits(c, value_add(v, a, value_atom(v, VAL_FIELD, 0, GS(seg_base) + 8 * (u32)(g->mem_seg - X86_FS), 8), 0, 0));
    return a;
}

value verify_stored_at(struct check *c)
{
    const struct effect *f = &c->effect;
    for (unsigned k = 0; f->act && !f->forbidden && k < 2 && k < c->g->nr_ops; k++)
        if (c->g->op[k].kind == X86_MEM && f->act_flags & (k ? W1 : W0))
            return verify_linear(c, true);
    return f->store_at;
}

static value loaded(struct check *c, value at) { return value_atom(&c->values, VAL_LOADED, at, 0, verify_width(c)); }

static value operand_value(struct check *c)     /* of operand 0, as wide as an address */
{
    const struct x86_insn *g = c->g;
    switch (g->op[0].kind) {
    case X86_MEM: return loaded(c, verify_linear(c, true));
    case X86_REG: return verify_fits(c, guest(c, g->op[0].reg / 8));
    default: return verify_fits(c, value_const(&c->values, g->imm));
    }
}

/* The segment of the memory operand is one that needs no checks, and its address has as many bits as code has here. */
static bool is_flat(const struct check *c)
{
    const struct x86_insn *g = c->g;
    u32 context = c->b->context;
    if (!(context & CTX_32) || !x86_has_mem(g))
        return true;
    switch (g->mem_seg) {
    case X86_CS: return false;                  /* not to be written, and perhaps not to be read */
    case X86_FS: return g->addr_mask == 0xffffffff && context & CTX_FS;
    case X86_GS: return g->addr_mask == 0xffffffff && context & CTX_GS;
    default: return g->addr_mask == 0xffffffff;
    }
}

/* False: nothing but leaving it to the interpreter is in order. */
bool verify_effect(struct check *c)
{
    struct effect *f = &c->effect;
    struct values *v = &c->values;
    const struct x86_insn *g = c->g;
    u64 next = c->b->va + c->off + c->len, wide = verify_width(c) == 8 ? ~0ul : 0xffffffff;
    unsigned width = verify_width(c);
    *f = (struct effect){ .next = value_const(v, next), .store_size = (u8)width };
    if (!g)
        return true;
    const struct x86_form *form = &x86_forms[g->form];
    const struct x86_op *op = form->op;
    value sp = guest(c, R_SP), push_at = verify_fits(c, value_plus(v, sp, -(u64)width));
    bool rel = g->op[0].kind == X86_REL;
    int act = act_of(op);
    if (op == &x86_op_imul && g->nr_ops == 1)
        act &= ~W0;                     /* to rdx:rax */
    if (op == &x86_op_nop)
        return true;
    if (!is_flat(c))
        return false;
    if (act >= 0) {
        bool bit_string = x86_has_mem(g) && g->nr_ops > 1 && g->op[1].kind != X86_IMM &&
                          (op == &x86_op_bt || op == &x86_op_bts || op == &x86_op_btr || op == &x86_op_btc);
        if (act & X87 && !is_x87_with_flags(g))
            act |= KEEPS;
        f->sets_ip = op == &x86_op_x87 || op == &x86_op_x87_load || op == &x86_op_x87_store;
        f->act = true, f->act_flags = (u8)act;
        for (unsigned k = 0; k < 2; k++)
            if (g->op[k].kind == X86_REG && act & (k ? W1 : W0))
                f->reg[g->op[k].reg / 8] = result(c, g->op[k].reg / 8);
        return !bit_string && !(form->attr & (F_CPL0 | F_BRANCH | F_TEST_NEVER)) &&
               (!(form->attr & (F_FPU | F_MMX)) || (act & X87 && c->b->context & CTX_X87)) &&
               (!(form->attr & F_SSE) || c->b->context & CTX_SSE) && (!(act & FP) || c->b->context & CTX_FP);
    }
    if (op == &x86_op_lea && g->size >= 4) {
        f->reg[g->op[0].reg / 8] = g->size == 4 ? value_cut(v, verify_linear(c, false)) : verify_linear(c, false);
        return true;
    }
    if (op == &x86_op_push && g->size == width) {
        f->store_at = push_at, f->store_value = operand_value(c), f->reg[R_SP] = push_at;
        return true;
    }
    if (op == &x86_op_pop && g->size == width && g->op[0].kind == X86_REG) {
        f->reg[R_SP] = verify_fits(c, value_plus(v, sp, width));
        f->reg[g->op[0].reg / 8] = loaded(c, verify_fits(c, sp));
        return true;
    }
    if (op == &x86_op_leave && g->size == width) {
        f->reg[R_SP] = verify_fits(c, value_plus(v, guest(c, R_BP), width));
        f->reg[R_BP] = loaded(c, verify_fits(c, guest(c, R_BP)));
        return true;
    }
    if (!(form->attr & F_BRANCH))
        return verify_system_effect(c);
    f->branch = true;
    if (g->size != width)
        return false;
    f->target = rel ? value_const(v, (next + g->imm) & wide) : operand_value(c);
    if (op == &x86_op_jmp)
        return true;
    if (op == &x86_op_call) {
        f->store_at = push_at, f->store_value = value_const(v, next & wide), f->reg[R_SP] = push_at;
        return true;
    }
    if (op == &x86_op_ret) {
        f->target = loaded(c, verify_fits(c, sp));
        f->reg[R_SP] = verify_fits(c, value_plus(v, sp, width + (g->nr_ops ? g->imm & 0xffff : 0)));
        return true;
    }
    f->conditional = true;
    if (op == &x86_op_loop && g->addr_mask == wide)
        f->reg[R_CX] = verify_fits(c, value_plus(v, guest(c, R_CX), -1ul));
    return op == &x86_op_jcc || ((op == &x86_op_loop || op == &x86_op_jcxz) && g->addr_mask == wide);
}

/* ---- the copied instruction -------------------------------------------------------------------------------------- */

bool verify_divides(struct check *c, const struct path *p)
{
    const struct x86_insn *g = c->g;
    const struct x86_op *op = x86_forms[g->form].op;
    struct values *v = &c->values;
    bool wide = g->size == 8, is_signed = op == &x86_op_idiv;
    if (op != &x86_op_div && !is_signed)
        return true;
    if (g->size < 4 || g->op[0].kind != X86_REG)
        return false;
    value divisor = guest(c, g->op[0].reg / 8u), high = guest(c, R_DX), minus_one;
    if (!wide)
        divisor = value_cut(v, divisor);
    minus_one = value_plus(v, divisor, 1);              /* it is -1 if this is 0 */
    if (!is_signed)                                     /* rdx 0: the quotient fits */
        return facts_have(p, NONZERO, divisor) && facts_have(p, ZERO, wide ? high : value_cut(v, high));
    u32 mask = wide ? GS(mask_sign) : GS(mask_sign32);  /* rdx 0 or -1, by the sign of rax: the quotient fits unless it is -minimum */
    value extends = value_add(v, high, value_atom(v, VAL_PEXT, guest(c, R_AX), mask, 8), 0, 0);
    return facts_have(p, NONZERO, divisor) && facts_have(p, NONZERO, wide ? minus_one : value_cut(v, minus_one)) &&
           facts_have(p, ZERO, wide ? extends : value_cut(v, extends)) && mask_at(c, mask) == (wide ? 1ul << 63 : 1ul << 31);
}

static bool is_low_of_opcode(u8 code) { return code == OP_Zb || code == OP_Zv || code == OP_Z64; }

/* h is g with its registers where they are kept. On a match *slots gets the host scratch registers that stand for r13-r15. */
bool verify_corresponds(struct check *c, const struct path *p, const struct x86_insn *h, u8 flags, u8 slots[16])
{
    const struct x86_insn *g = c->g;
    const struct x86_form *gf = &x86_forms[g->form], *hf = &x86_forms[h->form];
    enum { SAME_PREFIXES = X86_LOCK | X86_VEX | X86_HAS_MEM };
    if (gf->op != hf->op || g->nr_ops != h->nr_ops || g->size != h->size || (g->prefixes ^ h->prefixes) & SAME_PREFIXES || is_gs(h))
        return false;
    u8 opcode_mask = is_low_of_opcode(gf->operand[0]) || is_low_of_opcode(gf->operand[1]) ? 0xf8 : 0xff;
    bool no64 = gf->attr & F_NO64;              /* inc, dec by one byte; 82: the same operation has another form */
    if (g->mode != 64 && g->prefixes & X86_VEX && g->rex & 8)
        return false;
    if (gf->op != &x86_op_mov && !no64 && (g->form != h->form || (g->opcode ^ h->opcode) & opcode_mask))
        return false;
    for (unsigned k = 0; k < g->nr_ops; k++) {
        const struct x86_operand *a = &g->op[k], *b = &h->op[k];
        if (a->kind != b->kind || a->size != b->size)
            return false;
        switch (a->kind) {
        case X86_IMM:
            if (g->imm != h->imm)
                return false;
            break;
        case X86_MEM:
            break;
        case X86_REG: {
            unsigned n = a->reg / 8;
            if (a->reg % 8) {                   /* AH and its like */
                if (a->reg != b->reg)
                    return false;
            } else if (n < R_13) {
                if (b->reg != 8 * home_of(n))
                    return false;
            } else {
                unsigned r = b->reg / 8u;
                bool pure = !k && flags & PURE && g->size >= 4 && !(g->nr_ops > 1 && g->op[1].kind == X86_REG && g->op[1].reg / 8 == n);
                if (b->reg % 8 || (r != R_14 && r != R_15) || (p->reg[r] != guest(c, n) && !pure) || (slots[r] && slots[r] != n))
                    return false;
                slots[r] = (u8)n;
            }
            break;
        }
        default:
            if (a->reg != b->reg)
                return false;
        }
    }
    return true;
}

/* ---- flags made again -------------------------------------------------------------------------------------------- */

static bool writes_flags(const struct check *c) { return c->effect.act && !(c->effect.act_flags & KEEPS); }

/* Which operands of what is known before the instruction bt->flag_a and flag_b have now, on this path. */
static u8 kept_before(struct check *c, const struct path *p)
{
    const struct known *k = &c->known;
    value a = value_atom(&c->values, VAL_FIELD, 0, GS(flag_a), 8), b = value_atom(&c->values, VAL_FIELD, 0, GS(flag_b), 8);
    bool same_a = p->own[OWN_FLAG_A] == a, same_b = p->own[OWN_FLAG_B] == b;
    return (same_a ? k->kept & (KEPT_A | KEPT_OLD) : 0) | (same_b ? k->kept & KEPT_B : 0) |
           (k->op && k->a < 16 && p->own[OWN_FLAG_A] == guest(c, k->a) ? KEPT_A : 0) |
           (k->op && k->b < 16 && p->own[OWN_FLAG_B] == guest(c, k->b) ? KEPT_B : 0);
}

/* The same of what is known behind it. */
u8 verify_kept(struct check *c, const struct path *p)
{
    if (!c->g || c->effect.forbidden)
        return 0;
    if (!writes_flags(c))
        return kept_before(c, p);
    return c->g->op[0].kind == X86_REG && !(c->g->op[0].reg % 8) && p->own[OWN_FLAG_A] == guest(c, c->g->op[0].reg / 8u) ? KEPT_OLD : 0;
}

/* What is known of the flags behind the instruction. */
struct known verify_known_behind(const struct check *c, u8 kept)
{
    static const struct x86_op *const SHIFTS[] = { &x86_op_shl, &x86_op_shr, &x86_op_sar };
    static const struct x86_op *const REPEATED[] = {
        &x86_op_cmp, &x86_op_test, &x86_op_and, &x86_op_or, &x86_op_xor, &x86_op_add, &x86_op_sub
    };
    const struct x86_insn *g = c->g;
    const struct effect *f = &c->effect;
    const struct x86_op *op = x86_forms[g->form].op;
    struct known k = c->known, none = { .op = NULL };
    if (f->forbidden || f->popf)
        return none;
    k.kept = kept;
    if (writes_flags(c)) {
        for (unsigned n = 0; n < ARRAY_SIZE(SHIFTS); n++)
            if (op == SHIFTS[n] && kept & KEPT_OLD && g->op[1].kind == X86_IMM)
                return (struct known){ op, g->size, GONE, IMM, kept, g->imm };
        if (op == &x86_op_add && kept & KEPT_OLD && g->op[1].kind == X86_MEM)
            return (struct known){ op, g->size, g->op[0].reg / 8, GONE, kept, 0 };
        bool a = g->op[0].kind == X86_REG && !(g->op[0].reg % 8), b = g->nr_ops > 1 && g->op[1].kind == X86_REG && !(g->op[1].reg % 8);
        for (unsigned n = 0; n < ARRAY_SIZE(REPEATED); n++)
            if (op == REPEATED[n] && a && (b || op == &x86_op_and || op == &x86_op_or || op == &x86_op_xor ||
                                            (g->nr_ops > 1 && g->op[1].kind == X86_IMM))) {
                bool result_says = op == &x86_op_and || op == &x86_op_or || op == &x86_op_xor;
                if (op == &x86_op_test && b && g->op[0].reg == g->op[1].reg)       /* as and does */
                    return (struct known){ &x86_op_and, g->size, g->op[0].reg / 8, IMM, 0, 0 };
                k = (struct known){ op, g->size, g->op[0].reg / 8, b && !result_says ? g->op[1].reg / 8 : IMM, 0, g->imm };
                return (op == &x86_op_add || op == &x86_op_sub) && k.a == k.b ? none : k;
            }
        return none;
    }
    bool implicit = op == &x86_op_cbw || op == &x86_op_cwd;
    for (unsigned n = 0; n < 16; n++)
        if (f->reg[n] || (implicit && (n == R_AX || n == R_DX))) {
            k.a = k.a == n ? GONE : k.a;
            k.b = k.b == n ? GONE : k.b;
        }
    return k;
}

/* op on a, b makes the guest's flags, given what is known of them: cmp and test again, test of a result with itself, or (done: a value was
 * undone first) an addition or subtraction repeated. */
bool verify_makes_flags(struct check *c, const struct path *p, const struct x86_insn *h, value a, value b)
{
    struct known known = p->acted ? verify_known_behind(c, verify_kept(c, p)) : c->known, *k = &known;
    struct values *v = &c->values;
    const struct x86_op *op = x86_forms[h->form].op;
    u64 bits = h->size == 8 ? ~0ul : (1ul << 8 * h->size) - 1;
    if (!k->op || k->size != h->size || !a)
        return false;
    value ka = k->a >= 16 ? 0 : p->acted ? result(c, k->a) : guest(c, k->a);
    value kb = k->b == IMM ? value_const(v, k->imm & bits) : k->b >= 16 ? 0 : p->acted ? result(c, k->b) : guest(c, k->b);
    value kept_a = p->own[OWN_FLAG_A], kept_b = p->own[OWN_FLAG_B];
    if (!p->acted)
        known.kept = kept_before(c, p);
    bool is_a = a == ka || (k->kept & KEPT_A && a == kept_a), is_b = b && (b == kb || (k->kept & KEPT_B && b == kept_b));
    if (op == &x86_op_test && (k->op == &x86_op_and || k->op == &x86_op_or || k->op == &x86_op_xor))
        return is_a && b == a;
    if (op != k->op)
        return false;
    if (op == &x86_op_cmp || op == &x86_op_test)
        return is_a && is_b;
    if (op == &x86_op_shl || op == &x86_op_shr || op == &x86_op_sar)
        return k->kept & KEPT_OLD && a == kept_a && b == value_const(v, k->imm & bits);
    /* What has been undone: VAL_DONE's n: bit 0 it was a subtraction, size, what was added or subtracted. */
    const struct value_node *undone = &v->v[a];
    bool of_a = undone->kind == VAL_DONE && ((ka && undone->term[0] == ka) || (k->kept & KEPT_A && undone->term[0] == kept_a));
    if (k->kept & KEPT_OLD && op == &x86_op_add && b == kept_a)
        is_b = true;                    /* result - old = what was added; + old: the same sum */
    return of_a && is_b && undone->n == ((op == &x86_op_add) | (u64)h->size << 1 | (u64)b << 8);
}

#endif
