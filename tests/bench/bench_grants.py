"""Grants: copies of a page, and map with unmap."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from bench_core import play, real_host
from core_guests import BASE, PAGE
from harness import Case, Size
from script_guests import ScriptGuest, ScriptHost

from xenlike.engine import NR, check, ffi, lib

BATCH = 64
ARGS = BASE + PAGE                      # argument structures, of map and copy; the unmaps' are behind them
UNMAPS = ARGS + 2 * PAGE
WINDOW, DATA = 32, 32 + BATCH           # pfns: where grants are mapped; what is granted or copied to


class Pages(ScriptGuest):
    """A paused guest with 64 pages to grant or to copy to, and as many to map grants at."""

    PAGES = DATA + BATCH

    def __init__(self, host: ScriptHost) -> None:
        super().__init__(host, 1, 1, {"backend": lib.BACKEND_PYTHON})

    def grant_all(self, to: ScriptGuest) -> None:
        """Data page n as reference 8 + n."""
        self.put("struct gnttab_setup_table", dom=lib.DOMID_SELF, nr_frames=1, frame_list=BASE + 512)
        check(self.call(NR.grant_table_op, lib.GNTTABOP_setup_table, BASE, 1), "setup_table")
        table = int.from_bytes(self.read(BASE + 512, 8), "little")
        for n in range(BATCH):
            entry = ffi.new("grant_entry_v1_t *", {"flags": lib.GTF_permit_access, "domid": to.id, "frame": self.mfns[DATA + n]})
            self.host.write_frame(table, 8 * (8 + n), bytes(ffi.buffer(entry)))

    def put_all(self, ctype: str, at: int, values: list[dict]) -> int:
        """An array of structures; its address."""
        self.write(at, bytes(ffi.buffer(ffi.new(f"struct {ctype}[]", values))))
        return at

    def get_all(self, ctype: str, at: int, count: int) -> object:
        """The array as the hypervisor left it. It owns its elements: keep it while they are looked at."""
        found = ffi.new(f"struct {ctype}[]", count)
        ffi.buffer(found)[:] = self.read(at, ffi.sizeof(found))
        return found

    def failed(self, ctype: str, at: int, count: int) -> bool:
        """An element has a status other than 0."""
        found = self.get_all(ctype, at, count)
        return any(op.status for op in found)


class Copies:
    """GNTTABOP_copy of `count` whole pages in one call, each from another grant to another page."""

    def __init__(self, host: ScriptHost, count: int) -> None:
        self.granter, self.guest, self.count = Pages(host), Pages(host), count
        self.granter.grant_all(self.guest)
        self.guest.put_all("gnttab_copy", ARGS, [
            {"source": {"u": {"ref": 8 + n}, "domid": self.granter.id}, "dest": {"u": {"gmfn": self.guest.mfns[DATA + n]},
             "domid": lib.DOMID_SELF}, "len": PAGE, "flags": lib.GNTCOPY_source_gref} for n in range(count)])

    def measure(self, rounds: int) -> Callable[[], float]:
        """ns a copy."""
        run = play(self.guest, [(NR.grant_table_op, lib.GNTTABOP_copy, ARGS, self.count)], rounds, per=self.count)

        def measure() -> float:
            ns = run()
            assert not self.guest.failed("gnttab_copy", ARGS, self.count), "a copy failed"
            return ns
        return measure


class Maps:
    """GNTTABOP_map_grant_ref of `count` pages in one call, and unmap_grant_ref of them in another. Handles are given out last in,
    first out, so unmapping backwards gives the next call the same ones."""

    def __init__(self, host: ScriptHost, count: int) -> None:
        self.granter, self.guest, self.count = Pages(host), Pages(host), count
        self.granter.grant_all(self.guest)
        guest = self.guest
        guest.put_all("gnttab_map_grant_ref", ARGS, [
            {"host_addr": guest.va(WINDOW + n), "flags": lib.GNTMAP_host_map, "ref": 8 + n, "dom": self.granter.id} for n in range(count)])
        self.calls = [(NR.grant_table_op, lib.GNTTABOP_map_grant_ref, ARGS, count),
                      (NR.grant_table_op, lib.GNTTABOP_unmap_grant_ref, UNMAPS, count)]
        check(guest.call(*self.calls[0]), "map_grant_ref")
        mapped = guest.get_all("gnttab_map_grant_ref", ARGS, count)
        guest.put_all("gnttab_unmap_grant_ref", UNMAPS, [
            {"host_addr": mapped[n].host_addr, "handle": mapped[n].handle} for n in reversed(range(count))])
        check(guest.call(*self.calls[1]), "unmap_grant_ref")

    def measure(self, rounds: int) -> Callable[[], float]:
        """ns for a map and its unmap."""
        run = play(self.guest, self.calls, rounds, per=self.count)

        def measure() -> float:
            ns = run()
            assert not self.guest.failed("gnttab_map_grant_ref", ARGS, self.count), "a map failed"
            assert not self.guest.failed("gnttab_unmap_grant_ref", UNMAPS, self.count), "an unmap failed"
            return ns
        return measure


def cases(stack: ExitStack, size: Size) -> list[Case]:
    host = real_host(stack)
    single, batch = size.of(60_000, 60), size.of(1020, 2)

    def copy_target(floor: str) -> dict:
        return {"target": lambda medians: medians[floor] + 60, "target_says": f"{floor.removeprefix('floor: ')} + 60 ns"}
    return [
        Case("grant copy of 4 KiB, one a call", "ns", Copies(host, 1).measure(single), **copy_target("floor: memcpy 4 KiB, one page")),
        Case("grant copy of 4 KiB, 64 a call", "ns", Copies(host, BATCH).measure(batch), **copy_target("floor: memcpy 4 KiB, 64 pages")),
        Case("grant map + unmap, one a call", "ns", Maps(host, 1).measure(single), 200),
        Case("grant map + unmap, 64 a call", "ns", Maps(host, BATCH).measure(batch), 200),
    ]
