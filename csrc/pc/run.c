/* A PC's vCPU on its CPU: what happens between two runs of the engine, what the engine asks on the way, its beginning and end.
 *
 * Owns: the life of struct pc and struct pc_cpu, X86_SLOW_INTERRUPT. Called by: the pCPU loop through pc_backend, the engine
 * through pc_ops. Locks: pc.lock around devices.
 *
 * The engine runs in guest mode; devices are reached outside of it (enter_device, leave_device), after which it looks again at
 * interrupts and at how long it may run, because a device may have set an earlier timer. Time: hv/native.h.
 */
#include <string.h>

#include "pc/pc.h"

#include "xen/sched.h"

enum { COST_TRAP = 50, COST_DEVICE = 100 };
/* Instructions. What an exception and an access to a device cost: a guest that only faults, or copies from where no memory is, must not stop the
 * virtual clock. */

/* ---- time -------------------------------------------------------------------------------------------------------- */

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
    native_charge(pc_vcpu(p));
    vcpu_leave_guest(pc_vcpu(p));
}

static void leave_device(struct pc_cpu *p, u64 cost)
{
    vcpu_enter_guest(pc_vcpu(p));
    pc_update(p);
    native_spend(pc_vcpu(p), cost);
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
    leave_device(p, COST_TRAP);
    stat_inc(pc_vcpu(p), upcalls);
    vcpu_trace_self(pc_vcpu(p), UPCALL, vector, 0);
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
    leave_device(p, COST_DEVICE);
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
    leave_device(p, COST_DEVICE);
}

/* Registers of the APIC are 4 bytes, at multiples of 16 (10.4.1.2); other accesses are undefined, and here read parts and write nothing.
 * Elsewhere there is nothing: ones, and writes are lost. */
static u64 mmio(struct x86_cpu *c, u64 pa, unsigned size, bool write, u64 value)
{
    struct pc_cpu *p = pc_cpu_of(c);
    u64 result = ~0ul;
    unsigned offset = pa % PAGE_SIZE;
    native_spend(pc_vcpu(p), COST_DEVICE);
    if (!(c->apic_base & PC_APIC_ENABLE) || pa >> PAGE_SHIFT != c->apic_base >> PAGE_SHIFT)
        return result;
    enter_device(p);
    if (!write)
        result = offset % 16 < 4 ? apic_read(p, offset) >> offset % 4 * 8 : 0;
    else if (size >= 4 && offset % 16 == 0)
        apic_write(p, offset, (u32)value);
    leave_device(p, 0);
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
    native_charge(c->owner);
    return host_now(pc_vcpu(pc_cpu_of(c))->host);       /* 1 GHz, the same for all (hv/time.c) */
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
    leave_device(p, 0);
}

static void exception(struct x86_cpu *c, const struct x86_exception *e)
{
    struct vcpu *v = c->owner;
    stat_inc(v, traps);
    native_spend(v, COST_TRAP);
    x86_deliver_idt(c, e);
}

const struct x86_ops pc_ops = {
    .name = "pc", .page = pc_page, .mmio = mmio, .exception = exception, .interrupt = interrupt, .soft_int = x86_soft_int_idt,
    .syscall = x86_syscall_native, .sysenter = x86_sysenter_native, .descriptor = x86_descriptor_native, .cpuid = cpuid, .tsc = tsc,
    .rdmsr = x86_rdmsr_native, .wrmsr = wrmsr, .in = in, .out = out, .debug = debug_check, .watch = debug_watch, .cr8_written = cr8_written,
    .phys = pc_phys, .code_page = native_code_page, .code_changed = native_code_changed,
};

/* ---- the loop ---------------------------------------------------------------------------------------------------- */

/* hlt: rests until an interrupt that it would take, INIT or a kick. First the flag, then the look: whoever posts does it the other way. */
static void halt(struct pc_cpu *p)
{
    struct vcpu *v = pc_vcpu(p);
    atomic_or(&v->pause_flags, VPF_blocked);
    if (load_acquire(p->start) || (p->cpu.rflags & X86_IF && interrupt_pending(p)))
        atomic_and(&v->pause_flags, ~(u32)VPF_blocked);
    else
        atomic_or(&v->exit_work, WORK_park);
}

static void pc_run(struct vcpu *v, const u64 *stop_at)
{
    struct x86_cpu *c = v->cpu;
    struct pc_cpu *p = pc_cpu_of(c);

    native_begin(v, stop_at);
    for (u64 n; !vcpu_must_park(v) && (n = native_budget(v)); native_charge(v)) {
        if (unlikely(load_acquire(p->start)) && !pc_take_start(p))
            return;
        native_enter(v);
        pc_update(p);
        enum x86_exit exit = native_execute(v, n);
        if (exit == X86_HALTED)
            halt(p);
        if (exit == X86_SHUTDOWN) {
            native_charge(v);
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
    struct domain *d = v->domain;
    int rc = d->nr_vcpus > PC_MAX_VCPUS ? -XEN_EINVAL : d->pc ? 0 : machine_create(d);
    if (rc)
        return rc;
    struct pc_cpu *p = arena_alloc(&v->host->arena, sizeof *p);
    if (!p)
        return -XEN_ENOMEM;
    p->pc = d->pc;
    native_attach(v, &p->cpu, &pc_ops);
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
        native_detach(v);
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
