"""PV kernel images: from a file to what the domain builder needs to know of it.

Owns ``KernelImage`` and the rules by which Xen's notes become addresses. Called by the host (``ImageCache``) and the tests. A file is an
ELF64 image with Xen's notes, a bzImage that holds one, or either of them compressed (docs/loaders.md). Everything is checked here that the
file alone can decide; what depends on the domain's memory the builder checks.
"""

from __future__ import annotations

import os
import stat
import threading
from dataclasses import dataclass

from . import bzimage
from .elf import Elf
from .errors import LoadError, shown
from .notes import Features, NoNotes, Notes, read_notes
from .pc import PcImage, find_multiboot, is_pc_image, parse_pc_image
from .unpack import compression_of, decompress

__all__ = ["ImageCache", "KernelImage", "is_pc_file", "load_image", "looks_like_image", "parse_image", "read_file"]

MAX_FILE = 1 << 30                      # bytes of a file: a vmlinux with its debugging sections
MAX_UNPACKED = 512 << 20                # bytes that a compressed image may have
_CACHED = 256 << 20                     # bytes of images that a cache keeps
_MASK = 2**64 - 1
_PAGE = 4096
_HOLE = 0xFFFF800000000000, 0xFFFF880000000000     # Xen's own (section 1.9 of the ABI: L4 slots 256 to 271)


@dataclass(frozen=True)
class KernelImage:
    """A PV image. Addresses are virtual; ``segments`` are (offset from ``virt_base``, bytes), ascending, apart from each other.

    ``kstart`` to ``kend`` is what the image covers with its zeroed parts. ``hypercall_page`` is the number of a page from
    ``virt_base``. ``init_p2m`` is where the image wants the P2M, None: behind the image.
    """

    file: str
    virt_base: int
    kstart: int
    kend: int
    entry: int
    segments: tuple[tuple[int, memoryview], ...]
    hypercall_page: int | None
    init_p2m: int | None
    mod_start_pfn: bool
    suspend_cancel: bool
    features: Features
    notes: Notes

    @property
    def pages(self) -> int:
        """Pages from ``virt_base`` to the image's end."""
        return -(-(self.kend - self.virt_base) // _PAGE)


def load_image(path: str | os.PathLike[str], kind: str | None = "pv") -> KernelImage | PcImage:
    """The image in the file ``path``, for a domain of type "pv" or "hvm"; None: what the file is made for, PV if nothing says otherwise.

    Raises LoadError, which names the file, the field that is wrong, and its value.
    """
    data = read_file(path, MAX_FILE)
    try:
        if kind == "hvm" or kind is None and is_pc_image(memoryview(data)):
            return parse_pc_image(data, os.fspath(path))
        return parse_image(data, os.fspath(path))
    except LoadError as error:
        error.file = os.fspath(path)
        if kind is None and isinstance(error, NoNotes):     # nor PVH's, then
            error.message += ("; nor is it a PC's: it has no multiboot header in its first 8192 bytes, "
                              "and no note XEN_ELFNOTE_PHYS32_ENTRY (18)")
            error.hint += "; guest_sdk/c/pc makes images for a PC"
        raise


def read_file(path: str | os.PathLike[str], limit: int) -> bytes:
    """An ordinary file's bytes, at most ``limit``. Raises LoadError; never waits for a pipe or a device."""
    name = os.fspath(path)
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise LoadError("is not an ordinary file", file=name)
            if status.st_size > limit:
                raise LoadError(f"has {status.st_size} bytes; {limit} is the most that is read here", file=name)
            with open(fd, "rb", closefd=False) as file:
                return file.read(limit)
        finally:
            os.close(fd)
    except (OSError, ValueError) as error:
        raise LoadError(f"cannot be read: {getattr(error, 'strerror', None) or error}", file=name) from None


def looks_like_image(path: str | os.PathLike[str]) -> bool:
    """By its first bytes the file is ELF, multiboot, bzImage or compressed: an image, not a configuration. False if it cannot be read."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        with open(path, "rb") as file:
            start = memoryview(file.read(8192))
    except (OSError, ValueError):
        return False
    return find_multiboot(start) is not None or start[:4] == b"\x7fELF" or bzimage.is_bzimage(start) or compression_of(start) is not None


def is_pc_file(path: str | os.PathLike[str]) -> bool:
    """Without a type the file starts a plain PC. False if it cannot be read."""
    try:
        return is_pc_image(memoryview(read_file(path, MAX_FILE)))
    except LoadError:
        return False


def parse_image(data: bytes, file: str = "image", *, limit: int = MAX_UNPACKED) -> KernelImage:
    """The image whose file holds ``data``. Raises LoadError."""
    view = memoryview(data)
    if view[:4] != b"\x7fELF" and not bzimage.is_bzimage(view) and compression_of(view) is not None:
        data = decompress(view, limit, field="file")
        view = memoryview(data)
    if bzimage.is_bzimage(view) and view[:4] != b"\x7fELF":
        data = bzimage.payload(view, limit)
        view = memoryview(data)
    if view[:4] != b"\x7fELF":
        raise LoadError(f"begins with {shown(bytes(view[:8]).decode('latin-1'))}: neither an ELF image nor a Linux bzImage" if data else
                        "is empty", hint="kernel names a PV guest's image, or guest.py:ClassName")
    elf = Elf(data)
    return _place(elf, read_notes(elf), file)


# ---- from notes to addresses -----------------------------------------------------------------------------------------

def _place(elf: Elf, notes: Notes, file: str) -> KernelImage:
    """Section 1.1 of the ABI: defaults, and the checks without which an image is not started."""
    _check_kind(notes)
    loads = elf.loads()
    if notes["PADDR_OFFSET"] is not None and notes["VIRT_BASE"] is None:
        raise LoadError(f"{notes['PADDR_OFFSET']:#x}, and there is no VIRT_BASE: what would it be an offset from?", field="note PADDR_OFFSET",
                        hint="set both notes or neither")
    base, paddr_offset = notes["VIRT_BASE"] or 0, notes["PADDR_OFFSET"] or 0
    shift = base - paddr_offset
    kstart = loads[0].paddr + shift & _MASK
    kend = kstart + loads[-1].paddr + loads[-1].memsz - loads[0].paddr
    entry = elf.entry if notes["ENTRY"] is None else notes["ENTRY"]
    range_text = f"the image is at {kstart:#x} to {kend:#x}"
    if base % _PAGE:
        raise LoadError(f"{base:#x} is not on a page", field="note VIRT_BASE")
    if kend > _MASK:
        raise LoadError(f"{range_text}, beyond the address space (p_paddr {loads[0].paddr:#x}, VIRT_BASE {base:#x}, PADDR_OFFSET "
                        f"{paddr_offset:#x})", field="program headers")
    if base > kstart:
        raise LoadError(f"{base:#x} is behind the image's start: {range_text}", field="note VIRT_BASE",
                        hint="it is the address of the first page of memory")
    check_range("program headers", base, kend)
    if not kstart <= entry <= kend:
        raise LoadError(f"{entry:#x} is outside: {range_text}", field="e_entry" if notes["ENTRY"] is None else "note ENTRY",
                        hint="VIRT_BASE and PADDR_OFFSET say where the image is")
    return KernelImage(
        file=file, virt_base=base, kstart=kstart, kend=kend, entry=entry,
        segments=tuple((s.paddr + shift - base & _MASK, elf.contents("", s.offset, s.filesz)) for s in loads if s.filesz),
        hypercall_page=_hypercall_page(notes["HYPERCALL_PAGE"], base, kend), init_p2m=_init_p2m(notes["INIT_P2M"], base),
        mod_start_pfn=bool(notes["MOD_START_PFN"]), suspend_cancel=bool(notes["SUSPEND_CANCEL"]), features=notes.features(), notes=notes)


def _check_kind(notes: Notes) -> None:
    if not notes["XEN_VERSION"].startswith("xen-3.0"):
        raise LoadError(f"{shown(notes['XEN_VERSION'])}: \"xen-3.0\" is the ABI of all PV guests" if notes["XEN_VERSION"] else "is missing",
                        field="note XEN_VERSION", hint="only PVH, not PV: type = \"hvm\" runs it on a plain PC, uncompressed"
                        if notes["PHYS32_ENTRY"] is not None else "set it to \"xen-3.0\"")
    if not notes["LOADER"].startswith("generic") and not notes["GUEST_OS"].startswith("linux"):
        raise LoadError(f"{shown(notes['LOADER'])}: neither is it \"generic\" nor is GUEST_OS ({shown(notes['GUEST_OS'])}) \"linux\"",
                        field="note LOADER", hint="set LOADER to \"generic\"")


def check_range(field: str, start: int, end: int) -> None:
    """Virtual addresses that a guest may have mapped: canonical, and not Xen's. Raises LoadError."""
    low, high = _HOLE
    if start < 1 << 47 < end or 1 << 47 <= start < low or start < high and end > low or end > 1 << 64:
        raise LoadError(f"{start:#x} to {end:#x} is not a guest's to use: {1 << 47:#x} to {high:#x} is not canonical, or Xen's", field=field,
                        hint="is VIRT_BASE right?")


def _hypercall_page(va: int | None, base: int, kend: int) -> int | None:
    if va is None:
        return None
    if va % _PAGE or not base <= va < kend:
        raise LoadError(f"{va:#x} is no page of the image ({base:#x} to {kend:#x})", field="note HYPERCALL_PAGE")
    return va - base >> 12


def _init_p2m(va: int | None, base: int) -> int | None:
    return va if va is not None and va < base and va % _PAGE == 0 else None     # else as if it were not there, as on Xen


# ---- cache -----------------------------------------------------------------------------------------------------------

class ImageCache:
    """Images that were loaded last, by the file as it is now: to decompress a kernel takes longer than to build its domain.

    Any thread may call it; two that want the same file at the same time may both load it.
    """

    def __init__(self, limit: int = _CACHED) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._images: dict[tuple[int | str | None, ...], tuple[KernelImage | PcImage, int]] = {}

    def get(self, path: str | os.PathLike[str], kind: str | None = "pv") -> KernelImage | PcImage:
        """The image in the file ``path``, as by ``load_image``. Raises LoadError."""
        try:
            status = os.stat(path)
        except (OSError, ValueError) as error:
            raise LoadError(f"cannot be read: {getattr(error, 'strerror', None) or error}", file=os.fspath(path)) from None
        key = kind, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
        with self._lock:
            found = self._images.pop(key, None)
            if found is not None:
                self._images[key] = found       # the newest is last
                return found[0]
        image = load_image(path, kind)
        size = max((len(part.obj) for _, part in image.segments), default=0)
        with self._lock:
            self._images[key] = image, size
            while sum(n for _, n in self._images.values()) > self._limit:
                del self._images[next(iter(self._images))]
        return image
