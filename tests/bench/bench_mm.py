"""Page tables: mmu_update by the batch, pinning and unpinning a tree."""

from __future__ import annotations

import struct
import time
from array import array
from collections.abc import Callable
from contextlib import ExitStack

from bench_core import play, real_host
from core_guests import ACCESSED, BASE, DIRTY, PAGE, PRESENT, RW
from harness import Case, Size
from script_guests import ScriptGuest, ScriptHost

from xenlike.engine import NR, check, ffi, lib

BATCH = 512                             # entries of a request, and of a table
LEAF, TABLE = PRESENT | RW | ACCESSED | DIRTY, PRESENT | RW | ACCESSED | DIRTY | 4
REQUESTS = BASE + 4 * PAGE


class Mapper(ScriptGuest):
    """A paused guest with `extra` frames beyond those that CoreGuest maps: not mapped anywhere, so free to be tables or data."""

    def __init__(self, host: ScriptHost, extra: int) -> None:
        super().__init__(host, 1, 1, {"backend": lib.BACKEND_PYTHON, "max_pages": self.PAGES + 16 + extra})
        mfns = ffi.new("u32[]", extra)
        check(lib.xl_domain_populate(host.ptr, self.id, self.PAGES + 16, extra, mfns), "xl_domain_populate")
        self.extra = list(mfns)

    def fill(self, table: int, entries: list[int]) -> None:
        """A frame's first entries, before it is a table."""
        self.host.write_frame(table, 0, array("Q", entries).tobytes())

    def mmuext(self, cmd: int, mfn: int) -> tuple[int, ...]:
        """The hypercall that does one MMUEXT_* with a frame; its structure is at BASE + 64 * cmd."""
        at = BASE + 64 * cmd
        self.put("struct mmuext_op", at, cmd=cmd, arg1__mfn=mfn)
        return NR.mmuext_op, at, 1, 0, lib.DOMID_SELF


def updates(host: ScriptHost, rounds: int, *, frames: int) -> Callable[[], float]:
    """mmu_update of a whole L1 in one call: each entry goes from one writable frame to another and back with the next call.
    `frames`: how many there are to choose from."""
    guest = Mapper(host, frames + 1)
    *data, table = guest.extra
    check(guest.call(*guest.mmuext(lib.MMUEXT_PIN_L1_TABLE, table)), "pin the table")
    calls = []
    for side in (0, 1):
        at = REQUESTS + side * BATCH * 16
        for slot in range(BATCH):
            frame = data[(2 * slot + side) % frames]
            guest.write(at + slot * 16, struct.pack("<QQ", table << 12 | slot * 8, frame << 12 | LEAF))
        calls.append((NR.mmu_update, at, BATCH, 0, lib.DOMID_SELF))
    return play(guest, calls, rounds, per=2 * BATCH)


class Tree:
    """A populated L4 tree: `tables` full L1s of distinct writable frames, 2 MiB each, under one L2, L3 and L4."""

    def __init__(self, host: ScriptHost, tables: int) -> None:
        self.guest = guest = Mapper(host, tables * (BATCH + 1) + 3)
        *l1s, l2, l3, l4 = guest.extra[tables * BATCH:]
        for n, l1 in enumerate(l1s):
            guest.fill(l1, [mfn << 12 | LEAF for mfn in guest.extra[n * BATCH:(n + 1) * BATCH]])
        for table, lower in ((l2, l1s), (l3, [l2]), (l4, [l3])):
            guest.fill(table, [mfn << 12 | TABLE for mfn in lower])
        self.entries = tables * BATCH
        self._pin, self._unpin = guest.mmuext(lib.MMUEXT_PIN_L4_TABLE, l4), guest.mmuext(lib.MMUEXT_UNPIN_TABLE, l4)

    def _time(self, call: tuple[int, ...]) -> float:
        start = time.perf_counter_ns()
        check(self.guest.call(*call), "mmuext_op")
        return (time.perf_counter_ns() - start) / self.entries

    def pin(self) -> float:
        """ns an L1 entry; leaves it unpinned."""
        ns = self._time(self._pin)
        self._time(self._unpin)
        return ns

    def unpin(self) -> float:
        """ns an L1 entry of the way back."""
        self._time(self._pin)
        return self._time(self._unpin)


def cases(stack: ExitStack, size: Size) -> list[Case]:
    host = real_host(stack, memory=256 << 20)
    tree = Tree(host, size.of(32, 2))
    mib = tree.entries * PAGE >> 20
    rounds = size.of(510, 1)
    return [
        Case("mmu_update, batch of 512, an entry", "ns", updates(host, rounds, frames=2 * BATCH), 40),
        Case("mmu_update, the same two frames", "ns", updates(host, rounds, frames=2)),
        Case(f"pin an L4 of {mib} MiB, an entry", "ns", tree.pin),
        Case(f"unpin an L4 of {mib} MiB, an entry", "ns", tree.unpin),
    ]
