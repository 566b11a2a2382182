"""What lies behind a disk: a raw image file or a block device of the host.

Owns the open descriptor and the facts that back end and guest need of it. Called by ``service`` and by who makes
disks without it. Nothing here reads or writes data.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from dataclasses import dataclass

SECTOR = 512
_BLKPBSZGET = 0x127B        # ioctl: physical sector size of a block device


class ImageError(Exception):
    """A disk's file cannot be used. ``path`` names it, ``reason`` says why and what to do."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"disk {self.path!r}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class DiskImage:
    """An open image: ``fd`` belongs to this object until ``close``; ``sectors`` are 512 bytes each."""

    path: str
    fd: int
    sectors: int
    writable: bool = True
    cdrom: bool = False
    discard: bool = True
    physical_sector_size: int = SECTOR

    def close(self) -> None:
        """Close the descriptor. A connected back end has its own and goes on."""
        os.close(self.fd)


def open_image(path: str, *, writable: bool = True, cdrom: bool = False, discard: bool = True) -> DiskImage:
    """Open a raw image file or block device. A last part of a sector counts as a sector (its missing bytes read as zeros).

    ``discard`` asks to offer it to the guest; a disk that cannot be written never does. Raises ``ImageError``.
    """
    try:
        fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
    except OSError as error:
        hint = "; access=ro makes a disk read-only" if writable and error.errno in (13, 30) else ""
        raise ImageError(path, f"{os.strerror(error.errno)}{hint}") from None
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISREG(mode):
            physical = SECTOR
        elif stat.S_ISBLK(mode):
            physical = struct.unpack("i", fcntl.ioctl(fd, _BLKPBSZGET, bytes(4)))[0]
        else:
            raise ImageError(path, "neither a file nor a block device")
        size = os.lseek(fd, 0, os.SEEK_END)
        if size == 0:
            raise ImageError(path, "empty; a raw image has the disk's size, truncate -s 64M makes one")
        return DiskImage(path=path, fd=fd, sectors=-(-size // SECTOR), writable=writable, cdrom=cdrom,
                         discard=discard and writable, physical_sector_size=physical)
    except OSError as error:
        os.close(fd)
        raise ImageError(path, os.strerror(error.errno)) from None
    except ImageError:
        os.close(fd)
        raise
