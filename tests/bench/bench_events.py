"""Events: from the send until the vCPU that waited for it runs."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import ExitStack

from bench_core import play, real_host
from harness import Case, Size
from script_guests import SHUTDOWN, ScriptGuest, ScriptHost, ack, end, jump, jump_if, loop, mark, reg, send, setreg, stamp, wait

from xenlike.engine import NR, lib

COUNT, SAMPLES, LEFT = 1, 2, 3          # registers


def waiting(port: int, count: int) -> list[dict[str, int]]:
    """Blocks for an event, takes its time, answers."""
    return [setreg(count, r=LEFT), wait(1, r=COUNT), stamp(count, r=SAMPLES), send(port), loop(1, r=LEFT), end()]


def watching(port: int, count: int) -> list[dict[str, int]]:
    """The same, but looks at its upcall byte all the time instead of blocking."""
    return [setreg(count, r=LEFT), setreg(0, r=COUNT), ack(r=COUNT), jump_if(2, 0, r=COUNT), stamp(count, r=SAMPLES), send(port),
            loop(1, r=LEFT), end()]


def sending(port: int, count: int) -> list[dict[str, int]]:
    """Marks the time, sends, waits for the answer."""
    return [setreg(count, r=LEFT), mark(), send(port), wait(1, r=COUNT), loop(1, r=LEFT), end()]
