/* The scheduler core: run states, blocking and waking, the pCPU's choice of what to run.
 *
 * Owns: struct sched_unit, run queues, struct pcpu. Policy stands behind struct sched_ops (one file a policy in hv/sched/).
 * Called by: pCPU loop, events (wake), sched_op, vcpu_op, domain life cycle.
 * Lock: one lock a run queue (sched_unit.queue says which); order: runqueue -> timer heap. The orderings that replace locks
 * stand at the top of hv/sched/core.c.
 *
 * pCPUs and threads. With the real clock pCPU 0 is the *lane*: it has no thread of its own, the Python lane calls
 * pcpu_run() on it, and only Python vCPUs run there; pCPUs 1..n are host threads that never enter Python and run the rest.
 * With the virtual clock there is one pCPU, 0, which runs everything, in the caller's thread.
 */
#ifndef XL_HV_SCHED_H
#define XL_HV_SCHED_H

#include "hv/timer.h"

struct domain;
struct host;
struct vcpu;
struct vcpu_runstate_info;
struct vcpu_time_info;
struct pcpu;
struct runqueue;

enum { SCHED_DEFAULT_WEIGHT = 256 };

struct sched_link { struct sched_link *next, *prev; };      /* of a ring with a head */

struct sched_unit {             /* the scheduler's view of a vCPU. All [runqueue lock] unless marked */
    struct vcpu *vcpu;
    struct runqueue *queue;     /* where it runs: the lane's or the threads' (fixed by its backend) */
    struct sched_link queued_at, all_at;        /* places in runqueue.queued (while queued) and runqueue.all */
    bool queued;
    bool running;               /* some pCPU (or Python on the lane's behalf) has it: never queued, never picked */
    bool yielded;               /* gave way: the others first. [self while running] */
    u16 pcpu;                   /* where it runs or last ran; its timers are set there */
    u16 weight;                 /* of its domain; default 256 */
    s64 credit;                 /* credit2: ns that the heaviest unit could run for it */
    u64 start;                  /* when it was last put on a pCPU */
    u64 charged;                /* running: up to when it has been charged */
    u64 run_total;              /* ns run since creation */
};

struct sched_ops {              /* all called with the run queue's lock held */
    const char *name;
    int id;                     /* Xen's scheduler id: credit2 6 */
    void (*insert)(struct host *h, struct sched_unit *u);       /* vCPU created */
    void (*remove)(struct host *h, struct sched_unit *u);       /* vCPU destroyed; not queued any more */
    /* Makes u wait its turn / stop waiting. The core keeps u->queued and nr_queued. */
    void (*enqueue)(struct host *h, struct sched_unit *u, u64 now, bool woken);
    void (*dequeue)(struct host *h, struct sched_unit *u);
    /* Picks what pCPU p runs next and for how long (ns) at most; NULL: idle. Removes it from the queue. */
    struct sched_unit *(*pick)(struct host *h, struct pcpu *p, u64 now, u64 *slice);
    void (*charge)(struct host *h, struct sched_unit *u, u64 now);      /* it ran from u->charged until now */
    /* `waiting` was queued: system time at which `cur`, which runs, should give way to it. <= now: at once. */
    u64 (*preempt_at)(struct host *h, const struct sched_unit *waiting, const struct sched_unit *cur, u64 now);
};

extern const struct sched_ops sched_credit2;

struct runqueue {
    spinlock_t lock;
    u32 nr_queued;
    struct sched_link queued;   /* ring of units that wait, the policy keeps the order */
    struct sched_link all;      /* ring of every unit that belongs here */
    u64 idle_mask;              /* bit n: pCPU n sleeps, or is about to, and was not kicked yet */
    u32 max_weight;             /* heaviest of `all` */
    u16 first_pcpu, nr_pcpus;
};

enum { MAX_PCPUS = 64 };

struct pcpu {
    u16 id;
    bool threaded;              /* has a host thread; the lane's pCPU has not */
    struct runqueue *queue;
    struct sched_unit *current; /* NULL: idle. [runqueue lock] */
    struct sched_unit *held;    /* = current, when pcpu_run came back without resting it. [self] */
    u64 slice_end;              /* system time at which current must give way. Atomic: others only lower it */
    u64 stop_at;                /* when the backend must come back: slice_end, or a timer before that. Likewise */
    u64 burning_since;          /* held is a Python vCPU that burns its compute time: since when. [self] */
    u64 last_rest;              /* when a unit last came to rest here. [runqueue lock] */
    u32 idle;                   /* atomic: sleeping or about to; who has news for this pCPU must kick it */
    u32 kick;                   /* atomic, futex word: counts kicks */
    u32 kick_seen;              /* kick, when pcpu_run last looked round. [self] */
    struct trace_ring *trace;   /* of what its vCPU does itself, written by its thread alone; NULL: it has no thread */
    u64 mark;                   /* script MARK's time stamp; pCPU 0's is the host's. atomic */
    struct timer_heap timers;
};

/* Lays out pCPUs and run queues: with the virtual clock one pCPU; with the real one the lane's and nr_threads more. Sets
 * h->nr_pcpus (the lane's included) and h->sched. -EINVAL: not 1..63 threads; -ENOMEM. */
int sched_init(struct host *h, u32 nr_threads);
int sched_start(struct host *h);                /* real clock: starts the pCPU threads. -EAGAIN: the system has none left */
void sched_stop(struct host *h);                /* stops and joins them; may be started again */

/* Enters v, whose id, domain, backend and pause_flags (not 0) are set. Always 0. */
int  sched_vcpu_init(struct vcpu *v);
/* Takes v out for good: waits until it is off every pCPU, kills its timers. pause_flags hold a flag that is never cleared
 * any more. On the lane (so a vCPU of the lane's own pCPU cannot be in the middle of anything). Harmless before init. */
void sched_vcpu_destroy(struct vcpu *v);

/* Clears `flags` from pause_flags; when that makes it runnable, queues it and kicks a pCPU. Any thread. */
void vcpu_unpause(struct vcpu *v, u32 flags);
/* Sets `flags`; a running vCPU is told to park (asynchronously), a queued one is dequeued. Any thread, oneself too. */
void vcpu_pause(struct vcpu *v, u32 flags);
/* Waits until v, which was paused or is about to park, is off its pCPU: from then on the caller may act for it (cold hypercalls use
 * its TLB). Not for oneself. A Python vCPU in the middle of its turn is not waited for: it is the caller's own thread, the lane, that
 * would have to bring it to rest. */
void vcpu_wait_rest(struct vcpu *v);
/* An event came (the caller has set evtchn_upcall_pending with a full barrier): wakes a blocked vCPU, makes a running one
 * look at its events. */
void vcpu_kick(struct vcpu *v);
void vcpu_block(struct vcpu *v);                /* SCHEDOP_block: unmask, block unless an event is deliverable. [self] */
void vcpu_yield(struct vcpu *v);                /* [self] */
/* Sets WORK_park if v's slice is over or a timer of its pCPU is due: for backends that do not watch the clock. [self] */
void vcpu_check_slice(struct vcpu *v);
/* Ends SCHEDOP_poll's book-keeping of v, and its timer (hv/sched_op.c). [self] */
void vcpu_poll_end(struct vcpu *v);

/* ns that v has run since its creation, the run under way included. Any thread. */
u64  vcpu_run_time(struct vcpu *v);

/* The Python vCPU that runs has come to rest: charges it, and queues it again if it is runnable. */
void sched_put_back(struct vcpu *v);

/* One scheduling decision and run on pCPU p: runs due timers, rests what ran before, picks, runs the backend. Returns what
 * happened. Only by the pCPU's own thread. */
enum pcpu_result {
    PCPU_RAN,                   /* a vCPU ran in C and came back */
    PCPU_PYTHON,                /* *out is a Python vCPU that now runs: hand it to its coroutine, then sched_put_back */
    PCPU_IDLE,                  /* nothing to do before *deadline (NEVER: no timer is set) */
};
enum pcpu_result pcpu_run(struct host *h, struct pcpu *p, struct vcpu **out, u64 *deadline);
/* Makes a sleeping pCPU look at its queue and timers again. Any thread. */
void pcpu_kick(struct host *h, struct pcpu *p);
/* There was news since pcpu_run last looked: the lane asks after it has announced that it sleeps, and then does not sleep. */
static inline bool pcpu_kicked(const struct pcpu *p) { return load_acquire(p->kick) != p->kick_seen; }
/* timer.c: p's earliest timer is now due at `when`. */
void pcpu_timer_changed(struct host *h, struct pcpu *p, u64 when);

void domain_watchdogs_init(struct domain *d);   /* hv/sched_op.c */
s64 do_sched_op(struct vcpu *v, u64 cmd, u64 arg);
s64 do_sched_op_compat(struct vcpu *v, u64 cmd, u64 arg);
s64 do_vcpu_op(struct vcpu *v, u64 cmd, u64 vcpuid, u64 arg);
s64 do_set_timer_op(struct vcpu *v, u64 timeout);

/* Time as guests see it (hv/time.c). */
void vcpu_time_init(struct vcpu *v);            /* the time record in v->info, once that is set; the timers */
void vcpu_time_destroy(struct vcpu *v);         /* kills the timers */
void vcpu_periodic_resume(struct vcpu *v);      /* no longer paused or down: a periodic timer that rested goes on */
int  vcpu_singleshot_set(struct vcpu *v, u64 when);     /* VIRQ_TIMER at system time `when`, at once if past. -ENOMEM */
int  vcpu_periodic_set(struct vcpu *v, u64 period);     /* VIRQ_TIMER every `period` ns, 0: no more. -ENOMEM */
void vcpu_time_record(struct vcpu_time_info *out);      /* what stands in every vCPU's time record */
void vcpu_poll_expired(struct vcpu *v);                 /* SCHEDOP_poll's timer (hv/sched_op.c) */

/* Runstate (hv/runstate.c). */
void vcpu_runstate_init(struct vcpu *v);
int  vcpu_rest_state(u32 pause_flags);          /* RUNSTATE_* of a vCPU that does not run */
void vcpu_runstate_change(struct vcpu *v, int state, u64 now);         /* [runqueue lock] */
void vcpu_runstate_get(struct vcpu *v, struct vcpu_runstate_info *out); /* with the current state's time up to now. Any thread */
void vcpu_runstate_publish(struct vcpu *v);     /* writes the registered area, if any; by self, before entering the guest */
void vcpu_runstate_publish_rest(struct vcpu *v);        /* likewise, foretelling the state that it will rest in */

#endif
