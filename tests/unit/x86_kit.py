"""A machine of plain RAM for tests: registers by name, code in assembler (GNU as, Intel syntax).

Owns: ``Machine`` around csrc/x86/bare.h, ``assemble``, ``map_page``. Used by: tests of csrc/x86.
"""

from __future__ import annotations

import functools
import os
import pathlib
import shutil
import subprocess
import tempfile
from typing import NamedTuple

import pytest

from xenlike.engine import ffi, lib

needs_assembler = pytest.mark.skipif(not (shutil.which("as") and shutil.which("ld")), reason="needs GNU as and ld (binutils)")

DE, DB, BP, UD, NM, DF, TS, NP, SS, GP, PF, AC = 0, 1, 3, 6, 7, 8, 10, 11, 12, 13, 14, 17
CF, ZF, TF, IF, RF, AC_FLAG = 1 << 0, 1 << 6, 1 << 8, 1 << 9, 1 << 16, 1 << 18
P, W, U, RSVD, INSN = 1, 2, 4, 8, 16                # of page faults' error codes
NX = 1 << 63
EXITS = {lib.XL_BARE_BUDGET: "budget", lib.XL_BARE_ATTENTION: "attention", lib.XL_BARE_STOPPED: "stopped", lib.XL_BARE_HALTED: "halted",
         lib.XL_BARE_SHUTDOWN: "shutdown", lib.XL_BARE_DEBUGGER: "debugger"}


@functools.lru_cache(maxsize=None)
def assemble(source: str, *, bits: int = 64, at: int = 0x1000) -> bytes:
    """Machine code of ``source`` for code size ``bits``, linked at address ``at``."""
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory)
        (path / "a.s").write_text(f".intel_syntax noprefix\n.code{bits}\n{source}\n")
        try:
            subprocess.run(["as", "--64", "a.s", "-o", "a.o"], cwd=path, check=True, capture_output=True, text=True)
            subprocess.run(["ld", "-m", "elf_x86_64", "-e", "0", f"-Ttext={at:#x}", "--oformat=binary", "a.o", "-o", "a.bin"], cwd=path, check=True,
                           capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            raise AssertionError(f"{error.stderr}\n{source}") from None
        return (path / "a.bin").read_bytes()


class Trap(NamedTuple):
    """An exception that stopped a run: vector, error code (None: it has none), cr2 (#PF: address, #DB: DR6 bits)."""

    vector: int
    error: int | None
    cr2: int


class Machine:
    """``m["rax"] = 1``, ``m.code("mov rbx, rax")``, ``m.run(1)``. Exceptions stop the run unless ``deliver``."""

    def __init__(self, bits: int = 64, cpl: int = 0, *, deliver: bool = False, size: int = 1 << 20,
                 engine: str | None = None, options: int | None = None) -> None:
        self.bits, self.size, self.system = bits, size, size - lib.XL_BARE_SYSTEM
        self.c = ffi.gc(lib.xl_bare_create(size), lib.xl_bare_destroy)
        if (engine or os.environ.get("XENLIKE_ENGINE")) == "bt":
            if options is None:
                options = int(os.environ.get("XENLIKE_BT_OPTIONS", "0"), 0)
            assert lib.xl_bare_engine(self.c, True, options) == 0
        assert lib.xl_bare_setup(self.c, bits, cpl) == 0
        lib.xl_bare_options(self.c, 0 if deliver else lib.XL_BARE_STOP_EXCEPTIONS)

    def __getitem__(self, name: str) -> int:
        return lib.xl_bare_get(self.c, self._index(name))

    def __setitem__(self, name: str, value: int) -> None:
        lib.xl_bare_set(self.c, self._index(name), value % (1 << 64))

    @staticmethod
    def _index(name: str) -> int:
        index = lib.xl_bare_reg(name.encode())
        assert index >= 0, name
        return index

    def write(self, pa: int, data: bytes) -> None:
        assert lib.xl_bare_write(self.c, pa, data, len(data)) == 0

    def read(self, pa: int, n: int) -> bytes:
        out = ffi.new("unsigned char[]", n)
        assert lib.xl_bare_read(self.c, pa, out, n) == 0
        return bytes(ffi.buffer(out))

    def put(self, pa: int, value: int, size: int = 8) -> None:
        self.write(pa, value.to_bytes(size, "little"))

    def word(self, pa: int, size: int = 8) -> int:
        return int.from_bytes(self.read(pa, size), "little")

    def code(self, source: str, *, at: int = 0x1000, bits: int = 0, enter: bool = True) -> None:
        """Assembles to physical = linear address ``at`` and, with ``enter``, points rip there."""
        self.write(at, assemble(source, bits=bits or self.bits, at=at))
        if enter:
            self["rip"] = at

    def run(self, budget: int = 10_000) -> str:
        return EXITS[lib.xl_bare_run(self.c, budget)]

    def trap(self, budget: int = 10_000) -> Trap:
        """Runs until an exception; fails if there is none."""
        exit = self.run(budget)
        out = ffi.new("u64[5]")
        assert lib.xl_bare_exception(self.c, out), f"{exit} at rip {self['rip']:#x}"
        return Trap(out[0], out[1] if out[3] else None, out[2])

    def translate(self, va: int, access: int = 0, *, user: bool = False) -> tuple[int | None, int | None]:
        """(physical address, None) or (None, error code of the page fault)."""
        pa = ffi.new("u64 *")
        fault = lib.xl_bare_translate(self.c, va, access, user, pa)
        return (None, fault & 0xFFFFFFFF) if fault else (pa[0], None)

    def interrupt(self, vector: int) -> None:
        lib.xl_bare_interrupt(self.c, vector)

    def output(self) -> bytes:
        out = ffi.new("unsigned char[]", 65536)
        return bytes(out[0 : lib.xl_bare_output(self.c, out, 65536)])

    def gate(self, vector: int, handler: int, *, dpl: int = 0, trap: bool = False) -> None:
        """An interrupt or trap gate of the protected or long mode that was set up, or a real-mode vector."""
        if self.bits == 16:
            self.put(4 * vector, handler, 4)
            return
        low = handler & 0xFFFF | lib.XL_BARE_CS0 << 16 | (0x8E | trap | dpl << 5) << 40 | (handler >> 16 & 0xFFFF) << 48
        size = 16 if self.bits == 64 else 8
        self.write(self.system + lib.XL_BARE_IDT + size * vector, low.to_bytes(8, "little") + (handler >> 32).to_bytes(8, "little")[: size - 8])


def map_page(m: Machine, va: int, entry: int) -> None:
    """4 KiB pages for the low 2 MiB of a 64-bit machine, identity at first; `entry` for va."""
    table, pd = 0x20000, m.system + lib.XL_BARE_PD
    if m.word(pd) & 0x80:
        for n in range(512):
            m.put(table + 8 * n, n << 12 | 0x67)
        m.put(pd, table | 0x67)
    m.put(table + 8 * (va >> 12), entry)
    m["cr3"] = m["cr3"]
