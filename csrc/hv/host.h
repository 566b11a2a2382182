/* A host: one modelled machine with its hypervisor, in one Linux process.
 *
 * Owns: struct host (the first object of its arena) and struct host_os (what belongs to the Linux process and is no part of
 * a snapshot). Created and destroyed through xenlike.h.
 */
#ifndef XL_HV_HOST_H
#define XL_HV_HOST_H

#include <pthread.h>

#include "base/arena.h"
#include "base/clock.h"
#include "base/rng.h"
#include "base/stats.h"
#include "base/trace.h"
#include "hv/backend.h"
#include "hv/domain.h"
#include "hv/lane.h"
#include "machine/frame.h"
#include "xen/errno.h"

enum { DOMID_LIMIT = 0x7ff0 };

struct io_state;
struct snapshot;

/* What belongs to the Linux process; calloc'd, no part of a snapshot. */
struct host_os {
    int eventfd;                        /* the lane sleeps on it */
    pthread_t thread[MAX_PCPUS];        /* pCPU threads [hv/sched/pcpu.c] */
    u32 nr_threads;                     /* running now */
    u32 stopping;                       /* atomic: pCPU threads must return */
    struct io_state *io;                /* the I/O worker and its devices [io/] */
    struct snapshot *snapshot;          /* snapshot.c */
};

struct host {
    struct arena arena;
    struct host_os *os;
    struct machine machine;
    struct clock clock;
    struct rng rng;
    struct trace trace;
    u64 stats[STAT_NR];                 /* of no vCPU in particular. atomic */
    u64 timer_seq;                      /* atomic */
    u64 tlb_clock;                      /* counts TLB flush epochs; atomic. See machine/mmu.h */

    spinlock_t domains_lock;
    struct domain *domains;             /* by domid, ascending. [domains_lock] */
    struct domain *domain_by_id[DOMID_LIMIT];
    u16 next_domid;

    u32 nr_pcpus;
    struct pcpu pcpu[MAX_PCPUS];
    struct runqueue queues[2];          /* [0] the lane's, [1] the threads'; virtual clock: [0] alone */
    const struct sched_ops *sched;
    const struct vcpu_backend *backend[NR_BACKENDS];
    bool translate;                     /* vCPUs that run machine code get the translator, */
    u32 bt_options;                     /* with these options (bt/bt.h) */
    struct lane lane;
    struct timer deadline;              /* Python's: xl_set_deadline */
    u64 tsc_epoch;                      /* host ticks at system time 0; trace records are stamped in ticks */
};

static inline struct io_state **host_io(struct host *h) { return &h->os->io; }
static inline const struct vcpu_backend *vcpu_backend(const struct vcpu *v) { return v->host->backend[v->backend]; }
static inline u64 host_now(const struct host *h) { return clock_now(&h->clock); }

/* Trace stamps: virtual time, or host ticks (a clock read costs 25 ns, ticks a third of it); xl_trace_read converts. */
static inline u64 trace_now(const struct host *h) { return h->clock.kind == CLOCK_VIRTUAL ? h->clock.now : clock_ticks(); }

/* The domain of that id, zombies included (what is left of them is what a leak check wants to see); NULL. For the lane. */
static inline struct domain *host_domain(struct host *h, u16 domid) { return domid < DOMID_LIMIT ? h->domain_by_id[domid] : NULL; }

/* A record to everybody's ring. The stamp costs as much as the rest of it: none is taken when nobody wants it. */
static inline void host_trace(struct host *h, enum trace_kind kind, unsigned domid, unsigned vcpu, u64 a, u64 b)
{
    if (likely(!h->trace.off))
        trace_add(&h->trace, trace_now(h), kind, domid, vcpu, a, b);
}
#define vcpu_trace(v, kind, a, b)       host_trace((v)->host, TRACE_##kind, (v)->domain->id, (v)->id, a, b)
/* The same of what v, which runs, does itself. */
#define vcpu_trace_self(v, kind, a, b)  trace_self(v, TRACE_##kind, a, b)
static inline void trace_self(struct vcpu *v, enum trace_kind kind, u64 a, u64 b)
{
    struct trace_ring *own = v->trace;
    if (unlikely(!own))
        host_trace(v->host, kind, v->domain->id, v->id, a, b);
    else if (likely(!v->host->trace.off))
        trace_add_own(own, clock_ticks(), kind, v->domain->id, v->id, a, b);
}

#define stat_inc(v, name)       ((v)->stats[STAT_##name]++)
#define stat_add(v, name, n)    ((v)->stats[STAT_##name] += (n))
#define host_stat_inc(h, name)  ((void)__atomic_fetch_add(&(h)->stats[STAT_##name], 1, __ATOMIC_RELAXED))

#endif
