"""Images for the plain PC: the SDK's examples and the tests' own guests, built once a session; QEMU as an optional peer. Called by test_pc_*.py."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from c_images import _folder, make, need_tools
from commands import ROOT, SANITIZER

sys.path.append(str(Path(__file__).parents[1] / "tools"))
import peers  # noqa: E402

EXAMPLES = ROOT / "guest_sdk" / "c" / "pc" / "examples"
GUESTS = Path(__file__).parent / "pc_guests"
SUCCESS = 1                 # debug exit of 0: (0 << 1) | 1


@cache
def image(source: Path) -> Path:
    """The image built from the folder ``source``."""
    need_tools()
    folder = Path(_folder().name)
    target = folder / ("pc-" + source.name)
    done = make(f"BUILD={folder / (source.name + '.pc')}", f"GUEST={target}", cwd=source)
    if done.returncode and "32" in done.stderr and "gcc" in done.stderr and "cannot find" in done.stderr:
        pytest.skip("this gcc cannot link 32-bit code")
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    return target


def example(name: str) -> Path:
    """One of the SDK's examples."""
    return image(EXAMPLES / name)


def guest(name: str) -> Path:
    """One of the tests' own guests."""
    return image(GUESTS / name)


# ---- QEMU ------------------------------------------------------------------------------------------------------------

FETCHING = 20               # seconds that a test run may spend on downloading QEMU, once; `make bench` waits longer


@cache
def _no_qemu() -> str:
    """Why there is no QEMU; empty if there is one."""
    try:
        with peers.patience(FETCHING):
            peers.qemu()
    except peers.PeerUnavailable as error:
        return str(error)
    return ""


def run_on_qemu(kernel: Path, *, vcpus: int = 1, cmdline: str = "") -> tuple[int, list[str]]:
    """Exit status and lines of serial output of the image under QEMU's own translator. Skips the test where there is none."""
    if _no_qemu():
        pytest.skip(_no_qemu())
    command, environment = peers.qemu_pc(kernel, vcpus=vcpus, cmdline=cmdline)
    environment = {name: value for name, value in environment.items() if name not in SANITIZER}
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=120, check=False)
    if done.returncode in (1, 127) and not done.stdout and "error while loading" in done.stderr:
        pytest.skip(f"QEMU does not start: {done.stderr.strip()}")
    return done.returncode, done.stdout.replace("\r", "").splitlines()
