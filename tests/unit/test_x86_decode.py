"""The x86 decoder agrees with capstone.

Oracle: capstone's lengths, mnemonics, registers, immediates and memory operands, over random bytes in the three modes and over the code of
this machine's C library and Python. Differences that are not ours stand in the table KNOWN, each with its reason. Where capstone errs, and
what it does not say: test_x86_encodings.py. XENLIKE_EXHAUSTIVE=1: all of that code, and many more random bytes.
"""

from __future__ import annotations

import os
import random
import re
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from x86_decode_kit import Insn, ours, random_codes

from xenlike.loaders.bzimage import payload

EXHAUSTIVE = os.environ.get("XENLIKE_EXHAUSTIVE") == "1"


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
