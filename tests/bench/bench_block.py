"""How fast disks are: the ring alone, and files beside what the host needs for the same reads without a ring.

Run by hand (`python tests/bench/bench_block.py [--json]`) or through `run()`. Each figure is the median of nine runs, which take
turns with the runs of the others and of the floors, so that a busy minute of the host spoils all alike.

`cpu` is what the I/O worker's thread (for floors, the reading thread) used for a request: where the host's CPUs are busy
elsewhere, it says what the code costs, while the other figures say how long one waits for a CPU.

The front end is Python, but not in the way: requests are copied into the ring by the half ring, as a guest with a queue would
have them there, and the clock runs until the last response has come.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1] / "unit")]

import cffi  # noqa: E402
from block_rig import EVENT_CHANNEL_OP, SEND, BlockGuest, BlockHost  # noqa: E402
from core_guests import BASE  # noqa: E402
from guest_sdk.blkring import HEADER, SLOT, Op, Segment, barrier  # noqa: E402

from xenlike.engine import ffi, lib  # noqa: E402

RUNS = 9
IMAGE = 32 << 20
ARG = BASE + 256

FLOOR = r"""
#include <sys/uio.h>
#include <unistd.h>
#include <string.h>
/* n reads of `size` bytes at places[i], into `pages` pieces of a page. Returns how many came whole. */
static int floor_pread(int fd, const long *places, int n, char *buf, int size)
{
    struct iovec iov[16];
    int whole = 0;
    for (int i = 0; i < n; i++) {
        int pieces = 0;
        for (int at = 0; at < size; at += 4096)
            iov[pieces++] = (struct iovec){ buf + at, size - at < 4096 ? size - at : 4096 };
        whole += preadv(fd, iov, pieces, places[i]) == size;
    }
    return whole;
}
"""


def build_floor(folder: str):
    """The host's own reads, in C as ours are."""
    builder = cffi.FFI()
    builder.cdef("int floor_pread(int fd, const long *places, int n, char *buf, int size);")
    builder.set_source("_block_floor", FLOOR, extra_compile_args=["-O2"])
    builder.compile(tmpdir=folder)
    sys.path.insert(0, folder)
    import _block_floor
    return _block_floor


def workers() -> set[str]:
    """The I/O workers of this process, by thread id."""
    return {task.name for task in Path("/proc/self/task").iterdir() if (task / "comm").read_text() == "xl-io\n"}


class Driver:
    """A front end that keeps a ring full of one kind of request."""

    def __init__(self, *, fd: int = -1, bytes_each: int, ring_pages: int = 1) -> None:
        self.host = BlockHost(virtual=False, memory=64 << 20)
        self.guest = guest = BlockGuest(self.host, data_pages=16, ring_pages=ring_pages)
        others = workers()
        guest.attach(fd, sectors=IMAGE // 512)
        (self._worker,) = workers() - others
        self.cpu_ns: list[float] = []           # of the worker, a request; one entry a run
        full, rest = divmod(bytes_each, 4096)
        segs = [Segment(100 + pfn) for pfn in guest.data[:full]]
        if rest:
            segs.append(Segment(100 + guest.data[full], 0, rest // 512 - 1))
        rng = random.Random(1)
        for n in range(guest.ring.slots):
            guest.ring.put(Op.READ, n, rng.randrange(0, IMAGE - bytes_each, 4096) // 512, segs)
        self.half = guest.ring.slots // 2
        size = self.half * SLOT
        self.template = [bytes(guest.shared_ring[HEADER + n * size:HEADER + (n + 1) * size]) for n in (0, 1)]
        self.words = guest.shared_ring[:16].cast("I")
        guest.put("struct evtchn_send", ARG, port=guest.port)

    def worker_ns(self) -> int:
        """CPU time that the worker has used."""
        return int(Path(f"/proc/self/task/{self._worker}/schedstat").read_text().split()[0])

    def run(self, requests: int) -> float:
        """Seconds for `requests` requests (rounded down to whole rings), ring never empty."""
        before = self.worker_ns()
        seconds = self._run(requests)
        self.cpu_ns.append((self.worker_ns() - before) / requests)
        return seconds

    def _run(self, requests: int) -> float:
        words, half, ring = self.words, self.half, self.guest.shared_ring
        parts = [memoryview(ring)[HEADER + n * half * SLOT:HEADER + (n + 1) * half * SLOT] for n in (0, 1)]
        template, vcpu, hypercall = self.template, self.guest.vcpus[0], lib.xl_hypercall
        slots, rounds = 2 * half, requests // half // 2 * 2
        prod = words[0]
        start = time.perf_counter()
        for _ in range(rounds):
            while slots - (prod - words[2] & 0xFFFFFFFF) < half:
                pass
            side = prod // half & 1
            parts[side][:] = template[side]
            old, prod = prod, prod + half & 0xFFFFFFFF
            words[0] = prod
            barrier()
            if prod - words[1] & 0xFFFFFFFF < prod - old & 0xFFFFFFFF:
                hypercall(vcpu, EVENT_CHANNEL_OP, SEND, ARG, 0, 0, 0)
        while words[2] != prod:
            pass
        return (time.perf_counter() - start) / (rounds * half) * requests

    def one(self, requests: int) -> float:
        """Seconds for `requests` requests, one at a time: notification, wake-up of the worker, I/O, response."""
        words, ring, vcpu, hypercall = self.words, self.guest.shared_ring, self.guest.vcpus[0], lib.xl_hypercall
        slots, request = 2 * self.half, self.template[0][:SLOT]
        prod = words[0]
        start = time.perf_counter()
        for _ in range(requests):
            at = HEADER + (prod & slots - 1) * SLOT
            ring[at:at + SLOT] = request
            old, prod = prod, prod + 1 & 0xFFFFFFFF
            words[0] = prod
            barrier()
            if prod - words[1] & 0xFFFFFFFF < prod - old & 0xFFFFFFFF:
                hypercall(vcpu, EVENT_CHANNEL_OP, SEND, ARG, 0, 0, 0)
            while words[2] != prod:
                pass
        return time.perf_counter() - start

    def close(self) -> None:
        errors = self.guest.stats().errors
        lib.xl_host_destroy(self.host.ptr)
        assert errors == 0, f"{errors} requests failed: the figures mean nothing"


def run(*, runs: int = RUNS) -> list[dict]:
    """All figures: name, ns and requests a second, target (a fixed one, or the floor) and ratio to it, CPU time."""
    with tempfile.TemporaryDirectory() as folder:
        image = os.path.join(folder, "disk.img")
        Path(image).write_bytes(random.Random(2).randbytes(IMAGE))
        fd = os.open(image, os.O_RDONLY)
        floor = build_floor(folder)
        buf = ffi.new("char[]", 16 * 4096)
        rng = random.Random(1)

        cpu_ns: dict[str, list[float]] = {}

        def floor_case(name: str, size: int) -> Callable[[int], float]:
            cpu = cpu_ns[name] = []
            places = floor.ffi.new("long[]", [rng.randrange(0, IMAGE - size, 4096) for _ in range(1024)])
            out = floor.ffi.cast("char *", int(ffi.cast("intptr_t", buf)))

            def case(requests: int) -> float:
                start, start_cpu = time.perf_counter(), time.thread_time_ns()
                for _ in range(requests // 1024):
                    assert floor.lib.floor_pread(fd, places, 1024, out, size) == 1024
                cpu.append((time.thread_time_ns() - start_cpu) / requests)
                return time.perf_counter() - start
            return case

        drivers = {
            "ring alone, 512 B, 1 page": Driver(bytes_each=512),
            "ring alone, 512 B, 4 pages": Driver(bytes_each=512, ring_pages=4),
            "file, 512 B": Driver(fd=fd, bytes_each=512),
            "file, 4 KiB": Driver(fd=fd, bytes_each=4096),
            "file, 44 KiB": Driver(fd=fd, bytes_each=45056),
        }
        cases: dict[str, tuple[Callable[[int], float], int]] = {
            name: (driver.run, 4096 if "44" in name else 20480) for name, driver in drivers.items()}
        cases["ring alone, 512 B, one at a time"] = (drivers["ring alone, 512 B, 1 page"].one, 2048)          # whole rings, so that run() finds its halves
        for size, name in ((512, "512 B"), (4096, "4 KiB"), (45056, "44 KiB")):
            cases[f"floor: pread, {name}"] = (floor_case(f"floor: pread, {name}", size), 4096 if size > 4096 else 20480)
        times: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(runs):
            for name, (case, requests) in cases.items():
                times[name].append(case(requests) / requests * 1e9)
        for name, driver in drivers.items():
            cpu_ns[name] = driver.cpu_ns
            driver.close()
        os.close(fd)
    median = {name: statistics.median(values) for name, values in times.items()}
    rows = []
    for name, ns in median.items():
        target = 1000.0 if name.startswith("ring alone") and "one at" not in name else None
        if name.startswith("file"):
            target = median[f"floor: pread, {name.removeprefix('file, ')}"]
        rows.append({"name": name, "ns": round(ns, 1), "per_second": round(1e9 / ns), "target_ns": target and round(target, 1),
                     "ratio": target and round(ns / target, 2),
                     "cpu_ns": round(statistics.median(cpu_ns[name])) if name in cpu_ns else None})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--runs", type=int, default=RUNS)
    options = parser.parse_args()
    rows = run(runs=options.runs)
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{'case':36} {'ns/request':>11} {'requests/s':>11} {'target ns':>10} {'ratio':>6} {'cpu ns':>7}")
    for row in rows:
        print(f"{row['name']:36} {row['ns']:11.0f} {row['per_second']:11,} {row['target_ns'] or '':>10} {row['ratio'] or '':>6}"
              f" {row['cpu_ns'] or '':>7}")


if __name__ == "__main__":
    main()
