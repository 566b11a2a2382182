"""Snapshot and reset: a host goes back to a moment, as often as wanted, and then does the same again, bit for bit."""

import pytest
from script_guests import ScriptHost, compute, end, loop, reg, setreg, store, yield_

from xenlike.engine import ffi, lib



def digest(host):
    return lib.xl_trace_digest(host.ptr, 1)


def usage(host):
    u = ffi.new("struct xl_usage *")
    lib.xl_usage(host.ptr, u)
    return u.frames_free, u.arena_in_use, u.domains, u.timers


def program(base):
    """Counts in memory for a while."""
    return [setreg(200, r=1), store(base, reg(1)), compute(1000), yield_(), loop(1, r=1), end()]


@pytest.fixture
def host():
    with ScriptHost(virtual=True) as host:
        yield host


def start(host):
    from core_guests import BASE, PAGE

    guests = [host.script(program(BASE + 10 * PAGE)) for _ in range(2)]
    for guest in guests:
        guest.unpause()
    host.run(ns=50_000)
    return guests


def test_reset_repeats_the_future(host):
    """Something of the state would stay outside the snapshot: clock, queue, timers, memory, registers."""
    start(host)
    assert lib.xl_snapshot(host.ptr) == 0
    ends = []
    for _ in range(3):
        host.run(ns=200_000)
        ends.append((digest(host), usage(host), host.now()))
        assert lib.xl_reset(host.ptr) == 0
    assert ends[0] == ends[1] == ends[2]


def test_reset_forgets_domains_made_since(host):
    """A domain created after the snapshot would leave frames, arena memory or an entry in the list behind."""
    start(host)
    assert lib.xl_snapshot(host.ptr) == 0
    before = (digest(host), usage(host))
    for _ in range(3):
        guest = host.script([compute(10), end()])
        guest.unpause()
        host.run(ns=10_000)
        assert usage(host) != before[1]
        assert lib.xl_reset(host.ptr) == 0
        assert (digest(host), usage(host)) == before


def test_frames_freed_since_come_back(host):
    """Memory of a domain that was destroyed after the snapshot would be lost, or come back with other bytes."""
    guest = start(host)[0]
    assert lib.xl_snapshot(host.ptr) == 0
    before = (digest(host), usage(host))
    assert lib.xl_domain_destroy(host.ptr, guest.id) == 0
    other = host.script([compute(10), end()])           # takes over freed frames
    other.unpause()
    host.run(ns=20_000)
    assert lib.xl_reset(host.ptr) == 0
    assert (digest(host), usage(host)) == before


def test_reset_without_snapshot_and_with_the_real_clock(host):
    """A misuse would be answered with nonsense instead of an error."""
    assert lib.xl_reset(host.ptr) == -lib.XEN_ENOENT
    assert lib.xl_snapshot(host.ptr) == 0
    lib.xl_snapshot_drop(host.ptr)
    assert lib.xl_reset(host.ptr) == -lib.XEN_ENOENT
    with ScriptHost(virtual=False) as real:
        assert lib.xl_snapshot(real.ptr) == -lib.XEN_EBUSY
