"""Events: from just before the send until the vCPU that waited for it runs. The figure holds one reading of the clock."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import ExitStack

from bench_core import real_host
from harness import Case, Size
from script_guests import ScriptHost, ack, compute, end, jump_if, loop, mark, send, setreg, stamp, wait

Program = list[dict[str, int]]
Maker = Callable[[int, int], Program]   # of an argument's address and a count
EVENTS, SAMPLES, LEFT = 1, 2, 3         # registers
SETTLE_NS = 20_000


def blocking_sender(port: int, count: int) -> Program:
    """Marks the time, sends, blocks for the answer."""
    return [setreg(count, r=LEFT), mark(), send(port), wait(1, r=EVENTS), loop(1, r=LEFT), end()]


def spinning_sender(port: int, count: int) -> Program:
    """Gives the other side time to fall asleep, marks the time, sends, and keeps its pCPU until the answer comes."""
    return [setreg(count, r=LEFT), setreg(0, r=EVENTS), compute(SETTLE_NS), mark(), send(port), ack(r=EVENTS), jump_if(5, 0, r=EVENTS),
            loop(1, r=LEFT), end()]


def sleeper(port: int, count: int) -> Program:
    """Blocks for an event, takes its time, answers."""
    return [setreg(count, r=LEFT), wait(1, r=EVENTS), stamp(count, r=SAMPLES), send(port), loop(1, r=LEFT), end()]


def watcher(port: int, count: int) -> Program:
    """Looks at its upcall byte all the time instead of blocking."""
    return [setreg(count, r=LEFT), setreg(0, r=EVENTS), ack(r=EVENTS), jump_if(2, 0, r=EVENTS), stamp(count, r=SAMPLES), send(port),
            loop(1, r=LEFT), end()]


def latency(host: ScriptHost, sender: Maker, receiver: Maker, count: int) -> Callable[[], float]:
    """A `measure`: the median of `count` events from one new domain to another, ns."""
    def measure() -> float:
        a, b = (host.script([end()]) for _ in range(2))
        ours, theirs = a.connect(b)
        a.load(sender(a.port_at(ours), count))
        b.load(receiver(b.port_at(theirs), count), samples=count)
        host.finish(b, a)
        samples = b.samples(count)
        host.shutdowns.clear()
        a.destroy()
        b.destroy()
        return statistics.median(samples)
    return measure


def cases(stack: ExitStack, size: Size) -> list[Case]:
    one, two = real_host(stack), real_host(stack, pcpus=2)
    count = size.of(20_000, 50)
    return [
        Case("event to a blocked vCPU, same pCPU", "ns", latency(one, blocking_sender, sleeper, count), 300),
        Case("event to a blocked vCPU, another pCPU", "ns", latency(two, spinning_sender, sleeper, count // 50)),
        Case("event to a running vCPU, another pCPU", "ns", latency(two, spinning_sender, watcher, count // 50)),
    ]
