"""Hosts that lack what the translator needs: guests run all the same, interpreted, with the same results, and one line says why.

Features are masked by XENLIKE_HOST_LACKS; executable memory is also refused in earnest, by seccomp filters and limits, in processes of their own (masked_run.py).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from c_images import example as pv_example
from commands import ROOT, environment, xenlike as command
from pc_images import example as pc_example

from xenlike.engine import ffi, lib
from xenlike.translation import FEATURES

SCRIPT = Path(__file__).with_name("masked_run.py")
WHY = {"bmi2": "the CPU lacks BMI2", "fsgsbase": "FSGSBASE is not enabled", "lahf": "the CPU lacks LAHF in 64-bit mode",
       "wx": "executable memory is refused"}

CLEAN = {"XENLIKE_HOST_LACKS": "", "XENLIKE_ENGINE": "", "XENLIKE_BT_OPTIONS": ""}


@pytest.fixture(autouse=True)
def _translator() -> None:
    if lib.xl_bt_unavailable() != ffi.NULL:
        pytest.skip(f"nothing to take away: {ffi.string(lib.xl_bt_unavailable()).decode()}")


@pytest.fixture(scope="module")
def images() -> list[str]:
    """A PV guest with user mode and a timer, one with two vCPUs, and a PC that rewrites its code."""
    return [str(pv_example("user")), str(pv_example("smp")), str(pc_example("smc"))]


def run(how: str, images: list[str], **variables: str) -> dict:
    done = subprocess.run([sys.executable, str(SCRIPT), how, *images], env=environment(**CLEAN | variables), capture_output=True, text=True, timeout=120)
    if done.returncode == 77:
        pytest.skip(f"this kernel does not let a process give that up: {done.stderr.strip()}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def as_interpreted(found: dict, why: str) -> None:
    """Every guest did what the interpreter does, no translator is there, and it was said once, not when "interp" was asked for."""
    for want, got in zip(found["reference"], found["found"], strict=True):
        assert got["reason"] == "poweroff" and not got["translated"]
        assert {**got, "chosen": 0} == {**want, "chosen": 0}
    assert found["said_for_interp"] == 0
    assert found["said"] == [[f"no binary translation: {why}; machine code is interpreted, which is slower", "RuntimeWarning", found["said"][0][2]]]


@pytest.mark.parametrize("feature", FEATURES)
def test_a_feature_is_masked(images: list[str], feature: str) -> None:
    """Wrong if a host without it does not run guests, runs them otherwise, says nothing, or says it again for each host."""
    found = run("plain", images, XENLIKE_HOST_LACKS=feature)
    as_interpreted(found, WHY[feature])
    assert {one["chosen"] for one in found["found"]} == {"interp"}
    assert found["said"][0][2] == SCRIPT.name           # the warning points at who made the host


def test_executable_memory_is_refused(images: list[str]) -> None:
    """Wrong if a sandbox that refuses executable memory makes the process fail instead of slower."""
    as_interpreted(run("no-exec", images[:1]), WHY["wx"])


@pytest.mark.parametrize("how, why", [("no-exec-later", WHY["wx"]), ("no-memory", "there is no memory for its code")])
def test_a_vcpus_translator_cannot_be_made(images: list[str], how: str, why: str) -> None:
    """Wrong if a vCPU that gets no translator when it first runs does not run, tries again at each entry, or nobody is told."""
    found = run(how, images[:1])
    as_interpreted(found, why)
    assert found["found"][0]["chosen"] == "bt"


def test_w_xor_x_is_enough(images: list[str]) -> None:
    """Wrong if the code cache needs memory that is writable and executable, or became executable: systems that refuse it would not translate."""
    found = run("mdwe", images)
    assert found["said"] == []
    for want, got in zip(found["reference"], found["found"], strict=True):
        assert got["translated"] and got["chosen"] == "bt"
        assert {**got, "chosen": 0, "translated": 0} == {**want, "chosen": 0, "translated": 0}


def test_the_command_says_one_line(tmp_path: Path) -> None:
    """Wrong if `xenlike run` is silent about it, shows Python's form of a warning, or says it although it was told to be quiet or to interpret."""
    hello = str(pv_example("hello"))

    def said(*words: str, lacks: str = "fsgsbase,bmi2") -> list[str]:
        done = command("run", hello, *words, cwd=tmp_path, env=environment(**CLEAN | {"XENLIKE_HOST_LACKS": lacks}))
        assert lacks == "sse9" or (done.returncode == 0 and done.stdout.startswith(b"hello from domain 1\n"))
        return [line for line in done.stderr.decode().splitlines() if "domain 1" not in line and "hello: poweroff" not in line]

    assert said() == ["xenlike: no binary translation: the CPU lacks BMI2; machine code is interpreted, which is slower"]
    assert said("-q") == said("--engine", "interp") == said(lacks="") == []
    assert "XENLIKE_HOST_LACKS names sse9: only bmi2" in said(lacks="sse9")[-1]


@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-gcc") is None, reason="gcc-aarch64-linux-gnu is not installed")
def test_other_architectures_compile(tmp_path: Path) -> None:
    """Wrong if C that only x86-64 has stands where other hosts compile it: there the interpreter is to be all there is."""
    sources = [str(path) for path in sorted((ROOT / "csrc").rglob("*.c")) if "include" not in path.parts]
    flags = ["-std=gnu11", "-fsyntax-only", "-Werror", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-unused-variable", "-Wno-unused-const-variable",
             "-Wno-missing-field-initializers", "-fno-strict-aliasing", "-DXL_CORE", f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc' / 'include'}"]
    done = subprocess.run(["aarch64-linux-gnu-gcc", *flags, *sources], capture_output=True, text=True)
    assert done.returncode == 0 and len(sources) > 50, done.stderr
