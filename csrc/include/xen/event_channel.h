/*
 * Event channels: ports, the commands of event_channel_op, the FIFO layout.
 *
 * Fields marked "out" are written back to the guest; all others are read once.
 */
#ifndef __XEN_PUBLIC_EVENT_CHANNEL_H__
#define __XEN_PUBLIC_EVENT_CHANNEL_H__

#include "xen.h"

#define EVTCHNOP(number, name, arg) XEN_CONST(EVTCHNOP_##name, number)
XEN_TABLE_BEGIN
#include "evtchnop.def"
XEN_TABLE_END
#undef EVTCHNOP

typedef uint32_t evtchn_port_t;
DEFINE_XEN_GUEST_HANDLE(evtchn_port_t);

/* A new port in `dom` that `remote_dom` may bind. A foreign `dom` needs privilege. */
struct evtchn_alloc_unbound {
    domid_t dom;
    domid_t remote_dom;
    evtchn_port_t port; /* out */
};
typedef struct evtchn_alloc_unbound evtchn_alloc_unbound_t;

/* Connects a new local port with an unbound one of `remote_dom`; the local port is pending at once. */
struct evtchn_bind_interdomain {
    domid_t remote_dom;
    evtchn_port_t remote_port;
    evtchn_port_t local_port; /* out */
};
typedef struct evtchn_bind_interdomain evtchn_bind_interdomain_t;

struct evtchn_bind_virq {
    uint32_t virq; /* VIRQ_* */
    uint32_t vcpu; /* 0 unless the VIRQ is per vCPU */
    evtchn_port_t port; /* out */
};
typedef struct evtchn_bind_virq evtchn_bind_virq_t;

struct evtchn_bind_pirq {
    uint32_t pirq;
    uint32_t flags; /* BIND_PIRQ__* */
    evtchn_port_t port; /* out */
};
typedef struct evtchn_bind_pirq evtchn_bind_pirq_t;

enum {
    BIND_PIRQ__WILL_SHARE = 1,
};

struct evtchn_bind_ipi {
    uint32_t vcpu;
    evtchn_port_t port; /* out */
};
typedef struct evtchn_bind_ipi evtchn_bind_ipi_t;

/* The peer of an interdomain port becomes unbound, with the closer as its remote domain. */
struct evtchn_close {
    evtchn_port_t port;
};
typedef struct evtchn_close evtchn_close_t;

struct evtchn_send {
    evtchn_port_t port;
};
typedef struct evtchn_send evtchn_send_t;

enum {
    EVTCHNSTAT_closed = 0,
    EVTCHNSTAT_unbound = 1,
    EVTCHNSTAT_interdomain = 2,
    EVTCHNSTAT_pirq = 3,
    EVTCHNSTAT_virq = 4,
    EVTCHNSTAT_ipi = 5,
};

struct evtchn_status {
    domid_t dom;
    evtchn_port_t port;
    uint32_t status; /* out: EVTCHNSTAT_* */
    uint32_t vcpu;   /* out: the vCPU that is notified */
    union {          /* out, by status */
        struct {
            domid_t dom;
        } unbound;
        struct {
            domid_t dom;
            evtchn_port_t port;
        } interdomain;
        uint32_t pirq;
        uint32_t virq;
    } u;
};
typedef struct evtchn_status evtchn_status_t;
XEN_ABI_SIZE(struct evtchn_status, 24);

/* Moves notification to another vCPU; refused for IPIs and per-vCPU VIRQs. */
struct evtchn_bind_vcpu {
    evtchn_port_t port;
    uint32_t vcpu;
};
typedef struct evtchn_bind_vcpu evtchn_bind_vcpu_t;

/* Clears the mask bit; a pending port is raised again. */
struct evtchn_unmask {
    evtchn_port_t port;
};
typedef struct evtchn_unmask evtchn_unmask_t;

/* Closes every port of the domain and goes back to the 2-level layout. */
struct evtchn_reset {
    domid_t dom;
};
typedef struct evtchn_reset evtchn_reset_t;

/* FIFO: gives a vCPU its control block; the first one switches the domain over. */
struct evtchn_init_control {
    uint64_t control_gfn;
    uint32_t offset;
    uint32_t vcpu;
    uint8_t link_bits; /* out */
    uint8_t _pad[7];
};
typedef struct evtchn_init_control evtchn_init_control_t;
XEN_ABI_SIZE(struct evtchn_init_control, 24);

/* FIFO: adds a page of event words. */
struct evtchn_expand_array {
    uint64_t array_gfn;
};
typedef struct evtchn_expand_array evtchn_expand_array_t;

struct evtchn_set_priority {
    evtchn_port_t port;
    uint32_t priority;
};
typedef struct evtchn_set_priority evtchn_set_priority_t;

/* event_channel_op_compat: the command travels in the structure. */
struct evtchn_op {
    uint32_t cmd;
    union {
        evtchn_alloc_unbound_t alloc_unbound;
        evtchn_bind_interdomain_t bind_interdomain;
        evtchn_bind_virq_t bind_virq;
        evtchn_bind_pirq_t bind_pirq;
        evtchn_bind_ipi_t bind_ipi;
        evtchn_close_t close;
        evtchn_send_t send;
        evtchn_status_t status;
        evtchn_bind_vcpu_t bind_vcpu;
        evtchn_unmask_t unmask;
    } u;
};
typedef struct evtchn_op evtchn_op_t;

enum {
    EVTCHN_2L_NR_CHANNELS = 4096, /* 64 selector bits, 64 ports each */
};

/* FIFO event word: bit numbers, then the number of the next port in the queue. */
enum {
    EVTCHN_FIFO_PENDING = 31,
    EVTCHN_FIFO_MASKED = 30,
    EVTCHN_FIFO_LINKED = 29,
    EVTCHN_FIFO_BUSY = 28,
    EVTCHN_FIFO_LINK_BITS = 17,
    EVTCHN_FIFO_LINK_MASK = (1 << 17) - 1,
    EVTCHN_FIFO_NR_CHANNELS = 1 << 17,
    EVTCHN_FIFO_PRIORITY_MAX = 0, /* served first */
    EVTCHN_FIFO_PRIORITY_DEFAULT = 7,
    EVTCHN_FIFO_PRIORITY_MIN = 15,
    EVTCHN_FIFO_MAX_QUEUES = 16,
};

typedef uint32_t event_word_t;

struct evtchn_fifo_control_block {
    uint32_t ready; /* bit n: queue of priority n is not empty */
    uint32_t _rsvd;
    uint32_t head[EVTCHN_FIFO_MAX_QUEUES];
};
typedef struct evtchn_fifo_control_block evtchn_fifo_control_block_t;
XEN_ABI_SIZE(struct evtchn_fifo_control_block, 72);

#endif
