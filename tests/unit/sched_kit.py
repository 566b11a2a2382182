"""What the tests of the scheduler share: a host of scripts, a hog, two domains that wake each other, and what the trace says.

Used by: ``test_sched_*core.py``, which name the fixture as their own (``host = sched_kit.host``). Guests are scripts (script_guests.py).
With the virtual clock the numbers are exact; with the real clock only what happened is judged, never how long it took.
"""

from __future__ import annotations

import pytest
from core_guests import PAGE
from script_guests import EVENTS, US, ScriptHost, compute, end, jump, loop, send, setreg, wait

from xenlike.engine import ffi, lib

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


def ping_pong(host, rounds):
    a, b = host.script([end()]), host.script([end()])
    pa, pb = a.connect(b)
    a.load([setreg(rounds, r=1), send(a.port_at(pa)), wait(1, r=3), loop(1, r=1), end()])
    b.load([setreg(rounds, r=1), wait(1, r=3), send(b.port_at(pb)), loop(1, r=1), end()])
    return a, b
