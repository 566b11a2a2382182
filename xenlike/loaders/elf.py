"""ELF files, 64-bit and 32-bit: header, program headers, sections, areas of notes. Nothing about Xen.

Owns the format (System V ABI, chapters 4 and 5). Called by ``image`` and ``notes``. The file is hostile: every offset and size is
checked before it is used, nothing is allocated by what a header says, and each table is walked once. It is 150 lines instead of a library
because a loader needs three tables of fixed layout and must say of each bad field which it is (docs/loaders.md).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from .errors import LoadError

__all__ = ["Elf", "Section", "Segment"]

PT_LOAD, PT_NOTE = 1, 4
SHT_NOBITS, SHT_NOTE = 8, 7
_EM_386, _EM_X86_64 = 3, 62
_MACHINES = {_EM_386: "i386", 8: "MIPS", 20: "PowerPC", 21: "PowerPC64", 22: "S/390", 40: "ARM", 183: "AArch64", 243: "RISC-V"}
_TYPES = {0: "no type", 1: "a relocatable object (link it first)", 4: "a core dump"}
_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_SHDR = struct.Struct("<IIQQQQIIQQ")
_EHDR32 = struct.Struct("<16sHHIIIIIHHHHHH")
_PHDR32 = struct.Struct("<IIIIIIII")
_SHDR32 = struct.Struct("<IIIIIIIIII")
_MAX_HEADERS = 0xFFFE                   # 0xffff: PN_XNUM, the count is elsewhere; no kernel has so many
_ONE_PAST = 1 << 64


@dataclass(frozen=True)
class Segment:
    """A program header; ``number`` is its place in the table."""

    number: int
    type: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    filesz: int
    memsz: int


@dataclass(frozen=True)
class Section:
    """A section header with its name."""

    number: int
    name: str
    type: int
    offset: int
    size: int


class Elf:
    """A parsed ELF64 file for x86-64, or with ``bits32`` also an ELF32 file for i386. Raises LoadError for anything that is not one."""

    def __init__(self, data: bytes, *, bits32: bool = False) -> None:
        self.data = memoryview(data)
        if len(data) < 20 or data[:4] != b"\x7fELF":
            raise LoadError("is not an ELF file" if data[:4] != b"\x7fELF" else "is an ELF header cut short", field="e_ident")
        machine = int.from_bytes(data[18:20], "little")
        self.bits = 32 if data[4] == 1 and bits32 else 64
        if data[4] == 1 and not bits32:
            raise LoadError("1: this is a 32-bit image, and only 64-bit PV guests run here", field="EI_CLASS",
                            hint="a PV guest is built for x86-64; a plain PC runs 32-bit files that have a multiboot header in their first "
                            "8192 bytes, or the note XEN_ELFNOTE_PHYS32_ENTRY (18)" if machine == _EM_386 else "")
        if data[4] != self.bits // 32 or data[5] != 1:
            raise LoadError(f"class {data[4]}, data {data[5]}: not a little-endian 64-bit file", field="e_ident")
        header, self._phdr, self._shdr = (_EHDR, _PHDR, _SHDR) if self.bits == 64 else (_EHDR32, _PHDR32, _SHDR32)
        if len(data) < header.size:
            raise LoadError(f"the file has {len(data)} bytes and its header alone {header.size}", field="ELF header", hint="is it truncated?")
        (_, kind, machine, _, self.entry, self._phoff, self._shoff, _, _, self._phentsize, self._phnum, self._shentsize, self._shnum,
         self._shstrndx) = header.unpack_from(data)
        if machine != _EM_X86_64 and not (bits32 and machine == _EM_386):
            raise LoadError(f"{machine} ({_MACHINES.get(machine, 'unknown')}): only x86-64 (62) runs here", field="e_machine")
        if kind not in (2, 3):
            raise LoadError(f"{kind}: not an executable but {_TYPES.get(kind, 'something else')}", field="e_type")
        self.segments = list(self._segments())

    def _table(self, what: str, offset: int, size: int, count: int, row: struct.Struct) -> Iterator[tuple[int, ...]]:
        if size != row.size:
            raise LoadError(f"{size}: entries of {row.size} bytes are expected", field=f"e_{what}entsize")
        if count > _MAX_HEADERS:
            raise LoadError(f"{count}: more headers than are supported", field=f"e_{what}num")
        if offset + count * row.size > len(self.data):
            raise LoadError(f"{offset:#x} with {count} entries is beyond the end of the file ({len(self.data):#x})",
                            field=f"e_{what}off", hint="is it truncated?")
        return row.iter_unpack(self.data[offset:offset + count * row.size])

    def _segments(self) -> Iterator[Segment]:
        if not self._phnum:
            raise LoadError("0: a file without program headers has nothing to load", field="e_phnum")
        table = self._table("ph", self._phoff, self._phentsize, self._phnum, self._phdr)
        for n, row in enumerate(table):
            if self.bits == 32:         # where p_flags stands elsewhere
                row = (row[0], row[6], *row[1:6], row[7])
            kind, flags, offset, vaddr, paddr, filesz, memsz, _ = row
            yield Segment(n, kind, flags, offset, vaddr, paddr, filesz, memsz)

    def loads(self) -> list[Segment]:
        """The segments to load, by physical address. Checked: inside the file, inside the address space, apart from each other."""
        found = []
        for s in self.segments:
            if s.type != PT_LOAD or not s.flags & 7 or not s.memsz and not s.filesz:
                continue
            field = f"program header {s.number}"
            if s.filesz > s.memsz:
                raise LoadError(f"p_filesz {s.filesz:#x} is more than p_memsz {s.memsz:#x}", field=field)
            self.contents(field, s.offset, s.filesz)
            if s.paddr + s.memsz >= _ONE_PAST:
                raise LoadError(f"p_paddr {s.paddr:#x} + p_memsz {s.memsz:#x} is beyond the address space", field=field)
            found.append(s)
        if not found:
            raise LoadError("none is of type LOAD with a size", field="program headers")
        found.sort(key=lambda s: s.paddr)
        for a, b in zip(found, found[1:]):
            if a.paddr + a.memsz > b.paddr:
                raise LoadError(f"p_paddr {b.paddr:#x} lies inside program header {a.number} ({a.paddr:#x} to {a.paddr + a.memsz:#x}): "
                                "what overlaps has no defined contents", field=f"program header {b.number}")
        return found

    def contents(self, field: str, offset: int, size: int) -> memoryview:
        """``size`` bytes of the file at ``offset``, which ``field`` asked for. Raises LoadError."""
        if offset + size > len(self.data):
            raise LoadError(f"offset {offset:#x}, size {size:#x} is beyond the end of the file ({len(self.data):#x})", field=field,
                            hint="is it truncated?")
        return self.data[offset:offset + size]

    def sections(self) -> list[Section]:
        """The section headers; none is not an error. Raises LoadError."""
        if not self._shoff or not self._shnum:
            return []
        rows = list(self._table("sh", self._shoff, self._shentsize, self._shnum, self._shdr))
        names = b""
        if self._shstrndx < len(rows) and rows[self._shstrndx][1] != SHT_NOBITS:
            names = self.contents("section names", *rows[self._shstrndx][4:6]).tobytes()
        return [Section(n, _name(names, row[0]), row[1], row[4], row[5]) for n, row in enumerate(rows)]


def _name(names: bytes, at: int) -> str:
    return names[at:at + 64].partition(b"\0")[0].decode("latin-1")
