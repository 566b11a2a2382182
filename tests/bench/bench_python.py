"""What Python guests get: raw hypercalls, a disk; and how fast the state machine of events is checked against its model."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack

from guest_sdk import Guest
from harness import Case, Size

from xenlike import Host
from xenlike.engine import NR
from xenlike.testing.machines import events
from xenlike.testing.machines.core_driver import CoreDriver

PIECES = 101
IMAGE = 4 << 20
SETTLE = 30.0                           # seconds that a guest may take


class Caller(Guest):
    """Makes raw hypercalls: ns each, the median of some pieces."""

    count = 0

    async def main(self) -> None:
        call, nr, each = self.hypercall, NR.xen_version, max(1, self.count // PIECES)
        found = []
        for _ in range(PIECES):
            start = time.perf_counter_ns()
            for _ in range(each):
                call(nr, 0)
            found.append((time.perf_counter_ns() - start) / each)
        self.figure = statistics.median(found)


class Reader(Guest):
    """Reads a sector `count` times, with `depth` requests under way: requests a second."""

    count = depth = 1

    async def main(self) -> None:
        disk = await self.block("xvda")
        start = time.perf_counter()
        tasks = [self.spawn(self._read(disk, n)) for n in range(self.depth)]
        for task in tasks:
            await task
        self.figure = self.count / (time.perf_counter() - start)

    async def _read(self, disk, first: int) -> None:
        for n in range(first, self.count, self.depth):
            await disk.read(n * 8 % disk.sectors, 1)


def guest_figure(host: Host, guest: type[Guest], settings: dict, **attributes: int) -> Callable[[], float]:
    """A `measure`: runs a guest to its end and takes its `figure`."""
    program = type(guest.__name__, (guest,), attributes)

    def measure() -> float:
        domain = host.create(program, memory="8M", **settings)
        ended = domain.wait(timeout=SETTLE)
        assert ended.reason == "poweroff", f"{domain}: {ended}"
        return domain.guest.figure
    return measure


def checked_steps(count: int) -> Callable[[], float]:
    """A `measure`: steps a second of one history of the events machine, host, domains and last comparison included. Nothing here
    waits, so the thread's own CPU time is taken: a busy machine would otherwise be measured."""
    choices = events.draw_choices(1, count)

    def measure() -> float:
        start = time.thread_time()
        driver = CoreDriver()
        steps = events.run_script(driver, choices)
        driver.close()
        return steps / (time.thread_time() - start)
    return measure


def cases(stack: ExitStack, size: Size) -> list[Case]:
    host = stack.enter_context(Host(threaded=False))
    image = stack.enter_context(tempfile.NamedTemporaryFile(suffix=".img"))
    os.truncate(image.fileno(), IMAGE)
    disk = {"disk": [f"{image.name},raw,xvda,ro"]}
    reads = size.of(1000, 16)
    return [
        Case("hypercall from a Python guest", "ns", guest_figure(host, Caller, {}, count=size.of(50_500, 202)), 1500),
        Case("block, Python guest, one at a time", "requests/s", guest_figure(host, Reader, disk, count=reads, depth=1), digits=0),
        Case("block, Python guest, 16 under way", "requests/s", guest_figure(host, Reader, disk, count=reads, depth=16), digits=0),
        Case("events machine beside its model", "steps/s", checked_steps(size.of(20_000, 200)), 50_000, digits=0),
    ]
