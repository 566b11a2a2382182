/* What system instructions in line may do to struct x86_cpu, and must have done. Called by: verify*.c. Owns: the fields that may be
 * touched.
 *
 * Independent of system.c: bits of rflags stand here by the rules of SDM vol. 2 (CLI, STI, PUSHF, POPF), not by bt->mask_flags.
 */
#include "bt/verify.h"

#if defined(__x86_64__)

#define FORM(op, ...) extern const struct x86_op x86_op_##op;
#include "x86/forms.def"
#include "x86/forms_sse.def"
#undef FORM

#define CPU(field) ((u32)offsetof(struct x86_cpu, field))
enum { SEL0 = offsetof(struct x86_cpu, seg) + offsetof(struct x86_seg, sel) };

static const struct { u32 at; u8 sizes; bool write; } FIELDS[] = {      /* sizes: sum of what may be read; written are 8 bytes */
    { CPU(rflags), 8, true }, { CPU(slow), 4, false }, { CPU(cr0), 8 | 4, false }, { CPU(cr2), 8 | 4, false }, { CPU(cr3), 8 | 4, false },
    { CPU(cr4), 8 | 4, false }, { CPU(cr8), 8, false }, { CPU(ldtr.sel), 2, false }, { CPU(tr.sel), 2, false },
    { CPU(kernel_gs_base), 8, true }, { CPU(seg[X86_GS].base), 8, true }, { CPU(lin_base[X86_GS]), 0, true },
};

static bool allowed(u32 at, unsigned size, bool write)
{
    u32 seg = (at - SEL0) / sizeof(struct x86_seg);
    if (!write && size == 2 && at >= SEL0 && seg < X86_NR_SEGS && (at - SEL0) % sizeof(struct x86_seg) == 0)
        return true;
    for (unsigned n = 0; n < ARRAY_SIZE(FIELDS); n++)
        if (FIELDS[n].at == at)
            return write ? FIELDS[n].write && size == 8 : FIELDS[n].sizes & size;
    return false;
}

static value field(struct check *c, u32 at, unsigned size) { return value_atom(&c->values, VAL_CPU, 0, at, size); }

/* ---- what is done ------------------------------------------------------------------------------------------------ */

bool verify_state_write(struct check *c, struct path *p, u32 at, value x)
{
    unsigned n = 0;
    while (n < p->nr_written && p->written[n].at != at)
        n++;
    if (n == MAX_WRITES)
        return verify_refuse(c, "too many fields are written");
    p->written[n] = (struct written){ at, x };
    p->nr_written += n == p->nr_written;
    return true;
}

bool verify_cpu_access(struct check *c, struct path *p, const struct x86_insn *h, u32 at, bool *other)
{
    struct values *v = &c->values;
    const struct x86_op *op = x86_forms[h->form].op;
    bool store = h->op[0].kind == X86_MEM, zero_extended = op == &x86_op_movzx && h->op[1].size == 2 && h->size >= 4;
    value rest, a = verify_host_address(c, p, h, at), cpu = value_atom(v, VAL_FIELD, 0, GS(cpu), 8);
    unsigned size = zero_extended ? 2 : h->size, reg = (store ? h->op[1].reg : h->op[0].reg) / 8u;
    *other = !a || !value_without(v, a, cpu, &rest) || v->v[rest].kind != VAL_SUM || v->v[rest].nr;
    if (*other)
        return true;
    u32 to = (u32)v->v[rest].n;
    bool plain = op == &x86_op_mov && (store ? h->op[1].kind == X86_REG : h->op[0].kind == X86_REG) && reg != R_SP;
    if (v->v[rest].n >= sizeof(struct x86_cpu) || !(plain || (zero_extended && reg != R_SP)) || h->mem_seg >= X86_FS ||
        !allowed(to, size, store))
        return verify_refuse(c, "the CPU's state is accessed in a way that does not occur");
    if (store)
        return verify_state_write(c, p, to, p->reg[reg]);
    for (unsigned n = 0; n < p->nr_written; n++)
        if (p->written[n].at == to)
            return verify_refuse(c, "state is read behind a write of it");
    p->reg[reg] = field(c, to, size);
    return true;
}

value verify_deposit(struct check *c, value x, u32 at)
{
    struct values *v = &c->values;
    struct value_node n = v->v[x];
    if (!x)
        return 0;
    if (n.kind == VAL_PEXT && n.n == at && n.width == 8)
        return value_atom(v, VAL_MASKED, n.term[0], mask_at(c, at), 0);
    return value_atom(v, VAL_DEPOSIT, x, mask_at(c, at), 0);
}

bool verify_state_is_before(const struct path *p) { return !p->nr_written && !p->popping && !p->popped && !p->pushfq; }

bool verify_state_is_after(const struct check *c, const struct path *p)
{
    const struct effect *f = &c->effect;
    if (p->pushfq || p->popped != f->popf || p->nr_written != f->nr_written)
        return false;
    for (unsigned n = 0; n < f->nr_written; n++) {
        unsigned k = 0;
        while (k < p->nr_written && p->written[k].at != f->written[n].at)
            k++;
        if (k == p->nr_written || !p->written[k].x || p->written[k].x != f->written[n].x)
            return false;
    }
    for (unsigned n = 0; n < ARRAY_SIZE(f->zero); n++)
        if (f->zero[n] && !facts_have(p, ZERO, f->zero[n]))
            return false;
    return true;
}

/* ---- what is to be done ------------------------------------------------------------------------------------------ */

static value masked(struct check *c, value x, u64 bits) { return value_atom(&c->values, VAL_MASKED, x, bits, 0); }

static void writes(struct effect *f, u32 at, value x) { f->written[f->nr_written++] = (struct written){ at, x }; }

/* The value at a mask field whose bits are `bits`: pext has the field's place, not its bits. 0: there is none. */
static value extracted(struct check *c, value x, u64 bits)
{
    for (u32 at = GS(mask_flags); at < GS(mask_flags) + sizeof_field(struct bt, mask_flags); at += 8)
        if (mask_at(c, at) == bits)
            return value_atom(&c->values, VAL_PEXT, x, at, 8);
    return 0;
}

static bool popf_effect(struct check *c, value rflags, bool level0)
{
    struct values *v = &c->values;
    struct effect *f = &c->effect;
    u64 step = X86_TF | X86_NT | X86_AC | X86_ID | (level0 ? X86_IOPL : X86_IF), take = X86_DF | (level0 ? X86_IF : 0);
    unsigned width = verify_width(c);
    value sp = guest(c, R_SP), popped = value_atom(v, VAL_LOADED, verify_fits(c, sp), 0, width);
    value not_old = value_atom(v, VAL_NOT, extracted(c, rflags, step), 0, 0);
    f->zero[0] = value_plus(v, value_add(v, not_old, extracted(c, popped, step), 0, 0), 1);
    if (level0)
        f->zero[1] = field(c, CPU(slow), 4);
    f->reg[R_SP] = verify_fits(c, value_plus(v, sp, width));
    writes(f, CPU(rflags), value_add(v, masked(c, rflags, ~take), masked(c, popped, take), 0, 0));
    f->popf = true;
    f->saved_flags = value_add(v, value_atom(v, VAL_DEPOSIT, extracted(c, popped, 0xff), 0xff00, 0), extracted(c, popped, X86_OF), 0, 0);
    return f->zero[0] != 0;
}

bool verify_system_effect(struct check *c)
{
    struct values *v = &c->values;
    struct effect *f = &c->effect;
    const struct x86_insn *g = c->g;
    const struct x86_op *op = x86_forms[g->form].op;
    bool level0 = !(c->b->context & CTX_CPL), to_reg = g->op[0].kind == X86_REG;
    unsigned dst = g->op[0].reg / 8u, width = verify_width(c);
    value rflags = field(c, CPU(rflags), 8), push_at = verify_fits(c, value_plus(v, guest(c, R_SP), -(u64)width));
    if (op == &x86_op_cli && level0)
        return writes(f, CPU(rflags), masked(c, rflags, ~(u64)X86_IF)), true;
    if (op == &x86_op_cld || op == &x86_op_std) {
        value clear = masked(c, rflags, ~(u64)X86_DF);
        return writes(f, CPU(rflags), op == &x86_op_std ? value_plus(v, clear, X86_DF) : clear), true;
    }
    if (op == &x86_op_sti && level0 && c->next) {       /* not the last: see bt_exit.shadow */
        writes(f, CPU(rflags), value_plus(v, masked(c, rflags, ~(u64)X86_IF), X86_IF));
        writes(f, OF_BT | GS(sti_flags), rflags);
        return f->zero[0] = field(c, CPU(slow), 4), true;
    }
    if (op == &x86_op_pushf && g->size == width) {
        value host = value_atom(v, VAL_HOST_FLAGS, 0, 0, 0);
        f->store_at = f->reg[R_SP] = push_at;
        value image = value_add(v, masked(c, host, X86_ARITH_FLAGS), masked(c, rflags, ~(u64)(X86_ARITH_FLAGS | X86_VM | X86_RF)), 0, 0);
        return f->store_value = verify_fits(c, image), true;
    }
    if (op == &x86_op_popf && g->size == width)
        return popf_effect(c, rflags, level0);
    if (op == &x86_op_push_seg && g->size == width) {
        f->store_at = f->reg[R_SP] = push_at;
        f->store_size = width == 8 ? 8 : 2;             /* the rest of the four bytes stays: vol. 2, PUSH */
        return f->store_value = field(c, SEL0 + g->op[0].reg * (u32)sizeof(struct x86_seg), 2), true;
    }
    if (op == &x86_op_swapgs && level0) {
        value kernel = field(c, CPU(kernel_gs_base), 8);
        writes(f, CPU(kernel_gs_base), field(c, CPU(seg[X86_GS].base), 8));
        writes(f, CPU(seg[X86_GS].base), kernel);
        writes(f, CPU(lin_base[X86_GS]), kernel);
        return writes(f, OF_BT | (GS(seg_base) + 8), kernel), true;
    }
    if (!to_reg || (g->size < 4 && op != &x86_op_mov_cr))
        return false;
    if (op == &x86_op_mov_cr && level0) {
        static const u32 cr[9] = { CPU(cr0), 0, CPU(cr2), CPU(cr3), CPU(cr4), 0, 0, 0, CPU(cr8) };
        unsigned n = g->op[1].reg;
        return n < 9 && cr[n] && (n != 8 || width == 8) && (f->reg[dst] = field(c, cr[n], width), true);
    }
    if (op == &x86_op_smsw)
        return f->reg[dst] = field(c, CPU(cr0), g->size), true;
    if (op == &x86_op_sldt || op == &x86_op_str)
        return f->reg[dst] = field(c, op == &x86_op_str ? CPU(tr.sel) : CPU(ldtr.sel), 2), true;
    if (op == &x86_op_mov_from_seg)
        return f->reg[dst] = field(c, SEL0 + g->op[1].reg * (u32)sizeof(struct x86_seg), 2), true;
    return false;
}

#endif
