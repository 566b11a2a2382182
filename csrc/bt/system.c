/* System instructions in line: those that only read or write what struct x86_cpu holds.
 *
 * Owns: which they are (OPS), which go to light.c, bt->mask_flags. Called by: translate.c. All others, and these where they might fault,
 * change how code executes or let an interrupt in, are called out (EXIT_STEP): run.c has the interpreter's function do them, and comes
 * back.
 *
 * While translated code runs x86_cpu.rflags has all flags but the arithmetic ones, which are in the host's. Nothing here changes those,
 * popf excepted: bits are chosen with pext and pdep. r14 is the CPU's address. sti is never a block's last instruction; what leaves at the
 * one behind it, undone, for something that the interpreter would see between the two, says so (bt_exit.shadow), and the shadow goes to
 * x86_cpu.slow.
 */
#include "bt/translate.h"

#if defined(__x86_64__)

#define FORM(op, ...) extern const struct x86_op x86_op_##op;
#include "x86/forms.def"
#include "x86/forms_sse.def"
#undef FORM

#define CPU(field) ((u32)offsetof(struct x86_cpu, field))
#define MASK(n) (GS(mask_flags) + 8 * (u32)(n))

void bt_system_masks(struct bt *t)
{
    enum { STEP = X86_TF | X86_NT | X86_AC | X86_ID };
    u64 *m = t->mask_flags;
    m[MASK_NOT_IF] = ~(u64)X86_IF;
    m[MASK_NOT_DF] = ~(u64)X86_DF;
    m[MASK_ARITH] = X86_ARITH_FLAGS;
    m[MASK_PUSHED] = ~(u64)(X86_ARITH_FLAGS | X86_VM | X86_RF);
    m[MASK_LOW] = 0xff;
    m[MASK_AH] = 0xff00;
    m[MASK_OF] = X86_OF;
    m[MASK_POPF_STEP] = STEP | X86_IOPL;
    m[MASK_POPF_STEP + 1] = STEP | X86_IF;              /* above level 0 IOPL decides on IF; IOPL stays */
    m[MASK_POPF_TAKE] = X86_DF | X86_IF;
    m[MASK_POPF_TAKE + 1] = X86_DF;
    m[MASK_POPF_KEEP] = ~m[MASK_POPF_TAKE];
    m[MASK_POPF_KEEP + 1] = ~m[MASK_POPF_TAKE + 1];
}

/* ---- what is done in line ---------------------------------------------------------------------------------------- */

enum { CLI = 1, STI, CLD, STD, PUSHF, POPF, FROM_CR, FROM_SEG, PUSH_SEG, SLDT, STR, SMSW, SWAPGS };
static const struct { const struct x86_op *op; u8 what; } OPS[] = {
    { &x86_op_cli, CLI }, { &x86_op_sti, STI }, { &x86_op_cld, CLD }, { &x86_op_std, STD }, { &x86_op_pushf, PUSHF },
    { &x86_op_popf, POPF }, { &x86_op_mov_cr, FROM_CR }, { &x86_op_mov_from_seg, FROM_SEG }, { &x86_op_push_seg, PUSH_SEG },
    { &x86_op_sldt, SLDT }, { &x86_op_str, STR }, { &x86_op_smsw, SMSW }, { &x86_op_swapgs, SWAPGS },
};

static unsigned what_of(const struct x86_insn *i)
{
    for (unsigned n = 0; n < ARRAY_SIZE(OPS); n++)
        if (x86_forms[i->form].op == OPS[n].op)
            return OPS[n].what;
    return 0;
}

bool tr_system_rule(const struct translation *tr)
{
    const struct x86_insn *i = tr->i;
    bool level0 = !(tr->context & CTX_CPL), to_reg = i->op[0].kind == X86_REG;
    unsigned width = tr_width(tr);
    switch (what_of(i)) {
    case CLI: case SWAPGS: return level0;
    case STI: return level0 && !tr->last;
    case CLD: case STD: return true;
    case PUSHF: case POPF: case PUSH_SEG: return i->size == width;
    case FROM_CR: return level0 && to_reg && (i->op[1].reg == 0 || (i->op[1].reg >= 2 && i->op[1].reg <= 4) ||
                                                 (i->op[1].reg == 8 && width == 8));
    case FROM_SEG: case SLDT: case STR: case SMSW: return to_reg && i->size >= 4;
    default: return false;
    }
}

/* ---- emitting ---------------------------------------------------------------------------------------------------- */

static void e_cpu(struct emit *e, bool wide, u8 op, unsigned reg, u32 disp)     /* op reg, [r14 + disp] */
{
    e8(e, 0x41 | wide << 3 | (reg >> 3) << 2), e8(e, op), e8(e, 0x80 | (reg & 7) << 3 | (SCRATCH & 7)), e32(e, disp);
}
static void cpu_load(struct emit *e, unsigned reg, u32 disp) { e_cpu(e, true, 0x8b, reg, disp); }
static void cpu_store(struct emit *e, unsigned reg, u32 disp) { e_cpu(e, true, 0x89, reg, disp); }
static void cpu_load16(struct emit *e, unsigned reg, unsigned base, u32 disp)   /* movzx reg, word [base + disp]; base r14 or r15 */
{
    e8(e, 0x41 | (reg >> 3) << 2), e8(e, 0x0f), e8(e, 0xb7), e8(e, 0x80 | (reg & 7) << 3 | (base & 7)), e32(e, disp);
}

static void keep_bits(struct emit *e, unsigned reg, unsigned mask)
{
    e_pext(e, true, reg, reg, MASK(mask));
    e_pdep(e, reg, reg, MASK(mask));
}

static void leave_to_step(struct translation *tr, bool rcx_in_scratch2)
{
    tr_cold(tr, COLD_EXIT, e_jmp_later(&tr->e), tr_exit(tr, EXIT_STEP, 0))->restore_rcx = rcx_in_scratch2;
}

/* rflags without the mask's complement, plus `bits`. r14: the CPU */
static void change_flags(struct emit *e, unsigned mask, u32 bits)
{
    cpu_load(e, SCRATCH2, CPU(rflags));
    keep_bits(e, SCRATCH2, mask);
    if (bits)
        e_lea(e, true, SCRATCH2, SCRATCH2, NO_INDEX, 0, (s32)bits);
    cpu_store(e, SCRATCH2, CPU(rflags));
}

static void sti(struct translation *tr)
{
    struct emit *e = &tr->e;
    e_mov(e, SCRATCH2, R_CX);
    e_cpu(e, false, 0x8b, R_CX, CPU(slow));
    u32 quiet = e_jrcxz(e);             /* else an interrupt waits: the interpreter looks at it */
    leave_to_step(tr, true);
    e_here(e, quiet);
    e_mov(e, R_CX, SCRATCH2);
    cpu_load(e, SCRATCH2, CPU(rflags));
    e_store(e, SCRATCH2, GS(sti_flags));
    change_flags(e, MASK_NOT_IF, X86_IF);
}

static void pushf(struct translation *tr)
{
    struct emit *e = &tr->e;
    tr_push_address(tr);
    carry_end(tr);
    e_store(e, R_CX, GS(tmp));
    e8(e, 0x9c), e8(e, 0x41), e8(e, 0x5f);                              /* pushfq; pop r15 */
    keep_bits(e, SCRATCH2, MASK_ARITH);
    e_load(e, R_CX, GS(cpu));
    e8(e, 0x48), e8(e, 0x8b), e8(e, 0x89), e32(e, CPU(rflags));         /* mov rcx, [rcx + rflags] */
    keep_bits(e, R_CX, MASK_PUSHED);
    e_lea(e, true, SCRATCH2, SCRATCH2, R_CX, 0, 0);
    tr_store(tr, tr_width(tr), SCRATCH2);
    e_load(e, R_CX, GS(tmp));
    tr_move_sp(tr, -(s32)tr_width(tr));
}

/* What was popped is in r15, then in bt->entry. */
static void popf(struct translation *tr)
{
    struct emit *e = &tr->e;
    unsigned user = tr->context & CTX_CPL ? 1 : 0;
    tr_access_at(tr, R_SP, 0, false);
    carry_end(tr);
    tr_load(tr, tr_width(tr), SCRATCH2);
    e_store(e, R_CX, GS(tmp));
    e_store(e, SCRATCH2, GS(entry));
    e_load(e, SCRATCH, GS(cpu));
    cpu_load(e, R_CX, CPU(rflags));
    e_pext(e, true, R_CX, R_CX, MASK(MASK_POPF_STEP + user));
    e8(e, 0x48), e8(e, 0xf7), e8(e, 0xd1);                              /* not rcx */
    e_pext(e, true, SCRATCH2, SCRATCH2, MASK(MASK_POPF_STEP + user));
    e_lea(e, true, R_CX, R_CX, SCRATCH2, 0, 1);                         /* the difference */
    u32 same = e_jrcxz(e);
    e_load(e, R_CX, GS(tmp));
    leave_to_step(tr, false);
    e_here(e, same);
    if (!user) {                        /* IF may be set */
        e_cpu(e, false, 0x8b, R_CX, CPU(slow));
        u32 quiet = e_jrcxz(e);
        e_load(e, R_CX, GS(tmp));
        leave_to_step(tr, false);
        e_here(e, quiet);
    }
    e_load(e, SCRATCH2, GS(entry));
    keep_bits(e, SCRATCH2, MASK_POPF_TAKE + user);
    cpu_load(e, R_CX, CPU(rflags));
    keep_bits(e, R_CX, MASK_POPF_KEEP + user);
    e_lea(e, true, R_CX, R_CX, SCRATCH2, 0, 0);
    cpu_store(e, R_CX, CPU(rflags));
    e_load(e, SCRATCH2, GS(entry));     /* the arithmetic ones, as lahf and seto would leave them */
    e_pext(e, true, R_CX, SCRATCH2, MASK(MASK_LOW));
    e_pdep(e, R_CX, R_CX, MASK(MASK_AH));
    e_pext(e, true, SCRATCH2, SCRATCH2, MASK(MASK_OF));
    e_lea(e, true, SCRATCH2, SCRATCH2, R_CX, 0, 0);
    e_gs(e, false, 0x89, SCRATCH2, GS(saved_flags));
    e_load(e, R_CX, GS(tmp));
    flags_emit(e, &(struct recipe){ .kind = FLAGS_SAVED });
    tr_move_sp(tr, (s32)tr_width(tr));
}

static void swapgs(struct translation *tr)
{
    struct emit *e = &tr->e;
    e_store(e, R_CX, GS(tmp));
    cpu_load(e, SCRATCH2, CPU(seg[X86_GS].base));
    cpu_load(e, R_CX, CPU(kernel_gs_base));
    cpu_store(e, SCRATCH2, CPU(kernel_gs_base));
    cpu_store(e, R_CX, CPU(seg[X86_GS].base));
    cpu_store(e, R_CX, CPU(lin_base[X86_GS]));
    e_store(e, R_CX, GS(seg_base) + 8);
    e_load(e, R_CX, GS(tmp));
}

static u32 selector_of(const struct x86_insn *i, unsigned operand)
{
    return CPU(seg) + i->op[operand].reg * (u32)sizeof(struct x86_seg) + (u32)offsetof(struct x86_seg, sel);
}

/* In 32-bit code the selector alone is written, and what the upper half of its place has stays (exec_push_seg). */
static void push_selector(struct translation *tr, u32 field)
{
    struct emit *e = &tr->e;
    unsigned width = tr_width(tr);
    tr_push_selector_address(tr);
    carry_end(tr);
    e_load(e, SCRATCH2, GS(cpu));
    cpu_load16(e, SCRATCH2, SCRATCH2, field);
    if (width == 4)
        e8(e, 0x66);
    tr_store(tr, width, SCRATCH2);
    tr_move_sp(tr, -(s32)width);
}

static void cr_to_register(struct translation *tr, u32 field, bool wide)
{
    e_cpu(&tr->e, wide, 0x8b, SCRATCH2, field);
    tr_set(tr, tr->i->op[0].reg / 8, SCRATCH2);
}

static void selector_to_register(struct translation *tr, u32 field)
{
    cpu_load16(&tr->e, SCRATCH2, SCRATCH, field);
    tr_set(tr, tr->i->op[0].reg / 8, SCRATCH2);
}

void tr_system(struct translation *tr)
{
    static const u32 CR[9] = { [0] = CPU(cr0), [2] = CPU(cr2), [3] = CPU(cr3), [4] = CPU(cr4), [8] = CPU(cr8) };
    const struct x86_insn *i = tr->i;
    struct emit *e = &tr->e;
    unsigned what = what_of(i);
    carry_end(tr);
    switch (what) {
    case PUSHF: pushf(tr); return;
    case POPF: popf(tr); return;
    case PUSH_SEG: push_selector(tr, selector_of(i, 0)); return;
    }
    e_load(e, SCRATCH, GS(cpu));
    switch (what) {
    case CLI: change_flags(e, MASK_NOT_IF, 0); return;
    case STI: sti(tr); return;
    case CLD: change_flags(e, MASK_NOT_DF, 0); return;
    case STD: change_flags(e, MASK_NOT_DF, X86_DF); return;
    case SWAPGS: swapgs(tr); return;
    case FROM_CR: cr_to_register(tr, CR[i->op[1].reg], tr_width(tr) == 8); return;
    case SMSW: cr_to_register(tr, CPU(cr0), i->size == 8); return;
    case SLDT: selector_to_register(tr, CPU(ldtr.sel)); return;
    case STR: selector_to_register(tr, CPU(tr.sel)); return;
    default: selector_to_register(tr, selector_of(i, 1)); return;
    }
}

/* ---- light calls ------------------------------------------------------------------------------------------------- */

unsigned tr_light(const struct translation *tr)
{
    const struct x86_cpu *c = tr->t->cpu;
    const struct x86_insn *i = tr->i;
    const struct x86_op *op = x86_forms[i->form].op;
    bool native = c->ops->syscall == x86_syscall_native && !c->ops->segment_loaded && c->ops->phys, level0 = !(tr->context & CTX_CPL);
    if (i->mode != 64)
        return 0;
    if (op == &x86_op_syscall && i->len == 2 && native)
        return LIGHT_SYSCALL;
    if (c->ops->quick && !tr->here->ordinary && i->len == 2 && route_comes_back(tr->t, tr->context, i))
        return LIGHT_HYPERCALL;
    if (!native || i->size != 8 || !level0)
        return 0;
    return op == &x86_op_sysret ? LIGHT_SYSRET : op == &x86_op_iret ? LIGHT_IRET : 0;
}

#else

void bt_system_masks(struct bt *t) { }

#endif
