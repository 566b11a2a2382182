"""The SDK's bare-metal examples on the plain PC, as users run them; and the same files under QEMU, where it is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from commands import environment, python_for_tools, tool_environment
from pc_images import EXAMPLES, SUCCESS, example, run_on_qemu

from xenlike import Host
from xenlike.engine import lib

SAYS = {
    "hello32": ['Hello from 32 bits: 31744 KiB above 1 MiB, command line "{image} a=b c"'],
    "hello64": ['Hello from 64 bits: 31744 KiB above 1 MiB, command line "a=b c"'],
    "ticks": ["pit: 20 ticks", "apic: 20 ticks", "paging: 17 faults"],
    "smp": ["smp: 4 processors", "smp: counted 80000", "smp: interrupts arrived"],
    "smc": ["smc: immediate", "smc: own next instruction", "smc: copied function", "smc: other mapping", "smc: across pages"],
}


@pytest.mark.parametrize("clock", ["virtual", "real"])
@pytest.mark.parametrize("name", SAYS)
def test_an_example_runs(name: str, clock: str) -> None:
    """Wrong if what a newcomer builds first does not run, ends otherwise than it says, or leaves frames and timers behind."""
    path = example(name)
    with Host(clock=clock, pcpus=2) as host:
        host.wait_until(lambda: True, timeout=120)      # its timer stays
        before = host.usage()
        domain = host.create(path, vcpus=4, extra="a=b c")
        result = domain.wait(timeout=120)
        assert (result.reason, result.exit_code) == ("poweroff", SUCCESS), domain.console.text + str(result)
        assert domain.console.text.replace("\r", "").splitlines() == [line.format(image=path) for line in SAYS[name]]
        assert host.usage() == before


@pytest.mark.parametrize("name", ["ticks", "smp", "smc"])
def test_under_qemu(name: str) -> None:
    """Wrong if the examples hold on our machine only: then one of the two is no PC."""
    assert run_on_qemu(example(name), vcpus=4) == (SUCCESS, SAYS[name])


@pytest.mark.parametrize("name", ["ticks", "smp"])
def test_a_run_repeats(name: str) -> None:
    """Wrong if time of the PC's timers or the order of its processors comes from anywhere but the virtual clock."""
    def digest() -> tuple[int, int]:
        with Host(clock="virtual", seed=7) as host:
            host.create(example(name), vcpus=4).wait(timeout=120)
            return host.trace_digest(), host.now()
    assert digest() == digest()


def test_modules(tmp_path: Path) -> None:
    """Wrong if a RAM disk does not reach the guest by either protocol, or not with its size."""
    (tmp_path / "disk").write_bytes(b"x" * 5000)
    for name in ("hello32", "hello64"):
        with Host(clock="virtual") as host:
            domain = host.create(example(name), ramdisk=str(tmp_path / "disk"))
            assert domain.wait(timeout=60).exit_code == SUCCESS and "module of 5000 bytes" in domain.console.text


def test_the_benchmark_guest_agrees_with_the_native_program(tmp_path: Path) -> None:
    """Wrong if a kernel computes something else in the guest than on the host: no ratio of the two would mean anything."""
    folder = EXAMPLES / "bench"
    native = tmp_path / "bench-native"
    done = subprocess.run(["make", "-s", f"PYTHON={python_for_tools()}", "CC=gcc", f"NATIVE={native}", f"BUILD={tmp_path}/b", "native"], cwd=folder,
                          capture_output=True, text=True, check=False, env=tool_environment())
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    kernels = ("integer", "dispatch", "recursion", "sha256", "bytes", "fp_scalar", "fp_vector", "chase_4K", "memcpy_4K", "rep_movsb_4K", "rep_stosb_4K")
    theirs = subprocess.run([str(native), "scale=1"], env=tool_environment(), capture_output=True, text=True, check=True).stdout
    want = {line.split()[0]: line.split()[1::2] for line in theirs.splitlines()}
    with Host(clock="virtual") as host:
        domain = host.create(example("bench"), memory="128M", extra="scale=1")
        assert domain.wait(timeout=600).exit_code == SUCCESS, domain.console.text
    lines = {line.split()[0]: line.split()[1::2] for line in domain.console.text.splitlines()}
    for name in kernels:
        assert lines[name] == want[name], name
    assert {"page_fault", "syscall", "int", "cr3_switch", "pte_edit", "port_in", "port_out"} <= set(lines)


def test_the_command(tmp_path: Path) -> None:
    """Wrong if `xenlike run image` takes it for a PV guest, or the exit status is not what the guest said."""
    (tmp_path / "d").write_bytes(bytes(512))
    done = subprocess.run([sys.executable, "-m", "xenlike", "run", str(example("hello64")), "--clock", "virtual", "extra='x'",
                           f"disk=['{tmp_path}/d,,xvda']"], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=120, check=False, env=environment())
    assert done.returncode == SUCCESS and done.stdout.startswith("Hello from 64 bits") and "debug exit, status 1" in done.stderr
    assert "disk: has no effect: this version has no disk controller on a plain PC" in done.stderr     # though nobody said what type it is
    (tmp_path / "pc.cfg").write_text(f'name = "pc"\ntype = "hvm"\nkernel = "{example("hello32")}"\nmemory = 16\n')
    done = subprocess.run([sys.executable, "-m", "xenlike", "run", str(tmp_path / "pc.cfg")], stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=120, check=False, env=environment())
    assert done.returncode == SUCCESS and "15360 KiB" in done.stdout


def test_references_of_frames() -> None:
    """Wrong if a PC's memory is not held, typed writable, for as long as it may run: another user could make a page table of it."""
    with Host(clock="virtual") as host:
        domain = host.create(example("smp"), paused=True, vcpus=2)
        assert lib.xl_check_frames(host.c, 1) == 0 and lib.xl_check_tlbs(host.c) == 0
        domain.unpause()
        host.wait_until(lambda: False, timeout=0.01)
        assert lib.xl_check_frames(host.c, 1) == 0 and lib.xl_check_tlbs(host.c) == 0
