/* The loop that executes a PV vCPU's machine code, and what its instructions cost.
 *
 * Owns: struct pv_cpu's life, pv_cpu.charged. Called by: the pCPU loop through pv_backend. No locks.
 *
 * Time. With the virtual clock an instruction is 1 ns: the clock is brought up to cpu.retired before anything reads it, and the engine
 * runs no further than *stop_at. Only the vCPU itself can lower *stop_at meanwhile (there is one thread): pv_spend looks again after every
 * hypercall, trap and emulated instruction. With the real clock the engine comes back every SLICE instructions to
 * look at the clock; kicks and pauses reach it through exit_work.
 */
#include <stdarg.h>
#include <stdio.h>

#include "hv/hypercall.h"
#include "pv/pv.h"

enum { SLICE = 8192 };

static inline bool must_park(const struct vcpu *v) { return load_acquire(v->exit_work) & WORK_park; }

/* ---- time -------------------------------------------------------------------------------------------------------- */

void pv_charge(struct pv_cpu *p)
{
    struct vcpu *v = p->vcpu;
    u64 n = p->cpu.retired - p->charged;
    p->charged = p->cpu.retired;
    stat_add(v, instructions, n);
    v->stats[STAT_undecoded] = p->cpu.undecoded;
    clock_advance(&v->host->clock, n);
}

/* How many instructions v may run from now on. */
static u64 budget(const struct pv_cpu *p)
{
    const struct clock *c = &p->vcpu->host->clock;
    u64 now = clock_now(c), stop = load_acquire(*p->stop_at), left = stop > now ? stop - now : 0;
    return c->kind == CLOCK_VIRTUAL || !left ? left : SLICE;
}

void pv_spend(struct pv_cpu *p, u64 cost)
{
    struct x86_cpu *c = &p->cpu;
    if (p->vcpu->host->clock.kind == CLOCK_VIRTUAL) {
        pv_charge(p);
        clock_advance(&p->vcpu->host->clock, cost);
        u64 left = budget(p);
        c->limit = left < NEVER - c->retired ? c->retired + left : NEVER;
    } else {
        c->limit = c->limit > c->retired + cost ? c->limit - cost : c->retired;
    }
}

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

    p->stop_at = stop_at;
    if (unlikely(!c->icache))           /* not before it runs: a MiB that most of a big domain's vCPUs may never need */
        c->icache = arena_alloc(&v->host->arena, p->icache_bytes);
    if (p->cold) {
        p->cold = false;
        if (!v->iret_done)
            c->r[X86_RAX] = (u64)v->cold.result;
    }
    if (p->failsafe) {
        p->failsafe = false;
        pv_failsafe(v);
    }
    for (u64 n; !must_park(v) && (n = budget(p)); pv_charge(p)) {
        bool held = c->slow & (X86_SLOW_PENDING_DB | X86_SLOW_SHADOW);  /* events come after the #DB, or the next instruction */
        if (read_once(v->exit_work) & (WORK_flush | WORK_upcall))       /* entering guest mode is what flushes */
            atomic_and(&v->exit_work, ~(u32)(WORK_flush | WORK_upcall));
        vcpu_enter_guest(v);
        if (!held)
            pv_test_events(v);
        enum x86_exit exit = must_park(v) ? X86_STOPPED : x86_run(c, held ? 1 : n);
        vcpu_leave_guest(v);
        if (unlikely(exit == X86_DEBUGGER || v->debug.watch_hit))
            debug_stopped(v);
    }
}

/* ---- life -------------------------------------------------------------------------------------------------------- */

static int pv_create(struct vcpu *v)
{
    struct arena *arena = &v->host->arena;
    struct pv_cpu *p = arena_alloc(arena, sizeof *p);
    if (!p)
        return -XEN_ENOMEM;
    p->vcpu = v;
    v->cpu = &p->cpu;
    p->cpu.tlb = v->tlb;
    p->cpu.ops = &pv_ops;
    p->cpu.owner = v;
    p->cpu.attention = &v->exit_work;
    p->cpu.features = x86_features_supported();
    p->cpu.bus_lock = &v->domain->bus_lock;
    (void)x86_icache_size_hint(&p->icache_bytes);
    pv_reset(v);
    return 0;
}

static void pv_destroy(struct vcpu *v)
{
    struct arena *arena = &v->host->arena;
    if (!v->cpu)
        return;
    struct pv_cpu *p = pv_cpu_of(v->cpu);
    v->cpu = NULL;
    arena_free(arena, p->cpu.icache, p->icache_bytes);
    arena_free(arena, p, sizeof *p);
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
    struct pv_cpu *p = pv_cpu_of(c);
    pv_charge(p);
    return host_now(p->vcpu->host);     /* see hv/time.c */
}

/* The engine never gets that far: CPL is 3, IOPL 0, and there is no TSS. */
static void no_rdmsr(struct x86_cpu *c, u32 msr) { x86_raise_error(c, X86_GP, 0); }
static void no_wrmsr(struct x86_cpu *c, u32 msr, u64 value) { x86_raise_error(c, X86_GP, 0); }
static u32 no_in(struct x86_cpu *c, u16 port, unsigned size) { x86_raise_error(c, X86_GP, 0); }
static void no_out(struct x86_cpu *c, u16 port, unsigned size, u32 value) { x86_raise_error(c, X86_GP, 0); }

const struct x86_ops pv_ops = {
    .name = "pv", .page = page, .store = store, .exception = pv_exception, .soft_int = pv_soft_int, .syscall = pv_syscall,
    .sysenter = pv_sysenter, .descriptor = pv_descriptor, .cpuid = pv_cpuid, .tsc = tsc, .rdmsr = no_rdmsr, .wrmsr = no_wrmsr, .in = no_in,
    .out = no_out, .debug = debug_check, .watch = debug_watch,
};
