"""blkfront: a virtual disk for Python guests (xen public io/blkif.h, xenbus states of section 7.2).

Owns: one disk's ring, its data pages and their grants. Called by: ``Guest.block``. The ring itself is ``guest_sdk.blkring``; here
stand negotiation and waiting.
"""

from __future__ import annotations

from typing import Any

from xenlike.engine import XenError, lib

from guest_sdk.blkring import MAX_SEGMENTS, SECTOR, SECTORS_PER_PAGE, BlkRing, Op, Response, Status, segments
from guest_sdk.kernel import Future, GuestError
from guest_sdk.memory import Page

__all__ = ["Disk", "DiskError", "connect"]

_INITIALISING, _INIT_WAIT, _INITIALISED, _CONNECTED, _CLOSING, _CLOSED = 1, 2, 3, 4, 5, 6
_CHUNK = MAX_SEGMENTS * SECTORS_PER_PAGE        # sectors in one request


class DiskError(OSError):
    """The back end answered a request with an error.

    Attributes:
        status: BLKIF_RSP_*: -1 error, -2 not supported.
    """

    def __init__(self, what: str, sector: int, count: int, status: int) -> None:
        why = "operation not supported" if status == Status.EOPNOTSUPP else "I/O error"
        super().__init__(lib.XEN_EIO, f"{what} of {count} sectors at {sector}: {why} (status {status})")
        self.status = status


class Disk:
    """A connected disk. Sectors are 512 bytes, whatever the back end's own sector size."""

    def __init__(self, guest: Any, path: str, number: int) -> None:
        self._guest = guest
        self._path = path
        self.number = number
        self.sectors = 0
        self.sector_size = SECTOR
        self.info = 0                   #: VDISK_* bits: 1 cdrom, 2 removable, 4 read-only
        self.features: dict[str, int] = {}
        self._next_id = 0
        self._waiting: dict[int, Future[int]] = {}
        self._space: list[Future[None]] = []
        self._pool: list[tuple[Page, int]] = []

    @property
    def readonly(self) -> bool:
        """Writes will fail."""
        return bool(self.info & lib.VDISK_READONLY)

    # ---- connecting --------------------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        guest, xs = self._guest, self._guest.xenstore
        self._backend = await xs.read(f"{self._path}/backend")
        self._backend_id = int(await xs.read(f"{self._path}/backend-id"))
        if await xs.get(f"{self._backend}/state") in ("5", "6"):       # somebody has used and closed it: begin anew
            await xs.write(f"{self._path}/state", _INITIALISING)
        state = await xs.wait_for(f"{self._backend}/state", lambda s: s in ("2", "4") or s is None)
        if state != "2":
            raise GuestError(f"the back end of {self._path} is in state {state}: it was to wait for us (2)")
        self._page = guest.memory.alloc_zeroed()
        self._ring = BlkRing(self._page.view(), handle=self.number)
        guest.devices.append(self._ring.release)
        self._ring_ref = guest.grants.access(self._backend_id, self._page)
        self._port = guest.events.alloc_unbound(self._backend_id).on_event(self._event)

        async def publish(t: Any) -> None:
            await t.write(f"{self._path}/ring-ref", self._ring_ref)
            await t.write(f"{self._path}/event-channel", self._port.number)
            await t.write(f"{self._path}/protocol", "x86_64-abi")
            await t.write(f"{self._path}/state", _INITIALISED)

        await xs.transaction(publish)
        state = await xs.wait_for(f"{self._backend}/state", lambda s: s in ("4", "5", "6") or s is None)
        if state != "4":
            why = await xs.get(f"error/{self._path}/error", "no reason given")
            raise GuestError(f"the back end of {self._path} refused to connect (state {state}): {why}")
        self.sectors = int(await xs.read(f"{self._backend}/sectors"))
        self.sector_size = int(await xs.get(f"{self._backend}/sector-size", "512") or 512)
        self.info = int(await xs.get(f"{self._backend}/info", "0") or 0)
        for name in ("flush-cache", "barrier", "discard"):
            self.features[name] = int(await xs.get(f"{self._backend}/feature-{name}", "0") or 0)
        await xs.write(f"{self._path}/state", _CONNECTED)

    async def close(self) -> None:
        """Disconnects in order: Closing, then Closed when the back end has let go; ring and pages come back."""
        xs = self._guest.xenstore
        await xs.write(f"{self._path}/state", _CLOSING)
        await xs.wait_for(f"{self._backend}/state", lambda s: s in ("5", "6", None))
        await xs.write(f"{self._path}/state", _CLOSED)
        await xs.wait_for(f"{self._backend}/state", lambda s: s in ("6", None))
        self._port.close()
        self._ring.release()
        self._guest.devices.remove(self._ring.release)
        self._guest.grants.end_access(self._ring_ref)
        self._page.free()
        for page, ref in self._pool:
            self._guest.grants.end_access(ref)
            page.free()
        self._pool.clear()

    # ---- requests ----------------------------------------------------------------------------------------------------

    def _event(self) -> None:
        more = True
        while more:
            for response in self._ring.pop():
                self._finish(response)
            more = self._ring.final_check()
        while self._space and self._ring.free:
            self._space.pop(0).set(None)

    def _finish(self, response: Response) -> None:
        future = self._waiting.pop(response.id, None)
        if future is not None:
            future.set(response.status)

    async def _submit(self, op: int, sector: int, refs: list[int], count: int) -> int:
        while not self._ring.free:
            future: Future[None] = Future()
            self._space.append(future)
            await future
        self._next_id += 1
        answer: Future[int] = Future()
        self._waiting[self._next_id] = answer
        self._ring.put(op, self._next_id, sector, segments(refs, count) if refs else ())
        if self._ring.push():
            self._port.notify()
        self._ring.final_check() and self._event()
        return await answer

    def _take_pages(self, n: int) -> list[tuple[Page, int]]:
        """Data pages granted to the back end; they are kept and used again."""
        while len(self._pool) < n:
            page = self._guest.memory.alloc_page()
            self._pool.append((page, self._guest.grants.access(self._backend_id, page)))
        taken, self._pool[-n:] = self._pool[-n:], []
        return taken

    async def read(self, sector: int, count: int = 1) -> bytes:
        """``count`` sectors from ``sector``. Raises DiskError."""
        parts = []
        for at in range(sector, sector + count, _CHUNK):
            n = min(_CHUNK, sector + count - at)
            pages = self._take_pages(-(-n // SECTORS_PER_PAGE))
            try:
                status = await self._submit(Op.READ, at, [ref for _, ref in pages], n)
                if status:
                    raise DiskError("read", at, n, status)
                data = b"".join(page.read() for page, _ in pages)
                parts.append(data[:n * SECTOR])
            finally:
                self._pool.extend(pages)
        return b"".join(parts)

    async def write(self, sector: int, data: bytes) -> None:
        """Writes whole sectors from ``sector``; on disk for sure after ``flush``. Raises DiskError."""
        if len(data) % SECTOR:
            raise ValueError(f"{len(data)} bytes are no whole number of {SECTOR}-byte sectors")
        for start in range(0, len(data), _CHUNK * SECTOR):
            part = data[start:start + _CHUNK * SECTOR]
            at, n = sector + start // SECTOR, len(part) // SECTOR
            pages = self._take_pages(-(-n // SECTORS_PER_PAGE))
            try:
                for i, (page, _) in enumerate(pages):
                    page.write(part[i * 4096:(i + 1) * 4096])
                status = await self._submit(Op.WRITE, at, [ref for _, ref in pages], n)
                if status:
                    raise DiskError("write", at, n, status)
            finally:
                self._pool.extend(pages)

    async def flush(self) -> None:
        """What was written before is on disk when this returns. Raises DiskError."""
        status = await self._submit(Op.FLUSH_DISKCACHE, 0, [], 0)
        if status:
            raise DiskError("flush", 0, 0, status)


async def connect(guest: Any, name: str) -> Disk:
    """Finds the disk called ``name`` ("xvda") among the guest's devices and connects it. Raises GuestError, XenError."""
    xs = guest.xenstore
    try:
        numbers = await xs.ls("device/vbd")
    except XenError:
        numbers = []
    names = {}
    for number in numbers:
        path = f"device/vbd/{number}"
        backend = await xs.read(f"{path}/backend")
        names[(await xs.get(f"{backend}/dev", number) or number)] = (path, int(number))
    if name not in names:
        raise GuestError(f"domain {guest.domid} has no disk {name!r}; it has {sorted(names) or 'none'} (disk = [...] in its configuration)")
    disk = Disk(guest, *names[name])
    await disk._connect()
    return disk
