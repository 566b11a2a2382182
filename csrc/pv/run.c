/* A PV vCPU on its CPU: what happens between two runs of the engine, what the engine asks, its beginning and end.
 *
 * Owns: struct pv_cpu's life. Called by: the pCPU loop through pv_backend, the engine through pv_ops. No locks. Time: hv/native.h.
 */
#include <stdarg.h>
#include <stdio.h>

#include "hv/hypercall.h"
#include "pv/pv.h"

void pv_crash(struct vcpu *v, const char *fmt, ...)
{
    char why[CRASH_REASON_MAX];
    bool in_guest = v->in_guest != 0;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(why, sizeof why, fmt, ap);
    va_end(ap);
    if (in_guest)
        vcpu_leave_guest(v);
    write_once(v->domain->last_vcpu, v->id);
    domain_crash(v->domain, "vCPU %u, %s mode, rip %#lx: %s", v->id, v->kernel_mode ? "kernel" : "user", v->cpu->r[X86_RIP], why);
    if (in_guest) {
        vcpu_enter_guest(v);
        x86_stop(v->cpu);
    }
}

/* ---- the loop ---------------------------------------------------------------------------------------------------- */

static void pv_run(struct vcpu *v, const u64 *stop_at)
{
    struct x86_cpu *c = v->cpu;
    struct pv_cpu *p = pv_cpu_of(c);

    native_begin(v, stop_at);
    if (p->cold) {
        p->cold = false;
        if (!v->iret_done)
            c->r[X86_RAX] = (u64)v->cold.result;
    }
    if (p->failsafe) {
        p->failsafe = false;
        pv_failsafe(v);
    }
    for (u64 n; !vcpu_must_park(v) && (n = native_budget(v)); native_charge(v)) {
        bool held = c->slow & (X86_SLOW_PENDING_DB | X86_SLOW_SHADOW);  /* events come after the #DB, or the next instruction */
        native_enter(v);
        if (!held)
            pv_test_events(v);
        native_execute(v, held ? 1 : n);
    }
}

/* ---- life -------------------------------------------------------------------------------------------------------- */

static int pv_create(struct vcpu *v)
{
    struct pv_cpu *p = arena_alloc(&v->host->arena, sizeof *p);
    if (!p)
        return -XEN_ENOMEM;
    native_attach(v, &p->cpu, &pv_ops);
    pv_reset(v);
    return 0;
}

static void pv_destroy(struct vcpu *v)
{
    if (!v->cpu)
        return;
    struct pv_cpu *p = pv_cpu_of(v->cpu);
    native_detach(v);
    arena_free(&v->host->arena, p, sizeof *p);
}

const struct vcpu_backend pv_backend = {
    .name = "interp", .create = pv_create, .destroy = pv_destroy, .run = pv_run, .set_context = pv_set_context,
    .load_user_gs = pv_load_user_gs, .iret = pv_iret,
};

/* ---- what the engine asks ---------------------------------------------------------------------------------------- */

static u8 *page(struct x86_cpu *c, u64 va, unsigned access, struct x86_fault *f)
{
    struct mmu_fault fault;
    u8 *p = mmu_page(pv_vcpu(c), va, access, &fault);
    if (unlikely(!p))
        *f = (struct x86_fault){ fault.va, fault.error_code };
    return p;
}

/* Page tables that the guest sees read-only, with the assist (section 4.9b). */
static bool store(struct x86_cpu *c, const struct x86_fault *f, unsigned size, bool compare, u64 *old, u64 value)
{
    struct vcpu *v = pv_vcpu(c);
    if (!v->kernel_mode || (f->error & (PFEC_present | PFEC_write | PFEC_reserved | PFEC_insn)) != (PFEC_present | PFEC_write) ||
        !pv_assist(v, VMASST_TYPE_writable_pagetables))
        return false;
    vcpu_leave_guest(v);
    bool done = mm_ptwr(v, f->va, size, compare, old, value);
    vcpu_enter_guest(v);
    return done;
}

static u64 tsc(struct x86_cpu *c)
{
    native_charge(pv_vcpu(c));
    return host_now(pv_vcpu(c)->host);  /* see hv/time.c */
}

/* The engine never gets that far: CPL is 3, IOPL 0, and there is no TSS. */
static void no_rdmsr(struct x86_cpu *c, u32 msr) { x86_raise_error(c, X86_GP, 0); }
static void no_wrmsr(struct x86_cpu *c, u32 msr, u64 value) { x86_raise_error(c, X86_GP, 0); }
static u32 no_in(struct x86_cpu *c, u16 port, unsigned size) { x86_raise_error(c, X86_GP, 0); }
static void no_out(struct x86_cpu *c, u16 port, unsigned size, u32 value) { x86_raise_error(c, X86_GP, 0); }

const struct x86_ops pv_ops = {
    .name = "pv", .page = page, .store = store, .exception = pv_exception, .soft_int = pv_soft_int, .syscall = pv_syscall,
    .quick_syscall = pv_quick_syscall, .quick = PV_QUICK, .sysenter = pv_sysenter, .descriptor = pv_descriptor, .cpuid = pv_cpuid,
    .tsc = tsc, .rdmsr = no_rdmsr, .wrmsr = no_wrmsr, .in = no_in, .out = no_out, .code_page = native_code_page,
    .code_changed = native_code_changed, .debug = debug_check, .watch = debug_watch,
};
