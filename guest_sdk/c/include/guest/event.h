/*
 * Event channels, two-level layout. A port has a handler, called from the upcall with events masked, or is waited for with
 * event_wait; both may be used in turn. Every port starts masked.
 */
#ifndef GUEST_EVENT_H
#define GUEST_EVENT_H

#include <guest/cpu.h>

#define EVENT_PORTS 1024 /* ports that can have a handler; xl gives a domain 1023 by default */

typedef void event_handler_t(u32 port, void *data);

/* New ports. Results: the port, or -XEN_E<error>. */
s64 event_alloc_unbound(domid_t remote);
s64 event_bind_interdomain(domid_t remote, u32 remote_port);
s64 event_bind_virq(u32 virq, u32 vcpu);
s64 event_bind_ipi(u32 vcpu);
s64 event_close(u32 port);

/* Calls handler(port, data) for each event from now on; NULL masks the port. -XEN_EINVAL for a port out of range. */
s64 event_handle(u32 port, event_handler_t *handler, void *data);

/* Sends an event to the other end. */
static inline s64 event_send(u32 port)
{
    struct evtchn_send send = {.port = port};

    return HYPERVISOR_event_channel_op(EVTCHNOP_send, &send);
}

/* Moves notification to another vCPU (not of IPIs and per-vCPU VIRQs). */
s64 event_bind_vcpu(u32 port, u32 vcpu);

void event_mask(u32 port);
s64 event_unmask(u32 port); /* a pending event is delivered */

/* Takes a pending event: was there one? */
bool event_take(u32 port);

/* Waits for an event on a masked port and takes it. deadline: system time in ns, 0 for none. Returns 0 or -XEN_ETIME. */
s64 event_wait(u32 port, u64 deadline);

/* Blocks this vCPU until cond holds. cond is changed by event handlers; it is tested with events masked, so no wake-up is lost. */
#define wait_until(cond)                                                                                                           \
    do {                                                                                                                           \
        events_disable();                                                                                                          \
        while (!(cond)) {                                                                                                          \
            HYPERVISOR_sched_op(SCHEDOP_block, NULL);                                                                              \
            events_disable();                                                                                                      \
        }                                                                                                                          \
        events_enable();                                                                                                           \
    } while (0)

void event_init(void);

#endif
