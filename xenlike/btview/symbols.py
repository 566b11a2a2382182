"""Names for guest addresses, from the symbol table of an ELF image. Called by: ``reader``, ``xenlike.cli_bt``.

Images without one, and those that are not ELF, have no names: nothing here raises for what a file holds.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right

__all__ = ["Symbols"]

_SYMTAB = 2
_KINDS = (0, 1, 2)          # STT_NOTYPE, as in assembly, STT_OBJECT, STT_FUNC
_RESERVED = 0xff00          # sections from here on are none: absolute symbols are constants
_REACH = 1 << 16            # bytes behind a symbol without a size that may still be its


class Symbols:
    """Symbols by address. ``Symbols()`` has none."""

    def __init__(self, data: bytes = b"") -> None:
        try:
            found = {at: (size, name) for at, size, name in sorted(_symbols(memoryview(data)), key=lambda s: (s[0], s[1], s[2]))}
        except (struct.error, ValueError, IndexError, UnicodeDecodeError):
            found = {}
        self._starts = sorted(found)
        self._found = found

    @classmethod
    def of_file(cls, path: str | os.PathLike[str]) -> "Symbols":
        """Those of a file; none if it cannot be read."""
        try:
            with open(path, "rb") as file:
                return cls(file.read() if file.read(4) == b"\x7fELF" and not file.seek(0) else b"")
        except OSError:
            return cls()

    def name(self, at: int) -> str:
        """``"memset"``, ``"memset+0x20"``, or ``""``."""
        n = bisect_right(self._starts, at) - 1
        if n < 0:
            return ""
        start = self._starts[n]
        size, name = self._found[start]
        inside = at - start
        return (f"{name}+{inside:#x}" if inside else name) if inside < (size or _REACH) else ""

    def address(self, name: str) -> int | None:
        """Where the symbol is."""
        return next((at for at in self._starts if self._found[at][1] == name), None)


def _symbols(data: memoryview) -> list[tuple[int, int, str]]:
    """(address, size, name) of what has an address. Raises struct.error, ValueError for a broken table."""
    if len(data) < 64 or data[:4] != b"\x7fELF" or data[5] != 1:
        return []
    wide = data[4] == 2
    header = (("<Q", 40), ("<H", 58), ("<H", 60)) if wide else (("<I", 32), ("<H", 46), ("<H", 48))     # e_shoff, e_shentsize, e_shnum
    at, each, count = (struct.unpack_from(kind, data, offset)[0] for kind, offset in header)
    sections = [struct.unpack_from("<IIQQQQIIQQ" if wide else "<10I", data, at + n * each) for n in range(count)]
    out = []
    for _, kind, _, _, start, size, link, *_ in sections:
        if kind != _SYMTAB or link >= count:
            continue
        strings = bytes(data[sections[link][4]:sections[link][4] + sections[link][5]])
        for entry in struct.iter_unpack("<IBBHQQ" if wide else "<IIIBBH", data[start:start + size]):
            name, info, section, value, length = (entry[k] for k in ((0, 1, 3, 4, 5) if wide else (0, 3, 5, 1, 2)))
            text = strings[name:strings.index(b"\0", name)].decode()
            if info & 15 in _KINDS and 0 < section < _RESERVED and text and text[0] not in ".$":
                out.append((value, length, text))
    return out
