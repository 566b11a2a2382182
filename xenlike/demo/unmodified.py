"""The demo's guests that know nothing of Xen: examples for a plain PC, built here, run by translation and by the interpreter, side by side.

Owns the comparison: both engines must bring about the same, to the last instruction, and a checksum that a guest computes must be what the
same code computes as a Linux program.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from guest_sdk.c import directory
from xenlike.demo import stage
from xenlike.demo.native import ROOT, missing_tools
from xenlike.demo.stage import Stage
from xenlike.engine import ffi, lib
from xenlike.host import Host

__all__ = ["Run", "run", "show_unmodified"]

_KERNEL, _SCALE = "sha256", 100             # of the example bench, and percent of its usual rounds
_NAMES = {"bt": "translator", "interp": "interpreter"}


@dataclass(frozen=True)
class Run:
    """What an engine made of a guest: console, instructions that retired, a digest of all that happened, seconds of CPU time; of the
    translator: instructions that were left to the interpreter, blocks, and the instructions in them."""

    console: str
    instructions: int
    digest: int
    seconds: float
    interpreted: int = 0
    blocks: int = 0
    translated: int = 0


def show_unmodified(on: Stage, folder: Path) -> None:
    """Builds ``smp`` and ``bench``, runs each on both engines with the virtual clock, and compares."""
    on.title("3. Unmodified guests: a plain PC, by binary translation")
    if why := missing_tools():
        on.leave_out("unmodified guests", why)
        return
    if (why_not := lib.xl_bt_unavailable()) != ffi.NULL:
        on.leave_out("binary translation", f"this host has no translator: {ffi.string(why_not).decode()}; the interpreter runs all guests")
        return
    begin, examples = time.perf_counter(), directory() / "pc" / "examples"
    shown = examples.relative_to(ROOT) if examples.is_relative_to(ROOT) else examples
    print(f"gcc builds {shown}/smp and bench ...", end="", flush=True)
    failed = [done.stderr for name in ("smp", "bench") if (done := _make(examples / name, folder)).returncode]
    if failed or (native := _make(examples / "bench", folder, "native")).returncode:
        on.failed += 1
        print(f" FAILED\n{failed[0] if failed else native.stderr}")
        return
    print(f" {time.perf_counter() - begin:.1f} s\nThey are kernels for bare metal: they start other processors, program interrupt controllers, "
          "load page tables. The same files\nrun under QEMU. Each runs twice here, on the virtual clock, on which a run repeats to the last "
          "instruction.\n")
    _compare(on, folder / "smp", "smp, 2 vCPUs", vcpus=2, memory="32M")
    console = _compare(on, folder / "bench", f"bench, {_KERNEL}", memory="96M", extra=f"only={_KERNEL} scale={_SCALE}")
    said = next((line.split() for line in console.splitlines() if line.startswith(_KERNEL)), ["", "", "", "nothing"])
    program = [folder / "bench-native", f"only={_KERNEL}", f"scale={_SCALE}"]
    linux = subprocess.run(program, capture_output=True, text=True, check=True).stdout.split()
    on.check("checksum of the same code on Linux", linux[3], said[3], sides=False)
    print(f"    {linux[3]} after {said[1]} rounds, which take {int(linux[2]) / 1e6:.0f} ms there")


def _make(source: Path, folder: Path, *goals: str) -> "subprocess.CompletedProcess[str]":
    """Runs make there. Both share the SDK's objects."""
    name = source.name
    return subprocess.run(["make", "-s", "-j2", "-C", str(source), *goals, f"PYTHON={sys.executable}", "CC=gcc",
                           f"BUILD={folder / 'pc.build'}", f"GUEST={folder / name}", f"NATIVE={folder / f'{name}-native'}"],
                          capture_output=True, text=True)


def _compare(on: Stage, image: Path, title: str, **config: object) -> str:
    """Runs it on both engines, prints what they did and what differs. Returns the translator's console."""
    fast, slow = run(on, image, "bt", **config), run(on, image, "interp", **config)
    print(f"  {title:<34}{_NAMES['bt']:>14}{_NAMES['interp']:>14}\n  | " + fast.console.replace("\r", "").strip().replace("\n", "\n  | "))
    rows = [("instructions", f"{fast.instructions:,}", f"{slow.instructions:,}"), ("  of them interpreted", f"{fast.interpreted:,}", "all"),
            ("blocks translated", f"{fast.blocks:,}", ""), ("  instructions in them", f"{fast.translated:,}", ""),
            ("CPU time, ms", f"{fast.seconds * 1e3:.0f}", f"{slow.seconds * 1e3:.0f}")]
    for label, *cells in rows:
        print(f"    {label:<32}" + "".join(f"{cell:>14}" for cell in cells).rstrip())
    on.check("same console", slow.console, fast.console, sides=False)
    on.check("same number of instructions", slow.instructions, fast.instructions, sides=False)
    on.check("same digest of all events", f"{slow.digest:016x}", f"{fast.digest:016x}", sides=False)
    on.check("most instructions were translated", fast.interpreted * 10 < fast.instructions and fast.blocks > 0, True, sides=False)
    print()
    return fast.console


def run(on: Stage, image: Path, engine: str, **config: object) -> Run:
    """Runs the guest to its end."""
    with Host(threaded=False, clock="virtual", engine=engine) as host:
        domain = host.create(str(image), on_poweroff="preserve", **config)       # so that the translator can be asked afterwards
        on.domains, begin = (domain,), time.process_time()
        host.wait([domain], timeout=stage.PATIENCE)
        seconds, stats = time.process_time() - begin, ffi.new("struct xl_bt_stats *")
        interpreted = blocks = translated = 0
        for n in range(domain.config.vcpus):
            translator = lib.xl_bt_of_vcpu(lib.xl_vcpu(host.c, domain.domid, n))
            if translator != ffi.NULL:
                lib.xl_bt_stats(translator, stats)
                interpreted, blocks, translated = interpreted + stats.interpreted, blocks + stats.blocks, translated + stats.translated
        on.ends((domain,))
        retired = domain.statistics().counters["instructions"]
        return Run(domain.console.text, retired, host.trace_digest(), seconds, interpreted, blocks, translated)
