"""Floors of the host, and hypercall dispatch in C."""

from __future__ import annotations

import mmap
import os
import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from core_guests import CoreGuest
from harness import Case, Size
from script_guests import ScriptHost

from xenlike.engine import NR, check, ffi, lib

Call = tuple[int, ...]                  # number and arguments of a hypercall
PIECES = 51


def real_host(stack: ExitStack, *, memory: int = 64 << 20, pcpus: int = 1) -> ScriptHost:
    """A host with the real clock, closed with the stack."""
    return stack.enter_context(ScriptHost(virtual=False, pcpus=pcpus, memory=memory))


def pieces(run: Callable[[int], int], count: int, *, per: float = 1) -> Callable[[], float]:
    """A `measure`: `run(n)` does something n times and returns the ns that took. `count` times are done in pieces, and the middle one
    counts: a piece is often over before the host's scheduler takes the CPU away, a whole run is not."""
    each = max(1, count // PIECES)
    return lambda: statistics.median(run(each) for _ in range(PIECES)) / each / per


def play(guest: CoreGuest, calls: Sequence[Call], rounds: int, *, per: float) -> Callable[[], float]:
    """A `measure`: the C loop makes `calls` in turn, `rounds` times over; ns a round, divided by `per`."""
    made = ffi.new("struct xl_cold[]", [{"nr": nr, "args": list(args)} for nr, *args in calls])
    vcpu, nr = guest.vcpus[0], len(calls)
    return pieces(lambda n: check(lib.xl_bench_hypercalls(vcpu, made, nr, n), "hypercall of a benchmark"), rounds, per=per)


def floor(kind: int, count: int, buffer: object = ffi.NULL, size: int = 0) -> Callable[[], float]:
    """A `measure` of what the host needs for one of BENCH_FLOORS (csrc/bench.h)."""
    return pieces(lambda n: check(lib.xl_bench_floor(kind, n, buffer, size), "floor"), count)


def shared_pages(stack: ExitStack, count: int) -> object:
    """Touched pages of a memfd, as guests' memory is."""
    fd = os.memfd_create("bench")
    stack.callback(os.close, fd)
    os.ftruncate(fd, count * mmap.PAGESIZE)
    pages = mmap.mmap(fd, count * mmap.PAGESIZE)
    pages[:] = random.Random(1).randbytes(len(pages))
    return ffi.from_buffer(pages)


def cases(stack: ExitStack, size: Size) -> list[Case]:
    """Floors first: others' targets rest on them."""
    file = stack.enter_context(tempfile.NamedTemporaryFile())
    file.write(random.Random(2).randbytes(4 << 20))
    file.flush()
    n = size.of(400_000, 400)
    pages = shared_pages(stack, 2 * 64)
    found = [
        Case("floor: C call", "ns", floor(lib.BENCH_FLOOR_CALL, n * 5)),
        Case("floor: locked add", "ns", floor(lib.BENCH_FLOOR_ATOMIC, n * 5)),
        Case("floor: clock read", "ns", floor(lib.BENCH_FLOOR_CLOCK, n)),
        Case("floor: memcpy 4 KiB, one page", "ns", floor(lib.BENCH_FLOOR_MEMCPY, n, pages, 1)),
        Case("floor: memcpy 4 KiB, 64 pages", "ns", floor(lib.BENCH_FLOOR_MEMCPY, n, pages, 64)),
        Case("floor: pread 512 B", "ns", floor(lib.BENCH_FLOOR_PREAD, n // 16, pages, file.fileno())),
        Case("floor: futex wake of a thread", "ns", floor(lib.BENCH_FLOOR_WAKE, n // 100)),
    ]
    traced, untraced = real_host(stack), real_host(stack)
    lib.xl_trace_off(untraced.ptr, 1)
    version = [(NR.xen_version, lib.XENVER_version, 0)]
    found += [
        Case("hypercall dispatch in C (xen_version)", "ns", play(traced.python(), version, n * 5, per=1), 30),
        Case("hypercall dispatch in C, trace off", "ns", play(untraced.python(), version, n * 5, per=1)),
    ]
    return found
