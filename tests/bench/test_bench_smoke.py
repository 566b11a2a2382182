"""The benchmark itself: it runs, and what it says follows from what it measured. No figure is judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent
sys.path.insert(0, str(BENCH))

import bench_translator  # noqa: E402
from harness import Case, Size, as_markdown, columns, markdown, measure_all, table  # noqa: E402

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
#: These only where the host can translate.
TRANSLATED = {
    "hypercall of a C guest, translated": ("ns", True), "hypercall of a C guest, translated, that leaves guest mode": ("ns", True),
    "two pCPUs against one, SHA-256": ("x faster", True),
    "floor: two threads against one": ("x faster", False), "a guest instruction": ("ns", False), "cache for a byte of code": ("bytes", False),
    "xenlike run of a bare-metal image, to its first line": ("ms", True), "translator, geomean of five integer kernels": ("x native", True),
    "translator, scalar floating point": ("x native", True), "translator, vector floating point": ("x native", True),
    "translator, pointer chase, 1 MiB": ("x native", True), "translator, rep movsb, 4 KiB": ("x native", True),
    "translator, byte strings": ("x native", False), "translator, all kernels in a C guest": ("M insns/s", False),
    "translator, syscall and sysret": ("ns", False), "translator, page fault": ("ns", False),
}
#: And these only where there is a QEMU as well; it is not downloaded for this.
WITH_QEMU = {
    "translator against TCG, geomean": ("x faster", True), "translator against TCG, worst": ("x faster", True), "TCG, syscall and sysret": ("ns", False),
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
    reason = data["translator"]["no_qemu"]
    assert bool(reason) == ("no QEMU" in text)
    here = bench_translator.can_measure()
    for part, (unit, targeted) in (PROMISED | (TRANSLATED if here else {}) | (WITH_QEMU if here and not reason else {})).items():
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
        slower = row["target"] / row["value"] if row["unit"].endswith("/s") or row["unit"] == "x faster" else row["value"] / row["target"]
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


# ---- the translator's turns ------------------------------------------------------------------------------------------

def machine(name: str, ns: float, **wrong: str) -> bench_translator.Machine:
    """One that says it needs so many ns for each of 1500 iterations a per cent; `wrong`: sums by kernel."""
    def ask(text: str) -> str:
        kernel, percent = text.split()
        iterations = 1500 * int(percent)
        return f"{kernel} {iterations} {int(iterations * ns)} {wrong.get(kernel, f'{iterations:016x}')}"
    return bench_translator.Machine(name, ask)


def test_ratios_are_of_one_turn():
    """A ratio that was upside down, or of the wrong machines, would call a slow translator fast."""
    machines = [machine("native", 10), machine("translator", 15), machine("interpreter", 600), machine("TCG", 60)]
    turns = bench_translator.take_turns(machines, list(bench_translator.CPU | bench_translator.SYSTEM), Size(quick=True))
    found = {line.name: line.value(turns[0]) for line in bench_translator.lines()}
    assert found["translator, geomean of five integer kernels"] == pytest.approx(1.5)
    assert found["translator against TCG, geomean of them"] == found["translator against TCG, worst of all kernels"] == pytest.approx(4)
    assert found["translator, int and iret"] == pytest.approx(15) and found["TCG, int and iret"] == pytest.approx(60)
    assert ["SHA-256", "10", "15 (1.5)", "600.0 (60.0)", "60 (6.0)", "4.00"] in bench_translator.matrix(bench_translator.Found(turns))


def test_another_checksum_ends_the_benchmark():
    """A machine that computes something else may be as fast as it likes."""
    machines = [machine("native", 10), machine("translator", 15, sha256="0" * 16)]
    with pytest.raises(RuntimeError, match="sha256, 1500 iterations: translator computes 0000000000000000, native 00000000000005dc"):
        bench_translator.take_turns(machines, ["integer", "sha256"], Size(quick=True))


def test_a_guest_that_measured_its_clock_badly_is_corrected(monkeypatch):
    """On a busy host a guest may take its counter for twice as fast as it is: all its figures would be half of the truth."""
    now, counter = iter([10.0, 12.0]), iter([5_000_000, 9_000_000])          # 2 MHz
    monkeypatch.setattr(bench_translator.time, "perf_counter", lambda: next(now))
    guest = bench_translator.Machine("TCG", lambda text: f"tsc {next(counter)}")
    guest.clock_khz = 4000                      # what it believes
    guest.look_at_clock()
    guest.look_at_clock()
    assert guest.speed == pytest.approx(2)


def test_without_qemu_the_table_says_so():
    """A column that is empty without a word would look like a defect."""
    turns = bench_translator.take_turns([machine("native", 10), machine("translator", 15), machine("interpreter", 600)], ["sha256"], Size(quick=True))
    assert bench_translator.matrix(bench_translator.Found(turns, "there is no apt-get here"))[1] == ["SHA-256", "10", "15 (1.5)", "600.0 (60.0)", "no QEMU", ""]


def test_the_tables_for_the_documentation():
    """A table that is copied by hand is soon another run's."""
    rows = measure_all([Case("too slow", "ns", lambda: 60.0, 30), Case("gain", "x faster", lambda: 2.5, 2.0)], runs=1)
    assert as_markdown(markdown(rows)).splitlines()[1:] == ["| --- | ---: | ---: | ---: | ---: |", "| too slow | 60 ns | 60 | 30 | **2.00** |",
                                                            "| gain | 2.50 × faster | 2.50 | 2.00 | 0.80 |"]
    assert columns([["a", "b"], ["cc", "1"]]) == "a   b\ncc  1"
