/* The loop that executes a PC's vCPU, what its instructions cost, and what the x86 engine asks on the way.
 *
 * Owns: the life of struct pc and struct pc_cpu, pc_cpu.charged, X86_SLOW_INTERRUPT. Called by: the pCPU loop through pc_backend, the engine
 * through pc_ops. Locks: pc.lock around devices.
 *
 * Time is as for PV vCPUs (pv/run.c): with the virtual clock an instruction is 1 ns, and the clock is brought up to cpu.retired before
 * anything reads it. The engine runs in guest mode; devices are reached outside of it (enter_device, leave_device), after which it looks again at
 * interrupts and at how long it may run, because a device may have set an earlier timer.
 */
#include <string.h>

#include "pc/pc.h"

#include "xen/sched.h"

enum { SLICE = 8192, COST_TRAP = 50, COST_DEVICE = 100 };
/* Instructions. What an exception and an access to a device cost: a guest that only faults, or copies from where no memory is, must not stop the
 * virtual clock. */

static inline bool must_park(const struct vcpu *v) { return load_acquire(v->exit_work) & WORK_park; }
static inline bool virtual_clock(const struct pc_cpu *p) { return p->vcpu->host->clock.kind == CLOCK_VIRTUAL; }

/* ---- time -------------------------------------------------------------------------------------------------------- */

static void charge(struct pc_cpu *p)
{
    struct vcpu *v = p->vcpu;
    u64 n = p->cpu.retired - p->charged;
    p->charged = p->cpu.retired;
    stat_add(v, instructions, n);
    v->stats[STAT_undecoded] = p->cpu.undecoded;
    clock_advance(&v->host->clock, n);
}

/* How many instructions it may run from now on. */
static u64 budget(const struct pc_cpu *p)
{
    u64 now = host_now(p->vcpu->host), stop = load_acquire(*p->stop_at), left = stop > now ? stop - now : 0;
    return virtual_clock(p) || !left ? left : SLICE;
}

u64 pc_now(const struct pc *pc) { return host_now(pc->domain->host); }

void pc_timer_set(struct pc *pc, struct timer *t, u64 when)
{
    if (timer_set(pc->domain->host, t, pc->domain->vcpu[0]->unit.pcpu, when))
        domain_crash(pc->domain, "no memory for a device's timer");
}

/* ---- interrupts -------------------------------------------------------------------------------------------------- */

static bool interrupt_pending(const struct pc_cpu *p)
{
    u8 vector;
    return apic_pending(p, &vector) || (read_once(p->pc->intr) && apic_passes_extint(p));
}

void pc_update(struct pc_cpu *p)
{
    p->cpu.slow = (p->cpu.slow & ~X86_SLOW_INTERRUPT) | (interrupt_pending(p) ? X86_SLOW_INTERRUPT : 0);
}

static void enter_device(struct pc_cpu *p)
{
    charge(p);
    vcpu_leave_guest(p->vcpu);
}

/* x86_run ends in time for what may have been set meanwhile. */
static void limit_run(struct pc_cpu *p)
{
    struct x86_cpu *c = &p->cpu;
    if (virtual_clock(p)) {
        u64 left = budget(p);
        c->limit = left < NEVER - c->retired ? c->retired + left : NEVER;
    }
}

static void leave_device(struct pc_cpu *p)
{
    vcpu_enter_guest(p->vcpu);
    pc_update(p);
    limit_run(p);
}

static void spend(struct pc_cpu *p, u64 cost)
{
    charge(p);
    clock_advance(&p->vcpu->host->clock, cost);
    limit_run(p);
}

/* The APIC's before the PIC's; if the PIC's went away meanwhile, its spurious vector. */
static void interrupt(struct x86_cpu *c)
{
    struct pc_cpu *p = pc_cpu_of(c);
    u8 vector;
    enter_device(p);
    if (apic_pending(p, &vector)) {
        apic_accept(p, vector);
    } else {
        spin_lock(&p->pc->lock);
        vector = pic_acknowledge(p->pc);
        spin_unlock(&p->pc->lock);
    }
    leave_device(p);
    spend(p, COST_TRAP);
    stat_inc(p->vcpu, upcalls);
    vcpu_trace(p->vcpu, UPCALL, vector, 0);
    x86_interrupt_idt(c, vector);
}

static void cr8_written(struct x86_cpu *c)
{
    struct pc_cpu *p = pc_cpu_of(c);
    p->apic.tpr = (u8)(c->cr8 << 4);
    pc_update(p);
}

/* ---- devices ----------------------------------------------------------------------------------------------------- */

/* What a port access asked for that cannot be done under the lock. */
static void follow_up(struct pc *pc)
{
    if (pc->exits)
        domain_shutdown(pc->domain, SHUTDOWN_poweroff);
    else if (pc->reset)
        domain_shutdown(pc->domain, SHUTDOWN_reboot);
}

static u32 in(struct x86_cpu *c, u16 port, unsigned size)
{
    struct pc_cpu *p = pc_cpu_of(c);
    enter_device(p);
    spin_lock(&p->pc->lock);
    u32 value = pc_port_read(p->pc, port, size);
    spin_unlock(&p->pc->lock);
    leave_device(p);
    spend(p, COST_DEVICE);
    return size == 4 ? value : value & ((1u << 8 * size) - 1);
}

static void out(struct x86_cpu *c, u16 port, unsigned size, u32 value)
{
    struct pc_cpu *p = pc_cpu_of(c);
    enter_device(p);
    spin_lock(&p->pc->lock);
    pc_port_write(p->pc, port, size, value);
    spin_unlock(&p->pc->lock);
    if (unlikely(p->pc->exits || p->pc->reset))
        follow_up(p->pc);
    leave_device(p);
    spend(p, COST_DEVICE);
}

/* Registers of the APIC are 4 bytes, at multiples of 16 (10.4.1.2); other accesses are undefined, and here read parts and write nothing.
 * Elsewhere there is nothing: ones, and writes are lost. */
static u64 mmio(struct x86_cpu *c, u64 pa, unsigned size, bool write, u64 value)
{
    struct pc_cpu *p = pc_cpu_of(c);
    u64 result = ~0ul;
    unsigned offset = pa % PAGE_SIZE;
    spend(p, COST_DEVICE);
    if (!(c->apic_base & PC_APIC_ENABLE) || pa >> PAGE_SHIFT != c->apic_base >> PAGE_SHIFT)
        return result;
    enter_device(p);
    if (!write)
        result = offset % 16 < 4 ? apic_read(p, offset) >> offset % 4 * 8 : 0;
    else if (size >= 4 && offset % 16 == 0)
        apic_write(p, offset, (u32)value);
    leave_device(p);
    return result;
}

/* ---- identification, MSRs, time ---------------------------------------------------------------------------------- */

enum { CPUID_APIC = 1 << 9, MSR_APIC_BASE = 0x1b };

static void cpuid(struct x86_cpu *c, u32 leaf, u32 subleaf, u32 out[4])
{
    const struct pc_cpu *p = pc_cpu_of(c);
    x86_cpuid_native(c, leaf, subleaf, out);
    if (leaf == 1) {
        out[1] = (out[1] & 0xff00ffff) | (u32)p->apic.id << 24 | 1 << 16;
        out[3] |= c->apic_base & PC_APIC_ENABLE ? CPUID_APIC : 0;
    }
}

static u64 tsc(struct x86_cpu *c)
{
    struct pc_cpu *p = pc_cpu_of(c);
    charge(p);
    return host_now(p->vcpu->host);     /* 1 GHz, the same for all (hv/time.c) */
}

static void wrmsr(struct x86_cpu *c, u32 msr, u64 value)
{
    struct pc_cpu *p = pc_cpu_of(c);
    if (msr != MSR_APIC_BASE) {
        x86_wrmsr_native(c, msr, value);
        return;
    }
    u64 old = c->apic_base;
    x86_wrmsr_native(c, msr, value);    /* the checks */
    value = c->apic_base;
    c->apic_base = old;
    enter_device(p);
    apic_set_base(p, value);
    leave_device(p);
}

static void exception(struct x86_cpu *c, const struct x86_exception *e)
{
    stat_inc(pc_cpu_of(c)->vcpu, traps);
    spend(pc_cpu_of(c), COST_TRAP);
    x86_deliver_idt(c, e);
}

const struct x86_ops pc_ops = {
    .name = "pc", .page = pc_page, .mmio = mmio, .exception = exception, .interrupt = interrupt, .soft_int = x86_soft_int_idt,
    .syscall = x86_syscall_native, .sysenter = x86_sysenter_native, .descriptor = x86_descriptor_native, .cpuid = cpuid, .tsc = tsc,
    .rdmsr = x86_rdmsr_native, .wrmsr = wrmsr, .in = in, .out = out, .debug = debug_check, .watch = debug_watch, .cr8_written = cr8_written,
    .phys = pc_phys,
};

/* ---- the loop ---------------------------------------------------------------------------------------------------- */

/* hlt: rests until an interrupt that it would take, INIT or a kick. First the flag, then the look: whoever posts does it the other way. */
static void halt(struct pc_cpu *p)
{
    struct vcpu *v = p->vcpu;
    atomic_or(&v->pause_flags, VPF_blocked);
    if (load_acquire(p->start) || (p->cpu.rflags & X86_IF && interrupt_pending(p)))
        atomic_and(&v->pause_flags, ~(u32)VPF_blocked);
    else
        atomic_or(&v->exit_work, WORK_park);
}

static enum x86_exit execute(struct pc_cpu *p, u64 n)
{
    return x86_run(&p->cpu, n);         /* the only place where guest code runs */
}

static void pc_run(struct vcpu *v, const u64 *stop_at)
{
    struct x86_cpu *c = v->cpu;
    struct pc_cpu *p = pc_cpu_of(c);

    p->stop_at = stop_at;
    for (u64 n; !must_park(v) && (n = budget(p)); charge(p)) {
        if (read_once(v->exit_work) & (WORK_flush | WORK_upcall))       /* entering guest mode is what flushes */
            atomic_and(&v->exit_work, ~(u32)(WORK_flush | WORK_upcall));
        if (unlikely(load_acquire(p->start)) && !pc_take_start(p))
            return;
        vcpu_enter_guest(v);
        pc_update(p);
        enum x86_exit exit = must_park(v) ? X86_STOPPED : execute(p, n);
        vcpu_leave_guest(v);
        if (unlikely(exit == X86_DEBUGGER || v->debug.watch_hit))
            debug_stopped(v);
        if (exit == X86_HALTED)
            halt(p);
        if (exit == X86_SHUTDOWN) {
            charge(p);
            domain_crash(v->domain, "vCPU %u: triple fault at %#x:%#lx, CPL %u, cr0 %#lx, cr2 %#lx, cr3 %#lx", v->id, c->seg[X86_CS].sel,
                         c->r[X86_RIP], c->cpl, c->cr0, c->cr2, c->cr3);
            return;
        }
    }
}

/* ---- life -------------------------------------------------------------------------------------------------------- */

static int machine_create(struct domain *d)
{
    struct pc *pc = arena_alloc(&d->host->arena, sizeof *pc);
    if (!pc)
        return -XEN_ENOMEM;
    pc->domain = d;
    memset(pc->nowhere, 0xff, sizeof pc->nowhere);
    pic_reset(pc);
    pit_create(pc);
    rtc_create(pc);
    uart_create(pc);
    d->pc = pc;
    return 0;
}

static int pc_create(struct vcpu *v)
{
    struct arena *arena = &v->host->arena;
    struct domain *d = v->domain;
    int rc = d->nr_vcpus > PC_MAX_VCPUS ? -XEN_EINVAL : d->pc ? 0 : machine_create(d);
    if (rc)
        return rc;
    struct pc_cpu *p = arena_alloc(arena, sizeof *p);
    if (!p)
        return -XEN_ENOMEM;
    p->vcpu = v;
    p->pc = d->pc;
    v->cpu = &p->cpu;
    p->cpu.tlb = v->tlb;
    p->cpu.ops = &pc_ops;
    p->cpu.owner = v;
    p->cpu.attention = &v->exit_work;
    p->cpu.features = x86_features_supported();
    p->cpu.bus_lock = &d->bus_lock;
    (void)x86_icache_size_hint(&p->icache_bytes);
    p->cpu.icache = arena_alloc(arena, p->icache_bytes);
    if (!p->cpu.icache)
        return -XEN_ENOMEM;
    x86_reset(&p->cpu);
    if (!pc_bsp(p)) {
        p->cpu.apic_base &= ~(u64)PC_APIC_BSP;
        p->start = PC_WAIT_SIPI;
    }
    apic_create(p);
    return 0;
}

static void pc_stop(struct vcpu *v)
{
    struct domain *d = v->domain;
    if (v->cpu)
        timer_kill(v->host, &pc_cpu_of(v->cpu)->apic.timer);
    if (v->id || !d->pc)
        return;
    timer_kill(v->host, &d->pc->pit.timer);
    timer_kill(v->host, &d->pc->rtc.timer);
    pc_release(d->pc);
}

static void pc_destroy(struct vcpu *v)
{
    struct arena *arena = &v->host->arena;
    struct domain *d = v->domain;
    if (v->cpu) {
        struct pc_cpu *p = pc_cpu_of(v->cpu);
        v->cpu = NULL;
        arena_free(arena, p->cpu.icache, p->icache_bytes);
        arena_free(arena, p, sizeof *p);
    }
    if (v->id == 0) {                   /* the others are at rest for good, and do not look */
        arena_free(arena, d->pc, sizeof *d->pc);
        d->pc = NULL;
    }
}

const struct vcpu_backend pc_backend = {
    .name = "pc", .create = pc_create, .destroy = pc_destroy, .stop = pc_stop, .run = pc_run, .translate = pc_translate,
};
