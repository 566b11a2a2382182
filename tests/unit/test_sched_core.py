"""The scheduler of the real core, driven by scripts: sharing, blocking and waking, yielding, polling, shutting down.

With the virtual clock the numbers are exact; with the real clock only what happened is judged, never how long it took.
"""
# covers: hypercall sched_op_compat, sched_op/block, sched_op/pin_override, sched_op/poll, sched_op/remote_shutdown
# covers: sched_op/shutdown, sched_op/shutdown_code, sched_op/watchdog, sched_op/yield

from __future__ import annotations

import random
import struct

import pytest

from core_guests import BASE, PAGE
from script_guests import (
    BLOCK, BLOCKED, CONSOLE_IO, EVENT_CHANNEL_OP, EVENTS, MASK, MS, OFFLINE, PIN_OVERRIDE, POLL, REMOTE_SHUTDOWN, RUNNABLE,
    RUNNING, SCHED_OP, SET_TIMER_OP, SHUTDOWN, SHUTDOWN_CODE, US, YIELD, ScriptHost, Stalled, ack, add, block, call, compute, end,
    jump, jump_if, loop, now, poll, reg, send, setreg, store, trace, wait, yield_,
)
from xenlike.engine import ffi, lib

EPERM, ESRCH, EFAULT, EINVAL, ENOSYS = 1, 3, 14, 22, 38
SCHED_OP_COMPAT, MULTICALL = 6, 13
UNMAPPED = BASE + 500 * PAGE
HOG = [compute(20 * US), jump(0)]
ARG = EVENTS + PAGE                     # where programs keep other structures


@pytest.fixture
def host():
    with ScriptHost() as h:
        yield h


def records(host, kind, n=8000):
    """Trace records of a kind: (time, domid, vcpu, a, b)."""
    out = ffi.new("struct trace_record[]", n)
    count = lib.xl_trace_read(host.ptr, out, n)
    return [(t.time, t.domid, t.vcpu, t.a, t.b) for t in out[0:count] if t.kind == kind]


# ---- sharing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [(256, 256), (256, 512), (100, 200, 700), (1, 1), (64, 1024)])
def test_cpu_is_shared_by_weight(host, weights):
    """Weights would be decoration, or a light domain would starve."""
    guests = [host.script(HOG, weight=w) for w in weights]
    for guest in guests:
        guest.unpause()
    start = host.now()
    host.run(ns=4000 * MS)
    elapsed = host.now() - start
    shares = [guest.cpu_ns() / elapsed for guest in guests]
    assert sum(shares) == pytest.approx(1, abs=0.01)
    # Debts below -10 ms are forgotten, as in Xen, and a slice is at least 1 ms: in favour of the very light.
    tolerance = 0.1 if max(weights) > 8 * min(weights) else 0.03
    assert shares == pytest.approx([w / sum(weights) for w in weights], rel=tolerance)


def test_weight_counts_against_a_busy_neighbour_only(host):
    """The policy conserves work: without a rival even weight 1 gets the whole pCPU."""
    guest = host.script(HOG, weight=1)
    guest.unpause()
    start = host.now()
    host.run(ns=100 * MS)
    assert guest.cpu_ns() >= (host.now() - start) * 9 // 10


def test_the_run_under_way_counts(host):
    """A domain that has just ended would seem not to have run: its last run is charged only when the pCPU turns to something else."""
    guest = host.script([compute(3 * MS), end()])
    assert host.finish(guest) == [0]
    assert guest.cpu_ns() >= 3 * MS


def test_sleeping_does_not_save_up_credit(host):
    """A guest that slept an hour would otherwise own the pCPU for the next one."""
    sleeper = host.script([now(1000 * MS, r=2), call(SET_TIMER_OP, reg(2)), wait(1), compute(20 * US), jump(3)])
    sleeper.bind_virq(0)
    hog = host.script(HOG)
    sleeper.unpause()
    hog.unpause()
    host.run(ns=1000 * MS)
    slept, worked = sleeper.cpu_ns(), hog.cpu_ns()
    assert slept < MS
    host.run(ns=400 * MS)
    assert sleeper.cpu_ns() - slept == pytest.approx(hog.cpu_ns() - worked, rel=0.15)


def test_slices_stay_within_their_bounds(host):
    """Shorter slices would thrash, longer ones freeze the others."""
    guests = [host.script(HOG, weight=w) for w in (256, 300, 1000)]
    for guest in guests:
        guest.unpause()
    host.run(ns=300 * MS)
    slices = [a for _, _, _, a, _ in records(host, lib.TRACE_RUN)]
    assert len(slices) > 50
    assert min(slices) >= 500 * US and max(slices) <= 10 * MS


def test_a_woken_vcpu_preempts_a_hog_after_the_rate_limit(host):
    """An interactive guest would wait for the whole slice of its busy neighbour; or the neighbour would be interrupted at
    every event."""
    rounds, table = 40, BASE + 4 * PAGE
    hog = host.script(HOG)
    waiter = host.script([
        setreg(rounds, r=1), setreg(table, r=4), setreg(table + 8, r=5),
        now(7 * MS, r=2), call(SET_TIMER_OP, reg(2)), wait(1), now(r=3),        # step 3: due at r2, ran at r3
        store(reg(4), reg(2)), store(reg(5), reg(3)), add(16, r=4), add(16, r=5), loop(3, r=1), end(),
    ])
    waiter.bind_virq(0)
    hog.unpause()
    host.finish(waiter)
    rows = struct.unpack(f"<{2 * rounds}Q", waiter.read(table, 16 * rounds))
    late = [ran - due for due, ran in zip(rows[::2], rows[1::2])]
    assert min(late) >= 0
    assert max(late) <= 1 * MS + 100 * US
    runs = records(host, lib.TRACE_RUN)
    ran = [b[0] - a[0] for a, b in zip(runs, runs[1:]) if a[1] == hog.id and b[1] == waiter.id]
    assert ran and min(ran) >= 1 * MS


def test_equals_take_turns_fairly_on_two_pcpus():
    """Real clock, three hogs on two threads: if the common queue were not fair, one of them would make no progress."""
    program = [setreg(300, r=1), compute(50 * US), loop(1, r=1), end()]
    with ScriptHost(virtual=False, pcpus=2) as host:
        guests = [host.script(program) for _ in range(3)]
        assert host.finish(*guests) == [0, 0, 0]
        assert all(guest.cpu_ns() > 0 for guest in guests)


# ---- run states -------------------------------------------------------------------------------------------------------


def test_runstate_times_add_up(host):
    """Guests compute steal time from these; a lost or doubled interval makes their clocks and load figures drift."""
    born = host.now()
    program = [compute(3 * MS), now(2 * MS, r=2), call(SET_TIMER_OP, reg(2)), wait(1), yield_(), jump(0)]
    guests = [host.script(program) for _ in range(3)]
    for guest in guests:
        guest.bind_virq(0)
    lib.xl_advance(host.ptr, 5 * MS)
    for guest in guests:
        guest.unpause()
    host.run(ns=333 * MS)
    for guest in guests:
        guest.pause()
    lib.xl_advance(host.ptr, 11 * MS)
    for guest in guests:
        state, entry, times = guest.runstate()
        assert abs(sum(times) - (host.now() - born)) <= 1 * US      # the reads themselves cost virtual time
        assert times[RUNNING] == guest.cpu_ns()
        assert times[OFFLINE] >= 5 * MS and times[RUNNABLE] > 0 and times[BLOCKED] > 0
        assert state in (OFFLINE, BLOCKED)                          # blocked before paused stays blocked
        assert entry <= host.now()


def test_states_as_seen_from_outside(host):
    """What `xl list` shows: r, b, p would be wrong."""
    hog, sleeper, paused = host.script(HOG), host.script([block(), end()]), host.script(HOG)
    hog.unpause()
    sleeper.unpause()
    host.run(ns=5 * MS)
    assert hog.runstate()[0] in (RUNNING, RUNNABLE)
    assert sleeper.runstate()[0] == BLOCKED
    assert paused.runstate()[0] == OFFLINE
    hog.pause()
    assert hog.runstate()[0] == OFFLINE


# ---- yield ------------------------------------------------------------------------------------------------------------


def test_yield_lets_the_others_run(host):
    """GRUB and test kernels spin on yield until another domain has answered: without a switch they spin for ever."""
    program = [setreg(50, r=1), trace(1, 2), yield_(), loop(1, r=1), end()]
    a, b, c = (host.script(program) for _ in range(3))
    host.finish(a, b, c)
    order = [domid for _, domid, _, mark_a, _ in records(host, lib.TRACE_MARK) if mark_a == 1]
    assert order == [a.id, b.id, c.id] * 50


def test_yield_gives_way_to_a_vcpu_with_less_credit(host):
    """A spinner that has just woken outranks the one it waits for; its yields must count more than its credit, or it spins
    a slice away for every answer."""
    hog = host.script([compute(20 * US), add(1, r=2), jump(0)])
    hog.unpause()
    host.run(ns=8 * MS)                 # has little credit left now
    spinner = host.script([setreg(5, r=1), yield_(), loop(1, r=1), end()])
    before = hog.regs()[2]
    assert host.finish(spinner) == [0]
    assert hog.regs()[2] - before >= 5 * 25, "the hog got less than half a millisecond for each yield"


def test_yield_alone_comes_back(host):
    """With nobody to yield to, the caller goes on."""
    guest = host.script([setreg(100, r=1), yield_(), loop(1, r=1), end()])
    assert host.finish(guest) == [0]
    assert guest.stats()["switches"] >= 100


def test_who_yields_is_not_starved(host):
    """A polite vCPU among hogs still gets its share in the long run."""
    hogs = [host.script(HOG) for _ in range(2)]
    polite = host.script([compute(20 * US), yield_(), jump(0)])
    for guest in (*hogs, polite):
        guest.unpause()
    host.run(ns=500 * MS)
    assert polite.steps_run() > 100


# ---- block and wake ---------------------------------------------------------------------------------------------------


def test_block_unmasks_and_returns_at_once_for_a_pending_event(host):
    """A guest tests for events with upcalls masked and then blocks: an event in between would be slept through."""
    guest = host.script([block(), end()])
    port = guest.bind_ipi(0)
    guest.shared[1] = b"\1"
    guest.put("struct evtchn_send", port=port)
    assert guest.call(EVENT_CHANNEL_OP, 4, BASE) == 0
    assert guest.call(SCHED_OP, BLOCK, 0) == 0
    assert guest.shared[1] in (0, b"\0") and not guest.blocked()
    guest.drain()
    assert guest.call(SCHED_OP, BLOCK, 0) == 0 and guest.blocked()
    guest.put("struct evtchn_send", port=port)
    assert guest.call(EVENT_CHANNEL_OP, 4, BASE) == 0
    assert not guest.blocked()


def test_a_masked_port_does_not_wake_a_blocked_vcpu(host):
    """Masking a port means that its events wait."""
    guest = host.script([end()])
    port = guest.bind_ipi(0)
    struct.pack_into("<Q", guest.shared, MASK, 1 << port)
    guest.call(SCHED_OP, BLOCK, 0)
    guest.put("struct evtchn_send", port=port)
    guest.call(EVENT_CHANNEL_OP, 4, BASE)
    assert guest.pending(port) and guest.blocked()


def test_all_blocked_is_stalled(host):
    """A deadlock of the guests would hang the run instead of being reported."""
    guest = host.script([block(), end()])
    guest.unpause()
    with pytest.raises(Stalled):
        host.run()


def ping_pong(host, rounds):
    a, b = host.script([end()]), host.script([end()])
    pa, pb = a.connect(b)
    a.load([setreg(rounds, r=1), send(a.port_at(pa)), wait(1, r=3), loop(1, r=1), end()])
    b.load([setreg(rounds, r=1), wait(1, r=3), send(b.port_at(pb)), loop(1, r=1), end()])
    return a, b


@pytest.mark.parametrize("virtual, pcpus", [(True, 1), (False, 1), (False, 2), (False, 4)])
def test_no_wake_is_lost(virtual, pcpus):
    """Two domains that wake each other in turn stop for good if one wake is lost, and count wrong if one is doubled."""
    rounds = 20000
    with ScriptHost(virtual=virtual, pcpus=pcpus) as host:
        a, b = ping_pong(host, rounds)
        assert host.finish(a, b) == [0, 0]
        assert a.regs()[3] == b.regs()[3] == rounds


@pytest.mark.parametrize("pcpus", [1, 2])
def test_no_wake_is_lost_between_vcpus_of_a_domain(pcpus):
    """The same by IPI, where blocking, waking and the last vCPU's end are in one domain."""
    rounds = 20000
    with ScriptHost(virtual=False, pcpus=pcpus) as host:
        guest = host.script([end()], [end()])
        to = [guest.port_at(guest.bind_ipi(n)) for n in range(2)]
        guest.load([setreg(rounds, r=1), send(to[1]), wait(1, r=3), loop(1, r=1), end()])
        guest.load([setreg(rounds, r=1), wait(1, r=3), send(to[0]), loop(1, r=1), end()], vcpu=1)
        assert host.finish(guest) == [0]
        assert guest.regs(0)[3] == guest.regs(1)[3] == rounds


def test_no_wake_is_lost_while_domains_are_paused_and_unpaused():
    """Pausing dequeues and parks at any moment; a wake that comes just then must be there after the unpause, and a vCPU that
    was running must not come back twice."""
    rounds = 20000
    with ScriptHost(virtual=False, pcpus=2) as host:
        a, b = ping_pong(host, rounds)
        a.unpause()
        b.unpause()
        choose = random.Random(1)

        def step():
            guest = choose.choice((a, b))
            guest.pause()
            assert guest.runstate()[0] in (BLOCKED, OFFLINE)
            guest.unpause()
            return len(host.shutdowns) == 2

        host.run(step)
        assert sorted(host.shutdowns) == [(a.id, 0), (b.id, 0)]
        assert a.regs()[3] == b.regs()[3] == rounds


def test_no_poll_wake_is_lost():
    """SCHEDOP_poll has its own way to announce a sleeper; real threads, upcalls masked, no timeout to save it."""
    rounds = 10000
    with ScriptHost(virtual=False, pcpus=2) as host:
        a, b = host.script([end()]), host.script([end()])
        ports = a.connect(b)
        for guest, port, first in ((a, ports[0], True), (b, ports[1], False)):
            struct.pack_into("<B", guest.shared, 1, 1)
            kick = send(guest.port_at(port))
            before, after = ([kick], []) if first else ([], [kick])
            top = 1 + len(before)
            receive = [poll(port, 0, ARG, r=5), setreg(0, r=6), ack(r=6), jump_if(top, 0, r=6), add(reg(6), r=3)]
            guest.load([setreg(rounds, r=1), *before, *receive, *after, loop(1, r=1), end()])
        assert host.finish(a, b) == [0, 0]
        assert a.regs()[3] == b.regs()[3] == rounds
        assert a.regs()[5] == b.regs()[5] == 0


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


# ---- the lane ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("virtual", [True, False])
def test_a_cold_hypercall_parks_its_vcpu_only(virtual):
    """A vCPU waits for Python; its result must land where it would have, and the others run meanwhile."""
    with ScriptHost(virtual=virtual, pcpus=2) as host:
        host.cold_result = 4242
        guest = host.script([setreg(200, r=1), call(CONSOLE_IO, 0, 1, ARG, r=2), add(reg(2), r=3), setreg(0, r=2), loop(1, r=1),
                             end()])
        busy = host.script([setreg(2000, r=1), compute(1 * US), loop(1, r=1), end()])
        assert host.finish(guest, busy) == [0, 0]
        assert len(host.cold) == 200 and host.cold[0] == (CONSOLE_IO, [0, 1, ARG, 0, 0])
        assert guest.regs()[3] == 200 * 4242
        assert guest.stats()["cold_hypercalls"] == 200


def test_python_compute_time_is_burnt_to_the_nanosecond(host):
    """`await compute(ns)` in a Python guest: virtual time must advance by exactly that, and others get their share."""
    guest = host.python()
    turns = []

    def turn(domid, vcpu):
        v = guest.vcpus[0]
        turns.append(host.now())
        if len(turns) < 5:
            v.burn_ns = 25 * MS + 7
        else:
            guest.call(SCHED_OP, BLOCK, 0)

    host.turn = turn
    guest.unpause()
    with pytest.raises(Stalled):
        host.run()
    assert [b - a for a, b in zip(turns, turns[1:])] == [25 * MS + 7] * 4
    assert guest.cpu_ns() >= 100 * MS + 28


def test_python_compute_shares_the_pcpu(host):
    """Two Python guests that compute, one of twice the weight."""
    light, heavy = host.python(weight=256), host.python(weight=512)

    def turn(domid, vcpu):
        guest = light if domid == light.id else heavy
        guest.vcpus[0].burn_ns = 3 * MS

    host.turn = turn
    light.unpause()
    heavy.unpause()
    host.run(ns=1500 * MS)
    assert heavy.cpu_ns() / light.cpu_ns() == pytest.approx(2, rel=0.05)


def test_python_compute_with_the_real_clock():
    """The lane does not spin: it must still give every burner its turn, burn no less than was asked, survive pauses in the
    middle, and serve the others."""
    with ScriptHost(virtual=False) as host:
        guests = [host.python() for _ in range(2)]
        turns = {guest.id: 0 for guest in guests}

        def turn(domid, vcpu):
            turns[domid] += 1
            guest = next(g for g in guests if g.id == domid)
            guest.vcpus[0].burn_ns = (3 * MS, 5 * US)[turns[domid] % 2]

        host.turn = turn
        worker = host.script([setreg(100, r=1), compute(10 * US), loop(1, r=1), end()])
        for guest in guests:
            guest.unpause()
        host.finish(worker)
        host.run(lambda: min(turns.values()) >= 3)
        guests[0].pause()
        seen = turns[guests[0].id]
        other = turns[guests[1].id]
        host.run(lambda: turns[guests[1].id] >= other + 4)
        assert turns[guests[0].id] == seen
        guests[0].unpause()
        host.run(lambda: turns[guests[0].id] >= seen + 2)
        for guest in guests:
            guest.destroy()
        assert all(count > 2 for count in turns.values())


# ---- determinism, life ------------------------------------------------------------------------------------------------


def mixed_run(seed):
    """Hogs, ping-pong, timers, yields and cold hypercalls on one virtual host; its digest."""
    with ScriptHost(seed=seed) as host:
        a, b = ping_pong(host, 300)
        hogs = [host.script([setreg(40, r=1), compute(777 * US), yield_(), loop(1, r=1), end()], weight=w) for w in (100, 300)]
        timer = host.script([setreg(30, r=1), now(1_234_567, r=2), call(SET_TIMER_OP, reg(2)), wait(1), loop(1, r=1), end()])
        timer.bind_virq(0)
        cold = host.script([setreg(20, r=1), call(CONSOLE_IO, 0, 1, ARG), compute(99 * US), loop(1, r=1), end()])
        host.finish(a, b, *hogs, timer, cold)
        return lib.xl_trace_digest(host.ptr, 1), host.now(), host.shutdowns


def test_a_virtual_run_repeats():
    """A failure found once could not be found again."""
    assert mixed_run(1) == mixed_run(1)


def test_snapshot_in_mid_run_repeats(host):
    """Reset must bring back queues, credits, timers and half-done computations: what follows is the same both times."""
    a, b = ping_pong(host, 500)
    hog = host.script(HOG)
    timer = host.script([now(3 * MS, r=2), call(SET_TIMER_OP, reg(2)), wait(1), jump(0)])
    timer.bind_virq(0)
    for guest in (a, b, hog, timer):
        guest.unpause()
    host.run(ns=7 * MS)
    assert lib.xl_snapshot(host.ptr) == 0

    def rest():
        host.run(ns=50 * MS)
        return lib.xl_trace_digest(host.ptr, 1), host.now(), hog.cpu_ns(), a.regs(), timer.regs()

    first = rest()
    assert lib.xl_reset(host.ptr) == 0
    assert rest() == first


def test_domains_come_and_go_under_load():
    """Real threads: destroying a domain whose vCPUs run, wait, sleep or have timers set must leave nothing behind."""
    with ScriptHost(virtual=False, pcpus=2, memory=64 << 20) as host:
        keep = host.script([compute(5 * US), yield_(), jump(0)])
        keep.unpause()
        warm = host.script(HOG, [block()])
        warm.destroy()
        before = host.usage()
        for n in range(25):
            guest = host.script(HOG, [now(1 * MS, r=2), call(SET_TIMER_OP, reg(2)), wait(1), jump(0)], [block(), jump(0)],
                                [yield_(), jump(0)], weight=n + 1)
            guest.bind_virq(0, vcpu=1)
            guest.unpause()
            host.run(lambda: guest.steps_run(3) > 20)
            guest.destroy()
        assert host.usage() == before
        steps = keep.steps_run()
        host.run(lambda: keep.steps_run() > steps)


def test_a_running_script_is_not_replaced(host):
    """Loading under a running vCPU would free what it reads."""
    guest = host.script(HOG)
    with pytest.raises(OSError):
        guest.load([{"op": 999, "r": 0, "regmask": 0}])
    with pytest.raises(OSError):
        guest.load([{"op": 0, "r": 16, "regmask": 0}])
    with pytest.raises(OSError):
        guest.load([{"op": 0, "r": 0, "regmask": 1, "a": 16}])
    guest.unpause()
    host.run(ns=1 * MS)
    with pytest.raises(OSError):
        guest.load(HOG)
