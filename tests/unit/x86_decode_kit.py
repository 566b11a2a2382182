"""What our x86 decoder says of bytes, in words that another decoder's can be compared with: for tests of csrc/x86's decoder.

Owns: ``decode``, the raw result; ``ours``, an ``Insn``; ``random_codes``. Used by: ``test_x86_decode.py``, ``test_x86_encodings.py``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

from xenlike.engine import ffi, lib

ALL = (1 << 64) - 1
R64 = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()
R8 = "al cl dl bl spl bpl sil dil r8b r9b r10b r11b r12b r13b r14b r15b".split()
SEGMENTS = "es cs ss ds fs gs".split()


def register(kind: int, reg: int, size: int) -> str:
    """A register's name from its number or offset."""
    if kind == lib.XL_X86_REG:
        if reg % 8:
            return ("ah", "ch", "dh", "bh")[reg // 8]
        n = reg // 8
        if size == 1:
            return R8[n]
        if n >= 8:
            return R64[n] + {2: "w", 4: "d", 8: ""}[size]
        return R64[n] if size == 8 else ("e" if size == 4 else "") + R64[n][1:]
    name = {lib.XL_X86_SEG: "", lib.XL_X86_CR: "cr", lib.XL_X86_DR: "dr", lib.XL_X86_XMM: "xmm", lib.XL_X86_MMX: "mm", lib.XL_X86_ST: "st"}[kind]
    return SEGMENTS[reg] if not name else f"st({reg})" if name == "st" else f"{name}{reg}"


class Insn(NamedTuple):
    """What both sides say of an instruction, in one notation."""

    length: int
    mnemonic: str
    registers: tuple[str, ...]
    immediates: tuple[int, ...]     # modulo 2 to the operand's size
    memory: tuple | None            # (base, index, scale, displacement modulo the address size, override)


UNKNOWN = Insn(0, "", (), (), None)


def decode(code: bytes, mode: int = 64, features: int = ALL):
    """The raw result and the length of xl_x86_decode."""
    out = ffi.new("struct xl_x86_insn *")
    return out, lib.xl_x86_decode(code, len(code), mode, features, out)


def ours(code: bytes, mode: int, address: int = 0) -> Insn:
    """The instruction at the start of `code` by our decoder."""
    i, length = decode(code, mode)
    if length <= 0:
        return UNKNOWN
    registers, immediates, memory = [], [], None
    mask = (1 << mode) - 1
    for k in range(i.nr_ops):
        op = i.op[k]
        if op.kind == lib.XL_X86_IMM:
            immediates.append(i.imm)            # already cut to the operand's size
        elif op.kind == lib.XL_X86_IMM2:
            immediates.append(i.sel)
        elif op.kind == lib.XL_X86_REL:
            if mode != 64 and i.size == 2:
                mask = 0xffff
            immediates.append((address + length + i.imm) & mask)
        elif op.kind == lib.XL_X86_FAR:
            immediates += [i.sel, i.imm]
        elif op.kind not in (lib.XL_X86_NONE, lib.XL_X86_MEM):
            registers.append(register(op.kind, op.reg, op.size))
    if i.prefixes & lib.XL_X86_HAS_MEM:
        size = i.addr_mask.bit_length() // 8
        slot = lambda n: "" if n == 16 else {8: "rip", 4: "eip"}[size] if n == 17 else register(lib.XL_X86_REG, n * 8, size)
        disp = i.disp - (length if i.base == 17 else 0)
        override = SEGMENTS[i.mem_seg] if i.prefixes & lib.XL_X86_SEGOVR else ""
        memory = (slot(i.base), slot(i.index), 1 << i.scale, disp & i.addr_mask, override)
    return Insn(length, ffi.string(i.mnemonic).decode(), tuple(registers), tuple(immediates), memory)


def random_codes(n: int, mode: int, seed: int) -> Iterator[tuple[bytes, int]]:
    """Random bytes, richer in two- and three-byte opcodes, prefixes and VEX than chance would have it."""
    rng = random.Random(seed)
    starts = [b""] * 6 + [b"\x0f"] * 4 + [b"\x66", b"\xf2", b"\xf3", b"\xf0", b"\x67", b"\x66\x0f", b"\xf3\x0f", b"\xf2\x0f", b"\x0f\x38", b"\x0f\x3a",
                                         b"\xc4\xe2", b"\xc4\xe3", b"\x48", b"\x48\x0f", b"\x66\x0f\x38", b"\x66\x0f\x3a", b"\xf2\x0f\x38"]
    for _ in range(n):
        yield (rng.choice(starts) + rng.randbytes(16))[:16], mode
