"""Reads C headers: which constants, types and fields they declare, and in which file.

Used by the ABI tests and by scripts/abi_coverage.py, on our headers and on Xen's own. What is compared is always
derived from the headers through here, never from a list kept by hand.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pycparser import c_ast, c_parser

ROOT = Path(__file__).resolve().parents[2]
INCLUDE = ROOT / "csrc" / "include"

# Xen's headers show everything to tools; to a guest that declares its version they show less, and some of it otherwise.
# Ours know the same macros.
AS_TOOLS = ("-D__XEN_TOOLS__",)
AS_GUEST = ("-D__XEN_INTERFACE_VERSION__=0x00040e00",)
# How the hypervisor itself and cffi read ours.
AS_CORE = ("-DXL_CORE",)
AS_CDEF = ("-DXL_CDEF",)

# Headers that Xen refuses to show to guests.
TOOLS_ONLY = ("xen/domctl.h", "xen/sysctl.h", "xen/hvm/save.h", "xen/arch-x86/hvm/save.h")

# Xen's headers that are not compared, by the beginning of their names, and why.
NOT_COMPARED = {
    "xen/arch-arm": "ARM",
    "xen/arch-x86_32.h": "32-bit guests",
    "xen/arch-x86/xen-x86_32.h": "32-bit guests",
    "xen/device_tree_defs.h": "ARM",
    "xen/dom0_ops.h": "names from before Xen 3.2; cannot be included",
    "xen/foreign/": "copies of layouts for tools that run on another architecture",
    "xen/io/libxenvchan.h": "a library's interface, not the hypervisor's",
    "xen/sys/": "ioctls of a dom0 kernel",
    "xen/xsm/": "the FLASK security module",
}

# What <stdint.h> would declare: the parser has no system headers.
_PRELUDE = "".join(f"typedef {sign}{base} {'u' if sign else ''}int{bits}_t;"
                   for bits, base in ((8, "char"), (16, "short"), (32, "int"), (64, "long"))
                   for sign in ("", "unsigned ")) + "typedef unsigned long size_t; typedef _Bool bool;\n"

# Words of GNU C that the parser does not know and that change no name, size or offset here.
_GNU_WORDS = ("-D__attribute__(x)=", "-D__asm__(x)=", "-D__extension__=", "-D__inline__=", "-D__signed__=signed")


@dataclass
class Declared:
    """What a set of headers declares. Names map to the header, relative to the include folder, that declares them."""

    constants: dict[str, str] = field(default_factory=dict)
    """Enumerators."""
    macros: dict[str, str] = field(default_factory=dict)
    """Macros without parameters that may stand for an expression."""
    types: dict[str, str] = field(default_factory=dict)
    """``struct x``, ``union x``, and the names of typedefs."""
    fields: dict[str, list[str]] = field(default_factory=dict)
    """For each structure and union, the paths of its members: ``console.domU.mfn``."""


def own_headers(flags: Sequence[str] = AS_TOOLS) -> list[str]:
    """Our headers, relative to the include folder, in a fixed order; to guests only those that Xen has for guests."""
    names = sorted(str(path.relative_to(INCLUDE)) for path in INCLUDE.glob("xen/**/*.h"))
    return [name for name in names if flags != AS_GUEST or name not in TOOLS_ONLY]


def xen_headers(include: Path, flags: Sequence[str] = AS_TOOLS) -> list[str]:
    """Xen's own headers under `include`, as far as they are compared. First those that others need: xen.h, and
    hvm/save.h, without which its architecture's part cannot be read."""
    names = sorted(str(path.relative_to(include)) for path in include.glob("xen/**/*.h"))
    compared = [name for name in names if not name.startswith(tuple(NOT_COMPARED))
                and not (flags == AS_GUEST and name in TOOLS_ONLY)]
    return sorted(compared, key=lambda name: (name != "xen/xen.h", name != "xen/hvm/save.h"))


def preprocess(headers: Sequence[str], flags: Sequence[str], *, system: bool = False) -> str:
    """The text of `headers` after the preprocessor. Without `system`, system headers are empty files."""
    source = "".join(f"#include <{header}>\n" for header in headers)
    with tempfile.TemporaryDirectory() as empty:
        if not system:
            for name in ("stdint.h", "stddef.h", "stdbool.h", "string.h", "stdio.h", "inttypes.h"):
                (Path(empty) / name).touch()
            flags = ["-nostdinc", *flags, "-I", empty]
        done = subprocess.run(["gcc", "-E", *flags, "-"], input=source, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"gcc -E failed on {', '.join(headers)}:\n{done.stderr}")
    return done.stdout


def declared(headers: Sequence[str], include: Path, flags: Sequence[str] = AS_TOOLS) -> Declared:
    """What `headers` under `include`, and the headers there that they include, declare. Not to be changed."""
    return _declared(tuple(headers), include, tuple(flags))


@functools.cache
def _declared(headers: tuple[str, ...], include: Path, view: tuple[str, ...]) -> Declared:
    flags = [*view, "-I", str(include)]
    found = Declared()
    for name, header in _macros(headers, include, flags):
        found.macros.setdefault(name, header)
    text = preprocess(headers, [*flags, *_GNU_WORDS])
    tree = c_parser.CParser().parse(_PRELUDE + text, "prelude")
    for node in tree.ext:
        header = _relative(str(node.coord.file) if node.coord else "", include)
        if header:
            _declare(node, header, found)
    return found


def _relative(file: str, include: Path) -> str:
    """`file`, as a header names it that includes it, relative to `include`; empty if it is elsewhere."""
    file = os.path.normpath(file)
    return file[len(str(include)) + 1:] if file.startswith(f"{include}/") else ""


def _macros(headers: Sequence[str], include: Path, flags: Sequence[str]) -> Iterator[tuple[str, str]]:
    current = ""
    # A type that guests see as a macro (int64_aligned_t) is no constant; it drops out when it is evaluated.
    for line in preprocess(headers, ["-dD", *flags]).splitlines():
        marker = re.match(r'# \d+ "([^"]*)"', line)
        if marker:
            current = marker[1]
            continue
        macro = re.match(r"#define (\w+)\s+([^\s{}][^{}]*)$", line)
        if macro and _relative(current, include):
            yield macro[1], _relative(current, include)


def _declare(node: c_ast.Node, header: str, found: Declared) -> None:
    if isinstance(node, c_ast.Typedef):
        if not node.name.startswith("__guest_handle"):
            found.types.setdefault(node.name, header)
            inner = getattr(node.type, "type", None)
            if isinstance(inner, (c_ast.Struct, c_ast.Union)) and inner.name is None:
                found.fields[node.name] = list(_members(inner, "", header, found))
    for child in _composites(node):
        _declare_composite(child, header, found)


def _composites(node: c_ast.Node) -> Iterator[c_ast.Node]:
    """Structures, unions and enums that a file-scope declaration defines."""
    kind = node.type if isinstance(node, (c_ast.Decl, c_ast.Typedef)) else node
    while isinstance(kind, (c_ast.TypeDecl, c_ast.PtrDecl, c_ast.ArrayDecl)):
        kind = kind.type
    if isinstance(kind, (c_ast.Struct, c_ast.Union, c_ast.Enum)):
        yield kind


def _declare_composite(node: c_ast.Node, header: str, found: Declared) -> None:
    if isinstance(node, c_ast.Enum):
        for enumerator in node.values.enumerators if node.values else ():
            found.constants.setdefault(enumerator.name, header)
    elif node.name and node.decls:
        name = f"{'struct' if isinstance(node, c_ast.Struct) else 'union'} {node.name}"
        found.types.setdefault(name, header)
        found.fields[name] = list(_members(node, "", header, found))


def _members(node: c_ast.Node, prefix: str, header: str, found: Declared) -> Iterator[str]:
    """Paths of the members of a structure: an unnamed member's members count as its own, as in C."""
    for member in node.decls or ():
        path = f"{prefix}{member.name}" if member.name else ""
        if path:
            yield path
        inner = next(_composites(member), None)
        if isinstance(inner, (c_ast.Struct, c_ast.Union)) and inner.decls:
            if inner.name:
                _declare_composite(inner, header, found)
            elif not isinstance(member.type, c_ast.ArrayDecl):
                yield from _members(inner, f"{path}." if path else prefix, header, found)
