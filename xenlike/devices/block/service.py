"""All disks of a host: opens images, starts and ends back ends, passes on what the hypervisor reports.

Owns the open images and the cookies that tell back ends apart. Called by domain building, block-attach, block-list, and by
the lane for EXIT_IO and deaths. Runs on the Python lane.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .backend import BlockBackend, BlockOps, Store
from .image import DiskImage, open_image
from .nodes import DiskNodes, disk_nodes
from .xenbus import XenbusState


@dataclass(frozen=True)
class DiskStatus:
    """A disk as block-list shows it; None where there is no connection."""

    domid: int
    device: int
    vdev: str
    path: str | None
    writable: bool
    state: XenbusState
    front_port: int | None
    ring_refs: tuple[int, ...]
    backend_path: str
    ident: int | None


@dataclass
class _Disk:
    nodes: DiskNodes
    backend: BlockBackend
    image: DiskImage | None
    vdev: str


class BlockService:
    """The disks that domain 0 serves."""

    def __init__(self, xs: Store, ops: BlockOps) -> None:
        self._xs, self._ops = xs, ops
        self._disks: dict[tuple[int, int], _Disk] = {}
        self._by_cookie: dict[int, _Disk] = {}
        self._cookies = 0

    def add(self, domid: int, *, device: int, vdev: str, path: str | None, writable: bool = True, cdrom: bool = False,
            discard: bool = True, trusted: bool = True) -> BlockBackend:
        """Give domain ``domid`` a disk: open its image (``path`` None: an empty drive), write its nodes, start its back end.

        Raises ``ImageError``, and ``ValueError`` if the domain has a disk of that number.
        """
        if (domid, device) in self._disks:
            raise ValueError(f"domain {domid} has a disk {vdev} ({device}) already; detach it first, or choose another vdev")
        image = None if path is None else open_image(path, writable=writable, cdrom=cdrom, discard=discard)
        nodes = disk_nodes(domid, device=device, vdev=vdev, path=path, writable=writable, cdrom=cdrom, discard=discard,
                           trusted=trusted)
        self._cookies += 1
        backend = BlockBackend(self._xs, self._ops, domid=domid, device=device, image=image, cookie=self._cookies,
                               on_finished=lambda backend: self._forget(domid, device))
        self._disks[domid, device] = self._by_cookie[self._cookies] = _Disk(nodes, backend, image, vdev)
        with self._xs.transaction() as t:
            nodes.write(t)
        backend.start()
        return backend

    def remove(self, domid: int, device: int, *, force: bool = False) -> None:
        """Ask the guest to give a disk up; it is gone when the guest has. ``force`` does not ask. Raises ``KeyError``."""
        disk = self._disks.get((domid, device))
        if disk is None:
            raise KeyError(f"domain {domid} has no disk {device}; block-list shows those it has")
        if force:
            self._forget(domid, device)
        else:
            disk.backend.request_removal()

    def io_stopped(self, cookie: int, why: int) -> None:
        """EXIT_IO: the data path with ``cookie`` has stopped. Unknown cookies are of disks that are gone."""
        disk = self._by_cookie.get(cookie)
        if disk is not None:
            disk.backend.stopped(why)

    def domain_died(self, domid: int) -> None:
        """Drop all disks of a domain that was destroyed, nodes included."""
        for key in [key for key in self._disks if key[0] == domid]:
            self._forget(*key)

    def close(self) -> None:
        """Drop all disks: the host ends."""
        for key in list(self._disks):
            self._forget(*key)

    def get(self, domid: int, device: int) -> BlockBackend | None:
        """The back end of a disk."""
        disk = self._disks.get((domid, device))
        return disk.backend if disk else None

    def list(self, domid: int | None = None) -> Iterator[DiskStatus]:
        """The disks of a domain, or all, in the order they were added."""
        for (owner, device), disk in self._disks.items():
            if domid is None or owner == domid:
                backend = disk.backend
                yield DiskStatus(owner, device, disk.vdev, disk.image.path if disk.image else None,
                                 bool(disk.image and disk.image.writable), backend.state, backend.front_port,
                                 backend.ring_refs, backend.path, backend.ident)

    def _forget(self, domid: int, device: int) -> None:
        disk = self._disks.pop((domid, device), None)
        if disk is None:
            return
        self._by_cookie = {cookie: other for cookie, other in self._by_cookie.items() if other is not disk}
        disk.backend.close()
        if disk.image is not None:
            disk.image.close()
        with self._xs.transaction() as t:
            disk.nodes.remove(t)
