"""Builds guests in C, each once a session, with the SDK's library shared between them. Called by test_c_*.py."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest
from commands import ROOT, python_for_tools, tool_environment

EXAMPLES = ROOT / "guest_sdk" / "c" / "examples"
_TOOLS = ("make", "gcc", "ld", "ar")


@cache
def _folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(prefix="xenlike-c-")     # lives, and goes, with the process


def need_tools() -> None:
    """Skips the test where no C guest can be built."""
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"C guests are built with {', '.join(_TOOLS)}; not installed: {', '.join(missing)}")


def make(*words: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """Runs make for a guest, with this interpreter and this tree."""
    return subprocess.run(["make", "-s", f"PYTHON={python_for_tools()}", "CC=gcc", *words], cwd=cwd, env=tool_environment(), text=True,
                          capture_output=True, timeout=300)


@cache
def image(source: Path) -> Path:
    """The image built from the folder ``source``, which holds a guest's Makefile; its name is the folder's."""
    need_tools()
    folder = Path(_folder().name)
    target = folder / source.name
    done = make(f"BUILD={folder / (source.name + '.build')}", f"SDK_BUILD={folder / 'sdk'}", f"GUEST={target}", cwd=source)
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    return target


def example(name: str) -> Path:
    """One of the SDK's examples."""
    return image(EXAMPLES / name)
