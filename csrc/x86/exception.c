/* Delivery of exceptions and interrupts through the interrupt table (vol. 3, chapter 6; vol. 2, INT n).
 *
 * Owns: the way from a vector to the first instruction of its handler in real, virtual-8086, protected and long mode; double faults and
 * shutdown. Called by: x86_run (ops->exception, outside of an instruction), exec_far.c (ops->soft_int, inside of one), devices
 * (x86_interrupt_idt). Locks: none.
 *
 * A fault while an exception is delivered leaves by longjmp to x86_run, which calls x86_deliver_idt again: c->delivering then tells it
 * what was under way. Nothing is committed before the last thing that can fault, so the second delivery starts from the same state.
 */
#include "x86/system.h"

struct event {
    u8 vector;
    bool soft;                  /* the gate's DPL counts */
    bool has_error;
    u8 ext;                     /* EXT bit of error codes that the delivery itself causes */
    u32 error;
    u64 rip, rflags;            /* what the handler finds on its stack */
};

/* Error code of a fault in the IDT's gate: index, IDT, EXT (vol. 3, 6.13). */
static u32 gate_error(const struct event *e) { return e->vector * 8 | 2 | e->ext; }

/* Commit: the flags a handler starts with. */
static u64 handler_flags(const struct x86_cpu *c, bool interrupt_gate)
{
    return c->rflags & ~(u64)(X86_TF | X86_NT | X86_RF | X86_VM | (interrupt_gate ? X86_IF : 0));
}

static inline void commit(struct x86_cpu *c, const struct x86_seg *cs, unsigned cpl, u64 rip, u64 rflags)
{
    c->rflags = rflags;
    x86_set_code(c, cs, cpl, rip);
    c->r[X86_RIP] = rip;
}

/* ---- real mode (vol. 3, 20.1.4) ----------------------------------------------------------------------------------- */

static void deliver_real(struct x86_cpu *c, const struct event *e)
{
    if (e->vector * 4u + 3 > c->idtr.limit)
        x86_raise_error(c, X86_GP, gate_error(e));
    struct x86_stack s = x86_current_stack(c);
    u32 far = x86_sys_load(c, c->idtr.base + e->vector * 4, 4);
    x86_stack_reserve(c, &s, 3, 2, e->ext);
    x86_stack_push(c, &s, 2, e->rflags);
    x86_stack_push(c, &s, 2, c->seg[X86_CS].sel);
    x86_stack_push(c, &s, 2, e->rip);
    c->r[X86_RSP] = s.sp;
    c->rflags &= ~(u64)(X86_IF | X86_TF | X86_AC | X86_RF);
    x86_set_segment_real(c, X86_CS, far >> 16);
    c->next_rip = c->r[X86_RIP] = far & 0xffff;
    x86_derive(c);
}

/* ---- protected mode ----------------------------------------------------------------------------------------------- */

/* The gate's code segment and the privilege level that its handler runs at. */
static inline unsigned check_target(struct x86_cpu *c, const struct event *e, u16 sel, struct x86_seg *cs)
{
    if (x86_null_sel(sel))
        x86_raise_error(c, X86_GP, e->ext);
    u64 desc = x86_fetch_segment(c, sel, X86_GP, e->ext);
    u16 attr = x86_desc_attr(desc);
    unsigned dpl = x86_attr_dpl(attr);
    bool ok = x86_is_code(attr) && dpl <= c->cpl;
    if (c->rflags & X86_VM)                             /* out of virtual-8086 mode only to level 0 */
        ok = ok && dpl == 0 && !x86_is_conforming(attr);
    if (c->long_mode)
        ok = ok && (attr & (X86_ATTR_L | X86_ATTR_DB)) == X86_ATTR_L;
    if (!ok)
        x86_raise_error(c, X86_GP, (sel & ~3u) | e->ext);
    if (!(attr & X86_ATTR_P))
        x86_raise_error(c, X86_NP, (sel & ~3u) | e->ext);
    x86_set_accessed(c, sel, &desc);
    *cs = x86_segment_of(sel, desc);
    return x86_is_conforming(attr) ? c->cpl : dpl;
}

static void deliver_task(struct x86_cpu *c, const struct event *e, u16 sel)
{
    u64 desc[2];
    if (sel & 4)
        x86_raise_error(c, X86_GP, (sel & ~3u) | e->ext);
    x86_fetch_descriptor(c, sel, false, desc, X86_GP, e->ext);
    u16 attr = x86_desc_attr(desc[0]);
    unsigned type = x86_sys_type(attr);
    if (type != X86_SYS_TSS && type != X86_SYS_TSS16)
        x86_raise_error(c, X86_GP, (sel & ~3u) | e->ext);
    if (!(attr & X86_ATTR_P))
        x86_raise_error(c, X86_NP, (sel & ~3u) | e->ext);
    struct x86_exception x = { .vector = e->vector, .has_error = e->has_error, .error = e->error };
    x86_switch_task(c, sel, X86_TASK_INT, e->rip, e->rflags, &x, e->ext);
}

static void deliver_protected(struct x86_cpu *c, const struct event *e)
{
    struct x86_seg cs;
    if (e->vector * 8u + 7 > c->idtr.limit)
        x86_raise_error(c, X86_GP, gate_error(e));
    u64 gate = x86_sys_load(c, c->idtr.base + e->vector * 8, 8);
    u16 attr = x86_desc_attr(gate), sel = gate >> 16;
    unsigned type = x86_sys_type(attr);
    if (type != X86_SYS_TASK && (type & 6) != 6)        /* 6, 7, 14, 15 */
        x86_raise_error(c, X86_GP, gate_error(e));
    if (e->soft && x86_attr_dpl(attr) < c->cpl)
        x86_raise_error(c, X86_GP, gate_error(e));
    if (!(attr & X86_ATTR_P))
        x86_raise_error(c, X86_NP, gate_error(e));
    if (type == X86_SYS_TASK) {
        deliver_task(c, e, sel);
        return;
    }

    bool vm86 = c->rflags & X86_VM;
    unsigned size = type & 8 ? 4 : 2, cpl = check_target(c, e, sel, &cs);
    u64 rip = size == 4 ? (gate & 0xffff) | (gate >> 32 & 0xffff0000) : gate & 0xffff;
    bool inner = cpl < c->cpl;
    struct x86_stack s = inner ? x86_tss_stack(c, cpl, e->ext) : x86_current_stack(c);
    x86_stack_reserve(c, &s, 3 + 2 * inner + 4 * vm86 + e->has_error, size, (inner ? s.ss.sel & ~3u : 0) | e->ext);
    x86_check_rip(c, &cs, rip, e->ext);
    if (vm86) {
        x86_stack_push(c, &s, size, c->seg[X86_GS].sel);
        x86_stack_push(c, &s, size, c->seg[X86_FS].sel);
        x86_stack_push(c, &s, size, c->seg[X86_DS].sel);
        x86_stack_push(c, &s, size, c->seg[X86_ES].sel);
    }
    if (inner) {
        x86_stack_push(c, &s, size, c->seg[X86_SS].sel);
        x86_stack_push(c, &s, size, c->r[X86_RSP]);
    }
    x86_stack_push(c, &s, size, e->rflags);
    x86_stack_push(c, &s, size, c->seg[X86_CS].sel);
    x86_stack_push(c, &s, size, e->rip);
    if (e->has_error)
        x86_stack_push(c, &s, size, e->error);

    c->r[X86_RSP] = s.sp;
    if (inner)
        x86_set_segment(c, X86_SS, &s.ss);
    if (vm86) {
        static const u8 data[] = { X86_ES, X86_DS, X86_FS, X86_GS };
        for (unsigned n = 0; n < ARRAY_SIZE(data); n++)
            x86_set_segment_null(c, data[n], 0);
    }
    commit(c, &cs, cpl, rip, handler_flags(c, !(type & 1)));
}

/* ---- long mode (vol. 3, 6.14) ------------------------------------------------------------------------------------- */

static void deliver_long(struct x86_cpu *c, const struct event *e)
{
    struct x86_seg cs;
    if (e->vector * 16u + 15 > c->idtr.limit)
        x86_raise_error(c, X86_GP, gate_error(e));
    u64 gate[2] = { x86_sys_load(c, c->idtr.base + e->vector * 16, 8), x86_sys_load(c, c->idtr.base + e->vector * 16 + 8, 8) };
    u16 attr = x86_desc_attr(gate[0]), sel = gate[0] >> 16;
    unsigned type = x86_sys_type(attr), ist = gate[0] >> 32 & 7;
    if (type != X86_SYS_INT && type != X86_SYS_TRAP)
        x86_raise_error(c, X86_GP, gate_error(e));
    if (e->soft && x86_attr_dpl(attr) < c->cpl)
        x86_raise_error(c, X86_GP, gate_error(e));
    if (!(attr & X86_ATTR_P))
        x86_raise_error(c, X86_NP, gate_error(e));

    unsigned cpl = check_target(c, e, sel, &cs);
    u64 rip = (gate[0] & 0xffff) | (gate[0] >> 32 & 0xffff0000) | gate[1] << 32;
    bool inner = cpl < c->cpl;
    u64 sp = inner || ist ? x86_tss_rsp(c, cpl, ist, e->ext) : c->r[X86_RSP];
    unsigned via = cpl == 3 ? X86_SS : X86_SYS_SEG, n = 5 + e->has_error;       /* not the CPU's own rights where the stack is the user's */
    if (unlikely(cpl == 3 && c->mode != 64)) {
        /* From compatibility mode to level 3. The pushes are user accesses to a flat stack: what 64-bit mode makes of SS. Should one fault,
         * x86_deliver_idt derives the mode again. */
        c->mode = 64;
        c->lin_base[X86_ES] = c->lin_base[X86_CS] = c->lin_base[X86_SS] = c->lin_base[X86_DS] = 0;
    }
    sp &= ~15ul;
    u64 *frame = x86_frame_reserve(c, via, sp, n, e->ext);
    x86_check_rip(c, &cs, rip, e->ext);
    if (likely(frame != NULL)) {
        if (e->has_error)
            *frame++ = e->error;
        frame[4] = c->seg[X86_SS].sel;
        frame[3] = c->r[X86_RSP];
        frame[2] = e->rflags;
        frame[1] = c->seg[X86_CS].sel;
        frame[0] = e->rip;
    } else {
        struct x86_stack s = { .sp = sp, .mask = ~0ul, .via = (u8)via, .flat = true };
        x86_stack_push(c, &s, 8, c->seg[X86_SS].sel);
        x86_stack_push(c, &s, 8, c->r[X86_RSP]);
        x86_stack_push(c, &s, 8, e->rflags);
        x86_stack_push(c, &s, 8, c->seg[X86_CS].sel);
        x86_stack_push(c, &s, 8, e->rip);
        if (e->has_error)
            x86_stack_push(c, &s, 8, e->error);
    }

    c->r[X86_RSP] = sp - n * 8;
    if (inner)
        x86_set_segment_null(c, X86_SS, cpl);
    commit(c, &cs, cpl, rip, handler_flags(c, !(type & 1)));
}

static void deliver(struct x86_cpu *c, const struct event *e)
{
    if (!(c->cr0 & X86_CR0_PE))
        deliver_real(c, e);
    else if (c->long_mode)
        deliver_long(c, e);
    else
        deliver_protected(c, e);
}

/* ---- who calls ---------------------------------------------------------------------------------------------------- */

/* Vol. 3, table 6-5: what makes a double fault of two. */
static bool contributory(unsigned vector) { return vector == X86_DE || (vector >= X86_TS && vector <= X86_GP); }

static bool doubles(unsigned first, unsigned second)
{
    if (first == X86_PAGE)
        return second == X86_PAGE || contributory(second);
    return contributory(first) && contributory(second);
}

void x86_deliver_idt(struct x86_cpu *c, const struct x86_exception *x)
{
    struct x86_exception e = *x;                        /* x is c->exc, which the next fault overwrites */
    if (c->mode != 64 || !(c->seg[X86_CS].attr & X86_ATTR_L))
        x86_derive(c);                                  /* deliver_long or a task switch may have been left half-way; 64-bit code can begin neither */
    if (e.vector == X86_PAGE)
        c->cr2 = e.cr2;
    if (c->delivering == X86_DF_EXC + 1) {              /* a third fault (vol. 3, 6.15, interrupt 8) */
        c->delivering = 0;
        c->shutdown = true;
        x86_stop(c);
        return;
    }
    if (c->delivering && doubles(c->delivering - 1, e.vector))
        e = (struct x86_exception){ .vector = X86_DF_EXC, .has_error = true };
    c->delivering = (e.vector < 32 ? e.vector : X86_NMI) + 1;     /* others are benign (table 6-5) */

    if (e.vector == X86_DB) {
        c->dr[6] = (c->dr[6] & ~15ul) | e.cr2;          /* B0-3 are of this exception; the rest only ever accumulates */
        c->dr[7] &= ~(u64)X86_DR7_GD;                   /* so that the handler may read them (17.2.4) */
    }
    bool fault = e.vector < 32 && e.vector != X86_DB && e.vector != X86_NMI && e.vector != X86_BP && e.vector != X86_OFLOW && !e.soft;
    struct event event = {
        .vector = e.vector, .soft = e.soft, .has_error = e.has_error && (c->cr0 & X86_CR0_PE), .ext = !e.soft, .error = e.error,
        .rip = c->r[X86_RIP], .rflags = c->rflags | (fault ? X86_RF : 0),       /* 17.3.1.1 */
    };
    deliver(c, &event);
    c->delivering = 0;
}

void x86_interrupt_idt(struct x86_cpu *c, u8 vector)
{
    c->delivering = X86_NMI + 1;                        /* benign, whatever vector the controller gave */
    c->halted = false;
    deliver(c, &(struct event){ .vector = vector, .ext = 1, .rip = c->r[X86_RIP], .rflags = c->rflags });
    c->delivering = 0;
}

void x86_soft_int_idt(struct x86_cpu *c, u8 vector)
{
    bool int1 = c->insn->opcode == 0xf1;                /* looks at no DPL, and counts as external (vol. 2, INT n) */
    deliver(c, &(struct event){ .vector = vector, .soft = !int1, .ext = int1, .rip = c->next_rip, .rflags = c->rflags });
}
