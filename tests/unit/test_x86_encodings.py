"""The x86 decoder by the SDM, case by case: prefixes, addresses, sizes, immediates, lengths, features; each row of the table is reached."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from x86_decode_kit import ALL, SEGMENTS, decode, ours, random_codes

from xenlike.engine import ffi, lib

TRUNCATED, UNDEFINED, TOO_LONG = lib.XL_X86_TRUNCATED, lib.XL_X86_UNDEFINED, lib.XL_X86_TOO_LONG
UD = "undefined"


@pytest.mark.parametrize("mode, code, expected", [
    (64, "90", "nop"), (64, "4190", "xchg r8d rax"), (64, "4890", "nop"), (64, "6690", "nop"), (64, "f390", "pause"), (64, "f34190", "xchg"),
    (64, "f00000", "add"), (64, "f003c0", UD), (64, "f00300", UD), (64, "f00001", "add"), (64, "f03801", UD), (64, "f087c0", UD), (64, "f08701", "xchg"),
    (64, "f00fa301", UD), (64, "f00fab01", "bts"), (64, "f00fba2901", "bts"), (64, "f00fba2101", UD), (64, "f0480fc709", "cmpxchg16b"),
    (64, "0fc7c9", UD), (64, "8dc0", UD), (64, "0f01f8", "swapgs"), (32, "0f01f8", UD), (64, "0f01d0", UD),
    (64, "c4e278f7c0", "bextr"), (64, "66c4e278f7c0", UD), (64, "f3c4e278f7c0", UD), (64, "f0c4e278f7c0", UD), (64, "48c4e278f7c0", UD),
    (64, "67c4e278f700", "bextr"), (64, "64c4e278f700", "bextr"), (64, "c4e27cf7c0", UD), (64, "c4e370f0c001", UD), (64, "c4e37bf0c001", "rorx"),
    (32, "c500", "lds"), (32, "c5c0", UD), (32, "c4e2", TRUNCATED), (32, "c400", "les"), (16, "c4c0", UD), (16, "c4e378", TRUNCATED),
    (64, "06", UD), (32, "06", "push es"),
    (32, "8ec8", UD), (64, "8ef0", UD), (64, "8cf0", UD), (64, "8ee8", "mov gs ax"), (32, "6200", "bound"), (64, "6200", UD), (32, "62c0", UD),
    (32, "40", "inc eax"), (64, "40", TRUNCATED), (64, "40f0", TRUNCATED), (64, "d6", UD), (32, "d6", "salc"), (64, "0f0b", "ud2"),
    (64, "0faee8", "lfence"), (64, "f30faee8", UD), (64, "660faee8", UD), (64, "0fae38", "clflush"), (64, "660fae38", UD),
    (64, "0fb8c0", UD), (64, "f30fb8c0", "popcnt"), (64, "f30fb801", "popcnt"), (64, "0fc7f0", "rdrand eax"), (64, "f30fc7f8", UD),
    (64, "0f38f0c0", UD), (64, "f20f38f0c0", "crc32 eax al"), (64, "f2480f38f0c0", "crc32 rax al"), (64, "66f20f38f1c0", "crc32 eax ax"),
    (64, "0f38f000", "movbe eax"), (64, "660f38f000", "movbe ax"), (64, "f30fae00", UD), (64, "0f0104", TRUNCATED), (64, "0faa", UD), (64, "8fc0", "pop rax"),
    (64, "8fc8", UD), (64, "c6f8", UD), (64, "63c1", "movsxd eax ecx"), (64, "4863c1", "movsxd rax ecx"), (32, "63c1", "arpl cx ax"),
    (64, "660f20c0", "mov rax cr0"),
    (64, "440f20c0", "mov rax cr8"), (32, "0f2000", "mov eax cr0"), (64, "f00f20c0", UD), (64, "0f20c8", UD), (64, "0f22e8", UD), (64, "440f20c8", UD),
    (64, "440f21c0", UD), (64, "0f21f8", "mov rax dr7"), (64, "dfe0", "fnstsw ax"), (64, "f36690", "pause"), (64, "66f390", "pause"),
    (64, "f20fbcc1", "bsf eax ecx"), (64, "f30fbcc1", "tzcnt eax ecx"), (64, "98", "cwde"), (64, "4898", "cdqe"), (64, "6698", "cbw"), (16, "98", "cbw"),
    (16, "e300", "jcxz"), (32, "e300", "jecxz"), (64, "e300", "jrcxz"), (64, "67e300", "jecxz"), (32, "67e300", "jcxz"),
])
def test_encodings(mode: int, code: str, expected: str | int) -> None:
    """Wrong: a rule of SDM vol. 2 on prefixes, VEX, register operands or LOCK is not kept, or `nop` swaps registers."""
    raw = bytes.fromhex(code)
    i, length = decode(raw + b"\0" * (0 if expected == TRUNCATED else 15 - len(raw)), mode)
    if expected == UD:
        assert length == UNDEFINED
    elif expected == TRUNCATED:
        assert length == TRUNCATED
    else:
        assert length > 0
        mine = ours(raw + b"\0" * 15, mode)
        name, *registers = str(expected).split()
        assert mine.mnemonic == name and list(mine.registers[:len(registers)])[:1] == registers[:1]
        assert not registers[1:] or mine.registers[1] in (registers[1], {"rax": "eax"}.get(registers[1]))


@pytest.mark.parametrize("mode, code, segment, base, index, scale, disp", [
    (64, "8b4500", "ss", 5, 16, 0, 0), (64, "418b4500", "ds", 13, 16, 0, 0), (64, "8b0424", "ss", 4, 16, 0, 0), (64, "418b0424", "ds", 12, 16, 0, 0),
    (64, "8b0425ffffffff", "ds", 16, 16, 0, -1), (64, "8b042d10000000", "ds", 16, 5, 0, 16), (64, "428b0420", "ds", 0, 12, 0, 0),
    (64, "8b0460", "ds", 0, 16, 0, 0),
    (64, "8b0510000000", "ds", 17, 16, 0, 22), (64, "c70510000000 01000000", "ds", 17, 16, 0, 26), (64, "2e8b4500", "ss", 5, 16, 0, 0),
    (64, "648b4500", "fs", 5, 16, 0, 0), (64, "642e8b00", "fs", 0, 16, 0, 0), (32, "642e8b00", "cs", 0, 16, 0, 0), (32, "8b4500", "ss", 5, 16, 0, 0),
    (32, "8b0510000000", "ds", 16, 16, 0, 16), (16, "8b02", "ss", 5, 6, 0, 0), (16, "8b061000", "ds", 16, 16, 0, 16), (16, "8b4680", "ss", 5, 16, 0, -128),
    (16, "8b00", "ds", 3, 6, 0, 0), (16, "268b02", "es", 5, 6, 0, 0), (16, "67 8b0485 00000000", "ds", 16, 0, 2, 0), (32, "a110000000", "ds", 16, 16, 0, 16),
    (32, "67a11000", "ds", 16, 16, 0, 16), (64, "a11000000000000080", "ds", 16, 16, 0, -(1 << 63) + 16), (32, "65a4", "gs", 16, 16, 0, 0),
    (32, "d7", "ds", 16, 16, 0, 0), (32, "8b4424f8", "ss", 4, 16, 0, -8),
])
def test_addresses(mode: int, code: str, segment: str, base: int, index: int, scale: int, disp: int) -> None:
    """Wrong: an operand is taken from another address, or a fault of a stack access is #GP instead of #SS."""
    i, length = decode(bytes.fromhex(code), mode)
    assert length == len(bytes.fromhex(code))
    assert (SEGMENTS[i.mem_seg], i.base, i.index, i.scale, i.disp) == (segment, base, index, scale, disp)


@pytest.mark.parametrize("mode, code, size, ops", [
    (64, "50", 8, [8]), (64, "6650", 2, [2]), (64, "68ffffffff", 8, [4]), (64, "66 6a ff", 2, [1]), (64, "0fb6c0", 4, [4, 1]), (64, "480fb7c0", 8, [8, 2]),
    (64, "b8ffffffff", 4, [4, 4]), (64, "48b8ffffffffffffffff", 8, [8, 8]), (64, "c3", 8, []), (64, "66c3", 8, []), (32, "66c3", 2, []),
    (64, "e800000000", 8, [4]), (64, "66e800000000", 8, [4]), (32, "66e80000", 2, [2]), (64, "ff10", 8, [8]), (64, "ff18", 4, [6]), (64, "48ff18", 8, [10]),
    (64, "ed", 4, [4, 2]), (64, "66ed", 2, [2, 2]), (64, "48ed", 4, [4, 2]), (64, "ee", 1, [2, 1]), (64, "a4", 1, [1, 1]), (64, "48a5", 8, [8, 8]),
    (64, "66a5", 2, [2, 2]),
    (64, "6d", 4, [4, 2]), (64, "486d", 4, [4, 2]), (64, "0f20c0", 8, [8, 8]), (32, "0f20c0", 4, [4, 4]), (64, "8cc0", 4, [4, 2]), (64, "8c00", 2, [2, 2]),
    (64, "0f0110", 4, [10]), (32, "0f0110", 4, [6]), (64, "0fc70f", 8, [8]), (64, "480fc70f", 8, [16]), (64, "f20f38f0c1", 4, [4, 1]), (64, "d1e0", 4, [4, 1]),
    (64, "0fa4c205", 4, [4, 4, 1]), (64, "c8100000", 8, [2, 1]), (64, "f30f5800", 4, [4, 4]), (64, "f20f5800", 8, [8, 8]), (64, "0f5800", 8, [16, 16]),
    (64, "660f6ec0", 4, [16, 4]), (64, "66480f6ec0", 8, [16, 8]), (64, "d900", 4, [4]), (64, "0f90c0", 1, [1]), (64, "0f4000", 4, [4, 4]), (64, "98", 4, []),
])
def test_sizes(mode: int, code: str, size: int, ops: list[int]) -> None:
    """Wrong: an operation runs at another width: pushes move rsp by the wrong amount, loads cross their operand's end."""
    raw = bytes.fromhex(code)
    i, length = decode(raw, mode)
    assert length == len(raw)
    assert (i.size, [i.op[k].size for k in range(i.nr_ops)]) == (size, ops)


@pytest.mark.parametrize("mode, code, imm, sel", [
    (64, "83c0ff", 0xffffffff, 0), (64, "4883c0ff", ALL, 0), (64, "6683c0ff", 0xffff, 0), (64, "80c0ff", 0xff, 0), (64, "4881c000000080", ALL << 31 & ALL, 0),
    (64, "68000000ff", 0xffffffffff000000, 0), (64, "6aff", ALL, 0), (64, "666aff", 0xffff, 0), (64, "ebfe", ALL - 1, 0), (64, "b8ffffffff", 0xffffffff, 0),
    (32, "9a78563412cdab", 0x12345678, 0xabcd), (16, "ea3412cdab", 0x1234, 0xabcd), (64, "c8341207", 0x1234, 7), (64, "c2f0ff", 0xfff0, 0), (64, "d1e0", 1, 0),
    (64, "cd80", 0x80, 0), (64, "c1e0ff", 0xff, 0),
])
def test_immediates(mode: int, code: str, imm: int, sel: int) -> None:
    """Wrong: a constant is extended as another form would."""
    i, length = decode(bytes.fromhex(code), mode)
    assert length > 0 and (i.imm, i.sel) == (imm, sel)


def test_byte_registers() -> None:
    """Wrong: AH is written where SPL was meant, or the reverse."""
    for rex, high in ((b"", True), (b"\x40", False)):
        names = [ours(rex + bytes([0x88, 0xc0 | n]), 64).registers[0] for n in range(8)]
        assert names[4:] == (["ah", "ch", "dh", "bh"] if high else ["spl", "bpl", "sil", "dil"]) and names[:4] == ["al", "cl", "dl", "bl"]
    assert ours(bytes([0x44, 0x88, 0xe4]), 64).registers == ("spl", "r12b")


def test_rex_counts_only_before_the_opcode() -> None:
    """Wrong: a REX before another prefix widens the operation; the CPU ignores it (SDM vol. 2, 2.2.1)."""
    assert ours(bytes.fromhex("486689c0"), 64).registers == ("ax", "ax")
    assert ours(bytes.fromhex("664889c0"), 64).registers == ("rax", "rax")
    assert ours(bytes.fromhex("484189c0"), 64).registers == ("r8d", "eax")


@pytest.mark.parametrize("mode", [16, 32, 64])
def test_length_limit_and_truncation(mode: int) -> None:
    """Wrong: the fetch of a page that the instruction does not reach, or a 16-byte instruction that runs; the CPU's answer is #GP(0)."""
    for n in range(0, 14):
        code = b"\x3e" * n + b"\x31\xc0"
        assert decode(code, mode)[1] == (n + 2 if n + 2 <= 15 else TOO_LONG)
        for cut in range(len(code)):
            assert decode(code[:cut], mode)[1] == TRUNCATED
    assert decode(b"\x3e" * 14 + b"\x31\xc0", mode)[1] == TOO_LONG
    assert decode(b"\x3e" * 15, mode)[1] == TOO_LONG
    assert decode(b"\x3e" * 14 + b"\x90", mode)[1] == 15


@pytest.mark.parametrize("mode", [64, 32, 16])
def test_every_prefix_of_an_instruction_is_truncated(mode: int) -> None:
    """Wrong: the decoder reads beyond the bytes it was given, or takes part of an instruction for the whole."""
    for code, _ in random_codes(4_000, mode, seed=99 + mode):
        length = decode(code[:15], mode)[1]
        for cut in range(max(0, length)):
            assert decode(code[:cut], mode)[1] == TRUNCATED, (mode, code.hex(), cut)


def test_features_hide_forms() -> None:
    """Wrong: an instruction that CPUID does not offer runs; or tzcnt and lzcnt without their feature are not bsf and bsr."""
    assert decode(bytes.fromhex("f30fb8c1"), 64, 0)[1] == UNDEFINED
    assert decode(bytes.fromhex("c4e278f7c0"), 64, 0)[1] == UNDEFINED
    i, _ = decode(bytes.fromhex("f30fbcc1"), 64, 0)
    assert ffi.string(i.mnemonic) == b"bsf"
    assert decode(bytes.fromhex("89c1"), 64, 0)[1] == 2


def forms() -> Iterator:
    """All rows of the table."""
    for number in range(1 << 16):
        out = ffi.new("struct xl_x86_form *")
        if lib.xl_x86_form(number, out) < 0:
            return
        yield out


def test_every_form_is_reachable() -> None:
    """Wrong: a row of forms.def is hidden by another or stands apart from its opcode, so that its instruction never decodes."""
    rng, seen = random.Random(7), set()
    rows = list(forms())
    text = lambda p: ffi.string(p).decode()
    for number, form in enumerate(rows):
        start = {"1": b"", "0F": b"\x0f", "0F38": b"\x0f\x38", "0F3A": b"\x0f\x3a"}.get(text(form.map))
        for _ in range(4_000):
            if number in seen:
                break
            mode, opcode, tail = rng.choice((64, 32)), bytes([rng.randint(form.first, form.last)]), rng.randbytes(14)
            if form.ext >= 64:
                tail = bytes([0xc0 + form.ext - 64]) + tail
            elif form.ext >= 0:
                tail = bytes([tail[0] & 0xc7 | form.ext << 3]) + tail[1:]
            if start is None:
                pp = {"NP": 0, "66": 1, "F3": 2, "F2": 3}[text(form.prefix)]
                code = bytes([0xc4, 0xe0 | (2 if "38" in text(form.map) else 3), 0x78 | pp | rng.choice((0, 0x80))]) + opcode + tail
            else:
                prefix = {"66": b"\x66", "F3": b"\xf3", "F2": b"\xf2"}.get(text(form.prefix), b"")
                code = prefix + (rng.choice((b"", b"\x48")) if mode == 64 else b"") + start + opcode + tail
            i, length = decode(code[:15], mode)
            if length > 0:
                seen.add(i.form)
    assert [(text(rows[n].op), text(rows[n].map), hex(rows[n].first)) for n in set(range(len(rows))) - seen] == []
