"""Event channels of the real core, by the words of the ABI: states, errors, 2-level delivery, VIRQs, poll, death.

Offsets into shared_info and error numbers are written out here: the test judges the headers too.
"""
# covers: event_channel_op/alloc_unbound, event_channel_op/bind_interdomain, event_channel_op/bind_ipi
# covers: event_channel_op/bind_pirq, event_channel_op/bind_vcpu, event_channel_op/bind_virq, event_channel_op/close
# covers: event_channel_op/expand_array, event_channel_op/init_control, event_channel_op/reset, event_channel_op/send
# covers: event_channel_op/set_priority, event_channel_op/status, event_channel_op/unmask
# covers: hypercall event_channel_op_compat

from __future__ import annotations

import struct

import core_guests
import pytest
from core_guests import BASE, PAGE

from xenlike.engine import lib

host, dom0 = core_guests.host, core_guests.dom0

EPERM, ENOENT, ESRCH, EFAULT, EEXIST, EINVAL, ENOSPC, ENOSYS = 1, 2, 3, 14, 17, 22, 28, 38
SELF = 0x7FF0
UPDATE_VA_MAPPING, EVENT_CHANNEL_OP_COMPAT, VCPU_OP, SCHED_OP, EVENT_CHANNEL_OP = 14, 16, 24, 29, 32
CLOSED, UNBOUND, INTERDOMAIN, PIRQ, VIRQ, IPI = range(6)
UNMAPPED = BASE + 500 * PAGE
PENDING, MASK = 2048, 2560              # of shared_info; a vcpu_info is 64 bytes: pending u8@0, mask u8@1, sel u64@8
ALL = (1 << 64) - 1

TYPES = {"bind_interdomain": 0, "bind_virq": 1, "bind_pirq": 2, "close": 3, "send": 4, "status": 5, "alloc_unbound": 6,
         "bind_ipi": 7, "bind_vcpu": 8, "unmask": 9, "reset": 10, "init_control": 11, "expand_array": 12, "set_priority": 13}


def op(guest, name, **fields):
    """event_channel_op → (rc, the argument afterwards)."""
    guest.put(f"struct evtchn_{name}", **fields)
    rc = guest.call(EVENT_CHANNEL_OP, TYPES[name], BASE)
    return rc, guest.get(f"struct evtchn_{name}")


def ok(guest, name, **fields):
    rc, out = op(guest, name, **fields)
    assert rc == 0, (name, fields, rc)
    return out


def err(guest, name, **fields):
    return op(guest, name, **fields)[0]


def status(guest, port, dom=SELF):
    """(status, vcpu, remote domain, remote port or VIRQ)"""
    out = ok(guest, "status", dom=dom, port=port)
    other = {UNBOUND: (out.u.unbound.dom, None), INTERDOMAIN: (out.u.interdomain.dom, out.u.interdomain.port),
             VIRQ: (None, out.u.virq)}.get(out.status, (None, None))
    return (out.status, out.vcpu, *other)


def alloc(guest, remote, dom=SELF):
    return ok(guest, "alloc_unbound", dom=dom, remote_dom=remote).port


def connect(a, b):
    """An interdomain pair; nothing pending. (port of a, port of b)"""
    rport = alloc(a, b.id)
    lport = ok(b, "bind_interdomain", remote_dom=a.id, remote_port=rport).local_port
    drain(b)
    return rport, lport


def word(guest, offset):
    return struct.unpack_from("<Q", guest.shared, offset)[0]


def set_word(guest, offset, value):
    struct.pack_into("<Q", guest.shared, offset, value)


def bit(guest, area, port):
    return word(guest, area + port // 64 * 8) >> port % 64 & 1


def set_bit(guest, area, port, value):
    at = area + port // 64 * 8
    set_word(guest, at, word(guest, at) & ~(1 << port % 64) | value << port % 64)


def upcall(guest, vcpu=0):
    """(evtchn_upcall_pending, evtchn_pending_sel)"""
    return guest.shared[vcpu * 64], word(guest, vcpu * 64 + 8)


def drain(guest):
    """The guest takes everything: upcall bytes, selectors, pending bits."""
    for vcpu in range(len(guest.vcpus)):
        guest.shared[vcpu * 64] = 0
        set_word(guest, vcpu * 64 + 8, 0)
    for n in range(64):
        set_word(guest, PENDING + 8 * n, 0)


@pytest.fixture
def a(host, dom0):
    return host.guest(vcpus=3)


@pytest.fixture
def b(host, dom0):
    return host.guest(vcpus=2)


# ---- states and errors ------------------------------------------------------------------------------------------------


def test_a_fresh_domain(a):
    """A guest that boots would see phantom events, lose its first ones, or find port 0 usable."""
    assert bytes(a.shared[PENDING:3072]) == bytes(1024)
    assert [a.shared[n * 64 + 1] for n in range(32)] == [1] * 32
    assert status(a, 0)[0] == CLOSED
    assert err(a, "close", port=0) == err(a, "send", port=0) == -EINVAL
    assert alloc(a, a.id) == 1                          # the lowest free port


def test_alloc_unbound(a, b, dom0):
    """xenstore's and the console's ports (1, 2) are allocated so by the toolstack; a guest names itself as SELF."""
    assert [alloc(dom0, 0, dom=a.id) for _ in range(2)] == [1, 2]
    assert status(a, 1) == (UNBOUND, 0, 0, None)
    port = alloc(a, SELF)
    assert status(a, port) == (UNBOUND, 0, a.id, None)
    assert status(a, alloc(a, b.id, dom=a.id)) == (UNBOUND, 0, b.id, None)
    assert err(a, "alloc_unbound", dom=b.id, remote_dom=a.id) == -EPERM
    assert err(a, "alloc_unbound", dom=999, remote_dom=a.id) == -ESRCH
    assert err(a, "alloc_unbound", dom=0x7FF4, remote_dom=a.id) == -ESRCH
    assert status(a, alloc(a, 999)) == (UNBOUND, 0, 999, None)     # nobody checks the remote domain yet


def test_bind_interdomain(a, b):
    """The handshake of every split driver. The local port is pending at once, or notifications sent before the bind would
    be lost; who may bind is decided by the unbound port."""
    rport = alloc(a, b.id)
    lport = ok(b, "bind_interdomain", remote_dom=a.id, remote_port=rport).local_port
    assert status(b, lport) == (INTERDOMAIN, 0, a.id, rport)
    assert status(a, rport) == (INTERDOMAIN, 0, b.id, lport)
    assert bit(b, PENDING, lport) and upcall(b) == (1, 1)
    assert not bit(a, PENDING, rport) and upcall(a) == (0, 0)

    ports = b.info().nr_ports
    assert err(b, "bind_interdomain", remote_dom=a.id, remote_port=rport) == -EINVAL       # bound already
    assert err(b, "bind_interdomain", remote_dom=a.id, remote_port=alloc(a, 0)) == -EINVAL  # for another domain
    for bad in (0, 63, 64, 4095, 4096, 0xFFFFFFFF):
        assert err(b, "bind_interdomain", remote_dom=a.id, remote_port=bad) == -EINVAL
    assert err(b, "bind_interdomain", remote_dom=77, remote_port=1) == -ESRCH
    assert b.info().nr_ports == ports                   # a failed bind keeps no port


def test_loopback(a):
    """A domain may connect to itself: both ends, one set of locks."""
    rport = alloc(a, SELF)
    lport = ok(a, "bind_interdomain", remote_dom=SELF, remote_port=rport).local_port
    drain(a)
    ok(a, "send", port=lport)
    assert bit(a, PENDING, rport) and not bit(a, PENDING, lport)
    ok(a, "close", port=rport)
    assert status(a, lport) == (UNBOUND, 0, a.id, None)


def test_close_turns_the_peer_to_unbound(a, b):
    """Reconnecting back ends depend on it: the peer waits for the closer, with its vCPU binding kept, and can be bound again."""
    rport, lport = connect(a, b)
    ok(a, "bind_vcpu", port=rport, vcpu=2)
    ok(a, "send", port=rport)
    assert bit(b, PENDING, lport)
    set_bit(b, MASK, lport, 1)
    ok(b, "close", port=lport)
    assert status(b, lport)[0] == CLOSED
    assert not bit(b, PENDING, lport) and bit(b, MASK, lport)      # pending goes, the mask is the guest's
    assert status(a, rport) == (UNBOUND, 2, b.id, None)
    assert ok(b, "bind_interdomain", remote_dom=a.id, remote_port=rport).local_port == lport
    assert bit(b, PENDING, lport) and upcall(b)[1] == 1            # masked: the selector is left from the send alone
    ok(a, "close", port=rport)
    assert status(a, rport)[:2] == (CLOSED, 0)          # its vCPU is forgotten
    assert err(b, "close", port=999) == err(b, "close", port=lport + 1) == -EINVAL


def test_send(a, b):
    """Wrong: errors where guests expect silence (unbound), or silence where a driver must notice."""
    rport, lport = connect(a, b)
    ok(b, "send", port=lport)
    assert bit(a, PENDING, rport) and upcall(a) == (1, 1)
    ok(a, "send", port=alloc(a, b.id))                  # unbound: dropped
    ipi = ok(a, "bind_ipi", vcpu=1).port
    ok(a, "send", port=ipi)
    assert upcall(a, 1) == (1, 1)
    virq = ok(a, "bind_virq", virq=lib.VIRQ_DEBUG, vcpu=0).port
    for bad in (virq, 0, 60, 64, 1000, 4096, 0xFFFFFFFF):
        assert err(a, "send", port=bad) == -EINVAL, bad


def test_virqs(a, dom0):
    """Timers arrive by per-vCPU VIRQs; a global one has a single slot, on vCPU 0, but may be moved."""
    assert err(a, "bind_virq", virq=24, vcpu=0) == -EINVAL
    assert err(a, "bind_virq", virq=lib.VIRQ_DOM_EXC, vcpu=1) == -EINVAL
    assert err(a, "bind_virq", virq=lib.VIRQ_TIMER, vcpu=3) == -ENOENT
    timer = [ok(a, "bind_virq", virq=lib.VIRQ_TIMER, vcpu=n).port for n in range(3)]
    assert err(a, "bind_virq", virq=lib.VIRQ_TIMER, vcpu=1) == -EEXIST
    assert status(a, timer[2]) == (VIRQ, 2, None, lib.VIRQ_TIMER)

    lib.xl_send_virq(a.host.ptr, a.id, 2, lib.VIRQ_TIMER)
    assert bit(a, PENDING, timer[2]) and not bit(a, PENDING, timer[0]) and upcall(a, 2) == (1, 1)
    lib.xl_send_virq(a.host.ptr, a.id, 1, lib.VIRQ_DEBUG)          # nobody bound it: lost
    ok(a, "close", port=timer[2])
    drain(a)
    lib.xl_send_virq(a.host.ptr, a.id, 2, lib.VIRQ_TIMER)
    assert word(a, PENDING) == 0
    assert ok(a, "bind_virq", virq=lib.VIRQ_TIMER, vcpu=2).port == timer[2]       # the slot is free again

    port = ok(a, "bind_virq", virq=lib.VIRQ_ARGO, vcpu=0).port
    ok(a, "bind_vcpu", port=port, vcpu=1)
    lib.xl_send_virq(a.host.ptr, a.id, 0, lib.VIRQ_ARGO)
    assert upcall(a, 1) == (1, 1) and upcall(a, 0) == (0, 0)
    ok(a, "close", port=port)                           # must clear the slot of vCPU 0, not of the vCPU it was moved to
    assert err(a, "bind_virq", virq=lib.VIRQ_ARGO, vcpu=0) == 0


def test_global_virq_goes_to_domain_0(a, dom0):
    """xenstored learns of dead domains by VIRQ_DOM_EXC; a guest that bound it must not be woken instead."""
    ports = [ok(d, "bind_virq", virq=lib.VIRQ_DOM_EXC, vcpu=0).port for d in (dom0, a)]
    lib.xl_domain_shutdown(a.host.ptr, a.id, 0)
    assert bit(dom0, PENDING, ports[0]) and not bit(a, PENDING, ports[1])


def test_bind_vcpu(a, b):
    """Interrupt balancing moves ports; what is bound to a vCPU by nature may not move, and a move delivers nothing."""
    rport, _ = connect(a, b)
    ok(a, "bind_vcpu", port=rport, vcpu=1)
    assert status(a, rport)[1] == 1
    set_bit(a, PENDING, rport, 1)
    ok(a, "bind_vcpu", port=rport, vcpu=2)
    assert upcall(a, 2) == (0, 0)
    assert err(a, "bind_vcpu", port=rport, vcpu=3) == -ENOENT
    fixed = [ok(a, "bind_ipi", vcpu=0).port, ok(a, "bind_virq", virq=0, vcpu=0).port, 0, 50, 5000]
    assert [err(a, "bind_vcpu", port=p, vcpu=1) for p in fixed] == [-EINVAL] * 5
    assert err(a, "bind_ipi", vcpu=3) == -ENOENT


def test_bind_pirq_is_refused(a, dom0):
    """No device is passed through: asking must fail as on Xen, not hand out an interrupt."""
    assert err(a, "bind_pirq", pirq=5) == err(dom0, "bind_pirq", pirq=255) == -EPERM
    assert err(a, "bind_pirq", pirq=256) == err(a, "bind_pirq", pirq=0xFFFFFFFF) == -EINVAL


def test_status_of_others(a, b, dom0):
    """Only a privileged domain may look at another's ports."""
    rport, lport = connect(a, b)
    assert status(dom0, rport, dom=a.id) == (INTERDOMAIN, 0, b.id, lport)
    assert err(b, "status", dom=a.id, port=rport) == -EPERM
    assert err(b, "status", dom=a.id, port=70000) == -EINVAL       # Xen looks at the port first
    assert err(b, "status", dom=555, port=1) == -ESRCH
    assert status(a, ok(a, "bind_ipi", vcpu=2).port) == (IPI, 2, None, None)


def test_fifo_is_not_offered(a):
    """Linux and Mini-OS fall back to 2 levels when init_control fails."""
    port = alloc(a, a.id)
    assert [err(a, "init_control", vcpu=0), err(a, "expand_array", array_gfn=1)] == [-ENOSYS, -ENOSYS]
    assert [err(a, "set_priority", port=p, priority=1) for p in (port, 9999)] == [-ENOSYS, -EINVAL]
    assert a.call(EVENT_CHANNEL_OP, 14, BASE) == a.call(EVENT_CHANNEL_OP, 0xFFFFFFFF, BASE) == -ENOSYS


def test_bad_pointers(a):
    """-EFAULT for an argument that cannot be read; one that cannot be written back keeps its effect, as on Xen."""
    assert [a.call(EVENT_CHANNEL_OP, n, UNMAPPED) for n in range(14)] == [-EFAULT] * 14
    assert a.call(EVENT_CHANNEL_OP, 6, 0xFFFF800000000000) == a.call(EVENT_CHANNEL_OP, 6, 0xDEAD00000000BEEF) == -EFAULT
    ports = a.info().nr_ports
    a.write(a.va(3), struct.pack("<HHI", SELF, a.id, 0))
    assert a.call(UPDATE_VA_MAPPING, a.va(3), a.mfns[3] << 12 | 1, 2) == 0         # read-only from now on
    assert a.call(EVENT_CHANNEL_OP, 6, a.va(3)) == -EFAULT
    assert a.info().nr_ports == ports + 1


def test_compat_form(a):
    """Old guests put the command into the structure."""
    a.write(BASE, struct.pack("<IHHI", 6, SELF, a.id, 0) + bytes(32))
    assert a.call(EVENT_CHANNEL_OP_COMPAT, BASE) == 0
    assert struct.unpack("<IHHI", a.read(BASE, 12))[3] == 1
    a.write(BASE, struct.pack("<I", 10) + bytes(32))
    assert a.call(EVENT_CHANNEL_OP_COMPAT, BASE) == -ENOSYS                  # reset is newer than this form
    assert a.call(EVENT_CHANNEL_OP_COMPAT, UNMAPPED) == -EFAULT


def test_limits(host, dom0):
    """xsa-317 allocates until the limit: it must be -ENOSPC, at the port asked for, and every port usable."""
    guest = host.guest(max_evtchn_port=130)
    assert [alloc(guest, SELF) for _ in range(130)] == list(range(1, 131))
    assert err(guest, "alloc_unbound", dom=SELF, remote_dom=SELF) == -ENOSPC
    assert err(guest, "bind_ipi", vcpu=0) == err(guest, "bind_virq", virq=0, vcpu=0) == -ENOSPC
    ok(guest, "close", port=77)
    assert alloc(guest, SELF) == 77
    big = host.guest(max_evtchn_port=1 << 31)
    for _ in range(4095):
        alloc(big, SELF)
    assert err(big, "alloc_unbound", dom=SELF, remote_dom=SELF) == -ENOSPC         # the 2-level limit
    assert status(big, 4095)[0] == UNBOUND


def test_reset(a, b, dom0):
    """kexec and unikernels start over with it: every port closed, peers told, another's only with privilege and paused."""
    rport, lport = connect(a, b)
    ok(a, "bind_virq", virq=0, vcpu=1)
    ok(a, "bind_ipi", vcpu=1)
    assert err(b, "reset", dom=a.id) == -EPERM
    assert err(b, "reset", dom=300) == -ESRCH
    ok(a, "reset", dom=SELF)
    assert a.info().nr_ports == 1
    assert status(b, lport) == (UNBOUND, 0, a.id, None)
    assert ok(a, "bind_virq", virq=0, vcpu=1).port == 1
    ok(dom0, "reset", dom=a.id)                         # it is paused
    assert a.info().nr_ports == 1
    lib.xl_domain_unpause(a.host.ptr, a.id)
    assert err(dom0, "reset", dom=a.id) == -EINVAL


# ---- delivery -----------------------------------------------------------------------------------------------------------


def test_two_level_delivery(a, b):
    """The exact bits: pending always; selector and upcall byte only on the first unmasked edge, of the bound vCPU."""
    for _ in range(70):
        rport = alloc(a, b.id)
    lport = ok(b, "bind_interdomain", remote_dom=a.id, remote_port=rport).local_port
    assert rport == 70
    ok(a, "bind_vcpu", port=rport, vcpu=1)
    ok(b, "send", port=lport)
    assert word(a, PENDING + 8) == 1 << 6 and upcall(a, 1) == (1, 2) and upcall(a, 0) == (0, 0)

    set_word(a, 64 + 8, 0)
    a.shared[64] = 0
    ok(b, "send", port=lport)                           # still pending: no second edge
    assert upcall(a, 1) == (0, 0)
    set_bit(a, PENDING, rport, 0)
    set_word(a, 64 + 8, 2)
    ok(b, "send", port=lport)                           # the selector is set already: no upcall mark
    assert upcall(a, 1) == (0, 2) and bit(a, PENDING, rport)


def test_mask_and_unmask(a, b):
    """A masked event is kept and raised by unmask: otherwise every handler that masks loses interrupts."""
    rport, lport = connect(a, b)
    set_bit(a, MASK, rport, 1)
    ok(b, "send", port=lport)
    assert bit(a, PENDING, rport) and upcall(a) == (0, 0)
    ok(a, "unmask", port=rport)
    assert not bit(a, MASK, rport) and upcall(a) == (1, 1)
    drain(a)
    set_bit(a, PENDING, rport, 1)
    ok(a, "unmask", port=rport)                         # was not masked: not an edge
    assert upcall(a) == (0, 0)
    set_bit(a, PENDING, rport, 0)
    set_bit(a, MASK, rport, 1)
    ok(a, "unmask", port=rport)                         # nothing pending
    assert upcall(a) == (0, 0)
    set_bit(a, MASK, 40, 1)
    assert err(a, "unmask", port=40) == 0 and bit(a, MASK, 40)      # a free port: accepted, untouched
    assert err(a, "unmask", port=64) == err(a, "unmask", port=1 << 20) == -EINVAL


def test_registered_vcpu_info(a, b):
    """After the move events go to the new area, and nothing set before may be lost: everything counts as pending."""
    rport, lport = connect(a, b)
    a.put("struct vcpu_register_vcpu_info", mfn=a.mfns[5], offset=128)
    assert a.call(VCPU_OP, 10, 0, BASE) == 0
    area = a.va(5) + 128
    assert a.read(area, 1) == b"\1" and struct.unpack("<Q", a.read(area + 8, 8))[0] == ALL
    a.write(area, b"\0")
    a.write(area + 8, bytes(8))
    ok(b, "send", port=lport)
    assert a.read(area, 1) == b"\1" and struct.unpack("<Q", a.read(area + 8, 8))[0] == 1
    assert upcall(a)[1] == 0                            # the old area is left alone


def test_vcpu_without_an_area(host, dom0):
    """vCPUs from 32 on have no place in shared_info: events for them must not land in evtchn_pending, which lies there."""
    guest = host.guest(vcpus=34)
    port = ok(guest, "bind_ipi", vcpu=33).port
    before = bytearray(guest.shared[:])
    ok(guest, "send", port=port)
    before[PENDING] |= 1 << port
    assert bytes(guest.shared[:]) == bytes(before)
    assert upcall(guest) == (0, 0)


# ---- poll ---------------------------------------------------------------------------------------------------------------


def poll(guest, ports, *, timeout=0, vcpu=0):
    guest.write(guest.va(1), struct.pack(f"<{len(ports)}I", *ports))
    guest.write(BASE, struct.pack("<QIIQ", guest.va(1), len(ports), 0, timeout))
    return guest.call(SCHED_OP, 3, BASE, vcpu=vcpu)


def test_poll_returns_at_once(a, b):
    """A poller that sleeps on an event that is there already hangs. The port's mask plays no part."""
    rport, lport = connect(a, b)
    set_bit(a, MASK, rport, 1)
    ok(b, "send", port=lport)
    assert poll(a, [rport]) == 0 and not a.blocked()
    assert poll(a, [0]) == poll(a, [60]) == poll(a, [9999]) == -EINVAL and not a.blocked()


def test_poll_wakes(a, b):
    """nr 1: only that port; otherwise any port of the domain. Masked events wake too; only the first edge does."""
    one, one_peer = connect(a, b)
    two, two_peer = connect(a, b)
    for port in (one, two):
        set_bit(a, MASK, port, 1)
    assert poll(a, [one]) == 0 and a.blocked()
    ok(b, "send", port=two_peer)
    assert a.blocked()
    ok(b, "send", port=one_peer)
    assert not a.blocked()

    drain(a)
    assert poll(a, [one, two], vcpu=1) == 0 and a.blocked(1)
    other, other_peer = connect(a, b)
    set_bit(a, MASK, other, 1)
    ok(b, "send", port=other_peer)
    assert not a.blocked(1)


def test_two_pollers(a, b):
    """Each vCPU's wait is its own: waking one must not forget the other."""
    one, one_peer = connect(a, b)
    two, two_peer = connect(a, b)
    for port in (one, two):
        set_bit(a, MASK, port, 1)
    assert poll(a, [one]) == poll(a, [two], vcpu=2) == 0
    ok(b, "send", port=two_peer)
    assert a.blocked(0) and not a.blocked(2)
    ok(b, "send", port=one_peer)
    assert not a.blocked(0)


def test_block_and_wake(a, b):
    """SCHEDOP_block sleeps until an unmasked event, and not at all when one is waiting."""
    rport, lport = connect(a, b)
    a.call(SCHED_OP, 1, 0)
    assert a.blocked() and a.shared[1] == 0
    ok(b, "send", port=lport)
    assert not a.blocked()
    a.call(SCHED_OP, 1, 0)
    assert not a.blocked()


# ---- death --------------------------------------------------------------------------------------------------------------


def test_death_closes_every_port(host, dom0, a):
    """Peers must find their port unbound, not connected to a freed domain; and nothing may be left of the dead one."""
    before = host.usage()
    victim = host.guest(vcpus=2)
    rport, lport = connect(a, victim)
    own = alloc(victim, a.id)
    bound = ok(a, "bind_interdomain", remote_dom=victim.id, remote_port=own).local_port
    ok(victim, "bind_virq", virq=0, vcpu=1)
    connect(victim, victim)
    drain(a)
    victim.destroy()
    assert status(a, rport) == status(a, bound) == (UNBOUND, 0, victim.id, None)
    assert upcall(a) == (0, 0)                      # nobody is notified: xenstore tells
    ok(a, "send", port=rport)
    assert err(a, "bind_interdomain", remote_dom=victim.id, remote_port=own) == -ESRCH
    assert host.usage() == before


def test_counters(a, b):
    """`xl top` and benches would lie."""
    rport, lport = connect(a, b)
    before = [d.info().stats[n] for d, n in ((b, lib.STAT_events_sent), (a, lib.STAT_events_received))]
    for _ in range(3):
        ok(b, "send", port=lport)                       # sent three times, received once: it stays pending
    after = [d.info().stats[n] for d, n in ((b, lib.STAT_events_sent), (a, lib.STAT_events_received))]
    assert [y - x for x, y in zip(before, after)] == [3, 1]
