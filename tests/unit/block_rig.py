"""A disk on the real core, its front end driven by hand: for tests and the benchmark of csrc/io.

A `BlockHost` is a host with the real or the virtual clock and a domain 0; a `BlockGuest` is a domain with a grant table that
the test writes itself, pages for data, and a ring (guest_sdk.blkring) on one page or more. No xenstore is involved: port
and references go to `xl_blk_attach` directly.
"""

from __future__ import annotations

import struct
import time

from core_guests import BASE, PAGE, CoreGuest, CoreHost
from guest_sdk.blkring import BlkRing, Response, Segment
from xenlike.engine import check, ffi, lib

GNTTABOP_SETUP_TABLE = 2
GRANT_TABLE_OP, EVENT_CHANNEL_OP = 20, 32
BIND_INTERDOMAIN, SEND, ALLOC_UNBOUND = 0, 4, 6
GTF_PERMIT_ACCESS, GTF_READONLY = 1, 4
PENDING = 2048                          # offset of evtchn_pending in shared_info
HANG = 20.0                             # seconds after which a wait is a failure


class BlockHost(CoreHost):
    """A host with a domain 0. `virtual`: which clock; with the real one the I/O worker's thread does the work."""

    def __init__(self, *, virtual: bool, memory: int = 32 << 20) -> None:
        config = ffi.new("struct xl_host_config *", {"memory": memory, "nr_pcpus": 1, "virtual_clock": virtual, "seed": 1})
        err = ffi.new("int *")
        self.ptr = lib.xl_host_create(config, err)
        check(err[0], "xl_host_create")
        self.virtual = virtual
        self.io_exits: list[tuple[int, int, int]] = []
        self._exits = ffi.new("struct lane_exit[]", 16)
        self.dom0 = self.guest(privileged=True, domid=0)

    def step(self) -> None:
        """Lets time pass: runs the lane once, or yields to the worker."""
        for n in range(lib.xl_run(self.ptr, self._exits, 16)):
            exit = self._exits[n]
            if exit.kind == lib.EXIT_IO:
                self.io_exits.append((exit.domid, exit.a, exit.b))
            elif exit.kind == lib.EXIT_IDLE and self.virtual:
                lib.xl_skip_to(self.ptr, exit.a)
        if not self.virtual:
            time.sleep(0)

    def wait(self, condition, what: str = "it"):
        """Steps until `condition()` holds, and returns what it returned."""
        end = time.monotonic() + HANG
        while not (result := condition()):
            assert time.monotonic() < end, f"waited {HANG} s for {what}"
            self.step()
        return result

    def idle(self) -> None:
        """Gives what should not happen the time to happen."""
        for _ in range(20):
            self.step()
            if not self.virtual:
                time.sleep(0.001)


class Window:
    """A frame's bytes, to be used until `close` and no longer."""

    def __init__(self, host: BlockHost, domid: int, mfn: int) -> None:
        self._host, self._mfn = host, mfn
        self.ptr = lib.xl_window_open(host.ptr, domid, mfn)
        assert self.ptr != ffi.NULL, f"frame {mfn:#x} cannot be opened"
        self.view = memoryview(ffi.buffer(self.ptr, PAGE))

    def close(self) -> None:
        lib.xl_window_close(self._host.ptr, self._mfn)


class BlockGuest(CoreGuest):
    """A front end. Pages 1..4 may hold the ring (grant references 8..11), page n from 5 on is data, granted as 100 + n.

    `scattered`: the ring's pages are granted in reverse order, so that the back end cannot take them for neighbours.
    """

    FIRST_DATA = 5

    def __init__(self, host: BlockHost, *, data_pages: int = 24, ring_pages: int = 1,
                 scattered: bool = False) -> None:
        super().__init__(host, 1, False, self.FIRST_DATA + data_pages, {})
        self.data = range(self.FIRST_DATA, self.FIRST_DATA + data_pages)
        frame_list = BASE + 512
        self.put("struct gnttab_setup_table", dom=0x7FF0, nr_frames=1, frame_list=frame_list)
        assert self.call(GRANT_TABLE_OP, GNTTABOP_SETUP_TABLE, BASE, 1) == 0
        self._windows = {0: Window(host, self.id, struct.unpack("<Q", self.read(frame_list, 8))[0])}
        self.grants = self._windows[0].view
        for n in range(4):
            self.grant(8 + n, 1 + n)
        for n in self.data:
            self.grant(100 + n, n)
        self.put("struct evtchn_alloc_unbound", dom=0x7FF0, remote_dom=0)
        assert self.call(EVENT_CHANNEL_OP, ALLOC_UNBOUND, BASE) == 0
        self.port = self.get("struct evtchn_alloc_unbound").port
        host.dom0.put("struct evtchn_bind_interdomain", remote_dom=self.id, remote_port=self.port)
        assert host.dom0.call(EVENT_CHANNEL_OP, BIND_INTERDOMAIN, BASE) == 0
        self.back_port = host.dom0.get("struct evtchn_bind_interdomain").local_port
        assert not scattered or host.virtual
        self.ring_pages, self.scattered = ring_pages, scattered
        self.shared_ring = self._open_ring()
        self.ring = BlkRing(self.shared_ring)
        self.ident = -1
        self._next_id = 0

    # Memory and grants.

    def page(self, pfn: int) -> memoryview:
        """The bytes of a page."""
        if pfn not in self._windows:
            self._windows[pfn] = Window(self.host, self.id, self.mfns[pfn])
        return self._windows[pfn].view

    def grant(self, ref: int, pfn: int, *, domid: int = 0, readonly: bool = False, flags: int | None = None) -> None:
        """Writes a grant entry by hand."""
        flags = GTF_PERMIT_ACCESS | (GTF_READONLY if readonly else 0) if flags is None else flags
        struct.pack_into("<HHI", self.grants, 8 * ref, flags, domid, self.mfns[pfn])

    def _open_ring(self):
        """The ring in place, or with `scattered` a buffer that `sync` copies."""
        if self.scattered:
            return bytearray(self.ring_pages * PAGE)
        first = self.mfns[1]
        assert self.mfns[1:1 + self.ring_pages] == list(range(first, first + self.ring_pages)), "frames are no neighbours"
        for n in range(self.ring_pages):
            self.page(1 + n)
        return memoryview(ffi.buffer(self._windows[1].ptr, self.ring_pages * PAGE))

    def sync(self, *, out: bool) -> None:
        """Scattered rings: copies the buffer to the pages or back. Nothing else runs meanwhile (virtual clock)."""
        for n in range(self.ring_pages if self.scattered else 0):
            page, part = self.page(self.ring_pages - n), slice(n * PAGE, (n + 1) * PAGE)
            if out:
                page[:] = self.shared_ring[part]
            else:
                self.shared_ring[part] = page

    # Connection.

    def attach(self, fd: int = -1, *, sectors: int, flags: int = 0, cookie: int = 0, kind: int | None = None,
               refs: list[int] | None = None, port: int | None = None) -> int:
        """xl_blk_attach; its result, which is also kept in `ident`."""
        if refs is None:
            refs = list(range(8, 8 + self.ring_pages))
            if self.scattered:
                refs.reverse()
        self.sync(out=True)
        config = ffi.new("struct xl_blk_config *", {
            "sectors": sectors, "cookie": cookie, "kind": (lib.XL_BLK_RAM if fd < 0 else lib.XL_BLK_FILE) if kind is None else kind,
            "flags": flags, "fd": fd, "port": self.back_port if port is None else port, "front": self.id,
            "nr_ring_pages": len(refs), "ring_ref": refs[:4]})
        self.ident = lib.xl_blk_attach(self.host.ptr, config)
        return self.ident

    def detach(self) -> int:
        return lib.xl_blk_detach(self.host.ptr, self.ident)

    def stats(self):
        out = ffi.new("struct xl_blk_stats *")
        check(lib.xl_blk_stats(self.host.ptr, self.ident, out), "xl_blk_stats")
        return out

    def close(self) -> None:
        """Closes the windows: needed before the domain's frames can all come back."""
        for window in self._windows.values():
            window.close()
        self._windows.clear()

    # Requests.

    def notify(self) -> None:
        self.put("struct evtchn_send", port=self.port)
        assert self.call(EVENT_CHANNEL_OP, SEND, BASE) == 0

    def push(self) -> None:
        """Publishes what was put, and notifies if the back end asked."""
        notify = self.ring.push()
        self.sync(out=True)
        if notify:
            self.notify()

    def pop(self) -> list[Response]:
        self.sync(out=False)
        return self.ring.pop()

    def finish(self) -> dict[int, int]:
        """Waits for every response; id → status."""
        found: dict[int, int] = {}

        def done() -> bool:
            found.update((response.id, response.status) for response in self.pop())
            return self.ring.outstanding == 0

        self.host.wait(done, "responses")
        return found

    def request(self, op: int, sector: int, segs: list[Segment]) -> int:
        """One request from start to end; its status."""
        self._next_id += 1
        self.ring.put(op, self._next_id, sector, segs)
        self.push()
        return self.finish()[self._next_id]

    def raw(self, request: bytes) -> int:
        """Likewise for any bytes; the response is the only one."""
        self.ring.put_raw(request.ljust(112, b"\0"))
        self.push()
        (status,) = self.finish().values()
        return status

    def pending(self) -> bool:
        """Whether our port's event is pending; clears it."""
        shared, at, bit = memoryview(self.shared).cast("B"), PENDING + self.port // 8, 1 << self.port % 8
        was = shared[at] & bit
        if was:
            shared[at] &= ~bit
        return bool(was)
