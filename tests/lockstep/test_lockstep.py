"""The interpreter does what this machine's CPU does: random sequences on both (see lockstep.h). `make lockstep` runs ten million of them.

Environment: XENLIKE_LOCKSTEP=N runs N sequences (default 20000).
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SEQUENCES = int(os.environ.get("XENLIKE_LOCKSTEP", "20000"))

if platform.machine() != "x86_64" or platform.system() != "Linux":
    pytest.skip("lockstep needs an x86-64 CPU under Linux to compare with", allow_module_level=True)
if not (ROOT / "csrc" / "x86" / "bare.c").exists():
    pytest.skip("this copy of the tree has no C sources", allow_module_level=True)


@pytest.fixture(scope="module")
def lockstep() -> Path:
    """The program, built in build/lockstep."""
    out = ROOT / "build" / "lockstep"
    done = subprocess.run([HERE / "build.sh", out], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out / "lockstep"


def run(program: Path, *args: object) -> subprocess.CompletedProcess:
    """One run; a status of 2 (the programs themselves failed) is never what a test wants."""
    done = subprocess.run([program, *map(str, args)], capture_output=True, text=True, timeout=600)
    if done.returncode == 2 and "lockstep-host" in done.stderr:
        pytest.skip(f"this machine does not let lockstep-host run: {done.stderr.strip()}")
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done


@pytest.mark.parametrize("options", [(), ("--step",), ("--no-icache",)], ids=["run", "step", "no-icache"])
def test_same_as_the_cpu(lockstep: Path, options: tuple[str, ...]) -> None:
    """Wrong: an instruction leaves another state in a register, a flag, memory, x87 or SSE than on the CPU, or faults otherwise."""
    n = SEQUENCES if not options else SEQUENCES // 4
    done = run(lockstep, "--sequences", n, "--seed", 20 + len(options), *options)
    assert done.returncode == 0, done.stdout
    summary = re.search(r"(\d+) sequences, (\d+) instructions of (\d+) forms \(of (\d+)\)", done.stdout)
    assert summary and int(summary[1]) > 0.99 * n
    assert int(summary[3]) > 0.95 * int(summary[4])         # nearly every form was met


def test_a_defect_is_found_and_cut_down(lockstep: Path) -> None:
    """Wrong: the comparison lets a wrong register pass, so that the tests above say nothing."""
    done = run(lockstep, "--sequences", 20000, "--plant", "bswap", "--differences", 2)
    assert done.returncode == 1
    assert re.search(r"cut down to 1 of \d+:\n  \+00000 bswap", done.stdout), done.stdout


def test_a_form_by_name(lockstep: Path) -> None:
    """Wrong: --form tests something else, or a name that no process may execute passes without a word."""
    done = run(lockstep, "--sequences", 500, "--form", "shld", "--histogram")
    assert done.returncode == 0, done.stdout
    assert {line.split()[2] for line in done.stdout.splitlines() if line.startswith("form") and line.split()[-1] != "0"} == {"shld"}
    assert subprocess.run([lockstep, "--form", "vaddps"], capture_output=True).returncode == 2
