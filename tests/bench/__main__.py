"""`python tests/bench`: measures what docs/benchmarks.md describes, and prints a table.

    python tests/bench [--json FILE] [--only PATTERN] [--quick] [--markdown]

A figure that misses its target is named with the amount and does not make the program fail: machines differ.
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import json
import os
import platform
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "unit"), str(ROOT / "tests" / "bench")]

import bench_core  # noqa: E402
import bench_events  # noqa: E402
import bench_grants  # noqa: E402
import bench_life  # noqa: E402
import bench_mm  # noqa: E402
import bench_native  # noqa: E402
import bench_python  # noqa: E402
import bench_rings  # noqa: E402
import bench_translator  # noqa: E402
import bench_x86  # noqa: E402
from harness import MET, RUNS, Row, Size, as_markdown, columns, markdown, measure_all, table  # noqa: E402

#: Their cases take turns; floors stand first.
MODULES = [bench_core, bench_mm, bench_events, bench_grants, bench_python, bench_life, bench_x86, bench_native, bench_translator]


def selected(names: list[str], pattern: str | None) -> list[str]:
    """The names that have the pattern in them, and then all floors: targets rest on them."""
    if pattern is None:
        return names
    wanted = pattern.lower() if any(c in pattern for c in "*?[") else f"*{pattern.lower()}*"
    found = {name for name in names if fnmatch.fnmatchcase(name.lower(), wanted)}
    return [name for name in names if name in found or (found and name.startswith("floor"))]


def measure(size: Size, pattern: str | None, progress: Callable[[str], None]) -> tuple[list[Row], bench_translator.Found]:
    """Everything that the pattern selects; and the translator's figures, kernel by kernel."""
    with ExitStack() as stack:
        cases = [case for module in MODULES for case in module.cases(stack, size)]
        keep = selected([case.name for case in cases], pattern)
        rows = measure_all([case for case in cases if case.name in keep], runs=1 if size.quick else None, progress=progress)
    rows += bench_rings.rows(size, lambda names: selected(names, pattern))
    more, found = bench_translator.rows(size, lambda names: selected(names, pattern), progress)
    return rows + more, found


def machine() -> dict[str, object]:
    """What the figures were taken on."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as info:
            model = next((line.partition(":")[2].strip() for line in info if line.startswith("model name")), model)
    except OSError:
        pass
    return {"cpu": model, "cpus": len(os.sched_getaffinity(0)), "load": round(os.getloadavg()[0], 1), "kernel": platform.release(),
            "python": platform.python_version()}


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__.split("\n")[0])
    parser.add_argument("--json", metavar="FILE", help="write the rows, all values of each included, to FILE (-: to stdout)")
    parser.add_argument("--only", metavar="PATTERN", help="only cases with this in their name (or matching it, with *), and the floors")
    parser.add_argument("--quick", action="store_true", help="one short run of each: shows that it works, the figures mean nothing")
    parser.add_argument("--markdown", action="store_true", help="the tables as docs/benchmarks.md has them")
    options = parser.parse_args()

    def progress(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
    before = machine()
    rows, found = measure(Size(options.quick), options.only, progress)
    progress("")
    if not rows:
        parser.error(f"no case is called {options.only!r}")
    report = {"date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"), "machine": before, "quick": options.quick,
              "runs": 1 if options.quick else RUNS, "met_within": MET, "rows": [row.as_json() for row in rows],
              "translator": found.as_json()}
    if options.json == "-":
        print(json.dumps(report, indent=1))
        return 0
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
    if options.markdown:
        print(as_markdown(markdown(rows)) + ("\n\n" + as_markdown(bench_translator.matrix(found)) if found.turns else ""))
        return 0
    print(table(rows))
    if found.turns:
        print("\n" + columns(bench_translator.matrix(found)))
    if found.no_qemu:
        print(f"no QEMU: {found.no_qemu}")
    if options.quick:
        print("--quick: these figures show that the benchmarks run, and nothing else")
    elif before["load"] > before["cpus"] / 4:
        print(f"the machine was busy (load {before['load']} on {before['cpus']} CPUs): the best of a row says more than its median")
    return 0


if __name__ == "__main__":
    sys.exit(main())
