"""The event channel model against the words of the ABI: states, errors, delivery, poll."""

import pytest

from xenlike.testing.models import events as spec
from xenlike.testing.models.abi import (DOMID_SELF, EEXIST, EINVAL, ENOENT, ENOSPC, ENOSYS, ENXIO, EPERM, ESRCH)

DOM0, A, B = 0, 1, 2


@pytest.fixture
def host():
    model = spec.EventModel()
    model.create_domain(DOM0, 1, privileged=True)
    model.create_domain(A, 2)
    model.create_domain(B, 2)
    return model


def connect(host):
    """A port of A (unbound for B) and the port of B that is bound to it, nothing pending."""
    rc, remote = host.alloc_unbound(A, DOMID_SELF, B)
    assert rc == 0
    rc, local = host.bind_interdomain(B, A, remote)
    assert rc == 0
    host.guest_upcall(B, 0)
    return remote, local


def state(host, domid, port):
    return host.status(domid, DOMID_SELF, port)[1]


def test_a_fresh_domain_has_nothing_pending_or_masked(host):
    """Guests would lose events or see phantom ones at boot: ports start unmasked, upcalls masked, port 0 reserved."""
    dom = host.domains[A]
    assert (dom.pending, dom.mask) == (0, 0)
    assert [v.upcall_mask for v in dom.vcpus] == [1, 1]
    assert host.status(A, DOMID_SELF, 0)[:2] == (0, spec.FREE)
    assert host.close(A, 0) == -EINVAL


def test_allocation_takes_the_lowest_free_port(host):
    """The toolstack's convention (store is port 1, console 2) would break, and closed ports would never return."""
    assert [host.alloc_unbound(A, DOMID_SELF, DOM0)[1] for _ in range(3)] == [1, 2, 3]
    assert host.close(A, 2) == 0
    assert host.bind_ipi(A, 0) == (0, 2)
    assert host.alloc_unbound(A, DOMID_SELF, DOM0) == (0, 4)


def test_alloc_unbound_for_another_domain_needs_privilege(host):
    """A guest could fill another's port table, or the toolstack could not prepare one."""
    assert host.alloc_unbound(DOM0, A, DOMID_SELF) == (0, 1)
    assert host.status(A, DOMID_SELF, 1) == (0, spec.UNBOUND, 0, (DOM0, 0))
    assert host.alloc_unbound(A, B, A)[0] == -EPERM
    assert host.domains[B].active == 0
    assert host.alloc_unbound(A, 77, A)[0] == -ESRCH


@pytest.mark.parametrize("limit, last", [(1023, 1023), (5, 5), (100000, 4095)])
def test_ports_run_out_with_enospc(limit, last):
    """A guest that allocates until it is refused would overrun the two-level table or its own limit."""
    model = spec.EventModel()
    model.create_domain(A, 1, max_port=limit)
    got = [model.alloc_unbound(A, DOMID_SELF, A) for _ in range(last)]
    assert got[-1] == (0, last)
    assert model.alloc_unbound(A, DOMID_SELF, A)[0] == -ENOSPC
    # The local port is found first, so a full table hides a bad remote.
    assert model.bind_interdomain(A, A, 4000)[0] == -ENOSPC


def test_bind_interdomain_connects_both_and_marks_the_binder_pending(host):
    """An event sent while the port was still unbound would be lost for good."""
    _, port = host.alloc_unbound(A, DOMID_SELF, B)
    assert host.send(A, port) == 0              # dropped in silence
    rc, local = host.bind_interdomain(B, A, port)
    assert rc == 0 and host.domains[B].pending == 1 << local
    assert host.domains[B].vcpus[0].upcall_pending == 1
    assert host.status(A, DOMID_SELF, port)[1:] == (spec.INTERDOMAIN, 0, (B, local))
    assert host.status(B, DOMID_SELF, local)[1:] == (spec.INTERDOMAIN, 0, (A, port))
    assert host.domains[A].pending == 0


def test_bind_interdomain_refuses_ports_that_do_not_wait_for_the_caller(host):
    """A domain could break into a channel meant for another."""
    _, for_dom0 = host.alloc_unbound(A, DOMID_SELF, DOM0)
    remote, _ = connect(host)
    assert host.bind_interdomain(B, A, for_dom0)[0] == -EINVAL
    assert host.bind_interdomain(B, A, remote)[0] == -EINVAL        # taken already
    assert host.bind_interdomain(B, A, 60)[0] == -EINVAL
    assert host.bind_interdomain(B, A, 1 << 31)[0] == -EINVAL
    assert host.bind_interdomain(B, 99, 1)[0] == -ESRCH
    assert host.domains[B].active == 1


def test_send_reaches_the_other_side_only(host):
    """Notifications would go nowhere, or wake the sender."""
    remote, local = connect(host)
    assert host.send(B, local) == 0
    assert host.domains[A].pending == 1 << remote and host.domains[B].pending == 0


@pytest.mark.parametrize("bind", ["virq", "free", "invalid", "reserved"])
def test_send_on_a_port_that_cannot_be_sent_on(host, bind):
    """A guest could forge its own timer interrupts, or a bad port would be ignored."""
    port = {"virq": lambda: host.bind_virq(A, 0, 0)[1], "free": lambda: 9, "invalid": lambda: 4096,
            "reserved": lambda: 0}[bind]()
    assert host.send(A, port) == -EINVAL


def test_closing_one_side_leaves_the_peer_unbound(host):
    """A back end could not be reconnected: the peer must wait for the closer, not be closed too."""
    remote, local = connect(host)
    host.send(A, remote)
    assert host.close(B, local) == 0
    assert state(host, B, local) == spec.FREE and host.domains[B].pending == 0
    assert host.status(A, DOMID_SELF, remote)[1:] == (spec.UNBOUND, 0, (B, 0))
    assert host.bind_interdomain(B, A, remote) == (0, local)


def test_close_clears_pending_but_not_the_mask(host):
    """A port bound anew would fire at once for its predecessor, or be unmasked behind the guest's back."""
    _, port = host.bind_ipi(A, 1)
    host.guest_mask(A, port, True)
    host.send(A, port)
    assert host.close(A, port) == 0
    assert host.domains[A].pending == 0 and host.domains[A].mask == 1 << port
    assert host.status(A, DOMID_SELF, port) == (0, spec.FREE, 0, (0, 0))
    assert host.close(A, port) == -EINVAL


def test_loopback_within_one_domain(host):
    """A domain talking to itself would confuse the two ends."""
    _, first = host.alloc_unbound(A, DOMID_SELF, DOMID_SELF)
    rc, second = host.bind_interdomain(A, DOMID_SELF, first)
    assert rc == 0 and first != second
    host.guest_upcall(A, 0)
    host.send(A, first)
    assert host.domains[A].pending == 1 << second
    host.close(A, first)
    assert host.status(A, DOMID_SELF, second)[1:] == (spec.UNBOUND, 0, (A, 0))


def test_virqs(host):
    """Timer and debug interrupts would land on the wrong vCPU, or a second binding would steal the first."""
    assert host.bind_virq(A, 24, 0)[0] == -EINVAL
    assert host.bind_virq(A, 0xFFFFFFFF, 0)[0] == -EINVAL
    assert host.bind_virq(A, 0, 5)[0] == -ENOENT
    assert host.bind_virq(A, 2, 1)[0] == -EINVAL           # global: only through vCPU 0
    rc, port = host.bind_virq(A, 0, 1)
    assert rc == 0 and host.bind_virq(A, 0, 1)[0] == -EEXIST
    host.raise_virq(A, 0, 0)                                # not bound there: lost
    assert host.domains[A].pending == 0
    host.raise_virq(A, 1, 0)
    assert host.domains[A].pending == 1 << port and host.domains[A].vcpus[1].upcall_pending == 1
    assert host.close(A, port) == 0 and host.bind_virq(A, 0, 1)[0] == 0


def test_bind_vcpu(host):
    """Events could not be spread over vCPUs, or per-vCPU ones would be moved away from theirs."""
    remote, _ = connect(host)
    _, timer = host.bind_virq(A, 0, 0)
    _, ipi = host.bind_ipi(A, 0)
    _, console = host.bind_virq(A, 2, 0)
    assert host.bind_vcpu(A, remote, 2) == -ENOENT
    assert host.bind_vcpu(A, timer, 1) == host.bind_vcpu(A, ipi, 1) == host.bind_vcpu(A, 50, 1) == -EINVAL
    assert host.bind_vcpu(A, console, 1) == 0
    assert host.bind_vcpu(A, remote, 1) == 0
    host.raise_virq(A, 0, 2)
    assert host.domains[A].vcpus[1].upcall_pending == 1 and host.domains[A].vcpus[0].upcall_pending == 0
    # A global VIRQ stays recorded on vCPU 0 wherever it is delivered.
    assert host.close(A, console) == 0 and host.bind_virq(A, 2, 0)[0] == 0


def test_masked_event_is_kept_and_unmask_delivers_it(host):
    """A masked event would be lost."""
    _, port = host.bind_ipi(A, 1)
    v = host.domains[A].vcpus[1]
    host.guest_mask(A, port, True)
    host.send(A, port)
    assert host.domains[A].pending == 1 << port and v.upcall_pending == 0 and v.pending_sel == 0
    assert host.unmask(A, port) == 0
    assert v.upcall_pending == 1 and v.pending_sel == 1 and host.domains[A].mask == 0
    assert host.guest_upcall(A, 1) == [port]


def test_a_plain_store_to_the_mask_delivers_nothing(host):
    """The hypervisor cannot see a store; delivering for it would hide bugs of guests that forget to look again."""
    _, port = host.bind_ipi(A, 0)
    host.guest_mask(A, port, True)
    host.send(A, port)
    host.guest_mask(A, port, False)
    assert host.domains[A].vcpus[0].upcall_pending == 0
    assert host.unmask(A, port) == 0            # not masked any more: nothing to do
    assert host.domains[A].vcpus[0].upcall_pending == 0


def test_a_pending_port_is_not_raised_twice(host):
    """Every send would cost an upcall; the bit stands for all of them until it is taken."""
    _, port = host.bind_ipi(A, 0)
    v = host.domains[A].vcpus[0]
    host.send(A, port)
    v.upcall_pending = v.pending_sel = 0        # the guest started to handle, but has not cleared the port
    host.send(A, port)
    assert (v.upcall_pending, v.pending_sel) == (0, 0)


def test_selector_words(host):
    """Ports above 63 would never be found."""
    for _ in range(70):
        _, port = host.bind_ipi(A, 0)
    host.send(A, port)
    assert port == 70 and host.domains[A].vcpus[0].pending_sel == 1 << 1
    assert host.guest_upcall(A, 0) == [70]


def test_block_wakes_for_an_event_and_enables_upcalls(host):
    """An idle guest would sleep for ever."""
    _, port = host.bind_ipi(A, 0)
    v = host.domains[A].vcpus[0]
    assert host.block(A, 0) == 0 and v.blocked and v.upcall_mask == 0
    host.send(A, port)
    assert not v.blocked and host.woken == {(A, 0)}


def test_block_returns_at_once_when_something_is_due(host):
    """The wakeup that raced with going to sleep would be lost."""
    _, port = host.bind_ipi(A, 0)
    host.send(A, port)
    assert host.block(A, 0) == 0 and not host.domains[A].vcpus[0].blocked


def test_poll_for_one_port(host):
    """Pollers (GRUB, xenstore at boot) hang: the port's mask must not matter, another port must not wake."""
    (_, mine), (_, other) = host.bind_ipi(A, 0), host.bind_ipi(A, 1)
    v = host.domains[A].vcpus[0]
    host.guest_mask(A, mine, True)
    assert host.poll(A, 0, [mine]) == 0 and v.blocked and v.upcall_mask == 1
    host.send(A, other)
    assert v.blocked
    host.send(A, mine)
    assert not v.blocked and v.upcall_pending == 0
    assert host.poll(A, 0, [mine]) == 0 and not v.blocked


def test_poll_for_several_ports_wakes_for_any(host):
    """A poll of many would sleep although one of them fired."""
    ports = [host.bind_ipi(A, 1)[1] for _ in range(3)]
    assert host.poll(A, 0, ports[:2]) == 0 and host.domains[A].vcpus[0].blocked
    host.send(A, ports[2])
    assert not host.domains[A].vcpus[0].blocked


def test_poll_timeout(host):
    """A poll with a timeout would never end, and a later event would be taken for its end."""
    host.poll(A, 0, [])
    host.poll_timeout(A, 0)
    assert not host.domains[A].vcpus[0].blocked
    host.block(A, 0)
    host.poll_timeout(A, 0)                     # late: it must not wake a block
    assert host.domains[A].vcpus[0].blocked


def test_poll_errors(host):
    """Bad ports would be polled for ever, or read out of range."""
    assert host.poll(A, 0, [1] * 129) == -EINVAL
    assert host.poll(A, 0, [9]) == host.poll(A, 0, [0]) == host.poll(A, 0, [5000]) == -EINVAL
    assert not host.domains[A].vcpus[0].blocked


def test_a_masked_vcpu_woken_by_a_kick_may_sleep_on(host):
    """A stricter hypervisor would be called wrong: waking a masked poller for another port is Xen's, not the ABI's."""
    (_, mine), (_, other) = host.bind_ipi(A, 0), host.bind_ipi(A, 0)
    host.poll(A, 0, [mine])
    host.send(A, other)
    v = host.domains[A].vcpus[0]
    assert not v.blocked and host.sleep_on(A, 0) and v.blocked and v.poll == mine
    host.send(A, mine)
    assert not v.blocked and not host.sleep_on(A, 0)


def test_death_leaves_peers_unbound(host):
    """Peers of a dead domain would hold dangling ends."""
    remote, local = connect(host)
    host.destroy_domain(B)
    assert host.status(A, DOMID_SELF, remote)[1:] == (spec.UNBOUND, 0, (B, 0))
    assert host.domains[A].pending == 0         # and nobody is notified
    assert host.send(A, remote) == 0
    assert host.bind_interdomain(A, B, local)[0] == -ESRCH


def test_reset(host):
    """kexec could not start over; or one domain could cut another's channels."""
    remote, _ = connect(host)
    host.bind_virq(A, 0, 0)
    assert host.reset(B, A) == -EPERM and host.reset(B, 99) == -ESRCH
    assert host.reset(DOM0, A) == -EINVAL       # not paused by its controller
    assert host.reset(A, DOMID_SELF) == 0
    assert host.domains[A].active == 0 and host.domains[B].active == 1
    assert host.bind_virq(A, 0, 0)[0] == 0


def test_status_of_others(host):
    """A guest could spy on another's channels."""
    connect(host)
    assert host.status(B, A, 1)[0] == -EPERM
    assert host.status(DOM0, A, 1)[:2] == (0, spec.INTERDOMAIN)
    assert host.status(A, 99, 1)[0] == -ESRCH
    assert host.status(A, DOMID_SELF, 64)[0] == -EINVAL     # beyond the first bucket
    assert host.status(A, DOMID_SELF, 63) == (0, spec.FREE, 0, (0, 0))


def test_what_is_not_offered(host):
    """A guest would believe in FIFO events or passed-through interrupts."""
    _, port = host.bind_ipi(A, 0)
    assert host.init_control(A) == host.expand_array(A) == -ENOSYS
    assert host.set_priority(A, port) == -ENOSYS and host.set_priority(A, 4096) == -EINVAL
    assert host.bind_pirq(A, 0)[0] == -EPERM and host.bind_pirq(A, 1 << 31)[0] == -EINVAL


def test_register_vcpu_info(host):
    """Events raised before the move would be lost: everything is marked pending in the new place."""
    v = host.domains[A].vcpus[0]
    for offset in (4033, 4036, 4):
        assert host.register_vcpu_info(A, 0, 0, 7, offset) == -ENXIO
    assert host.register_vcpu_info(A, 0, 0, 7, 0, owned=False) == -EINVAL
    assert host.register_vcpu_info(A, 0, 0, 7, 0, writable=False) == -EINVAL
    assert host.register_vcpu_info(A, 0, 1, 7, 0) == -EINVAL        # another vCPU that is up
    assert host.register_vcpu_info(A, 0, 2, 7, 0) == -ENOENT
    assert v.info is None
    assert host.register_vcpu_info(A, 0, 0, 7, 4032) == 0
    assert v.pending_sel == (1 << 64) - 1 and v.upcall_pending == 1 and v.upcall_mask == 1
    assert host.register_vcpu_info(A, 0, 0, 7, 0) == -EINVAL


def test_fixed_ports():
    """A hypervisor with a flat port array could not be modelled: all its ports are valid from the start."""
    model = spec.EventModel(fixed_ports=4096)
    model.create_domain(A, 1)
    assert model.status(A, DOMID_SELF, 4095)[0] == 0 and model.status(A, DOMID_SELF, 4096)[0] == -EINVAL
