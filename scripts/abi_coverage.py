#!/usr/bin/env python3
"""Write docs/abi-coverage.md: what Xen's public headers declare and ours do not.

Xen's headers are those of Debian's libxen-dev, fetched into the cache of tests/tools/peers.py if need be. Without an
argument the file is written; ``--check`` only compares, and exits 1 if it is not current. The test
tests/abi/test_abi_coverage.py calls ``render``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "docs" / "abi-coverage.md"
sys.path[:0] = [str(ROOT / "tests" / "abi"), str(ROOT / "tests" / "tools")]

import abi_headers                                                  # noqa: E402
import abi_probe                                                    # noqa: E402
import peers                                                        # noqa: E402

HEAD = """\
# ABI coverage

<!-- Written by scripts/abi_coverage.py, which compares csrc/include with Debian's libxen-dev {release}. -->

Names that Xen {release}'s public headers declare for x86-64, and how many of them `csrc/include/xen` has. A test
compares the value of every constant, and the size, offset and signedness of every field, that both have. What calls
answer that take a missing structure, [the hypercall table](hypercalls.md) says.

| header | structures | constants |
|---|---:|---:|
"""


def _by_header(names: Mapping[str, str]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for name, header in names.items():
        grouped.setdefault(header.removeprefix("xen/"), []).append(name)
    return grouped


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def constants(found: abi_headers.Declared, headers: list[str], include: Path) -> dict[str, str]:
    """The integer constants of `found`, enumerators and macros alike, with the headers that declare them."""
    named = {**found.macros, **found.constants}
    flags = [*abi_headers.AS_TOOLS, "-I", str(include)]
    return {name: named[name] for name in abi_probe.integers(headers, flags, {name: name for name in named})}


def render(include: Path, release: str) -> str:
    """The text of docs/abi-coverage.md, from Xen's headers under `include`."""
    headers = abi_headers.own_headers()
    ours = abi_headers.declared(headers, abi_headers.INCLUDE)
    xen_headers = abi_headers.xen_headers(include)
    xens = abi_headers.declared(xen_headers, include)
    have = set(constants(ours, headers, abi_headers.INCLUDE)) | set(ours.fields)

    structures = _by_header({name: xens.types[name] for name in xens.fields})
    numbers = _by_header(constants(xens, xen_headers, include))
    table, missing, absent = [], [], []
    for header in sorted(structures.keys() | numbers.keys()):
        lacking = [[name for name in part.get(header, ()) if name not in have] for part in (structures, numbers)]
        totals = [len(part.get(header, ())) for part in (structures, numbers)]
        counts = [total - len(names) for total, names in zip(totals, lacking)]
        row = f"| `{header}` | {counts[0]} of {totals[0]} | {counts[1]} of {totals[1]} |\n"
        if not any(counts):
            absent.append(row)
            continue
        table.append(row)
        if any(lacking):
            told = [f"{what}: {_names(names)}" for what, names in zip(("structures", "constants"), lacking) if names]
            missing.append(f"- `{header}`: {'; '.join(told)}\n")
    left_out = "".join(f"| `{name.removeprefix('xen/')}{'…' if not name.endswith('.h') else ''}` | {reason} |\n"
                       for name, reason in abi_headers.NOT_COMPARED.items())
    return "".join([
        HEAD.format(release=release), *table,
        "\n## Missing from these headers\n\n", *missing,
        "\n## Headers of which we have nothing\n\n| header | structures | constants |\n|---|---:|---:|\n", *absent,
        "\n## Headers that are not compared\n\n| header | why |\n|---|---|\n", left_out])


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print("usage: abi_coverage.py [--check]", file=sys.stderr)
        return 2
    try:
        release = ".".join(peers.version("libxen-dev").split(".")[:2])
        text = render(peers.path("libxen-dev") / "usr" / "include", release)
    except peers.PeerUnavailable as error:
        print(error, file=sys.stderr)
        return 1
    if not arguments:
        OUTPUT.parent.mkdir(exist_ok=True)
        OUTPUT.write_text(text, encoding="utf-8")
    elif not OUTPUT.exists() or OUTPUT.read_text(encoding="utf-8") != text:
        print(f"{OUTPUT.relative_to(ROOT)} is not current: run scripts/abi_coverage.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
