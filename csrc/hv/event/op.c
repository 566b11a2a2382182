/* event_channel_op and its old form: arguments in, permissions, results out (xen-abi 5.2; Xen's public event_channel.h).
 *
 * Owns: nothing. Called by: hypercall dispatch. No lock of its own. Each command's argument is copied in once; a command that
 * has results copies the whole argument back. When that fails the answer is -EFAULT and what was done stays done, as in Xen.
 */
#include "hv/event/private.h"
#include "hv/hypercall.h"

enum {
    NR_PIRQS = 256,                     /* what a domain may ask for; none is permitted to any */
    WORK_RESET = 4 * EVTCHN_2L_NR_CHANNELS,
};

union evtchn_arg {
#define EVTCHNOP(number, name, type) struct type name;
#include "xen/evtchnop.def"
#undef EVTCHNOP
};

typedef int evtchn_op_fn(struct vcpu *v, union evtchn_arg *a);

static struct vcpu *find_vcpu(struct domain *d, u32 id)
{
    return id < d->nr_vcpus ? d->vcpu[id] : NULL;
}

/* The domain an argument names, with a reference; NULL: none. What the caller may do to it is asked later, as Xen does. */
static struct domain *find_domain(struct vcpu *v, u16 domid)
{
    return domain_get(v->host, domid == DOMID_SELF ? v->domain->id : domid);
}

static bool may_control(const struct vcpu *v, const struct domain *d)
{
    return v->domain == d || v->domain->privileged;
}

/* Stores a new port where the argument wants it. */
static int give_port(int port, u32 *out)
{
    if (port < 0)
        return port;
    *out = (u32)port;
    return 0;
}

static int op_bind_interdomain(struct vcpu *v, union evtchn_arg *a)
{
    u16 remote = a->bind_interdomain.remote_dom == DOMID_SELF ? v->domain->id : a->bind_interdomain.remote_dom;

    return give_port(evtchn_bind_interdomain(v->domain, remote, a->bind_interdomain.remote_port),
                     &a->bind_interdomain.local_port);
}

static int op_bind_virq(struct vcpu *v, union evtchn_arg *a)
{
    u32 virq = a->bind_virq.virq;

    if (virq >= NR_VIRQS || (a->bind_virq.vcpu != 0 && !virq_is_per_vcpu(virq)))
        return -XEN_EINVAL;
    struct vcpu *slot = find_vcpu(v->domain, a->bind_virq.vcpu);
    if (!slot)
        return -XEN_ENOENT;
    return give_port(port_bind_virq(slot, virq), &a->bind_virq.port);
}

static int op_bind_pirq(struct vcpu *v, union evtchn_arg *a)
{
    return a->bind_pirq.pirq >= NR_PIRQS ? -XEN_EINVAL : -XEN_EPERM;    /* no device is passed through */
}

static int op_bind_ipi(struct vcpu *v, union evtchn_arg *a)
{
    struct vcpu *target = find_vcpu(v->domain, a->bind_ipi.vcpu);

    return target ? give_port(port_bind_ipi(target), &a->bind_ipi.port) : -XEN_ENOENT;
}

static int op_close(struct vcpu *v, union evtchn_arg *a)
{
    return port_close(v->domain, a->close.port, true);
}

static int op_send(struct vcpu *v, union evtchn_arg *a)
{
    int rc = port_send(v->domain, a->send.port, true);

    if (likely(!rc))
        stat_inc(v, events_sent);
    return rc;
}

/* [d->ev.lock] */
static void fill_status(const struct evtchn *chn, struct evtchn_status *s)
{
    s->vcpu = chn->notify_vcpu;
    switch (chn->state) {
    case ECS_UNBOUND:
        s->status = EVTCHNSTAT_unbound;
        s->u.unbound.dom = chn->u.unbound_remote;
        break;
    case ECS_INTERDOMAIN:
        s->status = EVTCHNSTAT_interdomain;
        s->u.interdomain.dom = chn->u.remote.dom->id;
        s->u.interdomain.port = chn->u.remote.port;
        break;
    case ECS_VIRQ:
        s->status = EVTCHNSTAT_virq;
        s->u.virq = chn->u.virq;
        break;
    case ECS_IPI:
        s->status = EVTCHNSTAT_ipi;
        break;
    default:
        s->status = EVTCHNSTAT_closed;
    }
}

static int op_status(struct vcpu *v, union evtchn_arg *a)
{
    struct domain *d = find_domain(v, a->status.dom);

    if (!d)
        return -XEN_ESRCH;
    struct evtchn *chn = evtchn_from_port(&d->ev, a->status.port);
    int rc = !chn ? -XEN_EINVAL : may_control(v, d) ? 0 : -XEN_EPERM;
    if (!rc) {
        spin_lock(&d->ev.lock);
        fill_status(chn, &a->status);
        spin_unlock(&d->ev.lock);
    }
    domain_put(d);
    return rc;
}

static int op_alloc_unbound(struct vcpu *v, union evtchn_arg *a)
{
    struct domain *d = find_domain(v, a->alloc_unbound.dom);
    u16 remote = a->alloc_unbound.remote_dom == DOMID_SELF ? v->domain->id : a->alloc_unbound.remote_dom;

    if (!d)
        return -XEN_ESRCH;
    int rc = give_port(port_alloc_unbound(d, remote, may_control(v, d)), &a->alloc_unbound.port);
    domain_put(d);
    return rc;
}

static int op_bind_vcpu(struct vcpu *v, union evtchn_arg *a)
{
    if (!find_vcpu(v->domain, a->bind_vcpu.vcpu))
        return -XEN_ENOENT;
    return port_bind_vcpu(v->domain, a->bind_vcpu.port, a->bind_vcpu.vcpu);
}

static int op_unmask(struct vcpu *v, union evtchn_arg *a)
{
    struct evtchn *chn = evtchn_from_port(&v->domain->ev, a->unmask.port);

    if (!chn)
        return -XEN_EINVAL;
    spin_lock(&chn->lock);
    if (port_usable(chn))               /* a free port is a valid number: accepted, nothing to do */
        port_unmask(v->domain, read_once(chn->notify_vcpu), a->unmask.port);
    spin_unlock(&chn->lock);
    return 0;
}

static int op_reset(struct vcpu *v, union evtchn_arg *a)
{
    struct domain *d = find_domain(v, a->reset.dom);

    if (!d)
        return -XEN_ESRCH;
    int rc = 0;
    hypercall_charge(v, WORK_RESET);
    if (!may_control(v, d))
        rc = -XEN_EPERM;
    else if (d != v->domain && !read_once(d->pause_count))
        rc = -XEN_EINVAL;               /* another's ports may go only while it is paused */
    else
        for (u32 port = 1; port < EVTCHN_2L_NR_CHANNELS; port++)
            port_close(d, port, true);
    domain_put(d);
    return rc;
}

/* The FIFO layout is not offered; guests see init_control fail and stay with two levels (5.2). */
static int op_init_control(struct vcpu *v, union evtchn_arg *a) { return -XEN_ENOSYS; }
static int op_expand_array(struct vcpu *v, union evtchn_arg *a) { return -XEN_ENOSYS; }

static int op_set_priority(struct vcpu *v, union evtchn_arg *a)
{
    return evtchn_from_port(&v->domain->ev, a->set_priority.port) ? -XEN_ENOSYS : -XEN_EINVAL;
}

static const struct {
    u8 size;
    evtchn_op_fn *fn;
} evtchn_ops[] = {
#define EVTCHNOP(number, name, type) [number] = { sizeof(struct type), op_##name },
#include "xen/evtchnop.def"
#undef EVTCHNOP
};

/* Commands with results. */
static const u32 has_results = 1u << EVTCHNOP_bind_interdomain | 1u << EVTCHNOP_bind_virq | 1u << EVTCHNOP_bind_pirq |
                               1u << EVTCHNOP_bind_ipi | 1u << EVTCHNOP_status | 1u << EVTCHNOP_alloc_unbound;

s64 do_event_channel_op(struct vcpu *v, u64 cmd_reg, u64 arg)
{
    u32 cmd = (u32)cmd_reg;             /* an int in Xen's prototype: the upper half of the register is not looked at */
    union evtchn_arg a;

    if (cmd >= ARRAY_SIZE(evtchn_ops))
        return -XEN_ENOSYS;
    if (copy_from_guest(v, &a, arg, evtchn_ops[cmd].size))
        return -XEN_EFAULT;
    int rc = evtchn_ops[cmd].fn(v, &a);
    if (!rc && (has_results >> cmd & 1) && copy_to_guest(v, arg, &a, evtchn_ops[cmd].size))
        rc = -XEN_EFAULT;
    return rc;
}

s64 do_event_channel_op_compat(struct vcpu *v, u64 uop)
{
    u32 cmd;

    if (copy_from_guest(v, &cmd, uop + offsetof(struct evtchn_op, cmd), sizeof cmd))
        return -XEN_EFAULT;
    if (cmd > EVTCHNOP_unmask)          /* the old form knows no newer command */
        return -XEN_ENOSYS;
    return do_event_channel_op(v, cmd, uop + offsetof(struct evtchn_op, u));
}
