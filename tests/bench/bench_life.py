"""How long a Python guest takes to come and go, and what a thousand that do nothing hold.

Run by itself (`python tests/bench/bench_life.py COUNT`) it makes COUNT idle guests in a fresh process and prints what they take, as
JSON: memory is measured there, away from what other benchmarks left.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT)]

from guest_sdk import Future, Guest  # noqa: E402
from harness import Case, Size  # noqa: E402

from xenlike import Host  # noqa: E402

MEMORY = 16                             # MiB of a guest


class Idle(Guest):
    """Says a line and waits for ever."""

    async def main(self) -> None:
        self.console.print("ready")
        await Future()


def come_and_go(host: Host, count: int) -> Callable[[], float]:
    """A `measure`: ms from create over the console's first line to the end of destroy; the median of `count` guests."""
    def once() -> float:
        start = time.perf_counter()
        domain = host.create(Idle, memory=f"{MEMORY}M")
        domain.console.expect("ready")
        domain.destroy()
        return (time.perf_counter() - start) * 1000
    return lambda: statistics.median(once() for _ in range(count))


def resident() -> dict[str, int]:
    """This process's resident KiB: in all, private, and guests' frames."""
    names = {"VmRSS": "all", "RssAnon": "private", "RssShmem": "frames"}
    with open("/proc/self/status") as status:
        return {names[key]: int(value.split()[0]) for key, _, value in (line.partition(":") for line in status) if key in names}


def idle_guests(count: int) -> dict[str, float]:
    """Makes `count` idle guests; KiB and ms of each."""
    with Host(memory=(count + 8) * (MEMORY + 1) << 20, threaded=False) as host:
        last = host.create(Idle, memory=f"{MEMORY}M")           # what the first one brings in is not every guest's
        last.console.expect("ready")
        gc.collect()
        before, start = resident(), time.perf_counter()
        for _ in range(count):
            last = host.create(Idle, memory=f"{MEMORY}M")
        last.console.expect("ready")
        host.wait_until(lambda: all("ready" in d.console.text for d in host.domains), timeout=60)
        ms = (time.perf_counter() - start) * 1000 / count
        gc.collect()
        after = resident()
        return {**{key: (after[key] - before[key]) / count for key in before}, "ms": ms}


class Idlers:
    """Runs `idle_guests` in a process of its own, once a round; the cases share its answers."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.found: dict[str, float] = {}

    def run(self) -> float:
        """KiB a guest."""
        done = subprocess.run([sys.executable, __file__, str(self.count)], capture_output=True, text=True, env=dict(os.environ))
        if done.returncode:
            raise RuntimeError(f"{self.count} idle guests: {done.stderr.strip()[-2000:]}")
        self.found = json.loads(done.stdout)
        return self.found["all"]

    def last(self, key: str) -> Callable[[], float]:
        """A further figure of the run before."""
        return lambda: self.found[key]


def cases(stack: ExitStack, size: Size) -> list[Case]:
    threaded, inline = stack.enter_context(Host()), stack.enter_context(Host(threaded=False))
    idlers, each = Idlers(size.of(1000, 10)), size.of(10, 1)
    name = f"{idlers.count:,} idle Python guests"
    return [
        Case(f"create, first line, destroy ({MEMORY} MiB)", "ms", come_and_go(threaded, each), 5, digits=2),
        Case("create to destroy, host without a thread", "ms", come_and_go(inline, each), digits=2),
        Case(f"{name}: memory each", "KiB", idlers.run, runs=1),
        Case(f"{name}: of it guest frames", "KiB", idlers.last("frames"), runs=1),
        Case(f"{name}: made in", "ms each", idlers.last("ms"), runs=1, digits=2),
    ]


if __name__ == "__main__":
    print(json.dumps(idle_guests(int(sys.argv[1]))))
