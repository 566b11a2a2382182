/*
 * The virtual CPU: per-vCPU data behind GS, the upcall mask (this CPU's "interrupt flag"), spinlocks, special instructions.
 *
 * Guest kernels run at CPL 3: cli and sti do not mask events; vcpu_info.evtchn_upcall_mask does. Locks that event handlers take too
 * must be taken with events masked (spin_lock_events); then the order is: a handler never waits for what it interrupted.
 */
#ifndef GUEST_CPU_H
#define GUEST_CPU_H

#include <guest/hypercall.h>

#define MAX_VCPUS XEN_LEGACY_MAX_VCPUS

struct trap_probe;
struct trap_regs;

/* One vCPU. GS base points at its own; `self` must come first, user_sp second (trap_entry.S). */
struct cpu {
    struct cpu *self;
    u64 user_sp;                  /* kernel stack pointer that user_exit goes back to; 0: not in user_call */
    u32 id;
    struct vcpu_info *vcpu_info;
    struct trap_probe *probe;     /* innermost trap_try */
    u64 (*syscall)(struct trap_regs *regs); /* what user_call was given */
    u32 timer_port;               /* 0: not bound yet */
    void (*timer_handler)(void);
    void (*entry)(void *arg);     /* of an application processor */
    void *arg;
    void *stack;
};

extern struct cpu cpus[MAX_VCPUS];

static inline struct cpu *this_cpu(void)
{
    struct cpu *cpu;
    asm("mov %%gs:0, %0" : "=r"(cpu));
    return cpu;
}

static inline void cpu_relax(void)
{
    asm volatile("pause" ::: "memory");
}

/* ---- Masking upcalls --------------------------------------------------------------------------------------------- */

static inline bool events_masked(void)
{
    return READ_ONCE(this_cpu()->vcpu_info->evtchn_upcall_mask);
}

static inline void events_disable(void)
{
    WRITE_ONCE(this_cpu()->vcpu_info->evtchn_upcall_mask, 1);
    barrier();
}

/* Clearing the byte delivers nothing by itself; if an event came while it was set, any hypercall gives Xen the occasion. */
static inline void events_enable(void)
{
    struct vcpu_info *info = this_cpu()->vcpu_info;

    barrier();
    WRITE_ONCE(info->evtchn_upcall_mask, 0);
    barrier();
    if (READ_ONCE(info->evtchn_upcall_pending))
        hypercall_xen_version(XENVER_version, 0);
}

/* Masks upcalls and says what to give events_restore. */
static inline bool events_save(void)
{
    bool masked = events_masked();

    events_disable();
    return masked;
}

static inline void events_restore(bool masked)
{
    if (!masked)
        events_enable();
}

/* ---- Spinlocks --------------------------------------------------------------------------------------------------- */

typedef struct {
    u32 held;
} spinlock_t;

/* The holder may be a vCPU that is not running: after a while, give the CPU up instead of burning it. */
static inline void spin_lock(spinlock_t *lock)
{
    for (u32 tries = 1; __atomic_exchange_n(&lock->held, 1, __ATOMIC_ACQUIRE); tries++)
        if (tries % 128)
            cpu_relax();
        else
            HYPERVISOR_sched_op(SCHEDOP_yield, NULL);
}

static inline void spin_unlock(spinlock_t *lock)
{
    __atomic_store_n(&lock->held, 0, __ATOMIC_RELEASE);
}

static inline bool spin_lock_events(spinlock_t *lock)
{
    bool masked = events_save();

    spin_lock(lock);
    return masked;
}

static inline void spin_unlock_events(spinlock_t *lock, bool masked)
{
    spin_unlock(lock);
    events_restore(masked);
}

/* ---- Instructions; those that are privileged Xen emulates, or answers with #GP ----------------------------------- */

static inline u64 rdtsc(void)
{
    u32 low, high;

    asm volatile("rdtsc" : "=a"(low), "=d"(high));
    return (u64)high << 32 | low;
}

static inline u64 rdmsr(u32 msr)
{
    u32 low, high;

    asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr) : "memory");
    return (u64)high << 32 | low;
}

static inline void wrmsr(u32 msr, u64 value)
{
    asm volatile("wrmsr" : : "c"(msr), "a"((u32)value), "d"((u32)(value >> 32)) : "memory");
}

struct cpuid {
    u32 eax, ebx, ecx, edx;
};

/* What the CPU itself says, which a PV guest may or may not see as Xen's policy has it. */
static inline struct cpuid cpuid(u32 leaf, u32 subleaf)
{
    struct cpuid r;

    asm volatile("cpuid" : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx) : "a"(leaf), "c"(subleaf));
    return r;
}

/* The policy of this domain, whatever the hardware does: Xen's forced-emulation prefix. */
static inline struct cpuid cpuid_xen(u32 leaf, u32 subleaf)
{
    struct cpuid r;

    asm volatile(XEN_CPUID : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx) : "a"(leaf), "c"(subleaf));
    return r;
}

#endif
