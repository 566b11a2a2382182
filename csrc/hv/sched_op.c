/* sched_op: yield, block, poll, shutdown, watchdogs (xen-abi 8.1; Xen's public sched.h).
 *
 * Owns: a vCPU's poll timer, a domain's watchdogs. Called by: dispatch, on the vCPU's own thread; timers. Locks: domain->lock
 * for watchdogs and the shutdown code; polling follows the protocol of hv/event.h.
 */
#include "hv/host.h"
#include "xen/sched.h"

enum { POLL_PORTS_MAX = 128, NR_WATCHDOGS = ARRAY_SIZE(((struct domain *)0)->watchdog) };

/* ---- poll -------------------------------------------------------------------------------------------------------- */

void vcpu_poll_end(struct vcpu *v)
{
    timer_stop(v->host, &v->poll_timer);
    evtchn_poll_end(v);
}

/* The timer may have been taken off its heap just before the poll ended, and come here during the next one: then it is too
 * early, and the next poll's own expiry (NEVER if it has none) says so. */
void vcpu_poll_expired(struct vcpu *v)
{
    if (read_once(v->poll_nr) && read_once(v->poll_timer.expires) <= host_now(v->host))
        vcpu_unpause(v, VPF_blocked);
}

/* 1: something is there, do not wait; 0; -EINVAL: a bad port. */
static int poll_look(struct vcpu *v, const u32 *ports, u32 n)
{
    if (vcpu_event_deliverable(v))
        return 1;
    for (u32 i = 0; i < n; i++) {
        int rc = evtchn_port_pending(v->domain, ports[i]);
        if (rc)
            return rc;
    }
    return 0;
}

static int poll_timer_start(struct vcpu *v, u64 timeout)
{
    if (timeout)
        return timer_set(v->host, &v->poll_timer, v->unit.pcpu, timeout);
    timer_stop(v->host, &v->poll_timer);        /* of an earlier poll in the same multicall */
    write_once(v->poll_timer.expires, NEVER);
    return 0;
}

static s64 sched_poll(struct vcpu *v, u64 arg)
{
    struct sched_poll poll;
    u32 ports[POLL_PORTS_MAX];

    if (copy_from_guest(v, &poll, arg, sizeof poll))
        return -XEN_EFAULT;
    if (poll.nr_ports > POLL_PORTS_MAX)
        return -XEN_EINVAL;
    if (vcpu_event_deliverable(v))      /* before the ports are looked at, as in Xen */
        return 0;
    if (copy_from_guest(v, ports, poll.ports, poll.nr_ports * sizeof *ports))
        return -XEN_EFAULT;
    s64 rc = poll_timer_start(v, poll.timeout);
    if (rc)
        return rc;

    atomic_or(&v->pause_flags, VPF_blocked);
    if (poll.nr_ports == 1)
        evtchn_poll_begin(v, 1, ports[0]);
    else
        evtchn_poll_begin(v, POLL_PORTS_MAX, 0);        /* none at all, too, means that any event wakes */
    rc = poll_look(v, ports, poll.nr_ports);
    if (rc) {
        vcpu_poll_end(v);
        atomic_and(&v->pause_flags, ~(u32)VPF_blocked);
        return rc > 0 ? 0 : rc;
    }
    atomic_or(&v->exit_work, WORK_park);        /* the poll ends when v is next put on a pCPU */
    return 0;
}

/* ---- watchdogs --------------------------------------------------------------------------------------------------- */

/* It may have been taken off its heap just before it was stopped or set anew: then it is none of ours. */
static void watchdog_expired(struct host *h, struct timer *t)
{
    struct domain *d = t->data;
    spin_lock(&d->lock);
    bool due = (d->watchdog_inuse >> (t - d->watchdog) & 1) && !timer_pending(t) && read_once(t->expires) <= host_now(h);
    spin_unlock(&d->lock);
    if (due)
        domain_shutdown(d, SHUTDOWN_watchdog);
}

void domain_watchdogs_init(struct domain *d)
{
    for (u32 id = 0; id < NR_WATCHDOGS; id++)
        timer_init(&d->watchdog[id], watchdog_expired, d);
}

/* [domain->lock] */
static s64 watchdog_set(struct vcpu *v, u32 id, u32 seconds)
{
    return timer_set(v->host, &v->domain->watchdog[id], v->unit.pcpu, host_now(v->host) + seconds * 1000000000ul);
}

/* [domain->lock] */
static s64 watchdog_new(struct vcpu *v, u32 seconds)
{
    struct domain *d = v->domain;
    for (u32 id = 0; id < NR_WATCHDOGS; id++) {
        if (d->watchdog_inuse >> id & 1)
            continue;
        s64 rc = watchdog_set(v, id, seconds);
        if (rc)
            return rc;
        d->watchdog_inuse |= 1u << id;
        return id + 1;
    }
    return -XEN_ENOSPC;
}

/* [domain->lock] */
static s64 watchdog_change(struct vcpu *v, u32 id, u32 seconds)
{
    struct domain *d = v->domain;
    if (!(d->watchdog_inuse >> id & 1))
        return -XEN_EINVAL;
    if (seconds)
        return watchdog_set(v, id, seconds);
    timer_stop(v->host, &d->watchdog[id]);
    d->watchdog_inuse &= ~(1u << id);
    return 0;
}

static s64 sched_watchdog(struct vcpu *v, u64 arg)
{
    struct sched_watchdog w;

    if (copy_from_guest(v, &w, arg, sizeof w))
        return -XEN_EFAULT;
    if (w.id > NR_WATCHDOGS)
        return -XEN_EINVAL;
    spin_lock(&v->domain->lock);
    s64 rc = w.id ? watchdog_change(v, w.id - 1, w.timeout) : watchdog_new(v, w.timeout);
    spin_unlock(&v->domain->lock);
    return rc;
}

/* ---- shutdown ---------------------------------------------------------------------------------------------------- */

static s64 sched_shutdown(struct vcpu *v, u64 arg)
{
    struct sched_shutdown s;

    if (copy_from_guest(v, &s, arg, sizeof s))
        return -XEN_EFAULT;
    write_once(v->domain->last_vcpu, v->id);
    domain_shutdown(v->domain, (u8)s.reason);
    return 0;
}

static s64 sched_shutdown_code(struct vcpu *v, u64 arg)
{
    struct domain *d = v->domain;
    struct sched_shutdown s;

    if (copy_from_guest(v, &s, arg, sizeof s))
        return -XEN_EFAULT;
    spin_lock(&d->lock);
    if (!d->shutdown_code_set && d->state <= DOM_running) {
        d->shutdown_code_set = true;
        d->shutdown_code = (u8)s.reason;
    }
    spin_unlock(&d->lock);
    return 0;
}

static s64 sched_remote_shutdown(struct vcpu *v, u64 arg)
{
    struct sched_remote_shutdown s;

    if (copy_from_guest(v, &s, arg, sizeof s))
        return -XEN_EFAULT;
    struct domain *d = domain_get(v->host, s.domain_id);        /* a number: DOMID_SELF means nobody here */
    if (!d)
        return -XEN_ESRCH;
    s64 rc = v->domain->privileged ? 0 : -XEN_EPERM;
    if (!rc)
        domain_shutdown(d, (u8)s.reason);
    domain_put(d);
    return rc;
}

/* ---- dispatch ---------------------------------------------------------------------------------------------------- */

static s64 sched_yield_op(struct vcpu *v, u64 arg)
{
    vcpu_yield(v);
    return 0;
}

static s64 sched_block(struct vcpu *v, u64 arg)
{
    vcpu_block(v);
    return 0;
}

/* Only for the hardware domain, which pins itself for firmware calls; we have no such hardware. */
static s64 sched_pin_override(struct vcpu *v, u64 arg)
{
    return -XEN_EPERM;
}

s64 do_sched_op(struct vcpu *v, u64 cmd, u64 arg)
{
    switch ((u32)cmd) {
    case SCHEDOP_yield:             return sched_yield_op(v, arg);
    case SCHEDOP_block:             return sched_block(v, arg);
    case SCHEDOP_shutdown:          return sched_shutdown(v, arg);
    case SCHEDOP_poll:              return sched_poll(v, arg);
    case SCHEDOP_remote_shutdown:   return sched_remote_shutdown(v, arg);
    case SCHEDOP_shutdown_code:     return sched_shutdown_code(v, arg);
    case SCHEDOP_watchdog:          return sched_watchdog(v, arg);
    case SCHEDOP_pin_override:      return sched_pin_override(v, arg);
    default:                        return -XEN_ENOSYS;
    }
}

/* The first sched_op: shutdown takes its reason by value. */
s64 do_sched_op_compat(struct vcpu *v, u64 cmd, u64 arg)
{
    switch ((u32)cmd) {
    case SCHEDOP_yield:             return sched_yield_op(v, arg);
    case SCHEDOP_block:             return sched_block(v, arg);
    case SCHEDOP_shutdown:
        domain_shutdown(v->domain, (u8)arg);
        return 0;
    default:                        return -XEN_ENOSYS;
    }
}
