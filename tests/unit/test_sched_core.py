"""The scheduler of the real core under any policy: run states, blocking and waking, the lane, snapshots, domains that end.

What credit2 promises is in test_sched_policy_core.py, the commands of sched_op in test_sched_op_core.py.
"""
# covers: sched_op/block

from __future__ import annotations

import random
import struct

import pytest
import sched_kit
from core_guests import BASE
from sched_kit import ARG, HOG, ping_pong
from script_guests import (
    BLOCK, BLOCKED, CONSOLE_IO, EVENT_CHANNEL_OP, MASK, MS, OFFLINE, RUNNABLE, RUNNING, SCHED_OP, SET_TIMER_OP, US, ScriptHost, Stalled,
    ack, add, block, call, compute, end, jump, jump_if, loop, now, poll, reg, send, setreg, wait, yield_,
)

from xenlike.engine import lib

host = sched_kit.host


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
