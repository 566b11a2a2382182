"""What the toolstack writes into xenstore so that a guest finds a disk and a back end finds its guest.

Pure, but for ``write`` and ``remove``, which take any xenstore client or transaction with the methods of ``xenlike.store``'s
direct one. Called by domain building, block-attach and block-detach. Layout and permissions: docs/misc/xenstore-paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Writer(Protocol):
    """The part of a xenstore client that is used here."""

    def exists(self, path: str) -> bool: ...
    def ls(self, path: str) -> list[str]: ...
    def write(self, path: str, value: str) -> None: ...
    def rm(self, path: str) -> None: ...
    def set_perms(self, path: str, entries: Sequence[str]) -> None: ...


def frontend_dir(domid: int, device: int) -> str:
    """Where the guest looks."""
    return f"/local/domain/{domid}/device/vbd/{device}"


def backend_dir(domid: int, device: int, *, backend: int = 0) -> str:
    """Where the back end looks."""
    return f"/local/domain/{backend}/backend/vbd/{domid}/{device}"


def error_dir(domid: int, device: int, *, backend: int = 0) -> str:
    """Where the back end says what went wrong, in a child ``error``."""
    return f"/local/domain/{backend}/error/backend/vbd/{domid}/{device}"


@dataclass(frozen=True)
class DiskNodes:
    """The nodes of one disk. Children inherit the permissions of their directory, which is made first."""

    domid: int
    backend: int
    device: int
    front: dict[str, str]
    back: dict[str, str]

    def write(self, xs: Writer) -> None:
        """Make the nodes, in what should be a transaction: each side must find the other complete."""
        sides = ((frontend_dir(self.domid, self.device), self.front, self.domid, self.backend),
                 (backend_dir(self.domid, self.device, backend=self.backend), self.back, self.backend, self.domid))
        for path, keys, owner, reader in sides:
            xs.write(path, "")
            xs.set_perms(path, [f"n{owner}", f"r{reader}"])
            for key, value in keys.items():
                xs.write(f"{path}/{key}", value)

    def remove(self, xs: Writer) -> None:
        """Remove the nodes of both sides, and the error node."""
        for path in (frontend_dir(self.domid, self.device), backend_dir(self.domid, self.device, backend=self.backend),
                     error_dir(self.domid, self.device, backend=self.backend)):
            remove_path(xs, path)


def remove_path(xs: Writer, path: str) -> None:
    """Remove a node, if it exists, and the ancestors that it leaves empty, up to what every domain has."""
    if xs.exists(path):
        xs.rm(path)
        while (path := path.rpartition("/")[0]).count("/") > 4 and not xs.ls(path):
            xs.rm(path)


def disk_nodes(domid: int, *, device: int, vdev: str, path: str | None, writable: bool = True, cdrom: bool = False,
               backend: int = 0, discard: bool = True, trusted: bool = True) -> DiskNodes:
    """The nodes of a disk of domain ``domid``.

    ``device`` is its number (51712) and ``vdev`` its name ("xvda"), ``path`` the image (None: an empty drive), ``backend``
    the serving domain.
    """
    device_type = "cdrom" if cdrom else "disk"
    front = {
        "backend": backend_dir(domid, device, backend=backend),
        "backend-id": str(backend),
        "state": "1",
        "virtual-device": str(device),
        "device-type": device_type,
        "trusted": "1" if trusted else "0",
    }
    back = {
        "frontend": frontend_dir(domid, device),
        "frontend-id": str(domid),
        "params": path or "",
        "script": "",
        "online": "1",
        "removable": "1" if cdrom else "0",
        "bootable": "1",
        "state": "1",
        "dev": vdev,
        "type": "phy",
        "mode": "w" if writable else "r",
        "device-type": device_type,
        "discard-enable": "1" if discard and writable else "0",
    }
    return DiskNodes(domid, backend, device, front, back)
