"""State and faults of x87, MMX and SSE in the interpreter: availability, alignment, MXCSR, images of the environment, the host's own state.

What the host cannot be asked inside a test process (page faults, other modes) is checked against the SDM's numbers.
"""

from __future__ import annotations

import ctypes
import struct

import pytest
import x86_fpu_bench
from x86_fpu_bench import DATA, FORMS, GP, MAPS, MARK, NM, PREFIXES, RDI, RFLAGS, RIP, RSI, SLOT, UD, XM, Bench, Form

from xenlike.engine import ffi, lib

pytestmark = MARK
bench = x86_fpu_bench.bench

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
