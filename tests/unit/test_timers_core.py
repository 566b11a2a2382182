"""Timers and time of the real core: set_timer_op, single-shot and periodic timers, watchdogs, the time record, wallclock.

Guests are scripts. With the virtual clock expiries are exact to the nanosecond that the vCPU needs to get going; with the
real clock only order and lower bounds are judged.
"""
# covers: hypercall set_timer_op, vcpu_op/set_periodic_timer, vcpu_op/set_singleshot_timer, vcpu_op/stop_periodic_timer
# covers: vcpu_op/stop_singleshot_timer

from __future__ import annotations

import random
import struct

import pytest

from core_guests import BASE, PAGE
from script_guests import (
    EVENTS, MS, SCHED_OP, SET_TIMER_OP, SHUTDOWN, US, VCPU_OP, WATCHDOG, ScriptHost, Stalled, add, call, compute, end, jump,
    loop, now, reg, setreg, store, wait,
)
from xenlike.engine import ffi, lib

EFAULT, EINVAL, ENOSPC, ETIME = 14, 22, 28, 62
SET_PERIODIC, STOP_PERIODIC, SET_SINGLESHOT, STOP_SINGLESHOT = 6, 7, 8, 9
VIRQ_TIMER, FUTURE = 0, 1
UNMAPPED = BASE + 500 * PAGE
ARG = EVENTS + PAGE
SLACK = 1 * US                          # from the expiry to the first step of the woken script, virtual clock
U64 = 2**64


@pytest.fixture
def host():
    with ScriptHost() as h:
        yield h


def timers(host):
    out = ffi.new("struct xl_usage *")
    lib.xl_usage(host.ptr, out)
    return out.timers


def raised(guest, vcpu=0):
    return guest.stats(vcpu)["virqs"]


# ---- set_timer_op -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [1, 999, 10 * US, 3 * MS, 2000 * MS, 3600_000 * MS])
def test_set_timer_op_fires_when_it_said(host, delay):
    """Every kernel's clock tick: early is a storm, late is lost time."""
    guest = host.script([now(delay, r=1), call(SET_TIMER_OP, reg(1), r=2), wait(1), now(r=3), end()])
    guest.bind_virq(VIRQ_TIMER)
    assert host.finish(guest) == [0]
    due, rc, ran = guest.regs()[1:4]
    assert rc == 0
    assert 0 <= ran - due <= SLACK
    assert raised(guest) == 1


def test_set_timer_op_odd_arguments(host):
    """0 stops; a past time fires at once; nonsense (a wrapped subtraction of an old kernel) comes back in 100 ms; and the
    call never fails."""
    guest = host.script([end()])
    guest.bind_virq(VIRQ_TIMER)
    start = host.now()
    assert guest.call(SET_TIMER_OP, start + 50 * MS) == 0 and timers(host) == 1
    assert guest.call(SET_TIMER_OP, 0) == 0 and timers(host) == 0 and raised(guest) == 0
    assert guest.call(SET_TIMER_OP, 1) == 0 and timers(host) == 0 and raised(guest) == 1
    for nonsense in (U64 - 1, 2**63, (1 << 50) + 1000_000 * MS):
        guest.drain()
        assert guest.call(SET_TIMER_OP, nonsense) == 0 and timers(host) == 1
        before, start = raised(guest), host.now()
        host.run(ns=99 * MS)
        assert raised(guest) == before, nonsense
        host.run(lambda: raised(guest) > before)
        assert 100 * MS - 1 * US <= host.now() - start <= 100 * MS, nonsense
    assert guest.call(SET_TIMER_OP, host.now() + (1 << 50) - MS) == 0       # far, but sane: 13 days
    host.run(ns=1000 * MS)
    assert timers(host) == 1


def test_there_is_one_single_shot_timer(host):
    """set_timer_op and vcpu_op share it: the later call replaces the earlier one."""
    guest = host.script([end()])
    guest.bind_virq(VIRQ_TIMER)
    guest.call(SET_TIMER_OP, host.now() + 5 * MS)
    guest.put("struct vcpu_set_singleshot_timer", timeout_abs_ns=host.now() + 50 * MS, flags=0)
    assert guest.call(VCPU_OP, SET_SINGLESHOT, 0, BASE) == 0
    assert timers(host) == 1
    host.run(ns=20 * MS)
    assert raised(guest) == 0
    host.run(ns=40 * MS)
    assert raised(guest) == 1
    guest.call(SET_TIMER_OP, host.now() + 5 * MS)
    assert guest.call(VCPU_OP, STOP_SINGLESHOT, 0, 0) == 0 and timers(host) == 0


def test_an_unbound_timer_is_lost(host):
    """Nobody bound VIRQ_TIMER: nothing is remembered, nothing goes wrong."""
    guest = host.script([now(5 * MS, r=1), call(SET_TIMER_OP, reg(1)), compute(10 * MS), end()])
    assert host.finish(guest) == [0]
    assert raised(guest) == 0 and timers(host) == 0


# ---- vcpu_op timers ---------------------------------------------------------------------------------------------------


def test_single_shot_errors(host):
    """Linux's clock events: another vCPU's timer is not one's own, and a deadline that is past while "future" was asked for
    is -ETIME, upon which Linux tries again with a larger delta."""
    guest = host.script([end()], [end()])
    guest.bind_virq(VIRQ_TIMER)
    assert guest.call(VCPU_OP, SET_SINGLESHOT, 1, BASE) == -EINVAL
    assert guest.call(VCPU_OP, STOP_SINGLESHOT, 1, 0) == -EINVAL
    assert guest.call(VCPU_OP, SET_SINGLESHOT, 0, UNMAPPED) == -EFAULT
    lib.xl_advance(host.ptr, 10 * MS)
    guest.put("struct vcpu_set_singleshot_timer", timeout_abs_ns=host.now() - MS, flags=FUTURE)
    assert guest.call(VCPU_OP, SET_SINGLESHOT, 0, BASE) == -ETIME and raised(guest) == 0
    guest.put("struct vcpu_set_singleshot_timer", timeout_abs_ns=host.now() - MS, flags=0)
    assert guest.call(VCPU_OP, SET_SINGLESHOT, 0, BASE) == 0 and raised(guest) == 1
    assert timers(host) == 0
    guest.drain()
    guest.put("struct vcpu_set_singleshot_timer", timeout_abs_ns=host.now() + MS, flags=FUTURE)
    assert guest.call(VCPU_OP, SET_SINGLESHOT, 0, BASE) == 0 and timers(host) == 1


@pytest.mark.parametrize("period, rc", [(0, -EINVAL), (MS - 1, -EINVAL), (MS, 0), (2**62 - 1, 0), (2**62, -EINVAL),
                                        (2**64 - 1, -EINVAL)])
def test_periodic_limits(host, period, rc):
    """A shorter period would drown the host in ticks of one guest."""
    guest = host.script([end()])
    guest.put("struct vcpu_set_periodic_timer", period_ns=period)
    assert guest.call(VCPU_OP, SET_PERIODIC, 0, BASE) == rc
    assert timers(host) == (rc == 0)
    assert guest.call(VCPU_OP, STOP_PERIODIC, 0, 0) == 0 and timers(host) == 0


def test_periodic_ticks_do_not_drift(host):
    """Ten ticks of 2 ms are due at 2, 4, ... 20 ms, however long the guest takes for each; then it stops them."""
    table = BASE + 4 * PAGE
    guest = host.script([
        setreg(table, r=4), setreg(10, r=1), now(r=2), call(VCPU_OP, SET_PERIODIC, 0, ARG),
        wait(1), now(r=3), store(reg(4), reg(3)), add(8, r=4), compute(300 * US), loop(4, r=1),
        call(VCPU_OP, STOP_PERIODIC, 0, 0), compute(10 * MS), end(),
    ])
    guest.bind_virq(VIRQ_TIMER)
    guest.write(ARG, struct.pack("<Q", 2 * MS))
    assert host.finish(guest) == [0]
    start = guest.regs()[2]
    for n, ran in enumerate(struct.unpack("<10Q", guest.read(table, 80)), start=1):
        assert 0 <= ran - (start + n * 2 * MS) <= SLACK
    assert raised(guest) == 10


def test_periodic_ticks_rest_with_a_paused_domain(host):
    """A paused domain would keep an idle host awake; and when it goes on, its ticks must, too."""
    guest = host.script([call(VCPU_OP, SET_PERIODIC, 0, ARG), wait(1, r=1), jump(1)])
    guest.bind_virq(VIRQ_TIMER)
    guest.write(ARG, struct.pack("<Q", 2 * MS))
    guest.unpause()
    host.run(ns=21 * MS)
    ticks = guest.regs()[1]
    assert ticks == 10
    guest.pause()
    with pytest.raises(Stalled):
        host.run()
    assert raised(guest) == ticks
    guest.unpause()
    host.run(ns=20 * MS)
    assert ticks + 5 <= guest.regs()[1] <= ticks + 11


def test_timers_of_many_vcpus_come_in_order(host):
    """The heap: 300 timers set in random order, some moved, some stopped, some equal, must expire sorted by (time, order of
    setting) and each exactly once."""
    choose = random.Random(7)
    guest = host.script(*[[end()]] * 100)
    for vcpu in range(100):
        guest.bind_virq(VIRQ_TIMER, vcpu=vcpu)
    guests = [guest, *(host.script(*[[end()]] * 100) for _ in range(2))]
    for other in guests[1:]:
        for vcpu in range(100):
            other.bind_virq(VIRQ_TIMER, vcpu=vcpu)
    base, expected, order = host.now() + 100 * MS, {}, 0
    for round_ in range(3):
        for who in choose.sample([(g, n) for g in guests for n in range(100)], 300 if round_ == 0 else 90):
            g, n = who
            if round_ == 2 and choose.random() < 0.5:
                g.call(SET_TIMER_OP, 0, vcpu=n)
                expected.pop((g.id, n), None)
            else:
                when = base + choose.randrange(40) * MS
                order += 1
                g.call(SET_TIMER_OP, when, vcpu=n)
                expected[g.id, n] = (when, order)
    assert timers(host) == len(expected)
    host.run(ns=200 * MS)
    out = ffi.new("struct trace_record[]", 8000)
    count = lib.xl_trace_read(host.ptr, out, 8000)
    fired = [(t.domid, t.vcpu, t.a, t.time) for t in out[0:count] if t.kind == lib.TRACE_TIMER]
    assert [(domid, vcpu) for domid, vcpu, *_ in fired] == sorted(expected, key=expected.get)
    assert all(expected[domid, vcpu][0] == due == at for domid, vcpu, due, at in fired)
    assert timers(host) == 0


def test_timers_wake_sleepers_with_the_real_clock():
    """Threads sleep in the kernel until the next timer; a timer that is set while they fall asleep must not be missed. Four
    vCPUs on two pCPUs, each sleeping many times; none may wake early."""
    program = [setreg(100, r=1), now(100 * US, r=2), call(SET_TIMER_OP, reg(2)), wait(1, r=3), now(r=4),
               add(0, r=5), loop(1, r=1), end()]
    with ScriptHost(virtual=False, pcpus=2) as host:
        guests = [host.script(program) for _ in range(4)]
        for guest in guests:
            guest.bind_virq(VIRQ_TIMER)
        assert host.finish(*guests) == [0] * 4
        for guest in guests:
            regs = guest.regs()
            assert regs[3] == 100 and regs[4] >= regs[2]
        assert timers(host) == 0


def test_a_timer_interrupts_a_computing_neighbour():
    """Real clock, one pCPU thread that is busy with a hog: timers of others must be looked at in mid-slice."""
    with ScriptHost(virtual=False, pcpus=1) as host:
        hog = host.script([compute(3600_000 * MS), jump(0)])
        guest = host.script([setreg(20, r=1), now(200 * US, r=2), call(SET_TIMER_OP, reg(2)), wait(1), loop(1, r=1), end()])
        guest.bind_virq(VIRQ_TIMER)
        hog.unpause()
        assert host.finish(guest) == [0]


def test_a_timer_fires_in_the_middle_of_its_setters_slice(host):
    """A kernel that goes on working after it has set its tick must get the tick then, not when its slice is over."""
    guest = host.script([now(MS, r=1), call(SET_TIMER_OP, reg(1)), compute(5 * MS), end()])
    guest.bind_virq(VIRQ_TIMER)
    assert host.finish(guest) == [0]
    out = ffi.new("struct trace_record[]", 8000)
    count = lib.xl_trace_read(host.ptr, out, 8000)
    assert [t.time - guest.regs()[1] for t in out[0:count] if t.kind == lib.TRACE_TIMER] == [0]


def test_a_timer_set_from_outside_wakes_a_sleeping_pcpu():
    """Real clock: the thread of an idle pCPU sleeps for ever, and somebody else puts a timer on its heap."""
    with ScriptHost(virtual=False, pcpus=2) as host:
        guest = host.script([wait(30, r=3), end()])
        guest.bind_virq(VIRQ_TIMER)
        guest.unpause()
        for n in range(30):
            host.run(lambda: guest.runstate()[0] == 2)          # blocked
            assert guest.call(SET_TIMER_OP, host.now() + 200 * US) == 0
            host.run(lambda: guest.regs()[3] > n)
        host.run(lambda: host.shutdowns)


def test_timers_die_with_their_domain(host):
    """An expiry in freed memory."""
    guest = host.script([end()], [end()])
    guest.bind_virq(VIRQ_TIMER)
    guest.call(SET_TIMER_OP, host.now() + MS)
    guest.put("struct vcpu_set_periodic_timer", period_ns=MS)
    guest.call(VCPU_OP, SET_PERIODIC, 1, BASE)
    guest.put("struct sched_watchdog", id=0, timeout=1)
    assert guest.call(SCHED_OP, WATCHDOG, BASE) == 1
    guest.write(BASE + 256, struct.pack("<I", guest.bind_ipi(0)))
    guest.put("struct sched_poll", ports=BASE + 256, nr_ports=1, timeout=host.now() + MS)
    assert guest.call(SCHED_OP, 3, BASE) == 0
    assert timers(host) == 4
    guest.destroy()
    assert timers(host) == 0
    with pytest.raises(Stalled):
        host.run()


# ---- watchdogs --------------------------------------------------------------------------------------------------------


def watchdog(guest, number, seconds):
    guest.put("struct sched_watchdog", id=number, timeout=seconds)
    return guest.call(SCHED_OP, WATCHDOG, BASE)


def test_watchdog_book_keeping(host):
    """xenwatchdogd and Linux's xen_wdt: two timers, numbers from 1, errors of section 8.1."""
    guest = host.script([end()])
    assert watchdog(guest, 3, 10) == -EINVAL
    assert watchdog(guest, 1, 10) == -EINVAL and watchdog(guest, 2, 0) == -EINVAL
    assert watchdog(guest, 0, 10) == 1 and watchdog(guest, 0, 20) == 2
    assert watchdog(guest, 0, 10) == -ENOSPC
    assert timers(host) == 2
    assert watchdog(guest, 1, 0) == 0 and timers(host) == 1
    assert watchdog(guest, 1, 5) == -EINVAL
    assert watchdog(guest, 0, 10) == 1
    assert watchdog(guest, 2, 2**32 - 1) == 0
    assert watchdog(guest, 1, 0) == watchdog(guest, 2, 0) == timers(host) == 0


def test_watchdog_fires_unless_fed(host):
    """The point of it: a domain that hangs is shut down with reason 4, when it said and not earlier."""
    hung = host.script([setreg(5, r=1), call(SCHED_OP, WATCHDOG, ARG, r=2), compute(900 * MS), call(SCHED_OP, WATCHDOG, ARG + 8),
                        loop(2, r=1), now(r=3), compute(3600_000 * MS), end()])
    hung.write(ARG, struct.pack("<IIII", 0, 1, 1, 1))
    assert host.finish(hung) == [4]
    fed_until = hung.regs()[3]
    assert hung.regs()[2] == 1
    assert 999 * MS <= host.now() - fed_until <= 1010 * MS


def test_new_watchdog_with_timeout_zero_bites_at_once(host):
    """Xen's rule for id 0; a guest uses it to die."""
    guest = host.script([call(SCHED_OP, WATCHDOG, ARG), compute(50 * MS), end()])
    guest.write(ARG, struct.pack("<II", 0, 0))
    assert host.finish(guest) == [4]


def test_watchdog_after_shutdown_changes_nothing(host):
    """The reason that the toolstack was told must stay."""
    guest = host.script([call(SCHED_OP, WATCHDOG, ARG), call(SCHED_OP, SHUTDOWN, ARG + 8), end()])
    guest.write(ARG, struct.pack("<III", 0, 1, 1))
    assert host.finish(guest) == [1]
    with pytest.raises(Stalled):
        host.run()
    assert host.shutdowns == [(guest.id, 1)] and guest.info().shutdown_code == 1


# ---- time as guests read it -------------------------------------------------------------------------------------------


def guest_ns(record, tsc):
    """The guest's arithmetic of section 8.4, written out again."""
    version, _, timestamp, system_time, mul, shift, flags = struct.unpack("<IIQQIbB2x", record)
    assert version % 2 == 0 and flags & 1, "odd version: readers spin for ever"
    delta = (tsc - timestamp) % U64
    delta = delta << shift if shift >= 0 else delta >> -shift
    return system_time + (delta * mul >> 32)


@pytest.mark.parametrize("tsc", [1, 10**9, 123456789012345, 2**62])
def test_the_time_record_turns_tsc_into_system_time(host, tsc):
    """Linux, Mini-OS and GRUB take both the time and the CPU's frequency from it: 1 GHz, the same on every vCPU, at first
    instruction and after vcpu_info has moved."""
    guest = host.script([end()], [end()])
    for vcpu in range(2):
        record = bytes(guest.shared[vcpu * 64 + 32:vcpu * 64 + 64])
        assert guest_ns(record, tsc) == tsc
        mul, shift = struct.unpack_from("<Ib", record, 24)
        assert (10**9 << 32) // mul >> shift == 10**9      # Linux's frequency


def test_wallclock_is_utc_at_system_time_zero():
    """`date` in the guest: wallclock plus system time."""
    for wall_ns, utc in ((0, (1577836800, 0)), (7_000_000_000 * 10**9 + 5, (7_000_000_000, 5))):    # 0: 2020-01-01
        with ScriptHost(wall_ns=wall_ns) as host:
            guest = host.script([end()])
            version, sec, nsec, sec_hi = struct.unpack_from("<4I", guest.shared, 3072)
            assert version % 2 == 0
            assert (sec_hi << 32 | sec, nsec) == utc
