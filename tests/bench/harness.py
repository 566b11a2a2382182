"""What the benchmarks share: cases, targets, the interleaved rounds, the table and the JSON.

A module of cases has `cases(stack, size)`, which sets up what it needs on an `ExitStack` and returns a list of `Case`. A case's
`measure()` makes one run and returns one figure. `measure_all` lets all cases take turns, so that a busy minute of the machine spoils
all alike, floors included, and reports medians.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field

__all__ = ["MET", "RUNS", "Case", "Row", "Size", "as_markdown", "columns", "markdown", "measure_all", "row_of", "table"]

RUNS = 9
MET = 1.25                              #: a figure within this ratio of its target has met it

Target = Callable[[Mapping[str, float]], float]


@dataclass(frozen=True)
class Size:
    """How much to do: the full benchmark, or as little as shows that it works."""

    quick: bool = False

    def of(self, full: int, quick: int) -> int:
        """Iterations of a run."""
        return quick if self.quick else full


@dataclass(frozen=True)
class Case:
    """One figure. `target` is a number, or makes one of all cases' medians by name: so a target may rest on a floor."""

    name: str
    unit: str
    measure: Callable[[], float]
    target: float | Target | None = None
    target_says: str = ""               #: the target in words, where it is no plain number
    runs: int = RUNS                    #: fewer for what takes seconds
    digits: int = 1


@dataclass
class Row:
    """A figure as reported. `ratio` is above 1 when the target is missed, whichever way is better."""

    name: str
    value: float
    unit: str
    best: float
    worst: float
    runs: int
    target: float | None = None
    target_says: str = ""
    ratio: float | None = None
    met: bool | None = None
    values: list[float] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        """The row for the JSON file."""
        return asdict(self)


def more_is_better(unit: str) -> bool:
    """Rates and gains; everything else is a cost."""
    return unit.endswith("/s") or unit == "x faster"


def measure_all(cases: Iterable[Case], *, runs: int | None = None, progress: Callable[[str], None] = lambda text: None) -> list[Row]:
    """Runs the cases in turns and returns a row each. `runs`: instead of each case's own number."""
    cases = list(cases)
    wanted = {case.name: case.runs if runs is None else min(runs, case.runs) for case in cases}
    values: dict[str, list[float]] = {case.name: [] for case in cases}
    if len(values) != len(cases):
        raise ValueError("two cases have one name")
    for turn in range(max(wanted.values(), default=0)):
        for case in cases:
            if turn < wanted[case.name]:
                progress(f"{turn + 1}/{max(wanted.values())} {case.name}")
                values[case.name].append(case.measure())
    medians = {name: statistics.median(found) for name, found in values.items()}
    return [_row(case, medians, values[case.name]) for case in cases]


def _row(case: Case, medians: Mapping[str, float], values: list[float]) -> Row:
    limit = case.target(medians) if callable(case.target) else case.target
    return row_of(case.name, case.unit, values, len(values), limit, target_says=case.target_says, digits=case.digits)


def row_of(name: str, unit: str, values: list[float], runs: int, target: float | None, *, target_says: str = "", digits: int = 0) -> Row:
    """A row from the values of `runs` runs (or from their median alone)."""
    rate, median = more_is_better(unit), statistics.median(values)
    best, worst = (max(values), min(values)) if rate else (min(values), max(values))
    digits = max(digits, 2) if unit.startswith("x ") else digits
    row = Row(name, round(median, digits), unit, round(best, digits), round(worst, digits), runs,
              values=[round(value, digits) for value in values])
    if target is not None:
        row.target, row.target_says = round(target, digits), target_says
        row.ratio = round(target / median if rate else median / target, 2)
        row.met = row.ratio <= MET
    return row


def _number(value: float | None, unit: str = "") -> str:
    if value is None:
        return ""
    if unit.startswith("x "):
        return f"{value:.2f}"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:,.1f}"


def table(rows: Iterable[Row]) -> str:
    """The rows for people, and below them what was missed and by how much."""
    rows = list(rows)
    width = max((len(row.name) for row in rows), default=4)
    lines = [f"{'':{width}} {'median':>11} {'best':>11} {'unit':<11} {'target':>10} {'ratio':>6}  met"]
    for row in rows:
        met = "" if row.met is None else "yes" if row.met else "NO"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        lines.append(f"{row.name:{width}} {_number(row.value, row.unit):>11} {_number(row.best, row.unit):>11} {row.unit:<11} "
                     f"{_number(row.target, row.unit):>10} {ratio:>6}  {met}".rstrip())
    with_target = [row for row in rows if row.met is not None]
    missed = [row for row in with_target if not row.met]
    lines.append(f"\n{len(with_target) - len(missed)} of {len(with_target)} targets met (within {MET} times the target)")
    for row in missed:
        lines.append(f"missed: {row.name}: {_number(row.value, row.unit)} {row.unit} for {_number(row.target, row.unit)}"
                     f"{' (' + row.target_says + ')' if row.target_says else ''}, {row.ratio:.2f} times; docs/benchmarks.md says why")
    return "\n".join(lines)


def columns(cells: list[list[str]]) -> str:
    """A table for people: the first column to the left, the others to the right."""
    widths = [max(len(row[n]) for row in cells) for n in range(len(cells[0]))]
    return "\n".join("  ".join(f"{cell:{'<' if n == 0 else '>'}{widths[n]}}" for n, cell in enumerate(row)).rstrip() for row in cells)


def markdown(rows: Iterable[Row]) -> list[list[str]]:
    """The rows as docs/benchmarks.md has them, the heading first; a missed target's ratio is bold."""
    cells = [["Row", "Median", "Best", "Target", "Median against target"]]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}" if row.met else f"**{row.ratio:.2f}**"
        unit = row.unit.replace("x ", "× ") if row.unit.startswith("x ") else row.unit
        cells.append([row.name, f"{_number(row.value, row.unit)} {unit}", _number(row.best, row.unit), _number(row.target, row.unit), ratio])
    return cells


def as_markdown(cells: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "| --- |" + " ---: |" * (len(cells[0]) - 1), *lines[1:]])
