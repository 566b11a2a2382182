/* Event channels (2-level ABI).
 *
 * Owns: struct evtchn, a domain's port space. Called by: hypercalls, VIRQ raisers (timers, toolstack), back ends.
 * Files: event/port.c states and transitions, event/deliver.c pending bits, upcalls, VIRQs, pollers, event/op.c the hypercall.
 *
 * Locks: ev.lock guards allocation and state changes of a domain's ports; evtchn.lock (one a port) is what a send takes,
 * alone. A state change holds ev.lock and the locks of both ends, so a sender that holds its own port's lock may use the
 * remote end without its lock (as Xen does). Two ev.locks, and two port locks, are taken by address. Memory is type-stable:
 * ports are never returned to the arena before the domain is.
 */
#ifndef XL_HV_EVENT_H
#define XL_HV_EVENT_H

#include "base/lock.h"
#include "xen/event_channel.h"

struct domain;
struct host;
struct vcpu;

enum {
    EVTCHNS_PER_BUCKET = 64,            /* as Xen: a guest sees where a bucket ends, port numbers beyond are -EINVAL */
    EVTCHN_BUCKETS = EVTCHN_2L_NR_CHANNELS / EVTCHNS_PER_BUCKET,
    EVTCHN_POLL_WORDS = 2,              /* 128 vCPUs */
};

enum evtchn_state { ECS_FREE, ECS_RESERVED, ECS_UNBOUND, ECS_INTERDOMAIN, ECS_PIRQ, ECS_VIRQ, ECS_IPI };

/* A port whose events go to the host's own code instead of a vCPU (Xen's "xen consumer"): an I/O worker of a split driver.
 * Called with no lock but the sender's port lock held; must only flag and wake. Guests cannot send, close, poll or rebind
 * such a port. */
typedef void evtchn_consumer_fn(struct host *h, void *data);

struct evtchn {
    spinlock_t lock;
    u8 state;                           /* enum evtchn_state. [ev.lock and lock] */
    u16 notify_vcpu;                    /* [ev.lock]; senders read it without */
    union {                             /* [as state] */
        u16 unbound_remote;             /* ECS_UNBOUND: who may bind */
        struct { struct domain *dom; u32 port; } remote;    /* ECS_INTERDOMAIN. Death closes ports first, so dom is there */
        u16 virq;
    } u;
    evtchn_consumer_fn *consumer;       /* [as state, and the peer's lock] */
    void *consumer_data;
};

struct evtchn_state_of_domain {
    spinlock_t lock;
    u32 max_port;                       /* highest port a guest may have (xl's max_event_channels, default 1023) */
    u32 nr_used;                        /* ports not FREE (RESERVED 0 counted) [lock] */
    u32 first_free;                     /* no port below is free [lock] */
    struct evtchn *bucket[EVTCHN_BUCKETS];      /* filled in order; set once, with release */
    u64 poll_vcpus[EVTCHN_POLL_WORDS];  /* bit n: vCPU n is in SCHEDOP_poll. atomic; only through the functions below */
};

int  evtchn_init(struct domain *d);             /* port 0 reserved; leaves max_port to the caller. -ENOMEM */
void evtchn_destroy(struct domain *d);          /* death (dying is set): closes every port; peers become UNBOUND */
void evtchn_free(struct domain *d);             /* with the domain struct: returns memory */

s64 do_event_channel_op(struct vcpu *v, u64 cmd, u64 arg);
s64 do_event_channel_op_compat(struct vcpu *v, u64 uop);

/* Toolstack and back ends (host code, not guests). Ports and 0, or -errno as the hypercalls of the same name:
 * -EINVAL (port, state, dying), -ENOSPC, -ENOMEM, -ESRCH. */
int  evtchn_alloc_unbound(struct domain *d, u16 remote_domid);
int  evtchn_bind_interdomain(struct domain *d, u16 remote_domid, u32 remote_port);
int  evtchn_close(struct domain *d, u32 port);          /* consumer ports too */
int  evtchn_send(struct domain *d, u32 port);           /* likewise */
/* Hands a port's events to `fn` (NULL: back to the vCPU). An event that is pending now goes to fn at once. After it returns
 * the former fn is not running and will not be called. -EINVAL: the port is not UNBOUND or INTERDOMAIN. */
int  evtchn_set_consumer(struct domain *d, u32 port, evtchn_consumer_fn *fn, void *data);

/* VIRQs. Per-vCPU ones go to v; others through vCPU 0's slot to the vCPU the port is bound to. Lost if nobody bound them.
 * Any thread; takes a port lock only. */
void send_guest_vcpu_virq(struct vcpu *v, u32 virq);
void send_global_virq(struct host *h, u32 virq);        /* to domain 0 */

/* SCHEDOP_poll. A poller's own steps, in this order, close the race with an event that comes meanwhile:
 *   1. set VPF_blocked in pause_flags;
 *   2. evtchn_poll_begin(v, nr, port): announces the wait behind a full barrier;
 *   3. look: vcpu_event_deliverable(v), evtchn_port_pending() for each port;
 *   4. something there, or an error: evtchn_poll_end(v), clear VPF_blocked, return; else rest.
 * A sender sets the pending bit first and looks for pollers after, so one of the two sees the other. It claims the poller by
 * clearing its bit and calls vcpu_unpause(v, VPF_blocked); who ends a poll otherwise (timeout, upcall) calls
 * evtchn_poll_end. A claim that comes late can wake v's next wait: spurious, and allowed.
 * nr = 1: only `port` wakes; else any port of the domain that becomes pending does. */
void evtchn_poll_begin(struct vcpu *v, u32 nr, u32 port);
void evtchn_poll_end(struct vcpu *v);                   /* by anyone, any number of times; before VPF_blocked goes */
void evtchn_wake_pollers(struct domain *d, u32 port);
/* SCHEDOP_poll's checks. Pending now (masked or not)? 1 / 0 / -EINVAL: not a guest's bound port. */
int  evtchn_port_pending(struct domain *d, u32 port);

/* After VCPUOP_register_vcpu_info moved v's vcpu_info: marks every word and the upcall pending, so that nothing that was
 * set in the old area is lost (section 5.5). */
void evtchn_vcpu_info_moved(struct vcpu *v);

static inline struct evtchn *evtchn_from_port(const struct evtchn_state_of_domain *ev, u32 port)
{
    if (port >= EVTCHN_2L_NR_CHANNELS)
        return NULL;
    struct evtchn *b = load_acquire(ev->bucket[port / EVTCHNS_PER_BUCKET]);
    return b ? &b[port % EVTCHNS_PER_BUCKET] : NULL;
}

#endif
