"""The translator: the same kernels as a Linux process, translated, interpreted, and on QEMU's translator; and what translating costs.

Two halves. `cases` are rows like other modules'. `rows` lets four machines take turns, kernel by kernel: the benchmark guest of
guest_sdk/c/pc/examples/bench waits on each of them, halted, for the name of a kernel on its serial port, and answers with a line. So the parts of a
ratio are measured within a fraction of a second of each other. Kernels run natively from the very object file that is in the guest. A
checksum that differs from another machine's ends the benchmark. Without gcc and make, or where the host cannot translate, there are no rows; without QEMU none that need it.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "guests"), str(ROOT / "tests" / "tools")]

import bench_native  # noqa: E402
import c_images  # noqa: E402
import peers  # noqa: E402
from harness import RUNS, Case, Row, Size, row_of  # noqa: E402

from xenlike import Host  # noqa: E402
from xenlike.engine import ffi, lib  # noqa: E402
from xenlike.translation import more_options  # noqa: E402

BENCH = c_images.EXAMPLES.parent / "pc" / "examples" / "bench"
PATIENCE = 300.0
FETCHING = 180.0                        # seconds that the download of a peer may take
MEMORY = 128                            # MiB; the guest has 64 MiB of them for its kernels

NATIVE, OURS, INTERPRETER, TCG = "native", "translator", "interpreter", "TCG"
INTEGER = {"integer": "integer mix", "dispatch": "bytecode dispatch", "recursion": "recursion", "sha256": "SHA-256", "bytes": "byte strings"}
OTHERS = {"fp_scalar": "scalar floating point", "fp_vector": "vector floating point", "chase_4K": "pointer chase, 4 KiB",
          "chase_32K": "pointer chase, 32 KiB", "chase_256K": "pointer chase, 256 KiB", "chase_1M": "pointer chase, 1 MiB",
          "chase_4M": "pointer chase, 4 MiB", "chase_64M": "pointer chase, 64 MiB", "memcpy_4K": "copying 4 KiB by words",
          "memset_4K": "setting 4 KiB by words", "rep_movsb_4K": "rep movsb, 4 KiB", "rep_stosb_4K": "rep stosb, 4 KiB",
          "rep_movsb_64": "rep movsb, 64 bytes"}
SYSTEM = {"syscall": "syscall and sysret", "int": "int and iret", "page_fault": "page fault and iret", "cr3_switch": "CR3 switch and a load",
          "pte_edit": "page-table edit, invlpg and a load", "port_in": "port input", "port_out": "port output", "cli_sti": "sti and cli"}
CPU = INTEGER | OTHERS
TARGETS = {"fp_scalar": 1.5, "fp_vector": 1.5, "chase_1M": 3.0, "rep_movsb_4K": 4.0}     #: times native, where not the geomean counts
#: Per cent of a kernel's iterations, so that a piece takes some fraction of a millisecond everywhere, and most are over before the host's scheduler
#: takes the CPU away. Kernels of the system run at 100.
PERCENT = {NATIVE: 100, OURS: 50, INTERPRETER: 2, TCG: 20}
LESS = {TCG: {"rep_movsb_4K": 1, "rep_stosb_4K": 1, "rep_movsb_64": 5, "fp_vector": 2, "fp_scalar": 6}}


# ---- building --------------------------------------------------------------------------------------------------------

def can_measure() -> bool:
    """Whether this host can translate, and has what C guests are built with."""
    return lib.xl_bt_unavailable() == ffi.NULL and all(map(shutil.which, ("make", "gcc", "ld", "ar")))


def build(source: Path, folder: Path, target: str = "all") -> Path:
    """The image of a bare-metal example, or (target "native") its Linux program; in `folder`."""
    image, native = folder / f"pc-{source.name}", folder / f"{source.name}-native"
    done = c_images.make(f"BUILD={folder / (source.name + '.pc')}", f"GUEST={image}", f"NATIVE={native}", target, cwd=source)
    if done.returncode:
        raise RuntimeError(f"{source.name} cannot be built: {done.stderr.strip()[-2000:]}")
    return native if target == "native" else image


def no_qemu(*, fetch: bool) -> str:
    """Why there is no QEMU; empty if there is one. `fetch`: it may be downloaded, else it must be there."""
    try:
        with peers.patience(FETCHING if fetch else 0):
            peers.qemu()
    except peers.PeerUnavailable as error:
        return str(error)
    return ""


# ---- the machines ----------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Answer:
    """What a machine said of a kernel: nanoseconds by its own clock."""

    iterations: int
    ns: float
    sum: str


class Machine:
    """Something that waits for names of kernels. `ask` sends a line and returns the next line that comes."""

    clock_khz = 0.0                     #: as the guest measured it at its start; 0: its nanoseconds are the host's
    speed = 1.0                         #: its nanoseconds to the host's

    def __init__(self, name: str, ask: Callable[[str], str]) -> None:
        self.name, self._ask = name, ask
        self._first: tuple[float, int] | None = None

    def measure(self, kernel: str, percent: int) -> Answer:
        said = self._ask(f"{kernel} {percent}").split()
        if len(said) != 4 or said[0] != kernel:
            raise RuntimeError(f"{self.name}: asked for {kernel}, it said {' '.join(said)!r}")
        return Answer(int(said[1]), float(said[2]), said[3])

    def look_at_clock(self) -> None:
        """Called at the beginning and at the end: how fast the guest's counter goes by the host's clock. Its own measurement, 50 ms of its timer, may
        have been spoilt by other work of the host."""
        if not self.clock_khz:
            return
        counter, now = int(self._ask("tsc").split()[1]), time.perf_counter()
        if self._first is None:
            self._first = now, counter
        else:
            self.speed = self.clock_khz * 1e3 * (now - self._first[0]) / (counter - self._first[1])


class Pipes:
    """Lines to and from a process."""

    def __init__(self, stack: ExitStack, command: list[str], environment: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0)
        self._name, self._pending = Path(command[0]).name, b""
        stack.callback(self._end)

    def line(self) -> str:
        assert self._process.stdout is not None
        while b"\n" not in self._pending:
            ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE)
            more = os.read(self._process.stdout.fileno(), 4096) if ready else b""
            if not more:
                raise RuntimeError(f"{self._name} {'ended' if ready else 'says nothing'}: {self._pending.decode(errors='replace')}")
            self._pending += more
        line, _, self._pending = self._pending.partition(b"\n")
        return line.decode(errors="replace").strip()

    def ask(self, text: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode() + b"\n")
        return self.line()

    def _end(self) -> None:
        self._process.kill()
        self._process.communicate()


def native(stack: ExitStack, program: Path) -> Machine:
    """The Linux program."""
    return Machine(NATIVE, Pipes(stack, [str(program), "serve"]).ask)


def ours(stack: ExitStack, image: Path, engine: str) -> Machine:
    """The guest on a host of this process."""
    host = stack.enter_context(Host(threaded=False, engine=engine))
    domain = host.create(str(image), memory=f"{MEMORY}M", extra="serve")

    def line() -> str:
        return domain.console.expect(r"([^\n]*?)\r*\n", timeout=PATIENCE)[1]

    def ask(text: str) -> str:
        domain.console.send(text + "\n")
        return line()
    machine = Machine(OURS if engine == "bt" else INTERPRETER, ask)
    machine.clock_khz = started(machine.name, line)
    return machine


def qemu(stack: ExitStack, image: Path) -> Machine:
    """The same image on QEMU."""
    command, environment = peers.qemu_pc(image, memory=MEMORY, cmdline="serve")
    pipes = Pipes(stack, command, environment)
    machine = Machine(TCG, pipes.ask)
    machine.clock_khz = started(machine.name, pipes.line)
    return machine


def started(name: str, line: Callable[[], str]) -> float:
    """Reads what a guest says first; returns its idea of its clock in kHz."""
    said = [line(), line()]
    if not said[0].startswith("tsc_khz ") or said[1] != "ready":
        raise RuntimeError(f"the benchmark guest on {name} began with {said}")
    return float(said[0].split()[1])


# ---- taking turns ----------------------------------------------------------------------------------------------------

Turn = dict[tuple[str, str], float]     #: (machine, kernel): ns an iteration


@dataclass(frozen=True)
class Line:
    """A row of the table: from the figures of a turn to its value."""

    name: str
    unit: str
    kernels: tuple[str, ...]
    value: Callable[[Turn], float]
    target: float | None = None
    says: str = ""
    qemu: bool = False


def over(one: str, other: str, kernels: tuple[str, ...], of: Callable[[list[float]], float], turn: Turn) -> float:
    """Times of `one` by those of `other`, made one figure."""
    return of([turn[one, kernel] / turn[other, kernel] for kernel in kernels])


def lines() -> list[Line]:
    """All rows of `rows`."""
    geomean, integer, cpu = statistics.geometric_mean, tuple(INTEGER), tuple(CPU)
    found = [
        Line("translator, geomean of five integer kernels", "x native", integer, partial(over, OURS, NATIVE, integer, geomean), 2.0),
        Line("translator against TCG, geomean of them", "x faster", integer, partial(over, TCG, OURS, integer, geomean), 3.0, qemu=True),
        Line("translator against TCG, worst of all kernels", "x faster", cpu, partial(over, TCG, OURS, cpu, min), 1.0, qemu=True),
    ]
    for kernel, name in CPU.items():
        found.append(Line(f"translator, {name}", "x native", (kernel,), partial(over, OURS, NATIVE, (kernel,), geomean), TARGETS.get(kernel)))
    for kernel, name in SYSTEM.items():
        found.append(Line(f"translator, {name}", "ns", (kernel,), lambda turn, kernel=kernel: turn[OURS, kernel]))
        found.append(Line(f"TCG, {name}", "ns", (kernel,), lambda turn, kernel=kernel: turn[TCG, kernel], qemu=True))
    return found


@dataclass
class Found:
    """What `measure` found."""

    turns: list[Turn]
    no_qemu: str = ""

    def median(self, machine: str, kernel: str) -> float | None:
        """ns an iteration; None where it was not measured."""
        values = [turn[machine, kernel] for turn in self.turns if (machine, kernel) in turn]
        return statistics.median(values) if values else None

    def as_json(self) -> dict[str, object]:
        """For the JSON file: ns an iteration, by machine and kernel, of each turn."""
        keys = sorted({key for turn in self.turns for key in turn})
        return {"no_qemu": self.no_qemu, **{f"{machine}, {kernel}": [round(turn[machine, kernel], 3) for turn in self.turns]
                                            for machine, kernel in keys}}


def take_turns(machines: list[Machine], kernels: list[str], size: Size, progress: Callable[[str], None] = lambda text: None) -> list[Turn]:
    """Runs each kernel on each machine, in turns; the native one, which stands first, has no kernels of the system. Raises RuntimeError when two
    machines compute something else."""
    sums: dict[tuple[str, int], tuple[str, str]] = {}
    turns: list[Turn] = []

    def once(machine: Machine, kernel: str, percent: int) -> float:
        answer = machine.measure(kernel, percent)
        first = sums.setdefault((kernel, answer.iterations), (machine.name, answer.sum))
        if first[1] != answer.sum:
            raise RuntimeError(f"{kernel}, {answer.iterations} iterations: {machine.name} computes {answer.sum}, {first[0]} {first[1]}")
        return answer.ns / answer.iterations

    def those_with(kernel: str) -> list[Machine]:
        return machines[1:] if kernel in SYSTEM else machines
    for kernel in kernels if not size.quick else []:    # all do as much once: they agree, and have been there
        progress(f"check {kernel}")
        for machine in those_with(kernel):
            once(machine, kernel, 1)
    for machine in machines:
        machine.look_at_clock()
    for number in range(1 if size.quick else RUNS):
        turns.append({})
        for kernel in kernels:
            progress(f"{number + 1}/{RUNS} {kernel}")
            those = those_with(kernel)
            for machine in those[number % len(those):] + those[:number % len(those)]:
                full = 100 if kernel in SYSTEM else LESS.get(machine.name, {}).get(kernel, PERCENT[machine.name])
                percent = size.of(full, 1)
                turns[-1][machine.name, kernel] = once(machine, kernel, percent)
    for machine in machines:
        machine.look_at_clock()
    speeds = {machine.name: machine.speed for machine in machines}
    return [{key: ns * speeds[key[0]] for key, ns in turn.items()} for turn in turns]


def measure(size: Size, kernels: list[str], progress: Callable[[str], None] = lambda text: None) -> Found:
    """Builds the guest, starts the machines, and lets them take turns."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        image, program = build(BENCH, folder), build(BENCH, folder, "native")
        why = no_qemu(fetch=not size.quick)
        machines = [native(stack, program), ours(stack, image, "bt"), ours(stack, image, "interp"), *([] if why else [qemu(stack, image)])]
        return Found(take_turns(machines, kernels, size, progress), why)


def rows(size: Size, wanted: Callable[[list[str]], list[str]], progress: Callable[[str], None] = lambda text: None) -> tuple[list[Row], Found]:
    """The rows that `wanted(names)` has, and what they rest on."""
    keep = [line for line in lines() if line.name in wanted([line.name for line in lines()])] if can_measure() else []
    if not keep:
        return [], Found([])
    found = measure(size, [kernel for kernel in CPU | SYSTEM if any(kernel in line.kernels for line in keep)], progress)
    return [row_of(line.name, line.unit, [line.value(turn) for turn in found.turns], len(found.turns), line.target, target_says=line.says, digits=1) for line in keep if not (line.qemu and found.no_qemu)], found


def cycles_a_ns() -> float | None:
    """Of this host's CPU, as Linux tells it."""
    try:
        found = re.search(r"^cpu MHz\s*: ([\d.]+)", Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace"), re.MULTILINE)
    except OSError:
        return None
    return float(found[1]) / 1000 if found else None


def matrix(found: Found) -> list[list[str]]:
    """All kernels and machines side by side, the heading first: medians, and ratios of medians. What an operating system does has no native figure:
    cycles instead."""
    rate = cycles_a_ns()

    def cell(ns: float | None, base: float | None) -> str:
        if ns is None:
            return "no QEMU" if found.no_qemu else ""
        number = f"{ns:,.0f}" if ns >= 1000 else f"{ns:.1f}" if ns >= 100 else f"{ns:.3g}"
        return number + (f" ({ns / base:.1f})" if base else f" [{ns * rate:,.0f}]" if rate else "")
    table = [["ns (times native) [cycles]", NATIVE, OURS, INTERPRETER, TCG, "TCG/translator"]]
    for kernel, name in (CPU | SYSTEM).items():
        base, here, interpreted, tcg = (found.median(machine, kernel) for machine in (NATIVE, OURS, INTERPRETER, TCG))
        if here is not None:
            table.append([name, cell(base, None).partition(" ")[0] if base else "", cell(here, base), cell(interpreted, base), cell(tcg, base),
                          f"{tcg / here:.2f}" if tcg else ""])
    return table


# ---- cases -----------------------------------------------------------------------------------------------------------

def hypercall(image: Path, engine: str, calls: int, which: str = "") -> Callable[[], float]:
    """A `measure`: ns of a hypercall from a PV guest's C code, by the guest's clock; which: "" or "ordinary"."""
    def once() -> float:
        with Host(threaded=False, engine=engine) as host:
            domain = host.create(str(image), memory="16M", extra=f"{calls} {which}")
            ended = domain.wait(timeout=PATIENCE)
            said = re.fullmatch(r"(\d+) calls, (\d+) ns\n", domain.console.text)
            assert ended.reason == "poweroff" and said and int(said[1]) == calls, (ended, domain.console.text)
            return int(said[2]) / calls
    return once


def two_at_once(image: Path, kernel: str, percent: int) -> Callable[[], float]:
    """A `measure`: how many times faster two vCPUs do what is to be done on two pCPUs than on one. The best of some short runs in turn: what
    else the machine does is not to be in one of them alone."""
    def once(pcpus: int) -> float:
        with Host(threaded=False, pcpus=pcpus, engine="bt") as host:
            domain = host.create(str(image), memory=f"{MEMORY}M", vcpus=2, extra=f"smp=2 only={kernel} scale={percent}")
            domain.wait(timeout=PATIENCE)
            said = re.search(rf"{kernel}_x2 \d+ (\d+) ", domain.console.text)
            assert said, domain.console.text
            return float(said[1])
    def measure() -> float:
        runs = [(once(1), once(2)) for _ in range(6)]
        return min(one for one, _ in runs) / min(two for _, two in runs)
    return measure


def two_threads(program: Path, kernel: str, percent: int) -> Callable[[], float]:
    """A `measure`: the same of the host's own CPUs, by two threads of a process."""
    def measure() -> float:
        said = subprocess.run([program, "smp=2", f"only={kernel}", f"scale={percent}"], check=True, capture_output=True, text=True).stdout
        one, two = (float(line.split()[1]) for line in said.splitlines())
        return 2 * one / two
    return measure


def translation(image: Path, pattern: str, of: Callable[[object], float]) -> Callable[[], float]:
    """A `measure`: a figure of the translator's, when a guest has booted until it says `pattern`."""
    def measure() -> float:
        with more_options(lib.XL_BT_CLOCK), Host(threaded=False, engine="bt") as host:
            domain = host.create(str(image), memory="64M")
            domain.console.expect(pattern, timeout=PATIENCE)
            domain.pause()
            stats = ffi.new("struct xl_bt_stats *")
            lib.xl_bt_stats(lib.xl_bt_of_vcpu(lib.xl_vcpu(host.c, domain.domid, 0)), stats)
            return of(stats)
    return measure


def some_image(folder: Path, *, fetch: bool) -> tuple[str, Path, str]:
    """What is translated to see what that costs: GRUB, as much code as there is; without it a C guest of this SDK. And what it says at last."""
    try:
        with peers.patience(FETCHING if fetch else 0):
            return "GRUB", peers.path("grub-xen-host") / "usr/lib/grub-xen/grub-x86_64-xen.bin", "grub> "
    except peers.PeerUnavailable:
        return "the C guest hello", bench_native.build(c_images.EXAMPLES / "hello", folder), "hello from domain"


def cases(stack: ExitStack, size: Size) -> list[Case]:
    if not can_measure():
        return []
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    image, program, hello = build(BENCH, folder), build(BENCH, folder, "native"), build(BENCH.parent / "hello64", folder)
    calls = bench_native.build(Path(__file__).parent / "hypercall_guest", folder)
    what, translated, last_words = some_image(folder, fetch=not size.quick)
    percent = size.of(800, 10)
    return [
        Case("hypercall of a C guest, translated", "ns", hypercall(calls, "bt", size.of(4_000, 100)), 50),
        Case("hypercall of a C guest, translated, that leaves guest mode", "ns", hypercall(calls, "bt", size.of(4_000, 100), which="ordinary"), 50),
        Case("hypercall of a C guest, interpreted", "ns", hypercall(calls, "interp", size.of(1_000, 100)), runs=5),
        Case("floor: two threads against one, SHA-256", "x faster", two_threads(program, "sha256", percent)),
        Case("translator, two pCPUs against one, SHA-256", "x faster", two_at_once(image, "sha256", percent // 4), 1.6),
        Case("translator, two pCPUs against one, integer mix", "x faster", two_at_once(image, "integer", percent // 4), 1.6),
        Case(f"translation of {what}, a guest instruction", "ns", translation(translated, last_words, lambda s: s.translate_ns / s.translated)),
        Case(f"translation of {what}, cache for a byte of code", "bytes", translation(translated, last_words, lambda s: s.host_bytes / s.guest_bytes),
             runs=1, digits=2),
        Case("xenlike run of a bare-metal image, to its first line", "ms", bench_native.first_line(
            [sys.executable, "-m", "xenlike", "run", "-q", str(hello)], b"Hello from 64 bits", folder, status=1), 250),
    ]
