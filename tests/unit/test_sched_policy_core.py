"""What the policy of the scheduler, credit2, promises: the pCPU shared by weight, slices within bounds, preemption, yields."""
# covers: sched_op/yield

from __future__ import annotations

import struct

import pytest
import sched_kit
from core_guests import BASE, PAGE
from sched_kit import HOG, records
from script_guests import (
    MS, SET_TIMER_OP, US, ScriptHost, add, call, compute, end, jump, loop, now, reg, setreg, store, trace, wait, yield_,
)

from xenlike.engine import lib

host = sched_kit.host


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
