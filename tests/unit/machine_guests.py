"""PV guests of machine code, assembled when the test runs: a domain of BACKEND_INTERP with its program at `CODE`.

A program is GNU assembler text. Before it stand macros for what every program needs: `hypercall NAME` (arguments are in registers),
`exit CODE` (SCHEDOP_shutdown with that reason) and `save REG, slot` (stores a register in 8-byte slot n of the result page, where
the test finds it). Everything is mapped linearly from core_guests.BASE on, one page a purpose:

    pfn 0   hypercall arguments            4..7  program (CODE)
    pfn 1   results (RESULT)               8..   free (FREE)
    pfn 2   user stack    pfn 3   kernel stack, ending at STACK
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest
from core_guests import BASE, PAGE, CoreGuest
from script_guests import ScriptHost

from xenlike.engine import NR, check, ffi, lib

RESULT = BASE + PAGE
USER_STACK = BASE + 3 * PAGE
STACK = BASE + 4 * PAGE
CODE = BASE + 4 * PAGE
SHARED_VA = BASE + 31 * PAGE                # where programs of `boot` map shared_info: the last page of the linear mapping
KERNEL_CS, KERNEL_SS, USER_CS, USER_SS, USER_CS32 = 0xe033, 0xe02b, 0xe033, 0xe02b, 0xe023

PRELUDE = f"""
.set RESULT, {RESULT}
.set STACK, {STACK}
.set USER_STACK, {USER_STACK}
.set ARGS, {BASE}
.set FREE, {BASE + 8 * PAGE}
""" + "".join(f".set NR_{name}, {number}\n" for name, number in vars(NR).items()) + r"""
.macro hypercall name
    mov $NR_\name, %eax
    syscall
.endm
.macro exit code=0
    mov $2, %edi
    mov $\code, %esi
    hypercall sched_op_compat
    ud2
.endm
.macro save reg, slot
    mov %\reg, RESULT + 8 * \slot
.endm
.macro save_frame slot, words=9       # what the stack holds, into results
    .irp n, 0,1,2,3,4,5,6,7,8,9,10,11,12
    .if \n < \words
    push 8 * \n(%rsp)
    pop RESULT + 8 * (\slot + \n)
    .endif
    .endr
.endm
.macro trap_return              # from the frame of a trap without error code
    pop %rcx
    pop %r11
    push $0
    push %rcx
    push %r11
    push %rax
    hypercall iret
.endm
.macro trap_entry vector, flags, handler
    .byte \vector, \flags
    .word 0xe033
    .long 0
    .quad \handler
.endm
.macro set_traps table
    mov $\table, %rdi
    hypercall set_trap_table
.endm
.macro callback type, handler, flags=0
    movw $\type, ARGS
    movw $\flags, ARGS + 2
    movq $\handler, ARGS + 8
    xor %edi, %edi
    mov $ARGS, %rsi
    hypercall callback_op
.endm
.macro to_user rip, rflags=0x200, cs=0xe033, rsp=USER_STACK
    push $0xe02b
    push $\rsp
    push $\rflags
    push $\cs
    push $\rip
    push $0                 # flags
    push $0
    push $0
    push $0
    hypercall iret
.endm
.globl _start
_start:
"""


@cache
def assemble(source: str) -> tuple[bytes, dict[str, int]]:
    """The program's bytes at CODE, and its labels."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        pytest.skip("no compiler to assemble the guest with")
    with tempfile.TemporaryDirectory() as folder:
        elf, raw = Path(folder, "elf"), Path(folder, "raw")
        link = ["-nostdlib", "-static", "-m64", "-Wl,--build-id=none", f"-Wl,-Ttext={CODE:#x}"]
        command = [compiler, *link, "-x", "assembler", "-", "-o", elf]
        done = subprocess.run(command, input=PRELUDE + source + "\n", text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        subprocess.run(["objcopy", "-O", "binary", "-j", ".text", elf, raw], check=True)
        names = subprocess.run(["nm", elf], check=True, capture_output=True, text=True).stdout
        labels = {name: int(value, 16) for value, _, name in re.findall(r"^(\w+) (\w) (\S+)$", names, re.M)}
        return raw.read_bytes(), labels


class MachineHost(ScriptHost):
    """A host whose guests run machine code. A context manager."""

    def boot(self, source: str, *, vcpus: int = 1, user: bool = True, pages: int = 32, **limits: int) -> MachineGuest:
        """A paused domain that will start at the program's first instruction. user: user mode has the kernel's page tables."""
        return MachineGuest(self, source, vcpus, user, pages, limits)

    def play(self, source: str, **options: int) -> MachineGuest:
        """The same, run until it has shut down."""
        return self.boot(source, **options).run()


class MachineGuest(CoreGuest):
    """vCPU 0 starts at CODE with its stack at STACK; others are down."""

    def __init__(self, host: MachineHost, source: str, vcpus: int, user: bool, pages: int, limits: dict[str, int]) -> None:
        super().__init__(host, vcpus, False, pages, {"backend": lib.BACKEND_INTERP, **limits}, up=1)
        code, self.labels = assemble(source)
        self.write(CODE, code)
        check(lib.xl_vcpu_set_regs(self.vcpus[0], CODE, STACK, 0x1234), "xl_vcpu_set_regs")
        if user:
            check(lib.xl_vcpu_set_bases(self.vcpus[0], self.l4, self.l4), "xl_vcpu_set_bases")

    def unpause(self) -> None:
        check(lib.xl_domain_unpause(self.host.ptr, self.id), "xl_domain_unpause")

    def run(self) -> MachineGuest:
        """Until it has shut down."""
        self.unpause()
        self.host.run(lambda: self.info().state >= lib.DOM_shutdown)
        return self

    @property
    def reason(self) -> int:
        """SHUTDOWN_*; fails with the crash's reason if it crashed."""
        info = self.info()
        assert info.shutdown_code != lib.SHUTDOWN_crash, ffi.string(info.crash_reason).decode()
        return info.shutdown_code

    @property
    def crash(self) -> str:
        """Why it crashed; fails if it did not."""
        info = self.info()
        assert (info.state, info.shutdown_code) == (lib.DOM_shutdown, lib.SHUTDOWN_crash)
        return ffi.string(info.crash_reason).decode()

    def results(self, n: int, *, first: int = 0) -> list[int]:
        """Slots of the result page."""
        return list(struct.unpack(f"<{n}Q", self.read(RESULT + 8 * first, 8 * n)))

    def state(self, vcpu: int = 0) -> object:
        """struct xl_cpu_state."""
        out = ffi.new("struct xl_cpu_state *")
        check(lib.xl_vcpu_state(self.vcpus[vcpu], out), "xl_vcpu_state")
        return out

    def stat(self, name: str) -> int:
        """A counter of the domain (csrc/base/stats.h)."""
        return self.info().stats[getattr(lib, f"STAT_{name}")]


def boot(host: MachineHost, source: str, **options: int) -> MachineGuest:
    """A guest whose program finds shared_info at SHARED."""
    g = host.boot(f".set SHARED, {SHARED_VA}\n" + source, **options)
    assert g.call(NR.update_va_mapping, SHARED_VA, g.info().shared_info_mfn << 12 | 0x63, 2) == 0
    return g
