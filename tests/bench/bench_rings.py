"""The block and xenstore benchmarks among the others: their figures as rows of the table.

`bench_block` and `bench_store` let their own cases and floors take turns; what they report are medians.
"""

from __future__ import annotations

from collections.abc import Callable

import bench_block
import bench_store
from harness import RUNS, Row, Size, row_of

#: Name there -> name here, and whether it has the ring's target.
BLOCK = {
    "floor: pread, 512 B": ("floor: pread 512 B, from a set of places", False),
    "floor: pread, 4 KiB": ("floor: pread 4 KiB, from a set of places", False),
    "ring alone, 512 B, 1 page": ("block ring alone, 512 B", True),
    "ring alone, 512 B, 4 pages": ("block ring alone, 512 B, 4-page ring", True),
    "ring alone, 512 B, one at a time": ("block ring alone, one at a time", False),
    "file, 512 B": ("block from a file, 512 B", False),
    "file, 4 KiB": ("block from a file, 4 KiB", False),
}
#: Of these also the CPU time that a request takes the thread which serves it: it says more where two threads share a CPU.
CPU_TIME = ("floor: pread, 512 B", "ring alone, 512 B, 1 page", "file, 512 B")
STORE = {
    "floor_socket_echo": "floor: echo of 40 bytes over a socket",
    "direct_read": "xenstore read in process",
    "direct_write": "xenstore write in process",
    "direct_transaction": "xenstore transaction in process",
    "feed_guest_read": "xenstore read, wire format, as a guest",
    "ring_read": "xenstore read over a ring page",
    "socket_read": "xenstore read over the socket",
    "socket_write": "xenstore write over the socket",
    "socket_read_pipelined": "xenstore read over the socket, 100 under way",
}
RING_TARGET = 1_000_000                 # requests a second


def block_rows(size: Size) -> list[Row]:
    """Requests a second; beside files stands what the same reads cost without a ring."""
    runs = size.of(RUNS, 1)
    found = {row["name"]: row for row in bench_block.run(runs=runs)}
    rows = []
    for theirs, (name, targeted) in BLOCK.items():
        rate = float(found[theirs]["per_second"])
        rows.append(row_of(name, "requests/s", [rate], runs, RING_TARGET if targeted else None))
        if theirs in CPU_TIME:
            rows.append(row_of(f"{name}, CPU time", "ns", [float(found[theirs]["cpu_ns"])], runs, None))
    return rows


def store_rows(size: Size) -> list[Row]:
    """Operations a second."""
    if size.quick:
        bench_store.ROUNDS = 1
    found = bench_store.run()
    return [row_of(name, "ops/s", [float(found[f"{theirs}_per_s"])], bench_store.ROUNDS, None) for theirs, name in STORE.items()]


def rows(size: Size, wanted: Callable[[list[str]], list[str]]) -> list[Row]:
    """Both, as far as `wanted(names)` has any of theirs."""
    found = []
    block = [name for name, _ in BLOCK.values()] + [f"{BLOCK[theirs][0]}, CPU time" for theirs in CPU_TIME]
    for names, measure in ((block, block_rows), (list(STORE.values()), store_rows)):
        keep = wanted(names)
        if keep:
            found += [row for row in measure(size) if row.name in keep]
    return found
