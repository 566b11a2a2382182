"""The interpreter and the translator do what this machine's CPU does: random sequences on the three (see lockstep.h). `make lockstep` runs ten million.

Environment: XENLIKE_LOCKSTEP=N runs N sequences (default 12000).
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
SEQUENCES = int(os.environ.get("XENLIKE_LOCKSTEP", "12000"))

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
    if done.returncode == 2 and "no translator" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done


def figures(done: subprocess.CompletedProcess) -> dict[str, int]:
    """The numbers of the last line, by the word behind or before each."""
    last = done.stdout.splitlines()[-1]
    named = re.search(r"(?P<sequences>\d+) sequences, (?P<instructions>\d+) instructions of (?P<met>\d+) forms \(of (?P<forms>\d+)\); "
                      r"(?P<loops>\d+) in loops, (?P<slices>\d+) in slices", last)
    assert named, done.stdout
    found = {name: int(number) for name, number in named.groupdict().items()}
    translator = re.search(r"translator (\d+), of which (\d+) translated, in (\d+) blocks, (\d+) refused", last)
    return found | dict(zip(("executed", "translated", "blocks", "refused"), map(int, translator.groups()))) if translator else found


SLOW = {"one": 1, "no-chain": 2, "flush": 4, "tiny-tlb": 8, "forced-slow": 15}


@pytest.mark.parametrize("options, share", [
    pytest.param((), 1, id="plain"),
    pytest.param(("--loops", 100, "--slices", 0), 2, id="loops"),
    pytest.param(("--loops", 100, "--slices", 100), 4, id="slices"),
    *(pytest.param(("--translate", bits), 4 if bits == 15 else 8, id=name) for name, bits in SLOW.items()),
    pytest.param(("--translate", 16), 20, id="verified"),
    pytest.param(("--translate", 31), 20, id="forced-slow-verified"),
    pytest.param(("--step",), 10, id="step"),
    pytest.param(("--no-icache",), 4, id="no-icache"),
])
def test_same_as_the_cpu(lockstep: Path, options: tuple[object, ...], share: int) -> None:
    """Wrong: an instruction leaves another state in a register, a flag, memory, x87 or SSE than on the CPU, or faults otherwise; or the engines
    count otherwise, or stand elsewhere when their time is over; or the verifier refuses a block."""
    n = SEQUENCES // share
    done = run(lockstep, "--sequences", n, "--seed", 20 + len(options) + share, *options)
    assert done.returncode == 0, done.stdout
    found = figures(done)
    assert found["sequences"] > 0.99 * n
    if not options:
        assert found["met"] > 0.95 * found["forms"]                 # nearly every form was met
        assert 0.4 < found["loops"] / n < 0.6 and found["slices"] > 0.05 * n
    if "executed" in found:
        assert found["refused"] == 0
        if "--step" not in options:     # no block is as short as that; in slices many are not
            assert found["translated"] > (0.2 if 100 in options[3:] else 0.4) * found["executed"]


@pytest.mark.parametrize("who, verdict", [
    ("interpreter", "the interpreter disagrees with CPU and translator"),
    ("translator", "the translator disagrees with CPU and interpreter"),
    ("CPU", "the engines agree, the CPU does not"),
])
def test_a_defect_is_found_cut_down_and_laid_at_the_right_door(lockstep: Path, who: str, verdict: str) -> None:
    """Wrong: the comparison lets a wrong register pass, so that the tests above say nothing; or it blames another."""
    done = run(lockstep, "--sequences", 20000, "--plant", f"{who}:bswap", "--differences", 2)
    if "no translator" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 1
    assert re.search(rf"seed 1, {verdict}; cut down to 1 of \d+:\n  \+00000 bswap", done.stdout), done.stdout


def test_a_form_by_name(lockstep: Path) -> None:
    """Wrong: --form tests something else, or a name that no process may execute passes without a word."""
    done = run(lockstep, "--sequences", 500, "--form", "shld", "--histogram")
    assert done.returncode == 0, done.stdout
    assert {line.split()[2] for line in done.stdout.splitlines() if line.startswith("form") and line.split()[-1] != "0"} == {"shld"}
    assert subprocess.run([lockstep, "--form", "vaddps"], capture_output=True).returncode == 2


def test_objects_of_an_older_tree_are_not_linked(lockstep: Path) -> None:
    """Wrong: what another version has left in the build folder is linked as well, and defines everything twice."""
    left = lockstep.parent / "bt-left_over.o"
    left.write_bytes(b"not an object")
    try:
        lockstep.unlink()
        done = subprocess.run([HERE / "build.sh", lockstep.parent], capture_output=True, text=True)
        assert done.returncode == 0 and lockstep.exists(), done.stderr
    finally:
        left.unlink()
