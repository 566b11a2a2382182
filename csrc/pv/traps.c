/* Entries into the guest kernel: exceptions, software interrupts, upcalls, NMIs, system calls; and the hypercall, which enters us.
 *
 * Owns: the bounce frame. Called by: the engine through pv_ops, run.c before each entry. No locks.
 * Sources: sections 3.2 to 3.5, 2.1.
 */
#include "pv/pv.h"

#include <stdio.h>

#include "hv/hypercall.h"
#include "x86/insn.h"

static const char *vector_name(unsigned vector)
{
    static const char *const names[] = {
        "#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "vector 9", "#TS", "#NP", "#SS", "#GP", "#PF",
        "vector 15", "#MF", "#AC", "#MC", "#XM",
    };
    return vector < ARRAY_SIZE(names) ? names[vector] : "software interrupt";
}

/* What the guest is entered for, in words: its exception, or b->why. Only a crash needs them. */
static void describe(const struct pv_bounce *b, char *out, unsigned size)
{
    const struct x86_exception *e = b->exception;
    int n = snprintf(out, size, "%s", e ? vector_name(e->vector) : b->why);
    if (!e)
        return;
    if (e->has_error)
        n += snprintf(out + n, size - n, ", error code %#x", e->error);
    const char *access = e->error & PFEC_insn ? "execution at" : e->error & PFEC_write ? "write to" : "read of";
    if (e->vector == X86_PAGE)
        n += snprintf(out + n, size - n, ", %s %#lx", access, e->cr2);
    if (e->vector >= 32)
        snprintf(out + n, size - n, " %#x", e->vector);
}

/* ---- the frame (section 3.3) ------------------------------------------------------------------------------------- */

static inline struct vcpu_info *info_for_write(struct vcpu *v)
{
    frame_mark_dirty(&v->host->machine, v->info_mfn ? v->info_mfn : v->domain->shared_info_mfn);
    return v->info;
}

static u64 pushed_flags(const struct vcpu *v, u8 mask)
{
    u64 flags = v->cpu->rflags & ~(u64)(X86_IF | X86_IOPL);
    if (!mask)
        flags |= X86_IF;
    return pv_assist(v, VMASST_TYPE_architectural_iopl) ? flags | (u64)v->arch.iopl << 12 : flags;
}

bool pv_bounce(struct vcpu *v, const struct pv_bounce *b)
{
    struct x86_cpu *c = v->cpu;
    const struct x86_seg *seg = c->seg;
    const bool user = !v->kernel_mode;
    const u8 mask = read_once(v->info->evtchn_upcall_mask);
    u64 frame[12], sp = user ? v->arch.kernel_sp : c->r[X86_RSP];
    struct mmu_fault f;
    unsigned n = 0;

    if (unlikely(!b->rip)) {
        char what[96];
        describe(b, what, sizeof what);
        pv_crash(v, "%s, and the guest has set no handler for it", what);
        return false;
    }
    frame[n++] = c->r[X86_RCX];
    frame[n++] = c->r[X86_R11];
    if (b->failsafe)
        for (unsigned i = 0; i < 4; i++)
            frame[n++] = seg[(const u8[]){ X86_DS, X86_ES, X86_FS, X86_GS }[i]].sel;
    if (b->has_error)
        frame[n++] = b->error;
    frame[n++] = c->r[X86_RIP];
    frame[n++] = (user ? seg[X86_CS].sel : seg[X86_CS].sel & ~3u) | (u64)mask << 32;
    frame[n++] = pushed_flags(v, mask);
    frame[n++] = c->r[X86_RSP];
    frame[n++] = seg[X86_SS].sel;

    sp = (sp & ~15ul) - n * sizeof *frame;
    if (user)
        pv_toggle_mode(v);
    if (unlikely(mmu_write(v, sp, frame, n * sizeof *frame, &f))) {
        char what[96];
        if (user)
            pv_toggle_mode(v);
        describe(b, what, sizeof what);
        pv_crash(v, "%s, and its frame cannot be written to the kernel's stack at %#lx", what, sp);
        return false;
    }
    c->r[X86_RSP] = sp;
    c->r[X86_RIP] = b->rip;
    c->rflags &= ~(u64)(X86_AC | X86_VM | X86_RF | X86_NT | X86_TF | (b->clear_df ? X86_DF : 0));
    pv_set_kernel_segments(c);
    if (b->mask)
        write_once(info_for_write(v)->evtchn_upcall_mask, 1);
    x86_derive(c);
    return true;
}

void pv_failsafe(struct vcpu *v)
{
    pv_bounce(v, &(struct pv_bounce){ .rip = v->arch.failsafe_callback, .mask = v->arch.vgc_flags & VGCF_failsafe_disables_events,
                                      .failsafe = true, .why = "selectors that cannot be loaded" });
}

/* ---- events (section 3.4) ---------------------------------------------------------------------------------------- */

static u64 trap_handler(const struct vcpu *v, u8 vector) { return v->arch.traps ? v->arch.traps[vector].address : 0; }

static void deliver_nmi(struct vcpu *v)
{
    u64 handler = v->arch.nmi_callback ? v->arch.nmi_callback : trap_handler(v, X86_NMI);
    if (!handler || !xchg(&v->arch.nmi_pending, false))
        return;
    pv_cpu_of(v->cpu)->nmi_masked = true;
    pv_bounce(v, &(struct pv_bounce){ .rip = handler, .mask = true, .why = "an NMI" });
}

void pv_test_events(struct vcpu *v)
{
    if (read_once(v->exit_work) & WORK_upcall)
        atomic_and(&v->exit_work, ~(u32)WORK_upcall);           /* first this, then the look (sched/core.c, ordering 5) */
    if (unlikely(read_once(v->arch.nmi_pending)) && !pv_cpu_of(v->cpu)->nmi_masked)
        deliver_nmi(v);
    if (likely(!vcpu_event_deliverable(v)))
        return;
    stat_inc(v, upcalls);
    vcpu_trace_self(v, UPCALL, v->info->evtchn_pending_sel, 0);
    pv_bounce(v, &(struct pv_bounce){ .rip = v->arch.event_callback, .mask = true, .why = "an event is pending and unmasked" });
}

/* ---- exceptions -------------------------------------------------------------------------------------------------- */

static void deliver(struct vcpu *v, const struct x86_exception *e)
{
    struct x86_cpu *c = v->cpu;
    const struct trap_info *t = v->arch.traps ? &v->arch.traps[e->vector] : NULL;
    struct pv_bounce b = { .rip = t ? t->address : 0, .mask = t && (t->flags & 4), .has_error = e->has_error, .error = e->error,
                           .exception = e };

    vcpu_trace_self(v, TRAP, (u64)e->vector << 32 | e->error, c->r[X86_RIP]);
    switch (e->vector) {
    case X86_DB:
        c->dr[6] |= e->cr2;
        break;
    case X86_NM:
        c->cr0 &= ~X86_CR0_TS;
        break;
    case X86_PAGE:
        c->cr2 = e->cr2;
        write_once(info_for_write(v)->arch.cr2, e->cr2);
        break;
    }
    if (pv_bounce(v, &b))
        stat_inc(v, traps);
}

static void due_work(struct vcpu *v)
{
    if (vcpu_must_park(v))
        x86_stop(v->cpu);
    else
        pv_test_events(v);
}

/* Both done between two instructions: the work that may be due, and the cost. */
static void after_exit(struct vcpu *v)
{
    native_spend(v, PV_COST_TRAP);
    due_work(v);
}

void pv_exception(struct x86_cpu *c, const struct x86_exception *raised)
{
    struct vcpu *v = pv_vcpu(c);
    struct x86_exception e = *raised;

    if (e.vector == X86_UD || (e.vector == X86_GP && e.error == 0)) {
        vcpu_leave_guest(v);
        native_charge(v);
        enum pv_emulated done = pv_emulate(v, &e);
        vcpu_enter_guest(v);
        if (done == PV_EMULATED) {
            stat_inc(v, emulated);
            c->rflags &= ~(u64)X86_RF;  /* which the engine has set for the frame of a fault */
            x86_derive(c);
            if (c->rflags & X86_TF)     /* the single-step trap that the instruction would have had */
                deliver(v, &(struct x86_exception){ .vector = X86_DB, .cr2 = X86_DR6_BS });
            after_exit(v);
            return;
        }
    }
    deliver(v, &e);
    after_exit(v);
}

/* A data breakpoint of mov ss waits for the end of the next instruction. If that enters Xen, hardware raises #DB there, and Xen, which
 * set no breakpoint, drops it (XSA-260, XSA-265). */
static void drop_delayed_db(struct x86_cpu *c)
{
    c->pending_db = 0;
    c->slow &= ~X86_SLOW_PENDING_DB;
}

/* ---- software interrupts (section 3.2) --------------------------------------------------------------------------- */

/* int n by DPL; int3, into and icebp whatever DPL says; int 0x80 as if its DPL were 3, if it has a handler. */
void pv_soft_int(struct x86_cpu *c, u8 vector)
{
    struct vcpu *v = pv_vcpu(c);
    const struct trap_info *t = v->arch.traps ? &v->arch.traps[vector] : NULL;
    unsigned cpl = !v->kernel_mode ? 3 : pv_assist(v, VMASST_TYPE_architectural_iopl) ? 0 : 1;
    bool by_dpl = !(vector == X86_BP || vector == X86_OFLOW || (vector == X86_DB && c->insn->opcode == 0xf1) ||
                    (vector == 0x80 && trap_handler(v, vector)));

    if (by_dpl && (!t || (t->flags & 3u) < cpl))
        x86_raise_error(c, X86_GP, vector << 3 | 2);
    drop_delayed_db(c);
    c->r[X86_RIP] = c->next_rip;
    deliver(v, &(struct x86_exception){ .vector = vector });
    after_exit(v);
    c->next_rip = c->r[X86_RIP];
}

/* ---- syscall, sysenter ------------------------------------------------------------------------------------------- */

static void hypercall_insn(struct vcpu *v)
{
    struct x86_cpu *c = v->cpu;
    const bool virtual = v->host->clock.kind == CLOCK_VIRTUAL;
    const u64 args[5] = { c->r[X86_RDI], c->r[X86_RSI], c->r[X86_RDX], c->r[X86_R10], c->r[X86_R8] };

    pv_set_kernel_segments(c);          /* whatever flat CS the guest ran on, Xen returns to its own */
    c->r[X86_RIP] = c->r[X86_RCX] = c->next_rip;
    c->r[X86_R11] = c->rflags;
    if (virtual)                        /* else the clock runs by itself, and the loop counts */
        native_charge(v);
    s64 rc = hypercall(v, c->r[X86_RAX], args);
    if (rc == HYPERCALL_COLD)
        pv_cpu_of(c)->cold = true;
    else if (!v->iret_done)
        c->r[X86_RAX] = (u64)rc;
    native_spend(v, virtual ? 0 : PV_COST_HYPERCALL);   /* dispatch has charged the virtual clock */
    if (unlikely(load_acquire(v->exit_work)) || unlikely(read_once(v->arch.nmi_pending)))
        due_work(v);                    /* an upcall is, too: hypercall() has looked */
    c->next_rip = c->r[X86_RIP];
}

/* Enters the kernel as the hardware's SYSCALL would have found it: frame and registers show the return address and flags. */
static void user_syscall(struct vcpu *v)
{
    struct x86_cpu *c = v->cpu;
    bool wide = c->mode == 64;
    u64 handler = wide ? v->arch.syscall_callback : v->arch.syscall32_callback;
    bool mask = wide ? v->arch.vgc_flags & VGCF_syscall_disables_events : v->arch.syscall32_disables_events;
    if (!handler)
        x86_raise(c, X86_UD);
    c->r[X86_RIP] = c->r[X86_RCX] = c->next_rip;
    c->r[X86_R11] = c->rflags;
    c->seg[X86_CS].sel = wide ? FLAT_USER_CS64 : FLAT_USER_CS32;
    c->seg[X86_SS].sel = FLAT_USER_SS64;
    pv_bounce(v, &(struct pv_bounce){ .rip = handler, .mask = mask, .clear_df = true, .why = "a system call" });
    after_exit(v);
    c->next_rip = c->r[X86_RIP];
}

void pv_syscall(struct x86_cpu *c)
{
    struct vcpu *v = pv_vcpu(c);
    drop_delayed_db(c);
    if (!v->kernel_mode)
        user_syscall(v);
    else if (c->mode == 64)
        hypercall_insn(v);
    else
        x86_raise(c, X86_UD);
}

/* SYSENTER leaves no return address: the frame shows zeros, and the kernel knows (section 3.5). */
void pv_sysenter(struct x86_cpu *c)
{
    struct vcpu *v = pv_vcpu(c);
    if (v->kernel_mode || !v->arch.sysenter_callback)
        x86_raise_error(c, X86_GP, 0);
    c->r[X86_RIP] = c->r[X86_RSP] = 0;
    c->seg[X86_CS].sel = 3;
    c->seg[X86_SS].sel = FLAT_USER_SS64;
    c->rflags &= ~(u64)X86_NT;
    pv_bounce(v, &(struct pv_bounce){ .rip = v->arch.sysenter_callback, .mask = v->arch.sysenter_disables_events, .why = "a sysenter" });
    after_exit(v);
    c->next_rip = c->r[X86_RIP];
}
