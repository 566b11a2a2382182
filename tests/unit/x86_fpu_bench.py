"""One x87, MMX or SSE instruction at a time, on the host CPU and in a bare machine: for tests of the interpreter's floating point.

Owns: ``Bench``, ``FORMS`` (the table's rows), ``MARK``, the fixture ``bench``, which test files name as their own (``bench =
x86_fpu_bench.bench``). Used by: ``test_x86_fpu*.py``. The instruction stands at the same address, with the same registers and the same
memory, for both: once it runs natively, in a page of code with a prologue that loads the state and an epilogue that saves it, once in a
bare machine whose regions are those pages.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import signal
import struct
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from xenlike.engine import ffi, lib

#: ``pytestmark`` of a file that uses it.
MARK = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="FP runs on the host's FP instructions: x86-64 only")

#: Around the instruction: load fxrstor64 and registers from rdi (kept in r15), save them there. 16 bytes at SLOT are the instruction's.
NATIVE = bytes.fromhex(
    "535541544155415641574883ec10d93c240fae5c2408"              # push rbx, rbp, r12-r15; sub rsp,16; fnstcw [rsp]; stmxcsr [rsp+8]
    "4989ff490fae0f41ffb7780200009d"                            # mov r15,rdi; fxrstor64 [r15]; push [r15+632]; popfq
    "498b8700020000498b8f08020000498b9710020000498b9f18020000"  # mov rax, rcx, rdx, rbx,
    "498baf28020000498bb730020000498bbf38020000"                # rbp, rsi, rdi,
    "4d8b87400200004d8b8f480200004d8b97500200004d8b9f58020000"  # r8, r9, r10, r11,
    "4d8ba7600200004d8baf680200004d8bb770020000"                # r12, r13, r14 from [r15+512 + 8*n]
).ljust(192, b"\x90") + b"\x90" * 16 + bytes.fromhex(
    "49898700020000" "9c418f8778020000"                         # mov [r15+512],rax; pushfq; pop [r15+632]
    "49898f080200004989971002000049899f18020000"
    "4989af280200004989b7300200004989bf38020000"
    "4d8987400200004d898f480200004d8997500200004d899f58020000"
    "4d89a7600200004d89af680200004d89b770020000"
    "490fae07dbe3d92c240fae542408fc4883c410"                    # fxsave64 [r15]; fninit; fldcw [rsp]; ldmxcsr [rsp+8]; cld; add rsp,16
    "415f415e415d415c5d5bc3"
)
SLOT, HANDLER, FAULTED, AFTER = 192, 0x800, 0x900, 208
#: SIGFPE's handler: rip of the interrupted context := AFTER, *FAULTED := 1. What the CPU left of its state goes through the epilogue.
CATCH = bytes.fromhex("488d05") + struct.pack("<i", AFTER - (HANDLER + 7)) + bytes.fromhex("488982a8000000") + \
    bytes.fromhex("c705") + struct.pack("<ii", FAULTED - (HANDLER + 24), 1) + b"\xc3"
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, RIP, RFLAGS = 0, 1, 2, 3, 4, 5, 6, 7, 16, 17
ARITH = 0x8d5
DATA = 1024             # of the page of data: where memory operands lie
UD, NM, GP, MF, XM = 6, 7, 13, 16, 19
PREFIXES = {"ANY": b"", "NP": b"", "66": b"\x66", "F3": b"\xf3", "F2": b"\xf2"}
MAPS = {"1": b"", "0F": b"\x0f", "0F38": b"\x0f\x38", "0F3A": b"\x0f\x3a"}
FEATURES = {"FPU": "fpu", "MMX": "mmx", "SSE": "sse", "SSE2": "sse2", "SSE3": "pni", "SSSE3": "ssse3", "SSE41": "sse4_1", "SSE42": "sse4_2",
            "AES": "aes", "PCLMUL": "pclmulqdq"}


class Form(NamedTuple):
    """A row of forms_sse.def."""

    number: int
    mnemonic: str
    op: str
    map: str
    opcode: int
    prefix: str
    mod: str
    ext: int
    w: str
    feature: str
    operands: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.mnemonic}-{self.number}"


def fp_forms() -> list[Form]:
    """The rows of the table that are x87, MMX or SSE."""
    found, row, number = [], ffi.new("struct xl_x86_form *"), 0
    while lib.xl_x86_form(number, row) == 0:
        text = {name: ffi.string(getattr(row, name)).decode() for name in
                ("mnemonic", "op", "map", "prefix", "mod", "w", "feature", "attributes", "operands")}
        if any(flag in text["attributes"] for flag in ("F_FPU", "F_MMX", "F_SSE")):
            operands = tuple(o.strip() for o in text["operands"].split(",") if o.strip())
            found.append(Form(number, text["mnemonic"], text["op"], text["map"], row.first, text["prefix"], text["mod"], row.ext, text["w"],
                              text["feature"], operands))
        number += 1
    return found


FORMS = fp_forms()


class Bench:
    """Two pages, of code and of data, that the host CPU and a bare machine share."""

    def __init__(self) -> None:
        try:
            self.code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        except PermissionError:
            pytest.skip("this host forbids memory that is writable and executable")
        self.data = mmap.mmap(-1, 8192)
        self.code[: len(NATIVE)] = NATIVE
        self.code[HANDLER : HANDLER + len(CATCH)] = CATCH
        self.code_at = ctypes.addressof(ctypes.c_char.from_buffer(self.code))
        self.data_at = ctypes.addressof(ctypes.c_char.from_buffer(self.data))
        self.libc = ctypes.CDLL(None)
        self.old_action = ctypes.create_string_buffer(152)      # struct sigaction: handler, mask, flags (SA_SIGINFO), restorer
        action = struct.pack("<Q128sIIQ", self.code_at + HANDLER, bytes(128), 4, 0, 0)
        assert self.libc.sigaction(int(signal.SIGFPE), action, self.old_action) == 0
        self.native = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.code_at)
        self.bare = lib.xl_bare_create(1 << 20)
        if os.environ.get("XENLIKE_ENGINE") == "bt":
            assert lib.xl_bare_engine(self.bare, True, int(os.environ.get("XENLIKE_BT_OPTIONS", "0"), 0)) == 0
        assert self.bare and lib.xl_bare_setup(self.bare, 64, 3) == 0
        lib.xl_bare_options(self.bare, lib.XL_BARE_STOP_EXCEPTIONS | lib.XL_BARE_NO_ICACHE)
        for at, size, prot in ((self.code_at, 4096, 5), (self.data_at, 4096, 3)):
            assert lib.xl_bare_map(self.bare, at, ffi.cast("void *", at), size, prot) == 0
        self.set("cr0", self.get("cr0") & ~0xc | 0x22)          # EM, TS off, NE, MP on
        self.set("cr4", self.get("cr4") | 0x600)                # OSFXSR, OSXMMEXCPT

    def get(self, name: str) -> int:
        return int(lib.xl_bare_get(self.bare, lib.xl_bare_reg(name.encode())))

    def set(self, name: str, value: int) -> None:
        lib.xl_bare_set(self.bare, lib.xl_bare_reg(name.encode()), value)

    def place(self, insn: bytes) -> None:
        self.code[SLOT : SLOT + 16] = insn.ljust(16, b"\x90")

    def interpret(self, fx: bytes, regs: list[int]) -> tuple[int | None, bytes, list[int]]:
        """One instruction in the bare machine: the exception's vector or None, the FXSAVE image, the 18 registers."""
        words = ffi.new("u64[18]", regs)
        words[RIP] = self.code_at + SLOT
        lib.xl_bare_set_regs(self.bare, words)
        lib.xl_bare_set_fx(self.bare, ffi.from_buffer(fx))
        lib.xl_bare_run(self.bare, 1)
        what = ffi.new("u64[5]")
        vector = int(what[0]) if lib.xl_bare_exception(self.bare, what) else None
        out = ffi.new("u8[512]")
        lib.xl_bare_get_fx(self.bare, out)
        lib.xl_bare_get_regs(self.bare, words)
        return vector, bytes(ffi.buffer(out)), list(words)

    def execute(self, fx: bytes, regs: list[int]) -> tuple[bool, bytes, list[int]]:
        """The same on the host CPU: whether it raised #MF or #XM (SIGFPE), the image, the registers. It must not fault otherwise."""
        self.code[FAULTED : FAULTED + 4] = bytes(4)
        state = 4096            # the second page of data is not the guest's
        self.data[state : state + 512] = fx
        self.data[state + 512 : state + 640] = struct.pack("<16Q", *regs[:15], regs[RFLAGS])
        self.native(self.data_at + state)
        after = list(struct.unpack("<16Q", self.data[state + 512 : state + 640]))
        return self.code[FAULTED] != 0, self.data[state : state + 512], [*after[:15], regs[15], 0, after[15]]

    def close(self) -> None:
        self.libc.sigaction(int(signal.SIGFPE), self.old_action, None)
        lib.xl_bare_destroy(self.bare)


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()
