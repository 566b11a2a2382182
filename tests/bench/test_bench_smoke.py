"""The benchmark itself: it runs, and what it says follows from what it measured. No figure is judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent
sys.path.insert(0, str(BENCH))

from harness import Case, measure_all, table  # noqa: E402

#: What docs/benchmarks.md promises a row for, each by a piece of its name, with its unit and whether it has a target.
PROMISED = {
    "hypercall dispatch in C (xen_version)": ("ns", True), "hypercall dispatch in C, trace off": ("ns", False),
    "hypercall from a Python guest": ("ns", True), "mmu_update, batch of 512": ("ns", True), "pin an L4": ("ns", False),
    "event to a blocked vCPU, same pCPU": ("ns", True), "event to a blocked vCPU, another pCPU": ("ns", False),
    "grant copy of 4 KiB, one a call": ("ns", True), "grant copy of 4 KiB, 64 a call": ("ns", True),
    "grant map + unmap, one a call": ("ns", True), "block ring alone, 512 B": ("requests/s", True),
    "block from a file, 512 B": ("requests/s", False), "block, Python guest, one at a time": ("requests/s", False),
    "xenstore read in process": ("ops/s", False), "xenstore read over the socket": ("ops/s", False),
    "create, first line, destroy": ("ms", True), "memory each": ("KiB", False), "events machine": ("steps/s", True),
    "interpreter, mix": ("M insns/s", True), "interpreter, time against native": ("x", False), "interpreter, all kernels in a C guest": ("M insns/s", True),
    "xenlike run of a C guest, to its first line": ("ms", True), "create a C guest": ("ms", True), "event round trip of two C guests": ("ns", False),
    "floor: C call": ("ns", False), "floor: memcpy 4 KiB, one page": ("ns", False), "floor: pread 512 B": ("ns", False),
}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What a quick run writes."""
    out = tmp_path_factory.mktemp("bench") / "bench.json"
    done = subprocess.run([sys.executable, str(BENCH), "--quick", "--json", str(out)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(out.read_text()), done.stdout


def test_every_promised_row_is_there(report):
    """A case that was dropped, or that measures nothing, would leave a target of the project unwatched."""
    data, text = report
    for part, (unit, targeted) in PROMISED.items():
        rows = [row for row in data["rows"] if part in row["name"]]
        assert rows, f"no row has {part!r} in its name"
        assert rows[0]["unit"] == unit and (rows[0]["target"] is not None) == targeted, rows[0]
    for row in data["rows"]:
        assert row["value"] > 0 and row["name"] in text, row


def test_ratio_and_verdict_follow_from_the_figures(report):
    """A rate read as a cost would call the slow fast."""
    for row in report[0]["rows"]:
        if row["target"] is None:
            continue
        slower = row["target"] / row["value"] if row["unit"].endswith("/s") else row["value"] / row["target"]
        assert abs(row["ratio"] - slower) < 0.02 * max(1, slower), row
        assert row["met"] == (row["ratio"] <= 1.25), row


def test_one_run_of_a_case_does_not_decide():
    """The median of the runs counts, cases take turns, and a target may rest on another case's median."""
    order, values = [], {"floor": iter([1.0, 9.0, 2.0]), "case": iter([50.0, 4.0, 5.0])}

    def case(name, **more):
        def measure():
            order.append(name)
            return next(values[name])
        return Case(name, "ns", measure, runs=3, **more)
    rows = measure_all([case("floor"), case("case", target=lambda medians: medians["floor"] + 2)])
    assert order == ["floor", "case"] * 3
    assert [(row.value, row.best, row.worst) for row in rows] == [(2.0, 1.0, 9.0), (5.0, 4.0, 50.0)]
    assert (rows[1].target, rows[1].ratio, rows[1].met) == (4.0, 1.25, True)


def test_what_is_missed_is_named_with_the_amount():
    """A reader of the table must not have to compute."""
    text = table(measure_all([Case("too slow", "ns", lambda: 60.0, 30), Case("too few", "ops/s", lambda: 10.0, 40),
                              Case("well", "ns", lambda: 37.0, 30)], runs=1))
    assert "1 of 3 targets met" in text
    assert "missed: too slow: 60 ns for 30, 2.00 times" in text
    assert "missed: too few: 10 ops/s for 40, 4.00 times" in text
    assert "missed: well" not in text
