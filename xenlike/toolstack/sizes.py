"""Memory sizes as people write them.

Owns the one reading of ``16``, ``"16M"``, ``"1G"``; called by the configuration table and by everything else that
takes an amount of memory (``Host.create(memory="16M")``, ``mem-set``). Units are binary, as everywhere in Xen.
"""

from __future__ import annotations

import re

from .errors import SpecError, show

PAGE_SIZE = 4096
KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40

_UNITS = {"T": TIB, "G": GIB, "M": MIB, "K": KIB}
_SIZE = re.compile(r"\s*([0-9]+|0[xX][0-9a-fA-F]+)\s*(?:([KMGTkmgt])(?:i?[bB])?)?\s*")
_C_INTEGER = re.compile(r"[ \t\n\v\f\r]*([+-]?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)", re.ASCII)
_MAX_DIGITS = 40    # far more than 64 bits need, far less than what makes int() slow or refuse


def parse_integer(text: str) -> int:
    """An integer as C's ``strtol(text, &end, 0)`` reads it when nothing may follow: decimal, 0x hexadecimal, 0 octal.

    That is how xl reads every number of a configuration, quoted or not. Raises ``SpecError``.
    """
    match = _C_INTEGER.fullmatch(text) if len(text) <= _MAX_DIGITS else None
    if match is None:
        octal = re.fullmatch(r"\s*[+-]?0[0-9]+", text, re.ASCII)
        raise SpecError(f"{show(text)} is not a number",
                        hint="a leading 0 means octal" if octal else "decimal, 0x hexadecimal or 0 octal")
    sign, digits = match.groups()
    base = 16 if digits[:2] in ("0x", "0X") else 8 if digits[0] == "0" else 10
    return -int(digits, base) if sign == "-" else int(digits, base)


def parse_size(value: int | str, *, unit: int = MIB) -> int:
    """An amount of memory in bytes.

    ``value`` is a number of ``unit`` bytes (MiB, as xl has it) or a string that may name its own unit: ``"512K"``,
    ``"16M"``, ``"1G"``, ``"1T"`` (also ``16MB``, ``16MiB``; lower case too). Raises ``SpecError`` for anything else
    and for what is no whole number of 4 KiB pages.
    """
    if isinstance(value, str):
        match = _SIZE.fullmatch(value) if len(value) <= _MAX_DIGITS else None
        if match is None:
            raise SpecError(f"{show(value)} is not an amount of memory",
                            hint='write a number of MiB, or a string with a unit: "512K", "16M", "1G"')
        digits, suffix = match.groups()
        size = parse_integer(digits) * (_UNITS[suffix.upper()] if suffix else unit)
    else:
        size = value * unit
    if size < 0:
        raise SpecError(f"{value} is negative")
    if size % PAGE_SIZE:
        raise SpecError(f"{show(str(value))} is not a whole number of 4 KiB pages")
    return size


def format_size(size: int) -> str:
    """``size`` bytes in the largest unit that divides it: 16777216 is ``16M``. Reads back through ``parse_size``."""
    for letter, scale in _UNITS.items():
        if size and size % scale == 0:
            return f"{size // scale}{letter}"
    return f"{size // KIB}K" if size % KIB == 0 else f"{size} bytes"
