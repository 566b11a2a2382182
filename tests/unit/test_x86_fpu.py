"""x87, MMX and SSE of the interpreter against the host CPU: every form, with values at the edges.

The instruction stands at the same address, with the same registers and the same memory, for both: once it runs natively, in a page of
code with a prologue that loads the state and an epilogue that saves it, once in a bare machine whose regions are those pages. What the host
cannot be asked inside a test process (page faults, other modes) is checked against the SDM's numbers.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import random
import signal
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from xenlike.engine import ffi, lib

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="FP runs on the host's FP instructions: x86-64 only")

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


def host_flags() -> set[str]:
    with open("/proc/cpuinfo") as file:
        return set(next(line for line in file if line.startswith("flags")).split())


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


# ---- random state --------------------------------------------------------------------------------------------------------

DOUBLES = [0, 1 << 63, 1, 0x000f_ffff_ffff_ffff, 0x0010_0000_0000_0000, 0x7fef_ffff_ffff_ffff, 0x7ff0 << 48, 0xfff0 << 48, 0x7ff8 << 48,
           0x7ff0_0000_0000_0001, 0xfff8_0000_0000_1234, 0x3ff0 << 48, 0xbff0 << 48, 0x3fe0 << 48, 0x41df_ffff_ffc0_0000, 0xc1e0 << 48,
           0x43e0 << 48, 0xc3e0 << 48, 0x3fef_ffff_ffff_ffff, 0x36a0 << 48, 0x47ef_ffff_f000_0000]
FLOATS = [0, 1 << 31, 1, 0x7fffff, 0x800000, 0x7f7fffff, 0x7f800000, 0xff800000, 0x7fc00000, 0x7f800001, 0xffc01234, 0x3f800000, 0xbf800000,
          0x3f000000, 0x4f000000, 0xcf000000, 0x5f000000, 0x3f7fffff]
EXTENDED = [(0, 0), (0x8000, 0), (0, 1), (0, 1 << 63), (0x3fff, 1 << 63), (0xbfff, 1 << 63), (0x7fff, 1 << 63), (0xffff, 1 << 63),
            (0x7fff, 3 << 62), (0xffff, 3 << 62 | 5), (0x7fff, 1 << 63 | 1), (0x7fff, 0), (0x3fff, 1 << 62), (0x7ffe, (1 << 64) - 1),
            (1, 1 << 63), (0x4000, 0xc90fdaa22168c235), (0x403e, 1 << 63), (0x401e, (1 << 64) - 1), (0x3c00, 1 << 63), (0x3f80, 1 << 63),
            (0xbffe, 1 << 63)]


def some_xmm(r: random.Random) -> bytes:
    kind = r.randrange(5)
    if kind == 0:
        return r.randbytes(16)
    if kind < 3:
        words = [r.choice(FLOATS) if r.random() < 0.6 else r.getrandbits(32) for _ in range(4)]
        if kind == 2:           # close enough to each other that sums, products and roundings are interesting
            words = [r.getrandbits(1) << 31 | r.randrange(120, 160) << 23 | r.getrandbits(23) & r.choice((-1, 0x780000)) for _ in range(4)]
        return struct.pack("<4I", *words)
    words = [r.choice(DOUBLES) if r.random() < 0.6 else r.getrandbits(64) for _ in range(2)]
    if kind == 4:
        words = [r.getrandbits(1) << 63 | r.randrange(1010, 1090) << 52 | r.getrandbits(52) & r.choice((-1, 0xf << 48)) for _ in range(2)]
    return struct.pack("<2Q", *words)


def some_st(r: random.Random) -> bytes:
    exponent, significand = r.choice(EXTENDED)
    kind = r.randrange(4)
    if kind == 0:
        exponent, significand = r.getrandbits(1) << 15 | r.randrange(0x3fe0, 0x4050), 1 << 63 | r.getrandbits(63)
    elif kind == 1:
        exponent, significand = r.getrandbits(16), r.getrandbits(64)
    elif kind == 2:
        exponent, significand = r.getrandbits(1) << 15 | r.randrange(0x3ffd, 0x4008), 1 << 63 | r.getrandbits(12) << 51
    return struct.pack("<QH6x", significand, exponent)


def some_bcd(r: random.Random) -> bytes:
    return bytes(r.randrange(10) << 4 | r.randrange(10) for _ in range(9)) + bytes([r.choice((0, 0x80))])


def some_fx(r: random.Random) -> bytes:
    """An FXSAVE image: mostly all exceptions masked, else random ones; sometimes one is pending in the x87."""
    pending = r.random() < 0.1
    fcw = 0x40 | r.choice((0, 2, 3)) << 8 | r.getrandbits(2) << 10 | (0x3f if r.random() < 0.7 else r.getrandbits(6))
    fsw = r.getrandbits(16) & 0x4700 | r.randrange(8) << 11 | r.getrandbits(6) & r.getrandbits(6) & (fcw if not pending else 0x3f)
    if fsw & ~fcw & 0x3f:
        fsw |= 0x8080
    flush = r.getrandbits(1) << 15 | r.getrandbits(1) << 6 if r.random() < 0.3 else 0
    mxcsr = (0x1f80 if r.random() < 0.6 else r.getrandbits(6) << 7) | r.getrandbits(2) << 13 | flush | r.getrandbits(6) & r.getrandbits(6)
    ftw = r.choice((0xff, 0xff, r.getrandbits(8), 0))
    head = struct.pack("<HHBxHQQII", fcw, fsw, ftw, 0, 0, 0, mxcsr, 0xffff)
    return head + b"".join(some_st(r) for _ in range(8)) + b"".join(some_xmm(r) for _ in range(16)) + bytes(96)


def some_regs(r: random.Random, bench: Bench) -> list[int]:
    regs = [r.choice((r.getrandbits(64), r.getrandbits(32), r.randrange(20), (1 << 64) - r.randrange(1, 20))) for _ in range(18)]
    regs[RSI] = regs[RDI] = bench.data_at + DATA
    regs[RSP] = bench.data_at + 512
    regs[RFLAGS] = 0x202 | r.getrandbits(12) & ARITH
    return regs


def encodings(form: Form, r: random.Random) -> bytes | None:
    """Some encoding of the form, its memory operand at [rsi]; None: the dice fell on what it does not have."""
    memory = "M" in {o[0] for o in form.operands} or form.mod == "MEM"
    register = form.mod == "REG" or form.ext >= 64 or {o[0] for o in form.operands} & set("UN") or not form.operands
    if not memory and not register and form.map != "1":
        memory = r.random() < 0.4
    rex = 0x40 | (8 if form.w == "1" else 0)
    if form.w == "ANY" and "Ey" not in form.operands and "Gy" not in form.operands and form.prefix not in ("NP",):
        rex |= r.choice((0, 8))
    if form.w == "ANY" and ("Ey" in form.operands or "Gy" in form.operands) and form.op not in ("movd", "mmx_movq", "pinsr", "pextr"):
        rex |= r.choice((0, 8))
    reg = r.randrange(16)
    if any(o[0] == "G" for o in form.operands):
        reg = r.choice([n for n in range(15) if n != RSP])
    if form.ext >= 0:
        reg = form.ext & 7
    if form.map == "1":
        rex = 0x40
    rex |= reg >> 1 & 4
    if form.ext >= 64:
        modrm = bytes([0xc0 + form.ext - 64])
    elif memory:
        modrm = bytes([(reg & 7) << 3 | 6])
    else:
        rm = r.randrange(16)
        if any(o[0] == "E" for o in form.operands):
            rm = r.choice([n for n in range(15) if n != RSP])
        if form.map != "1":
            rex |= rm >> 3
        modrm = bytes([0xc0 | (reg & 7) << 3 | rm & 7])
    if form.op in ("emms", "fwait"):
        modrm = b""
    imm = bytes([r.getrandbits(8) if r.random() < 0.5 else r.getrandbits(4)]) if "Ib" in form.operands else b""
    rex_byte = bytes([rex]) if rex != 0x40 or r.random() < 0.2 else b""
    small = b"\x66" if form.map == "1" and form.op in ("fnstenv", "fldenv", "fnsave", "frstor") and r.random() < 0.5 else b""
    return small + PREFIXES[form.prefix] + rex_byte + MAPS[form.map] + bytes([form.opcode]) + modrm + imm


def comparable_fx(fx: bytes) -> list[object]:
    """What two CPUs must agree on: FIP, FDP, FOP only while an exception is pending (exec_x87.c)."""
    fcw, fsw, ftw, fop, fip, fdp, mxcsr = struct.unpack_from("<HHBxHQQI", fx)
    pointers = (fop, fip, fdp) if fsw & 0x80 else None
    return [hex(fcw), hex(fsw), hex(ftw), pointers, hex(mxcsr), *(fx[n : n + 10].hex() for n in range(32, 160, 16)),
            *(fx[n : n + 16].hex() for n in range(160, 416, 16))]


def compare(bench: Bench, insn: bytes, fx: bytes, regs: list[int], memory: bytes, what: str) -> None:
    bench.place(insn)
    bench.data[DATA : DATA + 512] = memory
    faulted, want_fx, want = bench.execute(fx, regs)
    want_memory = bench.data[DATA - 64 : DATA + 576]
    bench.data[DATA : DATA + 512] = memory
    vector, got_fx, got = bench.interpret(fx, regs)
    got_memory = bench.data[DATA - 64 : DATA + 576]
    case = f"{what}: {insn.hex()} fx {fx.hex()} memory {memory[:32].hex()}"
    assert (vector in (MF, XM)) if faulted else vector is None, f"#{vector} from {case}"
    assert [hex(x) for x in got[:15]] == [hex(x) for x in want[:15]], case
    assert hex(got[RFLAGS] & ARITH) == hex(want[RFLAGS] & ARITH), case
    if vector == XM and unmasked_range(got_fx):     # PE beside it is not modelled (x86_sse_run)
        got_fx, want_fx = (f[:24] + bytes([f[24] | 0x20]) + f[25:] for f in (got_fx, want_fx))
    assert comparable_fx(got_fx) == comparable_fx(want_fx), case
    if "fxsave" in what:        # MXCSR_MASK is the CPU's own
        got_memory, want_memory = (m[:92] + m[96:] for m in (got_memory, want_memory))
    assert got_memory == want_memory, case


def unmasked_range(fx: bytes) -> bool:
    """Overflow or underflow is flagged and unmasked."""
    mxcsr = struct.unpack_from("<I", fx, 24)[0]
    return bool(mxcsr & ~(mxcsr >> 7) & 0x18)


#: States that each form is tried with. CPUs agree from the first on, or not at all: thousands were run when this was written.
ROUNDS = 6


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_form_against_the_host(bench: Bench, form: Form) -> None:
    """This instruction would compute, flag, store or round something else than a real CPU does."""
    if FEATURES[form.feature] not in host_flags():
        pytest.skip(f"the host CPU has no {form.feature}")
    r = random.Random(zlib.crc32(repr(form[1:]).encode()))
    for _ in range(ROUNDS):
        fx, regs = some_fx(r), some_regs(r, bench)
        memory = b"".join(some_xmm(r) for _ in range(32))
        if form.op in ("ldmxcsr",):
            memory = struct.pack("<I", r.getrandbits(16) | 0x1f80) + memory[4:]
        elif form.op == "fxrstor":
            memory = some_fx(r)
        elif "fbld" == form.mnemonic:
            memory = some_bcd(r) + memory[10:]
        elif form.map == "1" and form.operands[:1] == ("M",) and r.random() < 0.7:
            memory = some_st(r)[:10] + memory[10:]
        insn = encodings(form, r)
        if insn is not None:
            compare(bench, insn, fx, regs, memory, form.name)


def test_every_form_is_tested() -> None:
    """The table would have lost its FP rows, and the tests above would pass without running."""
    assert len(FORMS) > 500


# ---- what the host cannot be asked -----------------------------------------------------------------------------------------

RESET_FX = struct.pack("<HHBxHQQII", 0x37F, 0, 0, 0, 0, 0, 0x1F80, 0xFFFF) + bytes(480)
ADDPS, ADDPS_MEM, MOVAPS_LOAD, MOVAPS_STORE = b"\x0f\x58\xc1", b"\x0f\x58\x06", b"\x0f\x28\x06", b"\x0f\x29\x06"
PADDB_MM, FADD, FWAIT, FXSAVE, EMMS = b"\x0f\xfc\xc1", b"\xd8\xc1", b"\x9b", b"\x0f\xae\x06", b"\x0f\x77"
MOVUPS_STORE, FSTP_M80, FLD_M80 = b"\x0f\x11\x06", b"\xdb\x3e", b"\xdb\x2e"


def step(bench: Bench, insn: bytes, at: int, fx: bytes = RESET_FX) -> tuple[int | None, bytes, list[int]]:
    """One instruction with rsi and rdi = at."""
    regs = [0] * 18
    regs[RSI] = regs[RDI] = at
    regs[RFLAGS] = 2
    bench.place(insn)
    return bench.interpret(fx, regs)


@pytest.mark.parametrize(("insn", "em", "ts", "no_osfxsr"), [
    (ADDPS, UD, NM, UD), (MOVAPS_LOAD, UD, NM, UD), (PADDB_MM, UD, NM, None), (EMMS, UD, NM, None), (FADD, NM, NM, None),
    (FXSAVE, NM, NM, None), (FWAIT, None, NM, None), (b"\x0f\xae\x1e", UD, NM, UD), (b"\x66\x0f\xd6\xc1", UD, NM, UD),
], ids=["addps", "movaps", "paddb-mm", "emms", "fadd", "fxsave", "fwait", "stmxcsr", "movq"])
def test_availability(bench: Bench, insn: bytes, em: int | None, ts: int | None, no_osfxsr: int | None) -> None:
    """Lazy FPU switching would not get its #NM, or a kernel without SSE support would lose state (vol. 3, tables 2-1, 13-1)."""
    cr0, cr4 = bench.get("cr0"), bench.get("cr4")
    try:
        bench.set("cr0", cr0 | 4)
        assert step(bench, insn, bench.data_at + DATA)[0] == em
        bench.set("cr0", cr0 | 8)
        assert step(bench, insn, bench.data_at + DATA)[0] == ts
        bench.set("cr0", cr0)
        bench.set("cr4", cr4 & ~0x200)
        assert step(bench, insn, bench.data_at + DATA)[0] == no_osfxsr
    finally:
        bench.set("cr0", cr0)
        bench.set("cr4", cr4)
    assert step(bench, insn, bench.data_at + DATA)[0] is None


@pytest.mark.parametrize("form", [f for f in FORMS if {"Wx", "Mdq"} & set(f.operands)], ids=lambda form: form.name)
def test_alignment(bench: Bench, form: Form) -> None:
    """A misaligned 16-byte operand would be let through, or movups and its like refused (vol. 2, 2.4; pcmpstr* are exempt)."""
    unaligned = form.op in ("movu", "pcmpstr")
    modrm = b"\x06" + (b"\x00" if "Ib" in form.operands else b"")
    insn = PREFIXES[form.prefix] + MAPS[form.map] + bytes([form.opcode]) + modrm
    vector, fx, _ = step(bench, insn, bench.data_at + DATA + 8)
    assert vector == (None if unaligned else GP)
    assert unaligned or fx == RESET_FX
    assert step(bench, insn, bench.data_at + DATA)[0] is None


@pytest.mark.parametrize("insn", [MOVUPS_STORE, FSTP_M80, b"\xf2\x0f\x11\x06", b"\x0f\x7f\x06", b"\xdd\x36"],
                         ids=["movups", "fstp-m80", "movsd", "movq-mm", "fnsave"])
def test_faulting_store_changes_nothing(bench: Bench, insn: bytes) -> None:
    """A store that crosses into a page that is not there would write its first half, pop the x87's stack or reset it."""
    fx = struct.pack("<HHBxHQQII", 0x37F, 0x3000, 0xC0, 0, 0, 0, 0x1F80, 0xFFFF) + (b"\x11" * 10 + bytes(6)) * 8 + b"\x22" * 256 + bytes(96)
    before = bench.data[4080:4096]
    vector, after, regs = step(bench, insn, bench.data_at + 4096 - 4, fx)
    assert vector == 14 and after == fx and bench.data[4080:4096] == before
    assert regs[RIP] == bench.code_at + SLOT


def test_masked_store_touches_what_it_stores(bench: Bench) -> None:
    """maskmovdqu would fault on, or write, bytes whose mask is clear."""
    at, insn = 4096 - 8, b"\x66\x0f\xf7\xc1"
    low = b"\x80\x00" * 4 + bytes(8)
    bench.data[at:4096] = b"\xee" * 8

    def fx_with(mask: bytes) -> bytes:
        return RESET_FX[:160] + bytes(range(16)) + mask + RESET_FX[192:]

    assert step(bench, insn, bench.data_at + at, fx_with(b"\x80\x00" * 4 + b"\x80" + bytes(7)))[0] == 14
    assert bench.data[at:4096] == b"\xee" * 8
    assert step(bench, insn, bench.data_at + at, fx_with(low))[0] is None
    assert bench.data[at:4096] == b"\x00\xee\x02\xee\x04\xee\x06\xee"
    assert step(bench, insn, bench.data_at + 4096, fx_with(bytes(16)))[0] is None


@pytest.mark.parametrize(("mxcsr", "vector"), [(0x1F80, None), (0xFFFF, None), (0x1_1F80, GP), (0x8000_0000, GP), (0x2_0000, GP)])
def test_reserved_mxcsr_bits(bench: Bench, mxcsr: int, vector: int | None) -> None:
    """A reserved bit would reach the host's fxrstor, which would kill the process (vol. 1, 10.2.3)."""
    bench.data[DATA : DATA + 512] = RESET_FX[:24] + struct.pack("<I", mxcsr) + RESET_FX[28:]
    assert step(bench, b"\x0f\xae\x0e", bench.data_at + DATA)[0] == vector      # fxrstor
    bench.data[DATA : DATA + 4] = struct.pack("<I", mxcsr)
    got, fx, _ = step(bench, b"\x0f\xae\x16", bench.data_at + DATA)             # ldmxcsr
    assert got == vector and struct.unpack_from("<I", fx, 24)[0] == (mxcsr if vector is None else 0x1F80)
    hostile = RESET_FX[:24] + struct.pack("<I", mxcsr) + RESET_FX[28:]
    assert step(bench, b"\xd9\xe8", bench.data_at, hostile)[0] is None          # fld1, under a state set from outside


def test_xm_is_ud_without_osxmmexcpt(bench: Bench) -> None:
    """An OS that did not announce a #XM handler would get one (vol. 3, 2.5, OSXMMEXCPT)."""
    cr4 = bench.get("cr4")
    fx = RESET_FX[:24] + struct.pack("<I", 0x1F80 & ~0x200) + RESET_FX[28:160] + struct.pack("<4f", 1, 1, 1, 1) + RESET_FX[176:]
    divps = b"\x0f\x5e\xc1"
    for value, vector in ((cr4, XM), (cr4 & ~0x400, UD)):
        bench.set("cr4", value)
        got, after, _ = step(bench, divps, bench.data_at, fx)
        assert got == vector and after[160:] == fx[160:] and struct.unpack_from("<I", after, 24)[0] == 0x1D84
    bench.set("cr4", cr4)


#: FCW 027Fh, TOP 6, IE, ST0 = 1.0, ST1 = 0, the rest empty, FOP 1DEh, FIP 12345678h, FDP 9ABCDEF0h as in vol. 1, figures 8-9 to 8-12.
ENVIRONMENTS = {
    (32, "protected"): "7f02ffff 0130ffff ff4fffff 78563412 0000de01 f0debc9a 0000ffff",
    (16, "protected"): "7f02 0130 ff4f 7856 0000 f0de 0000",
    (32, "real"): "7f02ffff 0130ffff ff4fffff 7856ffff de412301 f0deffff 00c0ab09",
    (16, "real"): "7f02 0130 ff4f 7856 de41 f0de 00c0",
}


@pytest.mark.parametrize(("size", "mode"), ENVIRONMENTS, ids=lambda value: str(value))
def test_environment_formats(size: int, mode: str) -> None:
    """A 16-bit or real-mode program would save an environment that it cannot read, or lose the x87's state across fnsave and frstor."""
    bare = lib.xl_bare_create(1 << 20)

    def reg(name: str) -> int:
        return int(lib.xl_bare_reg(name.encode()))

    try:
        assert lib.xl_bare_setup(bare, 32 if mode == "protected" else 16, 0) == 0
        lib.xl_bare_options(bare, lib.XL_BARE_STOP_EXCEPTIONS)
        lib.xl_bare_set(bare, reg("cr0"), int(lib.xl_bare_get(bare, reg("cr0"))) & ~0xC | 0x20)
        one, zero = struct.pack("<QH", 1 << 63, 0x3FFF) + bytes(6), bytes(16)
        fx = struct.pack("<HHBxHQQII", 0x27F, 0x3001, 0xC0, 0x1DE, 0x12345678, 0x9ABCDEF0, 0x1F80, 0xFFFF)
        fx += one + zero + one * 6 + bytes(352)
        lib.xl_bare_set_fx(bare, ffi.from_buffer(fx))
        small = b"\x66" if (size == 16) != (mode == "real") else b""
        fnstenv, fnsave, frstor = (b"\xd9\x35", b"\xdd\x34", b"\xdd\x24") if mode == "real" else (b"\xd9\x37", b"\xdd\x36", b"\xdd\x26")
        code = small + fnstenv + small + fnsave + b"\xdb\xe3" + small + frstor      # to [rdi], to [rsi], fninit, from [rsi]
        assert lib.xl_bare_write(bare, 0x2000, code, len(code)) == 0
        words = ffi.new("u64[18]")
        words[RSI], words[RDI], words[RIP], words[RFLAGS] = 0x3000, 0x4000, 0x2000, 2
        lib.xl_bare_set_regs(bare, words)
        lib.xl_bare_run(bare, 4)
        assert not lib.xl_bare_exception(bare, ffi.new("u64[5]"))
        want = bytes.fromhex(ENVIRONMENTS[size, mode])
        env, saved, after = ffi.new("u8[]", len(want)), ffi.new("u8[]", len(want)), ffi.new("u8[512]")
        lib.xl_bare_read(bare, 0x4000, env, len(want))
        lib.xl_bare_read(bare, 0x3000, saved, len(want))
        assert bytes(ffi.buffer(env)).hex() == want.hex()
        assert bytes(ffi.buffer(saved)).hex() == want.hex()         # fnstenv masked what was masked already
        lib.xl_bare_get_fx(bare, after)
        image = bytes(ffi.buffer(after))
        assert image[:5] == fx[:5] and image[32:160] == fx[32:160]
        fop, fip, fdp = struct.unpack_from("<HQQ", image, 6)
        bits = 32 if size == 32 else 16 if mode == "protected" else 20
        assert (fip, fdp) == (0x12345678 & (1 << bits) - 1, 0x9ABCDEF0 & (1 << bits) - 1)
        assert fop == (0 if (size, mode) == (16, "protected") else 0x1DE)
    finally:
        lib.xl_bare_destroy(bare)


def test_fxsave_outside_64_bit_mode() -> None:
    """fxsave of 32-bit code would write xmm8-15, which it does not have, or fxrstor would change them (vol. 1, 10.5.1.1)."""
    bare = lib.xl_bare_create(1 << 20)
    try:
        assert lib.xl_bare_setup(bare, 32, 0) == 0
        for name, clear, put in ((b"cr0", 0xC, 0x20), (b"cr4", 0, 0x600)):
            index = lib.xl_bare_reg(name)
            lib.xl_bare_set(bare, index, int(lib.xl_bare_get(bare, index)) & ~clear | put)
        fx = RESET_FX[:160] + bytes(range(256)) + bytes(96)
        lib.xl_bare_set_fx(bare, ffi.from_buffer(fx))
        lib.xl_bare_write(bare, 0x3000, b"\xdd" * 512, 512)
        lib.xl_bare_write(bare, 0x4000, RESET_FX[:160] + b"\xee" * 352, 512)
        lib.xl_bare_write(bare, 0x2000, b"\x0f\xae\x06\x0f\xae\x0f", 6)             # fxsave [esi]; fxrstor [edi]
        words = ffi.new("u64[18]")
        words[RSI], words[RDI], words[RIP], words[RFLAGS] = 0x3000, 0x4000, 0x2000, 2
        lib.xl_bare_set_regs(bare, words)
        lib.xl_bare_run(bare, 2)
        saved, after = ffi.new("u8[512]"), ffi.new("u8[512]")
        lib.xl_bare_read(bare, 0x3000, saved, 512)
        lib.xl_bare_get_fx(bare, after)
        assert bytes(ffi.buffer(saved))[:288] == fx[:288] and bytes(ffi.buffer(saved))[288:] == b"\xdd" * 224
        assert bytes(ffi.buffer(after))[160:416] == b"\xee" * 128 + bytes(range(128, 256))
    finally:
        lib.xl_bare_destroy(bare)


def test_host_state_is_left_alone(bench: Bench) -> None:
    """The process's own floating point would compute in the guest's rounding mode, or fault on what the guest left pending."""
    fx = struct.pack("<HHBxHQQII", 0x0F40, 0, 0xFF, 0, 0, 0, 0x7F80, 0xFFFF) + (bytes(7) + b"\x80\xff\x3f" + bytes(6)) * 8 + bytes(352)
    for insn in (b"\xd9\xee", b"\xde\xf1", ADDPS, b"\xf2\x0f\x5e\xc1", PADDB_MM, b"\x0f\x2c\xc1", b"\xd9\xfa"):
        step(bench, insn, bench.data_at + DATA, fx)
        assert 1.0 / 3.0 == 0.3333333333333333 and 2.0 / 3.0 == 0.6666666666666666 and -1.0 / 3.0 == -0.3333333333333333
        assert float(ctypes.c_longdouble(0.1).value) == 0.1
