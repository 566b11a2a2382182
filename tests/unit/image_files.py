"""PV images made by the tests: ELF files with Xen's notes, and bzImages around them. No compiler needed; every field can be set wrong.

Used by test_loader_*, test_builder_* and the fuzz test of loaders.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

PT_LOAD, PT_NOTE, PT_TLS = 1, 4, 7
BASE = 0xFFFFFFFF80000000

NUMBERS = {"ENTRY": 1, "HYPERCALL_PAGE": 2, "VIRT_BASE": 3, "PADDR_OFFSET": 4, "XEN_VERSION": 5, "GUEST_OS": 6, "GUEST_VERSION": 7, "LOADER": 8,
           "PAE_MODE": 9, "FEATURES": 10, "BSD_SYMTAB": 11, "HV_START_LOW": 12, "L1_MFN_VALID": 13, "SUSPEND_CANCEL": 14, "INIT_P2M": 15,
           "MOD_START_PFN": 16, "SUPPORTED_FEATURES": 17, "PHYS32_ENTRY": 18, "PHYS32_RELOC": 19, "INFO": 0}
#: The notes without which no image is taken.
REQUIRED = {"XEN_VERSION": "xen-3.0", "LOADER": "generic"}


class Load(NamedTuple):
    """A LOAD segment; ``memsz`` None: as the bytes."""

    paddr: int
    data: bytes
    memsz: int | None = None
    flags: int = 7
    vaddr: int | None = None


def note(number: int | str, value: Any, *, owner: bytes = b"Xen\0") -> bytes:
    """One note. A str gets a NUL, an int 8 bytes, bytes stand as they are."""
    desc = value.encode() + b"\0" if isinstance(value, str) else struct.pack("<Q", value) if isinstance(value, int) else value
    number = NUMBERS.get(number, number)
    pad = lambda text: text + bytes(-len(text) % 4)  # noqa: E731
    return struct.pack("<III", len(owner), len(desc), number) + pad(owner) + pad(desc)


def notes(values: Mapping[int | str, Any]) -> bytes:
    """An area of notes: what is required, and ``values`` (None leaves one out)."""
    return b"".join(note(number, value) for number, value in {**REQUIRED, **values}.items() if value is not None)


def elf(loads: Sequence[Load] = (Load(0x1000, b"code" * 1024),), values: Mapping[int | str, Any] | None = None, *, entry: int | None = None,
        where: str = "PT_NOTE", area: bytes | None = None, headers: Sequence[bytes] = (), note_memsz: int | None = None,
        sections: Sequence[tuple[str, int, bytes]] = (), patch: Mapping[int, bytes] | None = None) -> bytes:
    """An ELF64 file.

    ``where``: "PT_NOTE", "SHT_NOTE" or "none". ``headers`` are further program headers. ``sections`` are (name, type, bytes).
    ``patch`` replaces bytes of the result by offset.
    """
    area = notes(values or {}) if area is None else area
    found_sections = [*sections, *([(".note.Xen", 7, area)] if where == "SHT_NOTE" else [])]
    count = len(loads) + len(headers) + (where == "PT_NOTE")
    body, at = b"", 64 + 56 * count
    table = []
    for load in loads:
        memsz = len(load.data) if load.memsz is None else load.memsz
        vaddr = load.paddr if load.vaddr is None else load.vaddr
        table.append(phdr(PT_LOAD, load.flags, at + len(body), vaddr, load.paddr, len(load.data), memsz))
        body += load.data
    if where == "PT_NOTE":
        body += bytes(-(at + len(body)) % 4)
        table.append(phdr(PT_NOTE, 4, at + len(body), 0, 0, len(area), len(area) if note_memsz is None else note_memsz))
        body += area
    shoff = shnum = 0
    if found_sections:
        names, rows = b"\0", [bytes(64)]
        for name, kind, data in found_sections:
            rows.append(struct.pack("<IIQQQQIIQQ", len(names), kind, 0, 0, at + len(body), len(data), 0, 0, 4, 0))
            names += name.encode() + b"\0"
            body += data
        rows.append(struct.pack("<IIQQQQIIQQ", 0, 3, 0, 0, at + len(body), len(names), 0, 0, 1, 0))
        body += names
        shoff, shnum = at + len(body), len(rows)
        body += b"".join(rows)
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, 62, 1, loads[0].paddr if entry is None and loads else entry or 0, 64, shoff, 0,
                         64, 56, count, 64, shnum, max(0, shnum - 1))
    data = bytearray(header + b"".join([*table, *headers]) + body)
    for offset, new in (patch or {}).items():
        data[offset:offset + len(new)] = new
    return bytes(data)


def phdr(kind: int, flags: int, offset: int, vaddr: int, paddr: int, filesz: int, memsz: int) -> bytes:
    """A program header."""
    return struct.pack("<IIQQQQQQ", kind, flags, offset, vaddr, paddr, filesz, memsz, 4096)


def bzimage(payload: bytes, *, version: int = 0x20F, sectors: int = 4, size: int | None = None, offset: int = 0x20,
            length: int | None = None) -> bytes:
    """A bzImage around a compressed payload; ``size`` is put behind it, as Linux's build does."""
    packed = payload + (b"" if size is None else struct.pack("<I", size))
    data = bytearray((sectors + 1) * 512 + offset) + packed + bytes(64)
    data[0x1F1] = sectors
    data[0x1FE:0x200] = b"\x55\xaa"
    data[0x202:0x208] = b"HdrS" + struct.pack("<H", version)
    data[0x248:0x250] = struct.pack("<II", offset, len(packed) if length is None else length)
    return bytes(data)


def gzipped(data: bytes) -> bytes:
    """gzip, which ends in the length by itself."""
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    return packer.compress(data) + packer.flush()
