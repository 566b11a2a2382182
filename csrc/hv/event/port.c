/* Ports: allocation, states, transitions (xen-abi 5.1, 5.2; Xen's public event_channel.h).
 *
 * Owns: struct evtchn and the domain's port space. Called by: op.c for guests, the toolstack and back ends.
 * Locks: a transition holds ev.lock of each domain concerned (two by address) and then the port locks of both ends (two by
 * address). A send holds its own port's lock only, under which neither end can change state.
 */
#include "hv/event/private.h"

int evtchn_init(struct domain *d)
{
    struct evtchn *bucket = arena_alloc(&d->host->arena, EVTCHNS_PER_BUCKET * sizeof *bucket);

    if (!bucket)
        return -XEN_ENOMEM;
    bucket[0].state = ECS_RESERVED;
    d->ev.bucket[0] = bucket;
    d->ev.nr_used = 1;
    d->ev.first_free = 1;
    return 0;
}

void evtchn_destroy(struct domain *d)
{
    /* Nothing opens a port any more: get_free_port checks `dying` under ev.lock, which each close takes after it was set. */
    for (u32 port = EVTCHN_2L_NR_CHANNELS - 1; port; port--)
        port_close(d, port, false);
}

void evtchn_free(struct domain *d)
{
    for (unsigned i = 0; i < EVTCHN_BUCKETS; i++) {
        arena_free(&d->host->arena, d->ev.bucket[i], EVTCHNS_PER_BUCKET * sizeof(struct evtchn));
        d->ev.bucket[i] = NULL;
    }
}

/* The lowest free port, still FREE: the caller opens it before it lets go of ev.lock, or leaves it. -EINVAL: dying.
 * [d->ev.lock] */
static int get_free_port(struct domain *d)
{
    struct evtchn_state_of_domain *ev = &d->ev;

    if (load_acquire(d->dying))
        return -XEN_EINVAL;
    for (u32 port = ev->first_free; port <= ev->max_port && port < EVTCHN_2L_NR_CHANNELS; port++) {
        struct evtchn *chn = evtchn_from_port(ev, port);
        if (!chn) {
            struct evtchn *bucket = arena_alloc(&d->host->arena, EVTCHNS_PER_BUCKET * sizeof *bucket);
            if (!bucket)
                return -XEN_ENOMEM;
            store_release(ev->bucket[port / EVTCHNS_PER_BUCKET], bucket);
            chn = &bucket[port % EVTCHNS_PER_BUCKET];
        }
        if (chn->state == ECS_FREE) {
            ev->first_free = port;
            return (int)port;
        }
    }
    return -XEN_ENOSPC;
}

/* FREE -> state. The caller fills u. [d->ev.lock, chn->lock] */
static void port_open(struct domain *d, struct evtchn *chn, enum evtchn_state state, u32 vcpu)
{
    chn->state = (u8)state;
    write_once(chn->notify_vcpu, (u16)vcpu);
    d->ev.nr_used++;
}

/* any -> FREE; the pending bit goes, the mask bit stays as the guest left it. [d->ev.lock, chn->lock, the peer's lock] */
static void port_release(struct domain *d, u32 port, struct evtchn *chn)
{
    if (chn->state == ECS_VIRQ) {
        struct vcpu *slot = d->vcpu[virq_is_per_vcpu(chn->u.virq) ? chn->notify_vcpu : 0];
        write_once(slot->virq_port[chn->u.virq], 0);
    }
    port_clear_pending(d, port);
    chn->state = ECS_FREE;
    write_once(chn->notify_vcpu, 0);
    chn->consumer = NULL;
    d->ev.nr_used--;
    if (port < d->ev.first_free)
        d->ev.first_free = port;
}

/* ---- opening ----------------------------------------------------------------------------------------------------- */

int port_alloc_unbound(struct domain *d, u16 remote_domid, bool permitted)
{
    spin_lock(&d->ev.lock);
    int port = get_free_port(d);
    if (port >= 0 && !permitted)
        port = -XEN_EPERM;
    if (port >= 0) {
        struct evtchn *chn = evtchn_from_port(&d->ev, (u32)port);
        spin_lock(&chn->lock);
        port_open(d, chn, ECS_UNBOUND, 0);
        chn->u.unbound_remote = remote_domid;
        spin_unlock(&chn->lock);
    }
    spin_unlock(&d->ev.lock);
    return port;
}

int evtchn_alloc_unbound(struct domain *d, u16 remote_domid)
{
    return port_alloc_unbound(d, remote_domid, true);
}

int evtchn_bind_interdomain(struct domain *ld, u16 remote_domid, u32 rport)
{
    struct domain *rd = domain_get(ld->host, remote_domid);

    if (!rd)
        return -XEN_ESRCH;
    spin_lock_two(&ld->ev.lock, &rd->ev.lock);

    int lport = get_free_port(ld);
    struct evtchn *rchn = evtchn_from_port(&rd->ev, rport);
    if (lport >= 0 && (!rchn || rchn->state != ECS_UNBOUND || rchn->u.unbound_remote != ld->id))
        lport = -XEN_EINVAL;
    if (lport >= 0) {
        struct evtchn *lchn = evtchn_from_port(&ld->ev, (u32)lport);
        spin_lock_two(&lchn->lock, &rchn->lock);        /* two ports, even of one domain: one is FREE, one UNBOUND */
        port_open(ld, lchn, ECS_INTERDOMAIN, 0);
        lchn->u.remote.dom = rd;
        lchn->u.remote.port = rport;
        rchn->state = ECS_INTERDOMAIN;
        rchn->u.remote.dom = ld;
        rchn->u.remote.port = (u32)lport;
        /* Sends from the remote end were dropped while it was unbound: make the binder look once. */
        port_set_pending(ld, 0, (u32)lport);
        spin_unlock_two(&lchn->lock, &rchn->lock);
    }
    spin_unlock_two(&ld->ev.lock, &rd->ev.lock);
    domain_put(rd);
    return lport;
}

int port_bind_virq(struct vcpu *slot, u32 virq)
{
    struct domain *d = slot->domain;

    spin_lock(&d->ev.lock);
    int port = slot->virq_port[virq] ? -XEN_EEXIST : get_free_port(d);
    if (port >= 0) {
        struct evtchn *chn = evtchn_from_port(&d->ev, (u32)port);
        spin_lock(&chn->lock);
        port_open(d, chn, ECS_VIRQ, slot->id);
        chn->u.virq = (u16)virq;
        write_once(slot->virq_port[virq], (u32)port);
        spin_unlock(&chn->lock);
    }
    spin_unlock(&d->ev.lock);
    return port;
}

int port_bind_ipi(struct vcpu *v)
{
    struct domain *d = v->domain;

    spin_lock(&d->ev.lock);
    int port = get_free_port(d);
    if (port >= 0) {
        struct evtchn *chn = evtchn_from_port(&d->ev, (u32)port);
        spin_lock(&chn->lock);
        port_open(d, chn, ECS_IPI, v->id);
        spin_unlock(&chn->lock);
    }
    spin_unlock(&d->ev.lock);
    return port;
}

/* ---- closing ----------------------------------------------------------------------------------------------------- */

/* Holding `first`, takes `second` of the same class without waiting against the order. While we hold d's ev.lock its peer
 * domain cannot go away (it closes the port first), which is why `first` is not simply dropped and taken again in order. */
static bool lock_second(spinlock_t *first, spinlock_t *second)
{
    if (second < first)
        return spin_trylock(second);
    spin_lock(second);
    return true;
}

/* [d->ev.lock] False: the peer's domain is busy, let go of d->ev.lock and come again. */
static bool close_interdomain(struct domain *d, u32 port, struct evtchn *chn)
{
    struct domain *rd = chn->u.remote.dom;

    if (rd != d && !lock_second(&d->ev.lock, &rd->ev.lock))
        return false;
    struct evtchn *rchn = evtchn_from_port(&rd->ev, chn->u.remote.port);
    spin_lock_two(&chn->lock, &rchn->lock);
    rchn->state = ECS_UNBOUND;
    rchn->u.unbound_remote = d->id;
    port_release(d, port, chn);
    spin_unlock_two(&chn->lock, &rchn->lock);
    if (rd != d)
        spin_unlock(&rd->ev.lock);
    return true;
}

int port_close(struct domain *d, u32 port, bool guest)
{
    struct evtchn *chn = evtchn_from_port(&d->ev, port);
    int rc = 0;

    if (!chn)
        return -XEN_EINVAL;
    spin_lock(&d->ev.lock);
    while (!rc) {
        if (chn->state <= ECS_RESERVED || (guest && chn->consumer)) {
            rc = -XEN_EINVAL;
        } else if (chn->state != ECS_INTERDOMAIN) {
            spin_lock(&chn->lock);
            port_release(d, port, chn);
            spin_unlock(&chn->lock);
            break;
        } else if (close_interdomain(d, port, chn)) {
            break;
        } else {
            spin_unlock(&d->ev.lock);
            cpu_relax();
            spin_lock(&d->ev.lock);
        }
    }
    spin_unlock(&d->ev.lock);
    return rc;
}

int evtchn_close(struct domain *d, u32 port)
{
    return port_close(d, port, false);
}

/* ---- using ------------------------------------------------------------------------------------------------------- */

int port_send(struct domain *d, u32 port, bool guest)
{
    struct evtchn *chn = evtchn_from_port(&d->ev, port);
    int rc = 0;

    if (unlikely(!chn))
        return -XEN_EINVAL;
    spin_lock(&chn->lock);
    if (unlikely(guest && chn->consumer)) {
        rc = -XEN_EINVAL;
    } else if (likely(chn->state == ECS_INTERDOMAIN)) {
        struct domain *rd = chn->u.remote.dom;
        struct evtchn *rchn = evtchn_from_port(&rd->ev, chn->u.remote.port);
        if (rchn->consumer)
            rchn->consumer(d->host, rchn->consumer_data);
        else
            port_set_pending(rd, read_once(rchn->notify_vcpu), chn->u.remote.port);
    } else if (chn->state == ECS_IPI) {
        port_set_pending(d, chn->notify_vcpu, port);
    } else if (chn->state != ECS_UNBOUND) {             /* unbound: dropped in silence */
        rc = -XEN_EINVAL;
    }
    spin_unlock(&chn->lock);
    return rc;
}

int evtchn_send(struct domain *d, u32 port)
{
    int rc = port_send(d, port, false);

    if (!rc)
        host_stat_inc(d->host, events_sent);
    return rc;
}

int port_bind_vcpu(struct domain *d, u32 port, u32 vcpu)
{
    struct evtchn *chn = evtchn_from_port(&d->ev, port);
    int rc = -XEN_EINVAL;

    if (!chn)
        return rc;
    spin_lock(&d->ev.lock);
    bool movable = chn->state == ECS_UNBOUND || chn->state == ECS_INTERDOMAIN ||
                   (chn->state == ECS_VIRQ && !virq_is_per_vcpu(chn->u.virq));
    if (movable && !chn->consumer) {
        write_once(chn->notify_vcpu, (u16)vcpu);
        rc = 0;
    }
    spin_unlock(&d->ev.lock);
    return rc;
}

int evtchn_set_consumer(struct domain *d, u32 port, evtchn_consumer_fn *fn, void *data)
{
    struct evtchn *chn = evtchn_from_port(&d->ev, port);
    int rc = -XEN_EINVAL;

    if (!chn)
        return rc;
    spin_lock(&d->ev.lock);             /* keeps the state and with it the peer */
    if (chn->state == ECS_UNBOUND || chn->state == ECS_INTERDOMAIN) {
        struct evtchn *peer = chn;      /* senders hold the peer's lock */
        if (chn->state == ECS_INTERDOMAIN)
            peer = evtchn_from_port(&chn->u.remote.dom->ev, chn->u.remote.port);
        spin_lock_two(&chn->lock, &peer->lock);
        chn->consumer = fn;
        chn->consumer_data = data;
        if (fn && port_is_pending(d, port)) {
            port_clear_pending(d, port);
            fn(d->host, data);
        }
        spin_unlock_two(&chn->lock, &peer->lock);
        rc = 0;
    }
    spin_unlock(&d->ev.lock);
    return rc;
}
