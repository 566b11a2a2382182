/* Far transfers: jmp, call and ret between segments, iret, int, syscall and its kin, lds and its kin (vol. 2; vol. 3, chapter 5).
 *
 * Owns: call gates, returns to outer levels, the choice of what a selector leads to. Called by: x86_run. Locks: none.
 * A PV guest's kernel runs these too, at level 3 and with descriptors from ops->descriptor.
 */
#include "x86/system.h"

/* ---- far pointers ------------------------------------------------------------------------------------------------- */

struct far { u16 sel; u64 off; };

static struct far far_pointer(struct x86_cpu *c, const struct x86_insn *i, const struct x86_operand *o)
{
    if (o->kind != X86_MEM)
        return (struct far){ i->sel, i->imm };
    u64 ea = x86_ea(c, i), off = x86_read_mem(c, i, ea, i->size);
    return (struct far){ x86_read_mem(c, i, (ea + i->size) & i->addr_mask, 2), off };
}

static void lseg(struct x86_cpu *c, const struct x86_insn *i)
{
    static const struct { u8 opcode, seg; } by_opcode[] = {
        { 0xc4, X86_ES }, { 0xc5, X86_DS }, { 0xb2, X86_SS }, { 0xb4, X86_FS }, { 0xb5, X86_GS },
    };
    struct far f = far_pointer(c, i, &i->op[1]);
    for (unsigned n = 0; n < ARRAY_SIZE(by_opcode); n++)
        if (by_opcode[n].opcode == i->opcode)
            x86_load_segment(c, by_opcode[n].seg, f.sel);
    x86_write_reg(c, i->op[0].reg, i->size, f.off);
}

/* ---- jmp and call ------------------------------------------------------------------------------------------------- */

static void push_return(struct x86_cpu *c, struct x86_stack *s, unsigned size)
{
    x86_stack_push(c, s, size, c->seg[X86_CS].sel);
    x86_stack_push(c, s, size, c->next_rip);
}

/* Goes on at sel:rip of real or virtual-8086 mode. */
static void go_unprotected(struct x86_cpu *c, u16 sel, u64 rip)
{
    if (c->rflags & X86_VM)
        x86_set_segment_vm86(c, X86_CS, sel);
    else
        x86_set_segment_real(c, X86_CS, sel);
    c->next_rip = rip;
    x86_derive(c);
}

static void far_real(struct x86_cpu *c, const struct x86_insn *i, struct far f, bool call)
{
    if (f.off > c->seg[X86_CS].limit)
        x86_raise_error(c, X86_GP, 0);
    if (call) {
        struct x86_stack s = x86_current_stack(c);
        x86_stack_reserve(c, &s, 2, i->size, 0);
        push_return(c, &s, i->size);
        c->r[X86_RSP] = s.sp;
    }
    go_unprotected(c, f.sel, f.off);
}

/* A code segment's last checks: present; L and D not both. */
static inline void accept_code(struct x86_cpu *c, u16 sel, u64 desc, struct x86_seg *cs)
{
    u16 attr = x86_desc_attr(desc);
    if (c->long_mode && (attr & (X86_ATTR_L | X86_ATTR_DB)) == (X86_ATTR_L | X86_ATTR_DB))
        x86_raise_error(c, X86_GP, sel & ~3u);
    if (!(attr & X86_ATTR_P))
        x86_raise_error(c, X86_NP, sel & ~3u);
    x86_set_accessed(c, sel, &desc);
    *cs = x86_segment_of(sel, desc);
}

/* The end of a transfer that keeps the privilege level. push: size of the words of a call's return address, 0: jmp. */
static void enter_code(struct x86_cpu *c, const struct x86_seg *cs, u64 rip, unsigned push)
{
    struct x86_stack s = x86_current_stack(c);
    if (push)
        x86_stack_reserve(c, &s, 2, push, 0);
    x86_check_rip(c, cs, rip, 0);
    if (push)
        push_return(c, &s, push);
    c->r[X86_RSP] = s.sp;
    x86_set_code(c, cs, c->cpl, rip);
}

static void far_code(struct x86_cpu *c, const struct x86_insn *i, struct far f, u64 desc, bool call)
{
    struct x86_seg cs;
    u16 attr = x86_desc_attr(desc);
    unsigned dpl = x86_attr_dpl(attr);
    if (x86_is_conforming(attr) ? dpl > c->cpl : (f.sel & 3u) > c->cpl || dpl != c->cpl)
        x86_raise_error(c, X86_GP, f.sel & ~3u);
    accept_code(c, f.sel, desc, &cs);
    enter_code(c, &cs, f.off, call ? i->size : 0);
}

/* Through a call gate that grants more privilege: the stack of the inner level from the TSS, parameters copied (vol. 3, 5.8.5). */
static void call_inner(struct x86_cpu *c, const struct x86_seg *cs, unsigned cpl, u64 rip, unsigned size, unsigned params)
{
    u64 param[31];
    struct x86_stack s = size == 8 ? x86_inner_stack(NULL, x86_tss_rsp(c, cpl, 0, 0)) : x86_tss_stack(c, cpl, 0), old = x86_current_stack(c);
    x86_stack_reserve(c, &s, 4 + params, size, s.ss.sel & ~3u);
    x86_check_rip(c, cs, rip, 0);
    for (unsigned n = 0; n < params; n++)
        param[n] = x86_stack_pop(c, &old, size);
    x86_stack_push(c, &s, size, c->seg[X86_SS].sel);
    x86_stack_push(c, &s, size, c->r[X86_RSP]);
    for (unsigned n = params; n-- > 0;)
        x86_stack_push(c, &s, size, param[n]);
    push_return(c, &s, size);
    c->r[X86_RSP] = s.sp;
    if (size == 8)
        x86_set_segment_null(c, X86_SS, cpl);
    else
        x86_set_segment(c, X86_SS, &s.ss);
    x86_set_code(c, cs, cpl, rip);
}

static void far_gate(struct x86_cpu *c, const u64 gate[2], bool call)
{
    u64 desc[2];
    struct x86_seg cs;
    u16 sel = gate[0] >> 16;
    unsigned size = c->long_mode ? 8 : x86_sys_type(x86_desc_attr(gate[0])) == X86_SYS_CALL ? 4 : 2;
    u64 rip = (gate[0] & 0xffff) | (size > 2 ? gate[0] >> 32 & 0xffff0000 : 0) | (size == 8 ? gate[1] << 32 : 0);
    if (x86_null_sel(sel))
        x86_raise_error(c, X86_GP, 0);
    x86_fetch_descriptor(c, sel, false, desc, X86_GP, 0);
    u16 attr = x86_desc_attr(desc[0]);
    unsigned dpl = x86_attr_dpl(attr);
    bool conforming = x86_is_conforming(attr);
    if (!x86_is_code(attr) || dpl > c->cpl || (!call && !conforming && dpl != c->cpl) || (size == 8 && !(attr & X86_ATTR_L)))
        x86_raise_error(c, X86_GP, sel & ~3u);
    accept_code(c, sel, desc[0], &cs);
    if (call && !conforming && dpl < c->cpl) {
        call_inner(c, &cs, dpl, rip, size, size == 8 ? 0 : gate[0] >> 32 & 31);
        return;
    }
    enter_code(c, &cs, rip, call ? size : 0);
}

/* jmp or call to a TSS, or to a task gate that leads to one. */
static void far_task(struct x86_cpu *c, u16 sel, u16 attr, bool call)
{
    unsigned type = x86_sys_type(attr);
    if ((sel & 4) || (type != X86_SYS_TSS && type != X86_SYS_TSS16))
        x86_raise_error(c, X86_GP, sel & ~3u);
    if (!(attr & X86_ATTR_P))
        x86_raise_error(c, X86_NP, sel & ~3u);
    x86_switch_task(c, sel, call ? X86_TASK_CALL : X86_TASK_JMP, c->next_rip, c->rflags, NULL, 0);
}

static void far_transfer(struct x86_cpu *c, const struct x86_insn *i, bool call)
{
    u64 desc[2];
    struct far f = far_pointer(c, i, &i->op[0]);
    if (!x86_protected(c)) {
        far_real(c, i, f, call);
        return;
    }
    if (x86_null_sel(f.sel))
        x86_raise_error(c, X86_GP, 0);
    x86_fetch_descriptor(c, f.sel, false, desc, X86_GP, 0);
    u16 attr = x86_desc_attr(desc[0]);
    if (attr & X86_ATTR_S) {
        if (!x86_is_code(attr))
            x86_raise_error(c, X86_GP, f.sel & ~3u);
        far_code(c, i, f, desc[0], call);
        return;
    }
    /* A gate or a TSS. */
    unsigned type = x86_sys_type(attr), dpl = x86_attr_dpl(attr);
    bool gate = type == X86_SYS_CALL || (!c->long_mode && type == X86_SYS_CALL16);
    bool task = !c->long_mode && (type == X86_SYS_TASK || type == X86_SYS_TSS || type == X86_SYS_TSS16);
    if (!(gate || task) || dpl < c->cpl || dpl < (f.sel & 3u))
        x86_raise_error(c, X86_GP, f.sel & ~3u);
    if (gate && c->long_mode) {
        x86_fetch_descriptor(c, f.sel, true, desc, X86_GP, 0);
        if (desc[1] >> 40 & 0x1f)
            x86_raise_error(c, X86_GP, f.sel & ~3u);
    }
    if (!(attr & X86_ATTR_P))
        x86_raise_error(c, X86_NP, f.sel & ~3u);
    if (gate) {
        far_gate(c, desc, call);
        return;
    }
    u16 sel = f.sel;
    if (type == X86_SYS_TASK) {
        sel = desc[0] >> 16;
        if (sel & 4)
            x86_raise_error(c, X86_GP, sel & ~3u);
        x86_fetch_descriptor(c, sel, false, desc, X86_GP, 0);
    }
    far_task(c, sel, x86_desc_attr(desc[0]), call);
}

static void jmpf(struct x86_cpu *c, const struct x86_insn *i) { far_transfer(c, i, false); }
static void callf(struct x86_cpu *c, const struct x86_insn *i) { far_transfer(c, i, true); }

/* ---- returns ------------------------------------------------------------------------------------------------------ */

/* n pops from the current stack. */
static inline void pop_words(struct x86_cpu *c, struct x86_stack *s, unsigned size, u64 *word, unsigned n)
{
    const u8 *quick = size == 8 && s->flat ? x86_quick_ptr(c, X86_SS, s->sp, n * 8, false) : NULL;
    for (unsigned k = 0; k < n; k++)
        word[k] = likely(quick != NULL) ? x86_host_load(quick + k * 8, 8) : x86_stack_pop(c, s, size);
    if (likely(quick != NULL))
        s->sp += n * 8;
}

static inline void check_return_code(struct x86_cpu *c, u16 sel, struct x86_seg *cs)
{
    if (x86_null_sel(sel))
        x86_raise_error(c, X86_GP, 0);
    u64 desc = x86_fetch_segment(c, sel, X86_GP, 0);
    if (!x86_may_return_to(x86_desc_attr(desc), sel & 3, c->cpl))
        x86_raise_error(c, X86_GP, sel & ~3u);
    accept_code(c, sel, desc, cs);
}

/* The stack segment of a return: null only to 64-bit code above level 3. */
static inline void check_return_stack(struct x86_cpu *c, u16 sel, unsigned rpl, bool to64, struct x86_seg *ss)
{
    if (to64 && x86_null_is_stack(sel, rpl))
        *ss = (struct x86_seg){ .sel = sel, .attr = X86_ATTR_UNUSABLE | rpl << 5 };
    else
        x86_check_stack_segment(c, ss, sel, rpl, X86_GP, 0);
}

/* retf and iret have popped an address from *s: the rest of the way. drop: bytes of parameters; load_ss: stack pointer and SS follow even
 * without a change of level; flags: what rflags becomes. */
static void return_to(struct x86_cpu *c, struct x86_stack *s, unsigned size, u64 rip, u16 sel, unsigned drop, bool load_ss, u64 flags)
{
    struct x86_seg cs, ss;
    unsigned rpl = sel & 3;
    check_return_code(c, sel, &cs);
    bool to64 = c->long_mode && (cs.attr & X86_ATTR_L), outer = rpl > c->cpl;
    s->sp = s->mask == 0xffff ? (s->sp & ~0xfffful) | ((s->sp + drop) & 0xffff) : (s->sp + drop) & s->mask;
    u64 rsp = s->sp;
    if (outer || load_ss) {
        u64 word[2], sp;
        pop_words(c, s, size, word, 2);
        sp = word[0];
        check_return_stack(c, (u16)word[1], rpl, to64, &ss);
        /* To a 16-bit stack only SP is loaded; the upper half stays what it was in here. */
        if (!to64 && !(ss.attr & X86_ATTR_DB))
            rsp = (s->sp & 0xffff0000) | ((sp + drop) & 0xffff);
        else
            rsp = to64 ? sp + drop : (u32)(sp + drop);
    }
    x86_check_rip(c, &cs, rip, 0);
    if (outer || load_ss)
        x86_set_segment(c, X86_SS, &ss);
    c->r[X86_RSP] = rsp;
    c->rflags = flags;
    x86_set_code(c, &cs, rpl, rip);
    if (outer)
        x86_drop_inner_segments(c);
}

static void retf(struct x86_cpu *c, const struct x86_insn *i)
{
    struct x86_stack s = x86_current_stack(c);
    unsigned drop = i->nr_ops ? (u16)i->imm : 0;
    u64 rip = x86_stack_pop(c, &s, i->size);
    u16 sel = x86_stack_pop(c, &s, i->size);
    if (x86_protected(c)) {
        return_to(c, &s, i->size, rip, sel, drop, false, c->rflags);
        return;
    }
    if (rip > c->seg[X86_CS].limit)
        x86_raise_error(c, X86_GP, 0);
    c->r[X86_RSP] = s.mask == 0xffff ? (s.sp & ~0xfffful) | ((s.sp + drop) & 0xffff) : (s.sp + drop) & s.mask;
    go_unprotected(c, sel, rip);
}

static void iret_vm86(struct x86_cpu *c, struct x86_stack *s, u64 rip, u16 cs, u64 image)
{
    static const u8 order[] = { X86_ES, X86_DS, X86_FS, X86_GS };
    u16 sel[X86_NR_SEGS];
    u64 sp = x86_stack_pop(c, s, 4);
    sel[X86_SS] = x86_stack_pop(c, s, 4);
    for (unsigned n = 0; n < ARRAY_SIZE(order); n++)
        sel[order[n]] = x86_stack_pop(c, s, 4);
    sel[X86_CS] = cs;
    if (rip > 0xffff)
        x86_raise_error(c, X86_GP, 0);
    c->rflags = x86_iret_flags(c, c->rflags, image, 4) | X86_VM;
    c->cpl = 3;
    c->r[X86_RSP] = sp;
    for (unsigned n = 0; n < X86_NR_SEGS; n++)
        x86_set_segment_vm86(c, n, sel[n]);
    c->next_rip = rip;
    x86_derive(c);
}

/* NT: back to the task that the TSS names (vol. 3, 7.4). */
static void iret_task(struct x86_cpu *c)
{
    u64 desc[2];
    u16 sel = x86_sys_load(c, c->tr.base, 2);
    if (sel & 4)
        x86_raise_error(c, X86_TS, sel & ~3u);
    x86_fetch_descriptor(c, sel, false, desc, X86_TS, 0);
    unsigned type = x86_sys_type(x86_desc_attr(desc[0]));
    if (type != X86_SYS_TSS_BUSY && type != X86_SYS_TSS16_BUSY)
        x86_raise_error(c, X86_TS, sel & ~3u);
    if (!(x86_desc_attr(desc[0]) & X86_ATTR_P))
        x86_raise_error(c, X86_NP, sel & ~3u);
    x86_switch_task(c, sel, X86_TASK_IRET, c->next_rip, c->rflags, NULL, 0);
}

static void iret(struct x86_cpu *c, const struct x86_insn *i)
{
    x86_serialize();
    if ((c->rflags & X86_VM) && x86_iopl(c) < 3)
        x86_raise_error(c, X86_GP, 0);
    if (x86_protected(c) && (c->rflags & X86_NT)) {
        if (c->long_mode)
            x86_raise_error(c, X86_GP, 0);
        iret_task(c);
        return;
    }
    struct x86_stack s = x86_current_stack(c);
    u64 word[3];
    pop_words(c, &s, i->size, word, 3);
    u64 rip = word[0], image = word[2];
    u16 sel = (u16)word[1];
    if (!x86_protected(c)) {
        if (rip > c->seg[X86_CS].limit)
            x86_raise_error(c, X86_GP, 0);
        c->r[X86_RSP] = s.sp;
        c->rflags = x86_iret_flags(c, c->rflags, image, i->size);
        go_unprotected(c, sel, rip);
    } else if (i->size == 4 && (image & X86_VM) && c->cpl == 0 && !c->long_mode) {
        iret_vm86(c, &s, rip, sel, image);
    } else {
        return_to(c, &s, i->size, rip, sel, 0, c->mode == 64, x86_iret_flags(c, c->rflags, image, i->size));
    }
}

/* ---- software interrupts ------------------------------------------------------------------------------------------ */

static void int_n(struct x86_cpu *c, const struct x86_insn *i)
{
    if ((c->rflags & X86_VM) && x86_iopl(c) < 3)        /* int3 and into are not IOPL-sensitive (vol. 3, 20.2.7) */
        x86_raise_error(c, X86_GP, 0);
    c->ops->soft_int(c, i->imm);
}

static void int3(struct x86_cpu *c, const struct x86_insn *i) { c->ops->soft_int(c, X86_BP); }
static void int1(struct x86_cpu *c, const struct x86_insn *i) { c->ops->soft_int(c, X86_DB); }

static void into(struct x86_cpu *c, const struct x86_insn *i)
{
    if (c->rflags & X86_OF)
        c->ops->soft_int(c, X86_OFLOW);
}

/* ---- syscall, sysenter -------------------------------------------------------------------------------------------- */

/* To or from level cpl with flat segments that no descriptor is read for; SS is the next selector after CS. */
static void fast_transfer(struct x86_cpu *c, u16 cs_sel, u16 ss_sel, unsigned cpl, bool l, u64 rip)
{
    struct x86_seg cs = x86_flat_segment(cs_sel, true, cpl, l), ss = x86_flat_segment((ss_sel & ~3u) | cpl, false, cpl, false);
    x86_set_segment(c, X86_SS, &ss);
    x86_set_code(c, &cs, cpl, rip);
}

void x86_syscall_native(struct x86_cpu *c)
{
    if (!(c->efer & X86_EFER_SCE) || c->mode != 64)
        x86_raise(c, X86_UD);
    u16 sel = c->star >> 32;
    c->r[X86_RCX] = c->next_rip;
    c->r[X86_R11] = c->rflags & ~(u64)X86_RF;
    c->rflags = (c->rflags & ~(c->sfmask | X86_RF)) | X86_FLAG1;
    fast_transfer(c, sel, sel + 8, 0, true, c->lstar);
}

void x86_sysenter_native(struct x86_cpu *c)
{
    u16 sel = c->sysenter_cs;
    if (!(c->cr0 & X86_CR0_PE) || x86_null_sel(sel))
        x86_raise_error(c, X86_GP, 0);
    bool l = c->long_mode;
    c->rflags &= ~(u64)(X86_VM | X86_IF | X86_RF);
    c->r[X86_RSP] = l ? c->sysenter_esp : (u32)c->sysenter_esp;
    fast_transfer(c, sel, sel + 8, 0, l, l ? c->sysenter_eip : (u32)c->sysenter_eip);
}

static void syscall_op(struct x86_cpu *c, const struct x86_insn *i) { c->ops->syscall(c); }
static void sysenter(struct x86_cpu *c, const struct x86_insn *i) { c->ops->sysenter(c); }

/* The canonical check stands before the switch: level 0 takes the #GP, on the kernel's stack pointer or not (Intel). */
static void sysret(struct x86_cpu *c, const struct x86_insn *i)
{
    bool l = i->size == 8;
    u16 sel = c->star >> 48;
    if (!(c->efer & X86_EFER_SCE))
        x86_raise(c, X86_UD);
    if (l && !va_canonical(c->r[X86_RCX]))
        x86_raise_error(c, X86_GP, 0);
    c->rflags = (c->r[X86_R11] & 0x247fd5) | X86_FLAG1;
    fast_transfer(c, l ? sel + 16 : sel, sel + 8, 3, l, l ? c->r[X86_RCX] : (u32)c->r[X86_RCX]);
}

static void sysexit(struct x86_cpu *c, const struct x86_insn *i)
{
    bool l = i->size == 8;
    u16 sel = c->sysenter_cs;
    u64 rip = l ? c->r[X86_RDX] : (u32)c->r[X86_RDX], rsp = l ? c->r[X86_RCX] : (u32)c->r[X86_RCX];
    if (!(c->cr0 & X86_CR0_PE) || x86_null_sel(sel) || !va_canonical(rip) || !va_canonical(rsp))
        x86_raise_error(c, X86_GP, 0);
    c->r[X86_RSP] = rsp;
    fast_transfer(c, sel + (l ? 32 : 16), sel + (l ? 40 : 24), 3, l, rip);
}

X86_OP_ALL(lseg, lseg);
X86_OP_ALL(jmpf, jmpf);
X86_OP_ALL(callf, callf);
X86_OP_ALL(retf, retf);
X86_OP_ALL(iret, iret);
X86_OP_ALL(int_n, int_n);
X86_OP_ALL(int3, int3);
X86_OP_ALL(int1, int1);
X86_OP_ALL(into, into);
X86_OP_ALL(syscall, syscall_op);
X86_OP_ALL(sysenter, sysenter);
X86_OP_ALL(sysret, sysret);
X86_OP_ALL(sysexit, sysexit);
