"""Xen's notes: what an image says of itself to the domain builder.

Owns the table of notes (Xen public header elfnote.h) and features (features.h), and where they are found: PT_NOTE segments, else
SHT_NOTE sections, else the ``__xen_guest`` section of old images. Called by ``image``. Notes are known by number alone: tools that
print their names mostly print those of other vendors.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .elf import PT_NOTE, SHT_NOBITS, SHT_NOTE, Elf
from .errors import LoadError, shown

__all__ = ["FEATURES", "NOTES", "Features", "NoNotes", "Notes", "read_notes"]

_MAX_BYTES = 1 << 20                    # of note areas in all: real images have hundreds; many headers may name one area
_HEADER = struct.Struct("<III")


def _number(desc: bytes) -> int:
    if len(desc) not in (4, 8):
        raise LoadError(f"has {len(desc)} bytes; a number has 4 or 8")
    return int.from_bytes(desc, "little")


def _text(desc: bytes) -> str:
    return desc.partition(b"\0")[0].decode("latin-1")       # Linux's FEATURES has no NUL


def _words(size: int) -> Callable[[bytes], tuple[int, ...]]:
    return lambda desc: tuple(int.from_bytes(desc[i:i + size], "little") for i in range(0, len(desc) - size + 1, size))


class NoNotes(LoadError):
    """The file is sound, and has none."""


class Note(NamedTuple):
    """A row of the table: the note's name in elfnote.h without XEN_ELFNOTE_, how its bytes are read, and the value of an absent one."""

    name: str
    read: Callable[[bytes], Any]
    default: Any = None


NOTES: dict[int, Note] = {
    0: Note("INFO", _text, ""),
    1: Note("ENTRY", _number),
    2: Note("HYPERCALL_PAGE", _number),
    3: Note("VIRT_BASE", _number),
    4: Note("PADDR_OFFSET", _number),
    5: Note("XEN_VERSION", _text, ""),
    6: Note("GUEST_OS", _text, ""),
    7: Note("GUEST_VERSION", _text, ""),
    8: Note("LOADER", _text, ""),
    9: Note("PAE_MODE", _text, "no"),
    10: Note("FEATURES", _text, ""),
    11: Note("BSD_SYMTAB", _text, "no"),
    12: Note("HV_START_LOW", _number),
    13: Note("L1_MFN_VALID", _words(8), ()),
    14: Note("SUSPEND_CANCEL", _number, 0),
    15: Note("INIT_P2M", _number),
    16: Note("MOD_START_PFN", _number, 0),
    17: Note("SUPPORTED_FEATURES", _number, 0),
    18: Note("PHYS32_ENTRY", _number),
    19: Note("PHYS32_RELOC", _words(4), ()),
}
_DEFAULTS = {note.name: note.default for note in NOTES.values()}

#: Names that the text form knows, and their bit (XENFEAT_*).
FEATURES = {"writable_page_tables": 0, "writable_descriptor_tables": 1, "auto_translated_physmap": 2, "supervisor_mode_kernel": 3,
            "pae_pgdir_above_4gb": 4, "hvm_callback_vector": 8, "dom0": 11}


class Features(NamedTuple):
    """Bit maps by XENFEAT_* number: what the image can use, and what it cannot do without."""

    supported: int
    required: int

    @classmethod
    def parse(cls, text: str) -> "Features":
        """``"!writable_page_tables|pae_pgdir_above_4gb"``: names with bars between; ``!`` is what it needs. A name that nobody knows
        matters only if it is needed. Raises LoadError."""
        supported = required = 0
        for word in text.split("|"):
            needed, name = word.startswith("!"), word.removeprefix("!").strip()
            bit = FEATURES.get(name)
            if bit is not None:
                supported |= 1 << bit
                required |= needed << bit
            elif needed:
                raise LoadError(f"the image requires {shown(name)}, which is no known feature", field="note FEATURES",
                                hint="known: " + ", ".join(FEATURES))
        return cls(supported, required)


@dataclass
class Notes:
    """What was found: ``notes["VIRT_BASE"]`` is the value, or the default of a note that is absent.

    ``source`` is "PT_NOTE", "SHT_NOTE" or "__xen_guest"; ``unknown`` are the numbers that mean nothing here.
    """

    source: str
    values: dict[str, Any] = field(default_factory=dict)
    unknown: list[int] = field(default_factory=list)

    def __getitem__(self, name: str) -> Any:
        return self.values.get(name, _DEFAULTS[name])

    def features(self) -> Features:
        """Both notes about features together. Raises LoadError."""
        named = Features.parse(self["FEATURES"])
        return named._replace(supported=named.supported | self["SUPPORTED_FEATURES"])


def read_notes(elf: Elf) -> Notes:
    """The image's Xen notes. Raises NoNotes if it has none, LoadError if one is malformed."""
    for source, areas in (("PT_NOTE", _segments(elf)), ("SHT_NOTE", _sections(elf))):
        found, seen = Notes(source), False
        for number, desc in _xen_notes(areas):
            seen = True
            note = NOTES.get(number)
            if note is None:
                found.unknown.append(number)
                continue
            try:
                found.values[note.name] = note.read(desc)
            except LoadError as error:
                error.field = f"note {note.name} ({number})"
                raise
        if seen:
            return found
    for section in elf.sections():
        if section.name == "__xen_guest" and section.type != SHT_NOBITS:
            return _legacy(elf.contents("section __xen_guest", section.offset, min(section.size, _MAX_BYTES)).tobytes())
    raise NoNotes("has no Xen notes and no __xen_guest section: it is not a Xen guest",
                    hint="a PV kernel has them in a PT_NOTE segment or a .note section; for Linux set CONFIG_XEN_PV")


def _segments(elf: Elf) -> Iterator[tuple[str, memoryview]]:
    for s in elf.segments:
        if s.type == PT_NOTE and s.offset:      # by file offset: memsz may be 0. Offset 0 would be the ELF header
            what = f"program header {s.number} (NOTE)"
            yield what, elf.contents(what, s.offset, s.filesz)


def _sections(elf: Elf) -> Iterator[tuple[str, memoryview]]:
    for s in elf.sections():
        if s.type == SHT_NOTE:
            what = f"section {s.number} {shown(s.name)}"
            yield what, elf.contents(what, s.offset, s.size)


def _xen_notes(areas: Iterator[tuple[str, memoryview]]) -> Iterator[tuple[int, bytes]]:
    """(number, descriptor) of each note whose owner is "Xen". Name and descriptor begin on 4 bytes."""
    total = 0
    for what, area in areas:
        total += len(area)
        if total > _MAX_BYTES:
            raise LoadError(f"notes of {total} bytes in all; {_MAX_BYTES} is the most", field=what)
        at = 0
        while at + _HEADER.size <= len(area):
            namesz, descsz, number = _HEADER.unpack_from(area, at)
            desc = at + _HEADER.size + (namesz + 3 & ~3)
            if desc + descsz > len(area):
                raise LoadError(f"the note at {at:#x} (namesz {namesz:#x}, descsz {descsz:#x}, type {number}) is larger than what is left",
                                field=what)
            if area[at + _HEADER.size:at + _HEADER.size + namesz].tobytes().rstrip(b"\0") == b"Xen":
                yield number, area[desc:desc + descsz].tobytes()
            at = desc + (descsz + 3 & ~3)


# ---- __xen_guest -----------------------------------------------------------------------------------------------------

_LEGACY = {"LOADER": "LOADER", "GUEST_OS": "GUEST_OS", "GUEST_VER": "GUEST_VERSION", "XEN_VER": "XEN_VERSION", "PAE": "PAE_MODE",
           "FEATURES": "FEATURES", "VIRT_BASE": "VIRT_BASE", "VIRT_ENTRY": "ENTRY", "ELF_PADDR_OFFSET": "PADDR_OFFSET",
           "HYPERCALL_PAGE": "HYPERCALL_PAGE", "BSD_SYMTAB": "BSD_SYMTAB"}
_LEGACY_NUMBERS = {"VIRT_BASE", "ENTRY", "PADDR_OFFSET", "HYPERCALL_PAGE"}


def _legacy(data: bytes) -> Notes:
    """``KEY=VALUE,KEY=VALUE``. HYPERCALL_PAGE is the number of a page, counted from VIRT_BASE; ELF_PADDR_OFFSET defaults to VIRT_BASE."""
    found = Notes("__xen_guest")
    for word in _text(data).split(","):
        key, _, value = word.strip().partition("=")
        name = _LEGACY.get(key)
        if name in _LEGACY_NUMBERS:
            try:
                number = int(value[:20], 0)
            except ValueError:
                number = -1
            if not 0 <= number < 1 << 64:
                raise LoadError(f"{shown(value)} is no address", field=f"section __xen_guest, {key}")
            found.values[name] = number
        elif name is not None:
            found.values[name] = value or "yes"
    base = found["VIRT_BASE"] or 0
    if found["HYPERCALL_PAGE"] is not None:
        found.values["HYPERCALL_PAGE"] = base + (found["HYPERCALL_PAGE"] << 12) & 2**64 - 1
    if found["VIRT_BASE"] is not None:
        found.values.setdefault("PADDR_OFFSET", base)
    return found
