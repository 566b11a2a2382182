"""Arrows between the parts of the project point downwards only, in C and in Python (docs/design.md, "The tree").

If this fails, a lower layer has come to know a higher one: it can no longer be read, tested or replaced without it.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"

#: C layers, lowest first; a file includes its own and those before it. "": csrc/ itself, what Python may call.
C_LAYERS = ["include", "base", "machine", "x86", "bt", "hv", "pv", "pc", "io", ""]
#: (file, what it includes): may point upwards. Frames belong to domains and TLBs to vCPUs, so these need the layout of struct host,
#: domain and vcpu. The headers by which others use frames and the MMU (frame.h, mmu.h) only name those structures.
C_EXCEPTIONS = {("x86/bare.c", "bt/bt.h"), ("machine/frame.c", "hv/host.h"), ("machine/frame_type.h", "hv/host.h"), ("machine/mmu.c", "hv/host.h")}

#: Python layers, lowest first; a module imports its own and those before it.
PY_LAYERS = [
    ["xenlike.engine"],
    ["xenlike.lane", "xenlike.backends", "xenlike.hypercalls", "xenlike.translation"],
    ["xenlike.store", "xenlike.loaders", "guest_sdk"],
    ["xenlike.devices"],
    ["xenlike.toolstack"],
    ["xenlike.dom0", "xenlike.domain", "xenlike.debugger", "xenlike.program", "xenlike.host"],
    ["xenlike"],                # the commands, the demo, testing, the package itself
]
#: All that the guests' SDK may know of the host.
SDK_IMPORTS = {"xenlike.engine", "xenlike.backends", "xenlike.store.client_ring", "xenlike.store.wire"}
#: Who may know the SDK: domain 0, which is a guest, and what shows or tests guests.
SDK_USERS = ("xenlike.dom0", "xenlike.demo", "xenlike.testing")


def c_layer(file: Path) -> int:
    parts = file.relative_to(CSRC).parts
    return C_LAYERS.index(parts[0] if len(parts) > 1 else "")


def test_c_includes_point_downwards() -> None:
    """A lower layer of the core would include a higher one."""
    up = set()
    for file in CSRC.rglob("*.[ch]"):
        for name in re.findall(r'^#include "([^"]+)"', file.read_text(encoding="utf-8"), re.M):
            target = next(path.resolve() for folder in (file.parent, CSRC, CSRC / "include") if (path := folder / name).exists())
            if c_layer(target) > c_layer(file):
                up.add((str(file.relative_to(CSRC)), name))
    assert up == C_EXCEPTIONS, "includes that point upwards, or exceptions that are not needed any more"


@cache
def imports() -> frozenset[tuple[str, str]]:
    """(importing module, imported one): every import of ours, but those for type checkers only."""
    found = set()
    for file in (f for package in ("xenlike", "guest_sdk") for f in (ROOT / package).rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        who = ".".join(parts).removesuffix(".__init__")
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        typing = {id(n) for block in nodes if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test) for n in ast.walk(block)}
        for node in (n for n in nodes if id(n) not in typing):
            if isinstance(node, ast.Import):
                found |= {(who, alias.name) for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = ".".join(filter(None, [*(parts[:-node.level] if node.level else ()), node.module]))
                found |= {(who, f"{base}.{alias.name}" if base == "xenlike" else base) for alias in node.names}
    return frozenset((who, what) for who, what in found if what.partition(".")[0] in ("xenlike", "guest_sdk"))


def py_layer(module: str) -> int:
    return max((len(name), n) for n, layer in enumerate(PY_LAYERS) for name in layer if f"{module}.".startswith(f"{name}."))[1]


def test_python_imports_point_downwards() -> None:
    """A lower part of the package would import a higher one, at the top of a file or inside a function."""
    assert not {(who, what) for who, what in imports() if what != "xenlike._core" and py_layer(what) > py_layer(who)}


def test_sdk_and_host_keep_apart() -> None:
    """A guest would reach into the host past its hypercalls, or host code would need the SDK."""
    arrows = {(who, what) for who, what in imports() if who.partition(".")[0] != what.partition(".")[0]}
    assert not {(who, what) for who, what in arrows if what not in SDK_IMPORTS and not who.startswith(SDK_USERS)}


def test_only_engine_imports_the_core() -> None:
    """The core's errors would be checked, and its values named, in more than one place."""
    assert {who for who, what in imports() if what == "xenlike._core"} == {"xenlike.engine"}
