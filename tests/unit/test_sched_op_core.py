"""Commands of sched_op on the real core: poll with its ports and timeouts, shutdown in all forms; and sched_op_compat."""
# covers: hypercall sched_op_compat, sched_op/pin_override, sched_op/poll, sched_op/remote_shutdown
# covers: sched_op/shutdown, sched_op/shutdown_code, sched_op/watchdog

from __future__ import annotations

import struct

import pytest
import sched_kit
from core_guests import BASE, PAGE
from sched_kit import ARG, HOG, records
from script_guests import (
    EVENT_CHANNEL_OP, MASK, MS, PIN_OVERRIDE, POLL, REMOTE_SHUTDOWN, RUNNING, SCHED_OP, SHUTDOWN, SHUTDOWN_CODE, US, YIELD, ScriptHost,
    Stalled, ack, block, call, compute, end, jump, loop, now, poll, reg, send, setreg, trace,
)

from xenlike.engine import lib

EPERM, ESRCH, EFAULT, EINVAL, ENOSYS = 1, 3, 14, 22, 38
SCHED_OP_COMPAT, MULTICALL = 6, 13
UNMAPPED = BASE + 500 * PAGE
host = sched_kit.host


# ---- poll -------------------------------------------------------------------------------------------------------------


def poll_call(guest, ports, timeout=0, *, nr=None, at=None):
    """SCHEDOP_poll by the toolstack's hand, on a paused domain: its return value; blocked() says whether it waits."""
    guest.write(BASE + 256, struct.pack(f"<{len(ports)}I", *ports))
    guest.put("struct sched_poll", ports=BASE + 256 if at is None else at, nr_ports=len(ports) if nr is None else nr,
              timeout=timeout)
    return guest.call(SCHED_OP, POLL, BASE)


def unblock(guest):
    """An unmasked event ends whatever the vCPU waits for."""
    struct.pack_into("<B", guest.shared, 1, 0)
    port = guest.bind_ipi(0)
    guest.put("struct evtchn_send", port=port)
    guest.call(EVENT_CHANNEL_OP, 4, BASE)
    assert not guest.blocked()
    guest.drain()


def test_poll_refuses_what_it_must(host):
    """Section 8.1: wrong counts, pointers and ports; and a refused poll must not leave the vCPU asleep."""
    guest = host.script([end()])
    port = guest.bind_ipi(0)
    assert guest.call(SCHED_OP, POLL, UNMAPPED) == -EFAULT
    assert poll_call(guest, [port], nr=129) == -EINVAL
    assert poll_call(guest, [port], at=UNMAPPED) == -EFAULT
    for bad in (0, port + 1, 5000, 2**32 - 1):
        assert poll_call(guest, [bad]) == -EINVAL, bad
        assert poll_call(guest, [port, bad]) == -EINVAL, bad
    assert not guest.blocked()


def test_poll_returns_at_once_for_what_is_there(host):
    """A pending port counts even if it is masked; a deliverable upcall goes before everything, bad ports too."""
    guest = host.script([end()])
    port, other = guest.bind_ipi(0), guest.bind_ipi(0)
    struct.pack_into("<B", guest.shared, 1, 1)
    struct.pack_into("<Q", guest.shared, MASK, 1 << port)
    guest.put("struct evtchn_send", port=port)
    guest.call(EVENT_CHANNEL_OP, 4, BASE)
    assert poll_call(guest, [port]) == 0 and not guest.blocked()
    assert poll_call(guest, [other, port]) == 0 and not guest.blocked()
    assert poll_call(guest, [other]) == 0 and guest.blocked()
    assert guest.shared[1] in (1, b"\1"), "poll leaves the upcall mask alone"
    unblock(guest)
    struct.pack_into("<B", guest.shared, 0, 1)          # an upcall is pending and not masked
    assert poll_call(guest, [5000]) == 0 and not guest.blocked()


def test_poll_for_one_port_sleeps_through_others(host):
    """With one port listed only that port wakes, masked or not; with several, or none, every event does."""
    guest = host.script([end()])
    port, other = guest.bind_ipi(0), guest.bind_ipi(0)

    def raise_(n):
        guest.put("struct evtchn_send", port=n)
        assert guest.call(EVENT_CHANNEL_OP, 4, BASE) == 0

    for masked in (0, 1):
        struct.pack_into("<Q", guest.shared, MASK, masked << port | masked << other)
        struct.pack_into("<B", guest.shared, 1, 1)
        guest.drain()
        assert poll_call(guest, [port]) == 0 and guest.blocked()
        raise_(other)
        assert guest.blocked()
        raise_(port)
        assert not guest.blocked()
        guest.drain()
        for listed in ([port, port], []):
            assert poll_call(guest, listed) == 0 and guest.blocked()
            raise_(other)
            assert not guest.blocked(), listed
            guest.drain()


def test_poll_times_out_when_it_said(host):
    """Boot loaders use poll as their sleep: absolute system time, also a past one, and 0 for ever."""
    guest = host.script([end()])
    port = guest.bind_ipi(0)
    guest.load([now(5 * MS, r=1), poll(port, reg(1), ARG, r=2), now(r=3), poll(port, 1, ARG, r=4), now(r=5), end()])
    assert host.finish(guest) == [0]
    due, rc, ran, rc_past, ran_past = guest.regs()[1:6]
    assert (rc, rc_past) == (0, 0)
    assert 0 <= ran - due <= 1 * US
    assert ran_past - ran <= 2 * US


def test_an_old_polls_timer_does_not_end_the_next_poll(host):
    """A first poll is woken early; its timeout must not cut the second one short."""
    guest = host.script([end()], [end()])
    port = guest.bind_ipi(0)
    guest.load([now(10 * MS, r=1), poll(port, reg(1), ARG, r=2), now(r=3), ack(r=4),
                now(40 * MS, r=5), poll(port, reg(5), ARG, r=2), now(r=6), end()])
    guest.load([compute(2 * MS), send(guest.port_at(port)), end()], vcpu=1)
    assert host.finish(guest) == [0]
    first_due, _, first_ran, events, second_due, second_ran = guest.regs()[1:7]
    assert first_ran < first_due and events == 1
    assert 0 <= second_ran - second_due <= 1 * US


def test_a_polls_timer_goes_with_the_poll(host):
    """Left behind, it would keep an idle host from noticing that nothing can happen any more."""
    guest = host.script([end()], [end()])
    port = guest.bind_ipi(0)
    guest.load([now(1000 * MS, r=1), poll(port, reg(1), ARG, r=2), ack(r=4), block(), end()])
    guest.load([compute(2 * MS), send(guest.port_at(port)), block(), end()], vcpu=1)
    guest.unpause()
    with pytest.raises(Stalled):
        host.run()
    assert guest.regs()[4] == 1 and host.now() < 100 * MS


def test_poll_without_timeout_after_one_with(host):
    """The same where the second poll has no timeout at all: it waits for its event however long that takes."""
    guest = host.script([end()], [end()])
    port = guest.bind_ipi(0)
    guest.load([now(10 * MS, r=1), poll(port, reg(1), ARG, r=2), ack(r=4), poll(port, 0, ARG, r=2), now(r=6), ack(r=4), end()])
    guest.load([compute(2 * MS), send(guest.port_at(port)), compute(80 * MS), send(guest.port_at(port)), end()], vcpu=1)
    start = host.now()
    assert host.finish(guest) == [0]
    assert guest.regs()[4] == 2 and guest.regs()[6] - start > 80 * MS


def test_two_polls_in_one_multicall(host):
    """A poll's wait begins when the hypercall returns, so a multicall may ask for several; the last one counts, and timers
    of the earlier ones do not disturb the order of all others."""
    guest = host.script([end()])
    port = guest.bind_ipi(0)
    guest.write(ARG + 256, struct.pack("<I", port))
    for n, timeout in enumerate((3 * MS, 0, 0)):
        guest.write(ARG + 32 * n, struct.pack("<QIIQ", ARG + 256, 1, 0, timeout))
        guest.write(ARG + 512 + 64 * n, struct.pack("<8Q", SCHED_OP, 99, POLL, ARG + 32 * n, 0, 0, 0, 0))
    guest.load([call(MULTICALL, ARG + 512, 3, r=1), now(r=2), end()])
    guest.unpause()
    with pytest.raises(Stalled):
        host.run()
    assert [struct.unpack("<Q", guest.read(ARG + 520 + 64 * n, 8))[0] for n in range(3)] == [0, 0, 0]
    assert guest.blocked() and guest.regs()[2] == 0


# ---- shutdown ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason, told", [(0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (0x105, 5)])
def test_shutdown_tells_the_reason(host, reason, told):
    """The toolstack restarts, saves or buries a domain by this number; only its low byte counts."""
    guest = host.script([call(SCHED_OP, SHUTDOWN, ARG), trace(9, 9), jump(1)])
    guest.write(ARG, struct.pack("<I", reason))
    assert host.finish(guest) == [told]
    assert guest.info().state == lib.DOM_shutdown and guest.info().shutdown_code == told
    assert not [r for r in records(host, lib.TRACE_MARK) if r[3] == 9], "it ran on after its shutdown"


def test_shutdown_stops_the_other_vcpus():
    """Real threads: a vCPU elsewhere that goes on after the domain has ended would write into a saved image."""
    with ScriptHost(virtual=False, pcpus=2) as host:
        guest = host.script([compute(200 * US), call(SCHED_OP, SHUTDOWN, ARG), jump(1)], HOG)
        guest.write(ARG, struct.pack("<I", 1))
        assert host.finish(guest) == [1]
        host.run(lambda: guest.runstate(1)[0] != RUNNING)
        steps = guest.steps_run(1)
        other = host.script([setreg(50, r=1), compute(20 * US), loop(1, r=1), end()])
        host.finish(other)
        assert guest.steps_run(1) == steps


def test_old_shutdown_takes_its_reason_by_value(host):
    """sched_op_compat, which old kernels call: 2 is not a pointer there."""
    guest = host.script([call(SCHED_OP_COMPAT, SHUTDOWN, 1), end()])
    assert host.finish(guest) == [1]
    other = host.script([call(SCHED_OP_COMPAT, YIELD, 0, r=1), call(SCHED_OP_COMPAT, 3, 0, r=2), end()])
    host.finish(other)
    assert other.regs()[1:3] == [0, -ENOSYS]


def test_shutdown_code_is_kept_for_later(host):
    """A crashing kernel announces its reason first; the first announcement stays, and announcing stops nothing."""
    guest = host.script([call(SCHED_OP, SHUTDOWN_CODE, ARG, r=1), call(SCHED_OP, SHUTDOWN_CODE, ARG + 4, r=2), end()])
    guest.write(ARG, struct.pack("<II", 3, 1))
    assert host.finish(guest) == [3]
    assert guest.regs()[1:3] == [0, 0]


def test_remote_shutdown_is_for_the_control_domain(host):
    """Any guest could switch off any other."""
    dom0 = host.script([end()], privileged=True, domid=0)
    victim, rogue = host.script(HOG), host.script([end()])
    victim.unpause()
    for guest, target, rc in ((rogue, victim.id, -EPERM), (rogue, rogue.id, -EPERM), (rogue, 4711, -ESRCH),
                              (dom0, 4711, -ESRCH), (dom0, 0x7FF0, -ESRCH), (dom0, victim.id, 0)):
        guest.put("struct sched_remote_shutdown", domain_id=target, reason=1)
        assert guest.call(SCHED_OP, REMOTE_SHUTDOWN, BASE) == rc, (guest.id, target)
    host.run(lambda: host.shutdowns)
    assert host.shutdowns == [(victim.id, 1)]


def test_other_commands(host):
    """Kernels probe by error number."""
    guest = host.script([end()])
    assert guest.call(SCHED_OP, PIN_OVERRIDE, BASE) == -EPERM
    assert guest.call(SCHED_OP, 8, BASE) == -ENOSYS
    assert guest.call(SCHED_OP, 2**31 - 1, BASE) == -ENOSYS
    for command in (SHUTDOWN, POLL, REMOTE_SHUTDOWN, SHUTDOWN_CODE, 6):
        assert guest.call(SCHED_OP, command, UNMAPPED) == -EFAULT, command
