"""The interpreter: instructions a second on integer code, and how many times longer than the host's CPU takes for the same.

The kernels of x86_kernels.c, compiled for the bare machine and for the host. A wrong result ends the benchmark.
"""

from __future__ import annotations

import ctypes
import os
import pathlib
import shlex
import shutil
import statistics
import subprocess
import tempfile
import time
from contextlib import ExitStack

from harness import Case, Size

from xenlike.engine import ffi, lib

SOURCE = pathlib.Path(__file__).with_name("x86_kernels.c")
OPTIONS = ["-O2", "-ffreestanding", "-fno-stack-protector", "-fno-tree-vectorize", "-mno-sse", "-fno-asynchronous-unwind-tables", "-nostdlib"]
CODE, STACK = 0x100000, 0xF0000
#: kernel: (number, n for a run, for a quick one)
KERNELS = {"mix": (0, 200_000, 500), "dispatch": (1, 200_000, 500), "recursion": (2, 24, 10), "compression": (3, 1000, 3), "byte strings": (4, 200, 1)}
GOAL = 50.0                             # million instructions a second


def compile_kernels(directory: pathlib.Path) -> tuple[bytes, ctypes.CDLL]:
    """The image for the bare machine and the library for the host."""
    cc = shlex.split(os.environ.get("CC", "cc"))

    def run(*command: str | pathlib.Path) -> None:
        subprocess.run(command, check=True, capture_output=True, cwd=directory)

    run(*cc, *OPTIONS, "-DGUEST", "-fno-pic", "-fno-pie", "-c", SOURCE, "-o", "guest.o")
    script = f"SECTIONS {{ . = {CODE:#x}; .text : {{ *(.text.start) *(.text*) *(.rodata*) *(.data*) *(.bss*) }} /DISCARD/ : {{ *(.comment) *(.note*) }} }}"
    (directory / "guest.ld").write_text(script)
    run("ld", "-T", "guest.ld", "-e", f"{CODE:#x}", "--oformat=binary", "guest.o", "-o", "guest.bin")
    run(*cc, *OPTIONS, "-fPIC", "-shared", SOURCE, "-o", "native.so")
    native = ctypes.CDLL(str(directory / "native.so"))
    native.kernel.restype, native.kernel.argtypes = ctypes.c_uint64, [ctypes.c_uint64, ctypes.c_uint64]
    return (directory / "guest.bin").read_bytes(), native


class Kernels:
    """Runs kernels here and there."""

    def __init__(self, directory: pathlib.Path) -> None:
        self.image, self.native = compile_kernels(directory)
        self.machine = ffi.gc(lib.xl_bare_create(4 << 20), lib.xl_bare_destroy)

    def run_native(self, number: int, n: int) -> tuple[float, int]:
        """(seconds, result)"""
        at = time.thread_time()
        result = self.native.kernel(number, n)
        return time.thread_time() - at, result

    def run_guest(self, number: int, n: int) -> tuple[float, int, int]:
        """(seconds, result, instructions)"""
        m = self.machine
        lib.xl_bare_setup(m, 64, 0)
        lib.xl_bare_options(m, lib.XL_BARE_STOP_EXCEPTIONS)
        lib.xl_bare_write(m, CODE, self.image, len(self.image))
        for name, value in {"rip": CODE, "rsp": STACK, "rdi": number, "rsi": n}.items():
            lib.xl_bare_set(m, lib.xl_bare_reg(name.encode()), value)
        at = time.thread_time()
        lib.xl_bare_run(m, 1 << 62)
        seconds = time.thread_time() - at
        trap = ffi.new("u64[5]")
        if not lib.xl_bare_exception(m, trap) or trap[0] != 3:
            raise RuntimeError(f"kernel {number} ended at rip {lib.xl_bare_get(m, lib.xl_bare_reg(b'rip')):#x} by vector {trap[0]}, not by its int3")
        return seconds, lib.xl_bare_get(m, lib.xl_bare_reg(b"rax")), lib.xl_bare_get(m, lib.xl_bare_reg(b"retired"))

    def mips(self, number: int, n: int) -> float:
        """Million instructions a second."""
        seconds, result, retired = self.run_guest(number, n)
        if result != self.run_native(number, n)[1]:
            raise RuntimeError(f"kernel {number} on the interpreter: wrong result {result:#x}")
        return retired / seconds / 1e6

    def slowdown(self, size: Size) -> float:
        """Geometric mean of time here / time on the host."""
        ratios = []
        for number, full, quick in KERNELS.values():
            n = size.of(full, quick)
            ratios.append(self.run_guest(number, n)[0] / max(min(self.run_native(number, n)[0] for _ in range(3)), 1e-7))
        return statistics.geometric_mean(ratios)


def cases(stack: ExitStack, size: Size) -> list[Case]:
    """None where kernels cannot be compiled: the guest's code is x86-64, and so must be the compiler's."""
    if os.uname().machine != "x86_64" or not shutil.which("ld"):
        return []
    kernels = Kernels(pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory())))

    def measure(number: int, n: int):
        return lambda: kernels.mips(number, n)

    return [*(Case(f"interpreter, {name}", "M insns/s", measure(number, size.of(full, quick)), target=GOAL)
              for name, (number, full, quick) in KERNELS.items()),
            Case("interpreter, time against native", "x", lambda: kernels.slowdown(size), runs=3)]
