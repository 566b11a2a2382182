/* What the translator may insert between the guest's instructions.
 *
 * Owns: which host instructions these are, and what they do to a path's values. Called by: verify.c. Jumps are verify_jump.c's, memory is
 * verify_access.c's, the CPU's state verify_system.c's. No locks. No state but the caller's stack.
 */
#include "bt/verify.h"

#if defined(__x86_64__)

#define FORM(op, ...) extern const struct x86_op x86_op_##op;
#include "x86/forms.def"
#include "x86/forms_sse.def"
#undef FORM

enum { POPPED = 8 };            /* added to VAL_FLAGS's n: the flags that popf has popped, instead of the guest's as they were */

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
    if (op == &x86_op_rorx && h->size == 8 && h->op[0].reg == 8 * R_15 && h->op[1].kind == X86_REG && (h->op[1].reg | 8) == 8 * R_15) {
        value from = p->reg[h->op[1].reg / 8];
        p->wanted = h->op[1].reg == 8 * R_14 ? from : p->wanted;
        p->reg[R_15] = from ? value_atom(v, VAL_ROTATED, from, h->imm & 63, 0) : 0;
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
    if (h->nr_ops < 2 || h->op[0].kind != X86_REG || h->op[0].reg % 8 || dst == R_SP ||
        (!imm && (h->op[1].kind != X86_REG || h->op[1].reg % 8)))
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
    else if (op == &x86_op_add && h->size == 8 && (v->v[a].kind == VAL_FIELD || v->v[a].kind == VAL_INDEXED) &&
             v->v[a].n != GS(flag_a) && v->v[a].n != GS(flag_b))
        p->reg[dst] = value_add(v, a, b, 0, 0);
    else
        p->reg[dst] = value_atom(v, VAL_DONE, a, (op == &x86_op_sub) | (u64)h->size << 1 | (u64)b << 8, 0);
    return true;
}

bool verify_inserted(struct check *c, struct path *p, const struct x86_insn *h, u32 *at, bool *end)
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
    if (h->op[0].kind == X86_REL)
        return verify_relative(c, p, h, here, from, at, end);
    if (is_gs(h)) {
        bool whole = gs_field(h, &field);
        if (op == &x86_op_call && whole && p->pushed && field == GS(entry))
            return *end = true, verify_calls(c, p, 0, next);
        if (op == &x86_op_cmp && whole && h->size == 8 && field == GS(bottom) && h->op[0].kind == X86_REG && h->op[0].reg == 8 * R_SP)
            return p->flags = FL_BOTTOM, true;
        if (op == &x86_op_cmp && whole && h->size == 8 && field == GS(slide) + 8 * (c->b->context & CTX_SET) &&
            h->op[0].kind == X86_REG && h->op[0].reg == 8 * R_15)
            return p->flags = FL_SLIDE, p->flag_value = p->reg[R_15], true;
        if (op == &x86_op_cmp && whole && h->size == 8 && h->op[0].kind == X86_MEM && h->op[1].kind == X86_IMM && verify_is_slid(c, field))
            return p->flags = FL_CMP, p->flag_n = h->imm, verify_read_field(c, p, field, &p->flag_value);
        if (op == &x86_op_jmp && whole) {
            *end = true;
            return field == GS(entry) ? verify_jumps_through(c, p, p->own[OWN_ENTRY]) : verify_jumps_by_link(c, p, field, next);
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
        if (whole && operand && h->op[1].kind == X86_MEM && reg0 &&
            (op == &x86_op_add || op == &x86_op_sub || op == &x86_op_cmp || op == &x86_op_test))
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
        bool in_l1 = !whole && h->size == 8 && reg0 && h->op[1].kind == X86_MEM && h->base == R_15 && h->index == X86_ZERO &&
                     v->v[p->reg[R_15]].kind == VAL_L1_INDEX;
        if (in_l1 && ((dst == R_14 && (op == &x86_op_add || op == &x86_op_sub)) || (dst == R_15 && op == &x86_op_mov))) {
            u64 n = (u64)h->disp, tables = op == &x86_op_mov ? GS(l1_slid) : GS(l1_negated), half = L1 * 8;
            u64 end = op == &x86_op_mov ? GS(l1_slid) + sizeof c->t->l1_slid : GS(l1_host) + sizeof c->t->l1_host;
            if (n < tables || n >= end || (n - tables) % half)
                return verify_refuse(c, "reads a table with what is no index of it");
            value entry = value_atom(v, VAL_INDEXED, p->reg[R_15], n, 8);
            p->wanted_slid = op == &x86_op_mov;
            if (op == &x86_op_mov)
                return p->reg[R_15] = entry, true;
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
            return p->reg[dst] = p->popping ? value_atom(v, VAL_FLAGS, 0, POPPED + 2, 0) : p->saved ? value_atom(v, VAL_FLAGS, 0, 2, 0) : 0,
                   true;
        if (field == GS(saved_flags) && h->size == 4 && h->op[0].kind == X86_MEM && reg1 && c->effect.popf &&
            p->reg[src] == c->effect.saved_flags)
            return p->popping = p->reg[src] != 0, p->saved = false, true;
        if (field == GS(saved_flags) && h->size == 4 && h->op[0].kind == X86_MEM && reg1)
            return p->saved = p->flags == FL_GUEST && p->reg[src] && p->reg[src] == value_atom(v, VAL_FLAGS, 0, 2, 0), true;
        if (h->op[0].kind == X86_MEM && h->op[1].kind == X86_IMM && h->size == 4 && field == GS(vectors) && h->imm == 1)
            return p->live |= LIVE_VECTORS, true;
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
    if (op == &x86_op_lea && returns && h->size == 8 && h->op[0].reg == 8 * R_SP && h->base == R_SP && h->index == X86_ZERO &&
        h->disp == 16 && h->addr_mask == ~0ul && p->has_frame)
        return p->has_frame = false, true;
    if (op == &x86_op_ret && returns && !h->nr_ops && p->framed) {
        *end = true;
        return p->in_time ? verify_goes_to(c, p, p->framed) : verify_refuse(c, "jumps on without time");
    }
    if (op == &x86_op_jmp && h->op[0].kind == X86_REG)
        return *end = true, verify_jumps_through(c, p, p->reg[dst]);
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
        unsigned width = store ? c->effect.store_size : verify_width(c);
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
        bool selector = v->v[x].kind == VAL_CPU && v->v[x].width == 2;  /* all that is ever stored as two bytes */
        p->stored = true, p->store_at = lin, p->store_value = width == 8 ? x : width == 4 ? value_cut(v, x) : selector ? x : 0;
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

#endif
