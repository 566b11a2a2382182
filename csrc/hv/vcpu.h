/* A virtual CPU: what the hypervisor keeps of it.
 *
 * Owns: struct vcpu. Created by hv/domain.c. Who may write what stands on the fields: "self" is the thread that runs the
 * vCPU just now, "sched" its run queue's lock, "atomic" anybody with atomic operations.
 */
#ifndef XL_HV_VCPU_H
#define XL_HV_VCPU_H

#include "base/stats.h"
#include "hv/sched.h"
#include "hv/states.h"
#include "hv/timer.h"
#include "machine/mmu.h"
#include "x86/cpu.h"
#include "xen/vcpu.h"
#include "xen/xen.h"

struct vcpu_arch {              /* PV state beyond memory and registers; used by pv/, kept and checked here. [self] */
    struct trap_info *traps;    /* 256 entries, by vector; NULL until set_trap_table or VCPUOP_initialise */
    u64 event_callback, failsafe_callback, syscall_callback, syscall32_callback, sysenter_callback, nmi_callback;
    u32 vgc_flags;              /* VGCF_* */
    bool sysenter_disables_events, syscall32_disables_events;
    u64 kernel_sp; u16 kernel_ss;
    u32 gdt_mfns[16]; u16 gdt_ents;     /* [mm.lock] */
    u64 ldt_base; u32 ldt_ents;
    u32 ldt_mfns[16];           /* pages of the LDT that were used, each a PGT_seg_desc_page; 0: not yet. [mm.lock] */
    u64 dr[8];                  /* of a vCPU without registers: see vcpu_dr() */
    u8 iopl; bool nmi_pending;
    u64 io_bitmap; u32 io_bitmap_ports;
};

struct vcpu {
    u32 exit_work;              /* WORK_*. atomic. First: Python reads it after every hypercall */
    u32 pause_flags;            /* VPF_*. atomic */
    struct host *host;
    struct domain *domain;
    u16 id;
    u8 backend;                 /* enum backend_kind; fixed at creation */
    bool initialised;           /* VCPUOP_initialise was done, or the builder did it */
    bool in_multicall;          /* [self] */
    bool iret_done;             /* the hypercall under way was, or ended in, an iret: rax is the frame's. [self] */
    struct x86_cpu *cpu;        /* registers; NULL unless it runs machine code. [self] */

    struct trace_ring *trace;   /* of the pCPU that it was last put on; NULL: everybody's. [self] */
    u32 in_guest;               /* nesting of vcpu_enter_guest. atomic; see machine/mmu.h */
    u32 guest_entries;          /* real clock: how often it has entered guest mode. atomic */
    u32 tlb_flush_wanted;       /* atomic */
    struct tlb *tlb;            /* [self]; flushed by others only through tlb_flush_wanted */
    u32 cr3_mfn, user_cr3_mfn;  /* kernel / user L4, each with a type reference; 0: none. [self, mm.lock] */
    bool kernel_mode;           /* [self]; Python and script guests always in kernel mode */

    struct vcpu_info *info;     /* host address of its vcpu_info: in shared_info, or registered; never NULL for id < 32,
                                 * a dummy for id >= 32 until registered */
    struct vcpu_info *dummy_info;       /* id >= 32: senders may still use it after another was registered; freed with the vCPU */
    u32 info_mfn;               /* registered frame (writable type reference held), 0: none */
    u64 runstate_va;            /* VCPUOP_register_runstate_memory_area, 0: none. [self] */
    u64 time_va;                /* VCPUOP_register_vcpu_time_memory_area, 0: none. [self] */

    struct sched_unit unit;     /* [sched] */
    struct vcpu_runstate_info runstate;     /* [sched] */
    struct timer singleshot;    /* VIRQ_TIMER; shared by set_timer_op and VCPUOP_*_singleshot_timer */
    struct timer periodic;      u64 periodic_period;
    struct timer poll_timer;

    u32 virq_port[NR_VIRQS];    /* port a VIRQ is bound to here, 0: none. [domain->ev.lock] */
    u32 poll_nr;                /* SCHEDOP_poll under way: number of ports, 0: not polling (1: poll_port alone wakes). atomic */
    u32 poll_port;

    struct vcpu_arch arch;
    u64 burn_ns;                /* BACKEND_PYTHON: compute time still to burn before the coroutine goes on. [self] */
    struct script *script;      /* BACKEND_SCRIPT */
    struct {                    /* hv/native.c. [self] */
        const u64 *stop_at;     /* until when it may run: of the backend's run() under way */
        u64 charged;            /* cpu->retired up to which the clock was advanced */
        bool untranslated;      /* no translator could be made for it: not tried again */
        bool changed_foreign;   /* with WORK_code: in a frame that other domains may map */
    } native;
    struct {                    /* hv/debug.c. [self; the lane while it rests] */
        bool step;              /* stop after this one instruction */
        bool resumed;           /* the instruction at resumed_at, where it was let go, is not to stop it again */
        u64 resumed_at;
        bool watch_hit;         /* the instruction under way touched watched memory ... */
        u64 watch_va;           /* ... here */
    } debug;
    u64 stats[STAT_NR];         /* [self]; readers tolerate tearing */
    u64 work;                   /* what the hypercall under way has cost so far: hypercall_charge(). [self] */
    u64 hypercall_count[64];    /* by number; numbers >= 64 are -ENOSYS and not counted. [self] */

    struct {                    /* a hypercall that C does not do: Python finishes it (hv/lane.h). [self] */
        u64 nr, args[5];
        s64 result;             /* of the whole hypercall, once it is complete */
    } cold;
    struct {                    /* a multicall under way, so that a cold entry can be finished later. [self] */
        u64 list, next, count;  /* next: entry whose result is outstanding */
    } multicall;
};

/* Its debug registers, by number: a machine-code vCPU's are in the CPU, which acts on them. */
static inline u64 *vcpu_dr(struct vcpu *v) { return v->cpu ? v->cpu->dr : v->arch.dr; }

/* Whoever runs v gives the pCPU back before the next instruction or step. */
static inline bool vcpu_must_park(const struct vcpu *v) { return load_acquire(v->exit_work) & WORK_park; }
static inline bool vcpu_runnable(const struct vcpu *v) { return read_once(v->pause_flags) == 0; }

/* An unmasked event is waiting (section 3.4: pending != 0 && mask == 0). */
static inline bool vcpu_event_deliverable(const struct vcpu *v)
{
    return read_once(v->info->evtchn_upcall_pending) && !read_once(v->info->evtchn_upcall_mask);
}

/* Makes v look at its exit_work at once where it would otherwise finish its slice of translated code. May be lost: who waits repeats it. Any
 * thread; real clock. hv/native.c */
void vcpu_nudge(struct vcpu *v);

/* Sets evtchn_upcall_pending and, if it was clear, kicks the vCPU. (5.3 "mark upcall") */
void vcpu_mark_events_pending(struct vcpu *v);

#endif
