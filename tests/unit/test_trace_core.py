"""The trace with the real clock: what vCPUs do on several pCPUs is recorded in several rings (csrc/base/trace.h), and read as one.

The scheduler's tests look at traces with the virtual clock, where there is one ring.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
from script_guests import ScriptHost, add, call, end, loop, reg, setreg, trace

from xenlike.engine import ffi, lib

XEN_VERSION = 17


class Record(NamedTuple):
    time: int
    kind: int
    domid: int
    vcpu: int
    a: int
    b: int


def read(host: ScriptHost, n: int) -> list[Record]:
    out = ffi.new("struct trace_record[]", n)
    return [Record(r.time, r.kind, r.domid, r.vcpu, r.a, r.b) for r in out[0:lib.xl_trace_read(host.ptr, out, n)]]


@pytest.fixture
def host():
    with ScriptHost(virtual=False, pcpus=2) as host:
        yield host


def calls_and_marks(rounds: int) -> list:
    """A program whose hypercalls go to its pCPU's ring, and its marks to everybody's."""
    return [setreg(rounds, r=1), setreg(0, r=2), add(1, r=2), call(XEN_VERSION, 0, reg(2), r=15), trace(1, reg(2)), loop(2, r=1), end()]


def test_rings_are_merged_by_time(host):
    """What one vCPU did would be told in another order than it was done in, or a ring's records would be left out."""
    guests = [host.script(calls_and_marks(500)) for _ in range(2)]
    host.finish(*guests)
    records = read(host, 100_000)
    assert [r.time for r in records] == sorted(r.time for r in records)
    for guest in guests:
        own = [r for r in records if r.domid == guest.id]
        told = [r.kind for r in own if (r.kind == lib.TRACE_HYPERCALL and r.a >> 48 == XEN_VERSION) or (r.kind == lib.TRACE_MARK and r.a == 1)]
        assert told == [lib.TRACE_HYPERCALL, lib.TRACE_MARK] * 500
        assert [r.b for r in own if r.kind == lib.TRACE_MARK and r.a == 1] == list(range(1, 501))


def test_a_ring_keeps_the_last(host):
    """A full ring would show old records for new, or hide another ring's."""
    guest = host.script(calls_and_marks(10_000))
    host.finish(guest)
    marks = [r.b for r in read(host, 100_000) if r.kind == lib.TRACE_MARK and r.a == 1]
    calls = [r for r in read(host, 100_000) if r.kind == lib.TRACE_HYPERCALL and r.a >> 48 == XEN_VERSION]
    assert marks == list(range(10_001 - len(marks), 10_001)) and 8000 < len(marks) <= 8192
    assert 8000 < len(calls) <= 8192
    assert [r[1:] for r in read(host, 50)] == [r[1:] for r in read(host, 100_000)[-50:]]       # times are converted anew each time
