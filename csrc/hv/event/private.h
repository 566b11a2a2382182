/* What the files of event/ share. Nobody else includes it. Locks: see hv/event.h. */
#ifndef XL_HV_EVENT_PRIVATE_H
#define XL_HV_EVENT_PRIVATE_H

#include "hv/host.h"

/* deliver.c: the guest-visible bits. The caller keeps the port from changing state (its lock, its peer's, or ev.lock). */
void port_set_pending(struct domain *d, u32 vcpu, u32 port);
void port_clear_pending(struct domain *d, u32 port);
bool port_is_pending(const struct domain *d, u32 port);
void port_unmask(struct domain *d, u32 vcpu, u32 port);
/* One port on each vCPU, or one a domain, found through vCPU 0? (5.6) */
bool virq_is_per_vcpu(u32 virq);

/* port.c: one function a transition; 0 or a port, or -errno. They take the locks they need.
 * `guest`: the caller is a guest, which may not touch consumer ports. `permitted`: Xen looks for a port before it looks at
 * the caller's rights, so a full table is reported first. */
int port_alloc_unbound(struct domain *d, u16 remote_domid, bool permitted);
int port_bind_virq(struct vcpu *slot, u32 virq);
int port_bind_ipi(struct vcpu *v);
int port_close(struct domain *d, u32 port, bool guest);
int port_send(struct domain *d, u32 port, bool guest);
int port_bind_vcpu(struct domain *d, u32 port, u32 vcpu);

/* A guest may use it: allocated, and not a consumer's. */
static inline bool port_usable(const struct evtchn *chn)
{
    return chn->state > ECS_RESERVED && !chn->consumer;
}

#endif
