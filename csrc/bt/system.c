/* System instructions in line: those that only read or write what struct x86_cpu holds.
 *
 * Owns: which they are (OPS), bt->mask_flags. Called by: translate.c. All others, and these where they might fault, change how code
 * executes or let an interrupt in, are called out (EXIT_STEP): run.c has the interpreter's function do them, and comes back.
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
    if (i->mode != 64)
        return false;
    switch (what_of(i)) {
    case CLI: case SWAPGS: return level0;
    case STI: return level0 && !tr->last;
    case CLD: case STD: return true;
    case PUSHF: case POPF: case PUSH_SEG: return i->size == 8;
    case FROM_CR: return level0 && to_reg && (i->op[1].reg == 0 || (i->op[1].reg >= 2 && i->op[1].reg <= 4) || i->op[1].reg == 8);
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
    tr_store(tr, 8, SCRATCH2);
    e_load(e, R_CX, GS(tmp));
    e_lea(e, true, GUEST_SP, GUEST_SP, NO_INDEX, 0, -8);
}

/* What was popped is in r15, then in bt->entry. */
static void popf(struct translation *tr)
{
    struct emit *e = &tr->e;
    unsigned user = tr->context & CTX_CPL ? 1 : 0;
    tr_access_at(tr, R_SP, 0, false);
    carry_end(tr);
    tr_load(tr, 8, SCRATCH2);
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
    e_lea(e, true, GUEST_SP, GUEST_SP, NO_INDEX, 0, 8);
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
    case PUSH_SEG:
        tr_push_address(tr);
        carry_end(tr);
        e_load(e, SCRATCH2, GS(cpu));
        e8(e, 0x45), e8(e, 0x0f), e8(e, 0xb7), e8(e, 0xbf), e32(e, selector_of(i, 0));  /* movzx r15d, word [r15 + selector] */
        tr_store(tr, 8, SCRATCH2);
        e_lea(e, true, GUEST_SP, GUEST_SP, NO_INDEX, 0, -8);
        return;
    }
    e_load(e, SCRATCH, GS(cpu));
    switch (what) {
    case CLI: change_flags(e, MASK_NOT_IF, 0); return;
    case STI: sti(tr); return;
    case CLD: change_flags(e, MASK_NOT_DF, 0); return;
    case STD: change_flags(e, MASK_NOT_DF, X86_DF); return;
    case SWAPGS: swapgs(tr); return;
    case FROM_CR: cr_to_register(tr, CR[i->op[1].reg], true); return;
    case SMSW: cr_to_register(tr, CPU(cr0), i->size == 8); return;
    case SLDT: selector_to_register(tr, CPU(ldtr.sel)); return;
    case STR: selector_to_register(tr, CPU(tr.sel)); return;
    default: selector_to_register(tr, selector_of(i, 1)); return;
    }
}

/* ---- syscall and sysret ------------------------------------------------------------------------------------------ */

bool tr_switches_level(const struct translation *tr)
{
    const struct x86_cpu *c = tr->t->cpu;
    const struct x86_op *op = x86_forms[tr->i->form].op;
    bool native = c->ops->syscall == x86_syscall_native && !c->ops->segment_loaded && c->ops->phys;
    return native && tr->i->mode == 64 && ((op == &x86_op_syscall && tr->i->len == 2) ||
                                           (op == &x86_op_sysret && tr->i->size == 8 && !(tr->context & CTX_CPL)));
}

/* The x87's registers, too, may be the guest's, and stay: x87_out is about all contexts, of which one has CTX_X87 if the other has.
 * As x86_syscall_native and sysret do it (exec_far.c); whatever is not the usual case is left to them. Calls nothing: no function that
 * might touch a vector register or MXCSR, which are the guest's here. The kind of bt_exit says which: size 1 is sysret. */
__attribute__((target("general-regs-only"))) u64 bt_level_switch(struct x86_cpu *c)
{
    enum { SYSRET_FLAGS = 0x247fd5, CODE = X86_ATTR_G | X86_ATTR_L | X86_ATTR_P | X86_ATTR_S | 11,
           DATA = X86_ATTR_G | X86_ATTR_DB | X86_ATTR_P | X86_ATTR_S | 3 };
    struct bt *t = c->bt;
    const struct bt_exit *x = &t->exits[t->exit];
    const struct bt_block *b = &t->block[x->block];
    bool sysret = x->size;
    unsigned set = sysret, level = sysret ? 3 : 0;
    u64 old = (c->rflags & ~(u64)X86_ARITH_FLAGS) | (t->flags >> 8 & 0xd5) | (t->flags & 1) << 11;
    u64 next = b->va + x->off + 2 /* bytes of syscall */;
    u64 flags = sysret ? (c->r[X86_R11] & SYSRET_FLAGS) | X86_FLAG1 : (old & ~(c->sfmask | X86_RF)) | X86_FLAG1;
    u64 target = sysret ? c->r[X86_RCX] : c->lstar, place;
    u16 context = (u16)((b->context & ~(CTX_SET | CTX_CPL)) | (sysret ? CTX_SET | CTX_CPL : 0));
    s64 left = t->left - x->k - 1;
    __asm__("pext %2, %1, %0" : "=r"(place) : "r"(target), "r"(JUMP_MASK));
    if (unlikely(!(c->efer & X86_EFER_SCE) || c->slow || c->strict || flags & (X86_TF | X86_RF) || c->cr0 & X86_CR0_AM || left < 0 ||
                 t->jump_context[set] != context || t->jump_negated[set][place] != -target || target == t->poison))
        return 0;
    if (!sysret) {
        c->r[X86_RCX] = next;
        c->r[X86_R11] = old & ~(u64)X86_RF;
    }
    u16 base = (u16)(c->star >> (sysret ? 48 : 32)), cs = (u16)(base + (sysret ? 16 : 0)), ss = (u16)(base + 8);
    c->seg[X86_CS] = (struct x86_seg){ .sel = (u16)((cs & ~3u) | level), .attr = (u16)(CODE | level << 5), .limit = 0xffffffff };
    c->seg[X86_SS] = (struct x86_seg){ .sel = (u16)((ss & ~3u) | level), .attr = (u16)(DATA | level << 5), .limit = 0xffffffff };
    c->cpl = (u8)level;
    c->tlb_set = set;
    c->rflags = flags;
    c->code.tag = 0;
    t->flags = (u32)(flags & 0xd5) << 8 | (u32)(flags >> 11 & 1);
    t->left = left;
    return t->jump_host[set][place];
}

#else

void bt_system_masks(struct bt *t) { }
u64 bt_level_switch(struct x86_cpu *c) { return 0; }

#endif
