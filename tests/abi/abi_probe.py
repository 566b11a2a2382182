"""Asks the compiler: the values of expressions and strings as a program sees them that includes given headers.

An expression that does not compile there (a constant or field which those headers have not) is left out of the answer.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from abi_headers import Declared

# 1: signed integer, 2: unsigned, nothing else compiles.
_KINDS = ", ".join([f"{kind}: 1" for kind in ("char", "signed char", "short", "int", "long", "long long")]
                   + [f"unsigned {kind}: 2" for kind in ("char", "short", "int", "long", "long long")])


def sizes_and_offsets(found: Declared) -> dict[str, str]:
    """Expressions for every size, offset and signedness that `found` declares, by a name that a reader understands."""
    asked = {f"sizeof({name})": f"sizeof({name})" for name in found.types}
    for name, paths in found.fields.items():
        for path in paths:
            member = f"(({name} *)0)->{path}"
            asked[f"offsetof({name}, {path})"] = f"__builtin_offsetof({name}, {path})"
            asked[f"sizeof({name}, {path})"] = f"sizeof({member})"
            asked[f"kind({name}, {path})"] = f"_Generic({member}, {_KINDS}, default: 0)"
    return asked


def integers(headers: Sequence[str], flags: Sequence[str], asked: Mapping[str, str]) -> dict[str, int]:
    """Values of the integer constant expressions `asked`, by their names; signed as C has them."""
    rows = [f"const unsigned long long v{index}[2] = {{ (unsigned long long)({text}), ({text}) < 0 }};"
            f" enum {{ k{index} = _Generic(({text}), {_KINDS}) }};" for index, text in enumerate(asked.values())]
    prints = 'printf("%llu %llu\\n", v{0}[0], v{0}[1]);'
    lines = _answers(headers, flags, list(asked), rows, prints)
    return {name: int(value) - (int(negative) << 64)
            for name, (value, negative) in ((name, line.split()) for name, line in lines.items())}


def strings(headers: Sequence[str], flags: Sequence[str], names: Iterable[str]) -> dict[str, str]:
    """Values of those of `names` that are string constants."""
    asked = list(names)
    rows = [f"const char v{index}[] = {name};" for index, name in enumerate(asked)]
    return _answers(headers, flags, asked, rows, 'puts(v{0});')


def _answers(headers: Sequence[str], flags: Sequence[str], names: list[str], rows: list[str],
             prints: str) -> dict[str, str]:
    """Compiles `rows`, drops those that do not compile, and runs `prints` for the others: one line of output each."""
    top = "".join(f"#include <{header}>\n" for header in ("stdint.h", "stddef.h", "stdio.h", *headers))
    first = top.count("\n") + 1
    bad = {number - first for number in _error_lines(top + "\n".join(rows) + "\n", flags)}
    if min(bad, default=0) < 0:
        raise RuntimeError("the headers themselves do not compile")
    good = [index for index in range(len(rows)) if index not in bad]
    body = "\n".join(prints.format(index) for index in good)
    program = top + "\n".join(rows[index] for index in good) + f"\nint main(void) {{\n{body}\nreturn 0; }}\n"
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "probe"
        subprocess.run(["gcc", "-std=gnu11", "-w", "-O0", *flags, "-x", "c", "-", "-o", str(binary)], input=program,
                       text=True, check=True)
        output = subprocess.run([str(binary)], capture_output=True, text=True, check=True).stdout.splitlines()
    return {names[index]: line for index, line in zip(good, output, strict=True)}


def _error_lines(program: str, flags: Sequence[str]) -> set[int]:
    # Without tracking, an error inside a macro is reported on the row that uses it.
    done = subprocess.run(["gcc", "-std=gnu11", "-w", "-fsyntax-only", "-fmax-errors=0", "-fno-diagnostics-show-caret",
                           "-ftrack-macro-expansion=0", *flags, "-x", "c", "-"], input=program, capture_output=True,
                          text=True, check=False, env=dict(os.environ, LC_ALL="C"))
    errors = re.findall(r"^(\S+?):(\d+):(?:\d+:)? (?:fatal )?error: (.*)", done.stderr, re.MULTILINE)
    for name, line, text in errors:
        if name != "<stdin>":
            raise RuntimeError(f"{name}:{line}: {text}")
    return {int(line) for _name, line, _text in errors}
