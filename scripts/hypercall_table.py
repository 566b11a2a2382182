#!/usr/bin/env python3
"""Write docs/hypercalls.md, the table of hypercalls and their commands, from the tables that the core is built from.

Numbers, names, arguments and notes come from csrc/include/xen/*.def. The column of tests is found by a marker in a
comment of a test file, with as many names as it covers:

    # covers: hypercall set_gdt
    # covers: event_channel_op/send, event_channel_op/close

A marker that names nothing in the tables is an error. Without an argument the page is written; ``--check`` only
compares, and exits 1 if it is not current. The test tests/abi/test_hypercall_table.py calls ``render``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLES = ROOT / "csrc" / "include" / "xen"
TESTS = ROOT / "tests"
OUTPUT = ROOT / "docs" / "hypercalls.md"

HEAD = """\
# Hypercalls

<!-- Written by scripts/hypercall_table.py from csrc/include/xen/*.def: change those, then run it. -->

The 64-bit PV interface of Xen 4.17. The number goes in `rax`, arguments in `rdi`, `rsi`, `rdx`, `r10`, `r8`; the result
comes back in `rax`, an error as a negative number of `errno.def`. Numbers that are not in the table answer -ENOSYS.

"Answered by": the C core, Python (a *cold* call: the vCPU leaves for the Python lane and comes back with the result),
or nobody (-ENOSYS). "Tests" are the files that say they cover the call or a command of it.

| number | name | arguments | answered by | note | tests |
|---:|---|---:|---|---|---|
"""

ANSWERED_BY = {"C": "C", "PY": "Python", "NONE": "–"}

# The hypercall whose commands a table lists, the table, and what stands in its columns after the name.
COMMANDS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("mmu_update", "mmu.def", ()),
    ("memory_op", "xenmem.def", ("argument",)),
    ("xen_version", "xenver.def", ("argument",)),
    ("grant_table_op", "gnttabop.def", ("element",)),
    ("vm_assist", "vmasst.def", ()),
    ("vcpu_op", "vcpuop.def", ("argument",)),
    ("mmuext_op", "mmuext.def", ("arg1", "arg2")),
    ("sched_op", "schedop.def", ("argument",)),
    ("event_channel_op", "evtchnop.def", ("argument",)),
    ("physdev_op", "physdevop.def", ("argument",)),
    ("sysctl", "sysctl.def", ()),
    ("domctl", "domctl.def", ()),
)


class TableError(Exception):
    """A table or a marker that cannot be read. The text says which file and line, and what is wrong."""


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    number: int
    name: str
    columns: tuple[str, ...]
    """What follows the name."""
    note: str
    """The comment on the row."""


def rows(file: Path) -> list[Row]:
    """The rows of a .def file, in its order. Raises `TableError` for a line that is neither row nor comment."""
    text = re.sub(r"^/\*.*?\*/", lambda comment: "\n" * comment[0].count("\n"), file.read_text(encoding="utf-8"),
                  flags=re.DOTALL | re.MULTILINE)
    found: list[Row] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        row = re.fullmatch(r'\w+\((\d+), (\w+)((?:, (?:\w+|"[^"]*"))*)\)(?: /\* (.*) \*/)?', line.rstrip())
        if row is None:
            raise TableError(f"{file}:{number}: not a row: {line.strip()}")
        columns = tuple(item.strip('"') for item in re.findall(r'"[^"]*"|\w+', row[3]))
        found.append(Row(int(row[1]), row[2], columns, row[4] or ""))
    for one, other in zip(found, found[1:]):
        if one.number >= other.number:
            raise TableError(f"{file}: {other.name} ({other.number}) is not above {one.name} ({one.number})")
    return found


def coverage(folder: Path, known: Iterable[str]) -> dict[str, list[str]]:
    """For each name of `known` that a marker under `folder` has, the files that have it, relative to `folder`'s parent.
    A command counts for its hypercall too. Raises `TableError` for a marker with another name."""
    names = set(known)
    found: dict[str, set[str]] = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix not in (".py", ".c", ".h", ".S") or not file.is_file():
            continue
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            marker = re.match(r"\s*(?:#|//|/\*|\*)\s*covers:\s*(.*?)\s*(?:\*/)?$", line)
            if marker is None:
                continue
            for item in re.split(r"\s*,\s*", marker[1]):
                name = re.sub(r"^hypercall\s+", "", item)
                if name not in names:
                    raise TableError(f"{file}:{number}: no hypercall or command {name!r} in csrc/include/xen/*.def")
                for covered in {name, name.partition("/")[0]}:
                    found.setdefault(covered, set()).add(str(file.relative_to(folder.parent)))
    return {name: sorted(files) for name, files in found.items()}


def render(tables: Path = TABLES, tests: Path = TESTS) -> str:
    """The text of docs/hypercalls.md. Raises `TableError`."""
    hypercalls = rows(tables / "hypercalls.def")
    commands = {name: rows(tables / file) for name, file, _ in COMMANDS}
    known = [f"{name}/{row.name}" for name, table in commands.items() for row in table]
    covered = coverage(tests, [*known, *(row.name for row in hypercalls)])

    def tested(name: str) -> str:
        return ", ".join(f"[{Path(file).name}](../{file})" for file in covered.get(name, ()))

    parts = [HEAD]
    for row in hypercalls:
        nargs, where, note = row.columns
        name = f"[{row.name}](#{row.name})" if row.name in commands else row.name
        parts.append(f"| {row.number} | {name} | {nargs} | {ANSWERED_BY[where]} | {note} | {tested(row.name)} |\n")
    for name, file, columns in COMMANDS:
        header = " | ".join(["number", "name", *columns, "note", "tests"])
        parts.append(f"\n## {name}\n\n| {header} |\n|---:|{'---|' * (len(columns) + 3)}\n")
        for row in commands[name]:
            shown = ["–" if column == "none" else f"`{column}`" for column in row.columns]
            cells = " | ".join([str(row.number), row.name, *shown, row.note, tested(f"{name}/{row.name}")])
            parts.append(f"| {cells} |\n")
    return "".join(parts)


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print("usage: hypercall_table.py [--check]", file=sys.stderr)
        return 2
    try:
        text = render()
    except TableError as error:
        print(error, file=sys.stderr)
        return 1
    if not arguments:
        OUTPUT.parent.mkdir(exist_ok=True)
        OUTPUT.write_text(text, encoding="utf-8")
    elif not OUTPUT.exists() or OUTPUT.read_text(encoding="utf-8") != text:
        print(f"{OUTPUT.relative_to(ROOT)} is not current: run scripts/hypercall_table.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
