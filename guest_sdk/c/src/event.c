/*
 * Event channels: the upcall and the operations on ports.
 *
 * pending and mask bits belong to the domain, selectors to a vCPU. An upcall scans the words that its selector names, and takes only
 * ports that notify this vCPU: another vCPU's bits may stand in the same word, and its own upcall is on the way.
 */
#include <guest.h>

static struct {
    event_handler_t *handler;
    void *data;
    u32 vcpu; /* that is notified */
} ports[EVENT_PORTS];

static void event_upcall(struct trap_regs *regs)
{
    struct cpu *cpu = this_cpu();
    struct vcpu_info *info = cpu->vcpu_info;

    (void)regs;
    /* pending first: what comes after is seen by the hypercall that returns from here, and calls again. */
    WRITE_ONCE(info->evtchn_upcall_pending, 0);
    for (u64 sel = __atomic_exchange_n(&info->evtchn_pending_sel, 0, __ATOMIC_SEQ_CST); sel; sel &= sel - 1) {
        u32 word = __builtin_ctzl(sel);
        u64 bits = READ_ONCE(shared_info.evtchn_pending[word]) & ~READ_ONCE(shared_info.evtchn_mask[word]);

        for (; bits; bits &= bits - 1) {
            u32 port = word * 64 + __builtin_ctzl(bits);

            if (port < EVENT_PORTS && ports[port].handler && ports[port].vcpu == cpu->id &&
                bit_test_and_clear(shared_info.evtchn_pending, port))
                ports[port].handler(port, ports[port].data);
        }
    }
}

void event_init(void)
{
    memset(shared_info.evtchn_mask, 0xff, sizeof(shared_info.evtchn_mask)); /* the builder leaves all ports unmasked */
    trap_set(TRAP_EVENT, event_upcall, 0);
}

static s64 opened(s64 rc, u32 port, u32 vcpu)
{
    if (rc)
        return rc;
    event_mask(port);
    if (port < EVENT_PORTS) {
        ports[port].handler = NULL;
        ports[port].vcpu = vcpu;
    }
    return port;
}

s64 event_alloc_unbound(domid_t remote)
{
    struct evtchn_alloc_unbound op = {.dom = DOMID_SELF, .remote_dom = remote};
    s64 rc = HYPERVISOR_event_channel_op(EVTCHNOP_alloc_unbound, &op);

    return opened(rc, op.port, 0);
}

s64 event_bind_interdomain(domid_t remote, u32 remote_port)
{
    struct evtchn_bind_interdomain op = {.remote_dom = remote, .remote_port = remote_port};
    s64 rc = HYPERVISOR_event_channel_op(EVTCHNOP_bind_interdomain, &op);

    return opened(rc, op.local_port, 0);
}

s64 event_bind_virq(u32 virq, u32 vcpu)
{
    struct evtchn_bind_virq op = {.virq = virq, .vcpu = vcpu};
    s64 rc = HYPERVISOR_event_channel_op(EVTCHNOP_bind_virq, &op);

    return opened(rc, op.port, vcpu);
}

s64 event_bind_ipi(u32 vcpu)
{
    struct evtchn_bind_ipi op = {.vcpu = vcpu};
    s64 rc = HYPERVISOR_event_channel_op(EVTCHNOP_bind_ipi, &op);

    return opened(rc, op.port, vcpu);
}

s64 event_bind_vcpu(u32 port, u32 vcpu)
{
    struct evtchn_bind_vcpu op = {port, vcpu};
    s64 rc;

    if (port >= EVENT_PORTS)
        return -XEN_EINVAL;
    event_mask(port);
    rc = HYPERVISOR_event_channel_op(EVTCHNOP_bind_vcpu, &op);
    if (!rc)
        ports[port].vcpu = vcpu;
    if (ports[port].handler)
        event_unmask(port);
    return rc;
}

s64 event_close(u32 port)
{
    struct evtchn_close op = {port};

    event_mask(port);
    if (port < EVENT_PORTS)
        ports[port].handler = NULL;
    return HYPERVISOR_event_channel_op(EVTCHNOP_close, &op);
}

s64 event_handle(u32 port, event_handler_t *handler, void *data)
{
    if (port >= EVENT_PORTS)
        return -XEN_EINVAL;
    event_mask(port);
    ports[port].data = data;
    ports[port].handler = handler;
    return handler ? event_unmask(port) : 0;
}

void event_mask(u32 port)
{
    if (port < EVTCHN_2L_NR_CHANNELS)
        bit_test_and_set(shared_info.evtchn_mask, port);
}

s64 event_unmask(u32 port)
{
    struct evtchn_unmask op = {port};

    return HYPERVISOR_event_channel_op(EVTCHNOP_unmask, &op);
}

bool event_take(u32 port)
{
    return bit_test_and_clear(shared_info.evtchn_pending, port);
}

s64 event_wait(u32 port, u64 deadline)
{
    struct sched_poll poll = {.nr_ports = 1, .timeout = deadline};
    s64 rc;

    set_xen_guest_handle(poll.ports, &port);
    while (!event_take(port)) {
        if (deadline && time_now() >= deadline)
            return -XEN_ETIME;
        rc = HYPERVISOR_sched_op(SCHEDOP_poll, &poll);
        if (rc)
            return rc;
    }
    return 0;
}
