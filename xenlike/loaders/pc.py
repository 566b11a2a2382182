"""Images for a plain PC: multiboot 1, and 64-bit ELF files with PVH's entry note, which ``qemu -kernel`` takes as well.

Owns ``PcImage`` and the multiboot header (Multiboot Specification 0.6.96, 3.1). Called by ``image``. Everything is checked here that the file
alone can decide; whether it fits the domain's memory the builder checks.
"""

from __future__ import annotations

from dataclasses import dataclass

from .elf import Elf
from .errors import LoadError, shown
from .notes import Notes, read_notes
from .unpack import compression_of

__all__ = ["PcImage", "find_multiboot", "is_pc_image", "parse_pc_image"]

_MAGIC, _SEARCH = 0x1BADB002, 8192      # the header is in the first 8 KiB, on 4 bytes
_ALIGN_MODULES, _MEMORY_INFO, _VIDEO, _ADDRESSES = 1, 2, 4, 1 << 16
_REQUIRED = 0xFFFF                      # flags that a loader must understand
_LIMIT = 1 << 32


@dataclass(frozen=True)
class PcImage:
    """``protocol`` is "multiboot" or "pvh"; ``entry`` and the ``segments`` (address, bytes) are guest-physical, ascending. ``start`` to ``end``
    is what the image covers with its zeroed parts."""

    file: str
    protocol: str
    entry: int
    start: int
    end: int
    segments: tuple[tuple[int, memoryview], ...]


def find_multiboot(data: memoryview) -> int | None:
    """Where the multiboot header is, None: there is none. A magic number without its checksum is none."""
    for at in range(0, min(len(data), _SEARCH) - 11, 4):
        if data[at:at + 4] == b"\x02\xb0\xad\x1b" and sum(_word(data, at + n) for n in (0, 4, 8)) & 0xFFFFFFFF == 0:
            return at
    return None


def is_pc_image(data: memoryview) -> bool:
    """It has a multiboot header, or it is an ELF file that offers PVH's entry and not PV's. Never raises."""
    if find_multiboot(data) is not None:
        return True
    try:
        notes = read_notes(Elf(data.obj, bits32=True)) if data[:4] == b"\x7fELF" else None     # type: ignore[arg-type]
    except LoadError:
        return False
    return notes is not None and notes["PHYS32_ENTRY"] is not None and not _is_pv(notes)


def _is_pv(notes: Notes) -> bool:
    return any(notes[name] is not None for name in ("ENTRY", "VIRT_BASE", "HYPERCALL_PAGE")) or notes["XEN_VERSION"].startswith("xen-3")


def parse_pc_image(data: bytes, file: str) -> PcImage:
    """The image whose file holds ``data``. Of a file that has both, multiboot's header counts, as with ``qemu -kernel``. Raises LoadError."""
    view = memoryview(data)
    header = find_multiboot(view)
    if header is not None:
        flags = _word(view, header + 4)
        if flags & _ADDRESSES:
            return _by_addresses(view, header, file)
        unknown = flags & _REQUIRED & ~(_ALIGN_MODULES | _MEMORY_INFO | _VIDEO)
        if unknown:
            raise LoadError(f"{flags:#x}: bits {unknown:#x} ask for what no loader knows", field="multiboot flags")
    elif view[:4] != b"\x7fELF":
        raise LoadError(f"begins with {shown(bytes(view[:8]).decode('latin-1'))}: neither an ELF file nor one with a multiboot header in its "
                        "first 8192 bytes" if data else "is empty", hint=f"a PC's image is not compressed: unpack it ({packed.name})"
                        if (packed := compression_of(view)) else "kernel names a PC guest's image")
    elf = Elf(data, bits32=True)
    if header is not None:
        if elf.bits == 64:
            raise LoadError("2: a multiboot loader takes 32-bit ELF files", field="EI_CLASS", hint="objcopy -O elf32-i386, or give it PVH's "
                            "note (XEN_ELFNOTE_PHYS32_ENTRY) instead of the header")
        return _by_segments(elf, elf.entry, "multiboot", file)
    try:
        entry, why = read_notes(elf)["PHYS32_ENTRY"], ""
    except LoadError as error:
        entry, why = None, f": {error}"
    if entry is None:
        raise LoadError("nothing says how to start it: no multiboot header in the first 8192 bytes, and no note XEN_ELFNOTE_PHYS32_ENTRY (18)"
                        + why, field="ELF file", hint="guest_sdk/c/pc has both")
    return _by_segments(elf, entry, "pvh", file)


def _by_segments(elf: Elf, entry: int, protocol: str, file: str) -> PcImage:
    loads = elf.loads()
    for s in loads:
        if s.paddr + s.memsz > _LIMIT:
            raise LoadError(f"p_paddr {s.paddr:#x} + p_memsz {s.memsz:#x} is beyond 4 GiB, and it starts in 32-bit mode",
                            field=f"program header {s.number}", hint="AT() in the linker script says where it is loaded")
    start, end = loads[0].paddr, loads[-1].paddr + loads[-1].memsz
    if not start <= entry < end:
        virtual = next((s for s in loads if protocol == "multiboot" and s.vaddr <= entry < s.vaddr + s.memsz), None)
        if virtual is None:
            raise LoadError(f"{entry:#x} is outside: the image is at {start:#x} to {end:#x}",
                            field="e_entry" if protocol == "multiboot" else "note PHYS32_ENTRY")
        entry += virtual.paddr - virtual.vaddr
    return PcImage(file, protocol, entry, start, end, tuple((s.paddr, elf.contents("", s.offset, s.filesz)) for s in loads if s.filesz))


def _by_addresses(view: memoryview, header: int, file: str) -> PcImage:
    """The "a.out kludge": the header itself says what goes where (3.1.3)."""
    if len(view) < header + 32:
        raise LoadError("the header is cut short", field="multiboot header", hint="is it truncated?")
    header_addr, load_addr, load_end, bss_end, entry = (_word(view, header + n) for n in range(12, 32, 4))
    if load_addr > header_addr or header_addr - load_addr > header:
        raise LoadError(f"load_addr {load_addr:#x} and header_addr {header_addr:#x} do not fit a header at {header:#x} of the file",
                        field="multiboot header")
    offset = header - (header_addr - load_addr)
    size = load_end - load_addr if load_end else len(view) - offset
    end = max(bss_end, load_addr + size)
    if size <= 0 or offset + size > len(view) or end > _LIMIT:
        raise LoadError(f"load_addr {load_addr:#x}, load_end_addr {load_end:#x}, bss_end_addr {bss_end:#x}: the file has {len(view)} bytes",
                        field="multiboot header", hint="is it truncated?")
    if not load_addr <= entry < end:
        raise LoadError(f"{entry:#x} is outside: the image is at {load_addr:#x} to {end:#x}", field="multiboot entry_addr")
    return PcImage(file, "multiboot", entry, load_addr, end, ((load_addr, view[offset:offset + size]),))


def _word(data: memoryview, at: int) -> int:
    return int.from_bytes(data[at:at + 4], "little")
