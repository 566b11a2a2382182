"""The x86 decoder agrees with capstone, and with the SDM where capstone errs.

Oracle: capstone's lengths, mnemonics, registers, immediates and memory operands, over random bytes in the three modes and over the code of
this machine's C library and Python. Differences that are not ours stand in the table KNOWN, each with its reason.
XENLIKE_EXHAUSTIVE=1: all of that code, and many more random bytes.
"""

from __future__ import annotations

import os
import random
import re
import struct
import sys
from collections import Counter
from pathlib import Path
from typing import Callable, Iterator, NamedTuple

import pytest

from xenlike.engine import ffi, lib
from xenlike.loaders.bzimage import payload

EXHAUSTIVE = os.environ.get("XENLIKE_EXHAUSTIVE") == "1"
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


# ---- capstone ------------------------------------------------------------------------------------------------------------

capstone = pytest.importorskip("capstone")
from capstone import x86_const as X  # noqa: E402

MODES = {16: capstone.CS_MODE_16, 32: capstone.CS_MODE_32, 64: capstone.CS_MODE_64}
_engines: dict[int, "capstone.Cs"] = {}


def engine(mode: int) -> "capstone.Cs":
    """A disassembler with details, one a mode."""
    if mode not in _engines:
        _engines[mode] = capstone.Cs(capstone.CS_ARCH_X86, MODES[mode])
        _engines[mode].detail = True
    return _engines[mode]


#: capstone's names -> ours.
ALIASES = {
    "movabs": "mov", "sal": "shl", "lcall": "callf", "ljmp": "jmpf", "retfq": "retf", "lret": "retf",
    "wait": "fwait", "pushaw": "pusha", "pushal": "pushad", "popaw": "popa", "popal": "popad", "iretw": "iret", "setalc": "salc", "xlatb": "xlat",
    "sysret": "sysretd", "ud2b": "ud1", 
    "fucompi": "fucomip", "fcompi": "fcomip",
}
STRINGS = re.compile(r"(ins|outs|movs|cmps|stos|lods|scas)[bwdq]$")
_PREFIX_WORDS = re.compile(r"^((lock|rep|repe|repne|repz|repnz|notrack|bnd|xacquire|xrelease|data16|addr32) )+")
_PREDICATE = re.compile(r"cmp(eq|lt|le|unord|neq|nlt|nle|ord)(ps|pd|ss|sd)$")


def theirs(insn, mine: Insn, mode: int) -> Insn:
    """A capstone instruction in our notation. Immediates have the signs that `mine` has: capstone follows no rule there."""
    mnemonic = _PREFIX_WORDS.sub("", insn.mnemonic)
    registers, immediates, memory = [], [], None
    if predicate := _PREDICATE.match(mnemonic):
        mnemonic = "cmp" + predicate[2]
    for op in insn.operands:
        if op.type == X.X86_OP_REG:
            registers.append(insn.reg_name(op.reg))
        elif op.type == X.X86_OP_IMM:
            immediates.append(op.imm)
        elif op.type == X.X86_OP_MEM and memory is None:
            name = lambda r: insn.reg_name(r) if r and r not in (X.X86_REG_RIZ, X.X86_REG_EIZ) else ""
            segment = name(op.mem.segment)
            segment = segment if mode != 64 or segment in ("fs", "gs") else ""
            memory = (name(op.mem.base), name(op.mem.index), op.mem.scale, op.mem.disp & ((1 << 8 * insn.addr_size) - 1), segment)
    for k, value in enumerate(immediates[:len(mine.immediates)]):
        if any(value - mine.immediates[k] in (0, 1 << bits, -1 << bits) for bits in (8, 16, 32, 64)):
            immediates[k] = mine.immediates[k]
    return Insn(insn.size, ALIASES.get(mnemonic, mnemonic), tuple(registers), tuple(immediates), memory)


def disassemble(code: bytes, mode: int):
    """capstone's instruction at the start of `code`, or None."""
    return next(engine(mode).disasm(code, 0, 1), None)


# ---- the comparison --------------------------------------------------------------------------------------------------------

#: What we do not offer, by capstone's names; all else that capstone knows must decode.
NOT_OFFERED = re.compile(
    r"^(v\w+|k\w+|xsave\w*|xrstor\w*|xgetbv|xsetbv|x(begin|end|abort|test)|(rd|wr)(fs|gs)base|bnd\w+|incssp\w|rdssp\w|saveprevssp|setssbsy|rstorssp|"
    r"wruss\w|wrss\w|clrssbsy|monitorx?|mwaitx?|u?monitor|tpause|umwait|vm\w+|st?gi|clgi|skinit|invlpg\w|clac|stac|inv(pcid|ept|vpid)|(rd|wr)pkru|pconfig|"
    r"rsm|rdseed|rdpid|getsec|femms|p[fi]2?\w+|pswapd|pavgusb|pmulhrw|extrq|insertq|movnts[sd]|encl[suv]|cl(wb|flushopt|demote|zero)|xstore|xcrypt\w+|"
    r"montmul|xsha\w+|sha(1|256)\w+|gf2p8\w+|movdir\w+|enqcmds?|ptwrite|bl(c|s)\w+|tz(msk)|t1mskc|llwpcb|slwpcb|lwp\w+|wbnoinvd|prefetchwt1|serialize|"
    r"xsusldtrk|xresldtrk|hreset|uiret|testui|clui|stui|senduipi|rdpru|aes(enc|dec)\w*kl\w*|loadiwkey|encodekey\w+)$")
OFFERED_DESPITE = frozenset("blsr blsi blsmsk pinsrw pinsrb pinsrd pinsrq pextrw phaddw pinsr".split())
SSE_16 = re.compile(rb"^[\x26\x2e\x36\x3e\x64\x65\x67\xf0]*\x66[\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0]*\x0f")


class Case(NamedTuple):
    """An instruction that the two decoders see differently."""

    mode: int
    code: bytes
    ours: Insn
    theirs: Insn | None             # None: no such instruction


def _opcode(case: Case) -> bytes:
    """The code from the opcode on."""
    n = 0
    while case.code[n] in b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3" or (case.mode == 64 and case.code[n] & 0xf0 == 0x40):
        n += 1
    return case.code[n:]


def _prefixes(case: Case) -> bytes:
    return case.code[:len(case.code) - len(_opcode(case))]


def _memory_but(case: Case, field: int) -> bool:
    a, b = case.ours.memory, case.theirs and case.theirs.memory
    return a is not None and b is not None and a[:field] == b[:field] and a[field + 1:] == b[field + 1:]


#: (what differs and why ours is right, does the case fall under it)
KNOWN: list[tuple[str, Callable[[Case], bool]]] = [
    ("we do not offer it", lambda c: not c.ours.length and c.theirs is not None and bool(NOT_OFFERED.match(c.theirs.mnemonic))
     and c.theirs.mnemonic not in OFFERED_DESPITE),
    ("0F 18-1F without MPX, CET, CLDEMOTE are nops (SDM, reserved nops); 0F 0D with any modrm.reg is a prefetch",
     lambda c: c.ours.mnemonic in ("nop", "prefetch") and _opcode(c)[:1] == b"\x0f" and _opcode(c)[1] in (0x0d, *range(0x18, 0x20))),
    ("capstone skips the modrm of ud0, ud1 (SDM UD: it has one)", lambda c: c.ours.mnemonic in ("ud0", "ud1")),
    ("near branches with 66 in 64-bit mode: Intel ignores 66 (SDM Jcc, CALL, JMP)",
     lambda c: c.mode == 64 and b"\x66" in _prefixes(c) and c.theirs is not None and c.theirs.mnemonic[0] in "jcl"
     and c.ours.mnemonic == c.theirs.mnemonic),
    ("lock without a memory destination is #UD (SDM LOCK)", lambda c: b"\xf0" in _prefixes(c) and not c.ours.length),
    ("mov to CS is #UD (SDM MOV)", lambda c: _opcode(c)[0] == 0x8e and c.theirs is not None and c.theirs.registers[:1] == ("cs",)),
    ("capstone has a scale without an index", lambda c: c.ours.memory is not None and not c.ours.memory[1] and _memory_but(c, 2)),
    ("CR1, CR5-7, CR9-15, DR8-15 do not exist (SDM MOV)", lambda c: not c.ours.length and _opcode(c)[0] == 0x0f and _opcode(c)[1] in range(0x20, 0x24)),
    ("syscall, sysret exist in 64-bit mode only (SDM)", lambda c: c.mode != 64 and c.theirs is not None
     and c.theirs.mnemonic in ("syscall", "sysretd", "swapgs", "sysretq")),
    ("capstone takes SSE instructions with prefixes that have none (SDM: NP)", lambda c: not c.ours.length and c.theirs is not None
     and any(p in _prefixes(c) for p in b"\x66\xf2\xf3") and _opcode(c)[0] == 0x0f),
    ("capstone ignores 66 as a mandatory prefix in 16-bit mode", lambda c: c.mode == 16 and bool(SSE_16.match(c.code))),
    ("in 16-bit mode, capstone's cbw and cwd have the names of 32-bit mode", lambda c: c.mode == 16 and _opcode(c)[0] in (0x98, 0x99)),
    ("far call and jmp in memory are called call and jmp", lambda c: _opcode(c)[0] == 0xff and c.ours.mnemonic in ("callf", "jmpf")
     and c.theirs is not None and c.theirs._replace(mnemonic=c.ours.mnemonic) == c.ours),
    ("capstone leaves an implied ST(0) or XMM0 out", lambda c: c.theirs is not None and c.theirs.registers ==
     tuple(r for k, r in enumerate(c.ours.registers) if r not in ("st(0)", "xmm0") or (r == "st(0)" and k and len(c.ours.registers) == 1))
     or (c.theirs is not None and set(c.ours.registers) - set(c.theirs.registers) <= {"st(0)", "xmm0"} and c.ours.mnemonic == c.theirs.mnemonic)),
    ("capstone names cmp's predicate in the mnemonic instead of an immediate", lambda c: c.theirs is not None and not c.theirs.immediates
     and bool(re.match(r"cmp[ps][sd]$", c.ours.mnemonic)) and c.theirs._replace(immediates=c.ours.immediates) == c.ours),
    ("aliases of x87 instructions (AMD APM vol. 3, table A-15)", lambda c: c.theirs is None and
     (_opcode(c)[0], _opcode(c)[1] & 0xf8) in {(0xdc, 0xd0), (0xdc, 0xd8), (0xdd, 0xc8), (0xde, 0xd0), (0xdf, 0xc8), (0xdf, 0xd0), (0xdf, 0xd8)}),
    ("D9 D8-DF is fstp (AMD APM vol. 3, table A-15); capstone's fstpnce is a name of its own", lambda c: c.theirs is not None
     and c.theirs.mnemonic == "fstpnce" and c.ours.registers == c.theirs.registers[:1]),
    ("capstone has no pause with 67", lambda c: c.theirs is None and c.ours.mnemonic == "pause"),
    ("capstone has no F2 bsf, bsr (SDM: F2 is ignored)", lambda c: c.theirs is None and c.ours.mnemonic in ("bsf", "bsr")),
    ("mov to a segment register reads 16 bits (SDM MOV)", lambda c: _opcode(c)[0] == 0x8e and c.theirs is not None
     and c.ours.registers[:1] == c.theirs.registers[:1]),
    ("lfence, mfence, sfence with any modrm.rm (SDM)", lambda c: c.theirs is None and c.ours.mnemonic in ("lfence", "mfence", "sfence")),
    ("REX.W overrides 66 (SDM vol. 2, 2.2.1.2)", lambda c: c.mode == 64 and b"\x66" in _prefixes(c) and _prefixes(c)[-1] & 0xf8 == 0x48),
    ("a selector is 16 bits wide (SDM LAR, LSL)", lambda c: c.ours.mnemonic in ("lar", "lsl")),
    ("movsxd with 66 reads 16 bits (SDM MOVSXD)", lambda c: c.ours.mnemonic == "movsxd"),
]


def compare(code: bytes, mode: int) -> str | None:
    """None if the decoders agree on the first instruction; the KNOWN reason; or "new: ..."."""
    mine = ours(code, mode)
    found = disassemble(code, mode)
    if found is None and not mine.length:
        return None
    other = None if found is None else theirs(found, mine, mode)
    if other is not None and mine.length:
        if mine == other:
            return None
        if STRINGS.match(mine.mnemonic) and mine[:2] == other[:2]:
            return None             # capstone shows their implied operands
        mask = 0xffff if mode == 16 or b"\x66" in code[:mine.length] else 0xffffffff
        if mine[:3] == other[:3] and mine.mnemonic[0] in "jcl" and mine.memory is None and len(mine.immediates) == len(other.immediates) == 1 \
                and mode != 64 and (mine.immediates[0] ^ other.immediates[0]) & mask == 0:
            return None             # branch targets wrap at the operand size
    case = Case(mode, code, mine, other)
    for reason, applies in KNOWN:
        if applies(case):
            return reason
    return f"new: {mode}-bit {code.hex()}\n    ours   {mine}\n    theirs {other}"


def check(codes: Iterator[tuple[bytes, int]]) -> Counter:
    """Compares many; fails with the first few differences that KNOWN does not explain."""
    reasons: Counter = Counter()
    new = []
    for code, mode in codes:
        reason = compare(code, mode)
        if reason and reason.startswith("new"):
            new.append(reason)
            if len(new) > 30:
                break
        else:
            reasons[reason] += 1
    assert not new, f"{len(new)} differences that no row of KNOWN explains:\n" + "\n".join(new)
    return reasons


def random_codes(n: int, mode: int, seed: int) -> Iterator[tuple[bytes, int]]:
    """Random bytes, richer in two- and three-byte opcodes, prefixes and VEX than chance would have it."""
    rng = random.Random(seed)
    starts = [b""] * 6 + [b"\x0f"] * 4 + [b"\x66", b"\xf2", b"\xf3", b"\xf0", b"\x67", b"\x66\x0f", b"\xf3\x0f", b"\xf2\x0f", b"\x0f\x38", b"\x0f\x3a",
                                         b"\xc4\xe2", b"\xc4\xe3", b"\x48", b"\x48\x0f", b"\x66\x0f\x38", b"\x66\x0f\x3a", b"\xf2\x0f\x38"]
    for _ in range(n):
        yield (rng.choice(starts) + rng.randbytes(16))[:16], mode


@pytest.mark.parametrize("mode", [64, 32, 16])
def test_random_bytes(mode: int) -> None:
    """Wrong: a length, a name, a register, an immediate or an address differs from capstone's, or something decodes that must not."""
    n = 200_000 if EXHAUSTIVE else 6_000
    reasons = check(random_codes(n, mode, seed=mode))
    assert reasons[None] > n // 2           # most of them agree without any excuse


def machine_code() -> list[Path]:
    """The executable files that this Python consists of: itself, the C library, its extensions."""
    found = {line.split(maxsplit=5)[5].strip() for line in open("/proc/self/maps") if " r-xp " in line and "/" in line}
    return sorted(Path(name) for name in found if Path(name).is_file())


def text_sections(data: bytes) -> Iterator[bytes]:
    """The bytes of executable sections of an ELF64 file."""
    if data[:5] != b"\x7fELF\x02" or struct.unpack_from("<H", data, 18)[0] != 62:
        return
    (start,), size, count = struct.unpack_from("<Q", data, 40), *struct.unpack_from("<HH", data, 58)
    for k in range(count):
        kind, flags, _, offset, length = struct.unpack_from("<IQQQQ", data, start + k * size + 4)
        if kind == 1 and flags & 4:
            yield data[offset:offset + length]


def real_codes(sections: list[bytes], windows: int) -> Iterator[tuple[bytes, int]]:
    """Instructions that are next to each other, each encoding once; of `windows` stretches of 256 bytes (0: all)."""
    rng, seen = random.Random(1), set()
    for _ in range(windows or 1):
        section = rng.choice(sections)
        start = rng.randrange(max(1, len(section) - 256))
        for stretch in [section[start:start + 256]] if windows else sections:
            offset = 0
            while offset + 16 <= len(stretch):
                code = stretch[offset:offset + 16]
                insn = disassemble(code, 64)
                length = insn.size if insn else 1
                if code[:length] not in seen:
                    seen.add(code[:length])
                    yield code, 64
                offset += length


def test_code_of_this_machine() -> None:
    """Wrong: an instruction that gcc emits is not decoded as capstone decodes it, or not offered although it is not AVX and the like."""
    sections = [s for path in machine_code() for s in text_sections(path.read_bytes()) if len(s) > 256]
    if not sections:
        pytest.skip("this Python is not x86-64 machine code")
    reasons = check(real_codes(sections, 0 if EXHAUSTIVE else 250))
    assert reasons[None] > 3_000


def test_code_of_a_kernel() -> None:
    """Wrong: an instruction of a Debian kernel (with all its privileged ones) is not decoded as capstone decodes it."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
    import peers

    found = sorted(peers.cache().glob("linux-image-[0-9]*/boot/vmlinuz-*"))
    if not found:
        pytest.skip(f"no Linux kernel in {peers.cache()}: tests/tools/peers.py fetch linux-image-VERSION-cloud-amd64 gets one")
    sections = [s for s in text_sections(payload(memoryview(found[-1].read_bytes()), 512 << 20)) if len(s) > 256]
    reasons = check(real_codes(sections, 0 if EXHAUSTIVE else 250))
    assert reasons[None] > 3_000


# ---- what the SDM says, case by case ---------------------------------------------------------------------------------------

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
