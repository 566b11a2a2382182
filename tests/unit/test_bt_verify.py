"""The verifier of translated code, and defects planted in translations: which the verifier sees, which a comparison with the interpreter.

A defect is a change of an emitted block's bytes, or of an exit's record, as one wrong line of the emitter would cause it (DEFECTS; the table in
docs/translator-viewer.md is made from it). Each is judged twice: by ``xl_bt_verify`` on the changed block, and by running the block with the same
registers and memory as the interpreter, in a child process, since wrong code may do anything.
"""

from __future__ import annotations

import faulthandler
import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import capstone
import pytest
from x86_kit import Machine

from xenlike.engine import ffi, lib

ROOT = Path(__file__).parents[2]
CODE, DATA, STACK = 0x1000, 0x20000, 0x8000
MOVED, TABLE = 0x30000, 0x60000         # physical: DATA's page where it is moved; a page table
REGISTERS = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)), "rip", "rflags", "retired")
START = {"rax": 0x1122334455667788, "rbx": DATA, "rcx": 3, "rdx": 0x8000000000000001, "rsi": DATA + 0x100, "rdi": DATA + 0x200, "rbp": DATA + 0x300,
         "rsp": STACK, "r8": 5, "r9": 0xFFFFFFFFFFFFFFFF, "r10": 2, "r11": 0x11, "r12": 0x12, "r13": 0x13, "r14": DATA + 0x400, "r15": 0x15,
         "rflags": 2}
WHOLE = 400             # instructions: the whole program
BUDGETS = (WHOLE, WHOLE, 5, 12, 25, 31, 46, 70)     # of the runs that are compared: cut short, so that time is what matters
_md = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)


def needs_translator() -> None:
    why = lib.xl_bt_unavailable()
    if why != ffi.NULL:
        pytest.skip(f"no translator on this host: {ffi.string(why).decode()}")


@pytest.fixture(autouse=True)
def _translator() -> None:
    needs_translator()


class Code:
    """The translations of a machine, or a translator's, to be looked at and changed."""

    def __init__(self, of: Machine | object) -> None:
        self.t = lib.xl_bt_of_bare(of.c) if isinstance(of, Machine) else of
        self.stats = ffi.new("struct xl_bt_stats *")
        lib.xl_bt_stats(self.t, self.stats)

    def blocks(self) -> list[int]:
        row = ffi.new("struct xl_bt_block *")
        return [n for n in range(1, self.stats.nr_blocks) if not lib.xl_bt_block(self.t, n, row) and row.nr and not row.invalid]

    def row(self, n: int) -> object:
        row = ffi.new("struct xl_bt_block *")
        assert not lib.xl_bt_block(self.t, n, row)
        return row

    def at(self, va: int) -> int:
        """The block that begins at va."""
        return next(n for n in self.blocks() if self.row(n).va == va)

    def host(self, n: int) -> tuple[int, bytes]:
        row, buf = self.row(n), ffi.new("u8[]", 1 << 16)
        return row.code, bytes(buf[0:lib.xl_bt_code(self.t, row.code, buf, row.code_len)])

    def instructions(self, n: int) -> list:
        at, code = self.host(n)
        return list(_md.disasm(code, at))

    def why(self, n: int) -> str | None:
        why = lib.xl_bt_verify(self.t, n, ffi.new("u32 *"))
        return None if why == ffi.NULL else ffi.string(why).decode()

    def plant(self, at: int, code: bytes) -> None:
        assert lib.xl_bt_plant_code(self.t, at, bytes(code), len(code)) == 0

    def exits(self, n: int, kind: int) -> list[int]:
        row, x = self.row(n), ffi.new("struct xl_bt_exit *")
        numbers = range(row.first_exit + 1, row.first_exit + row.nr_exits)
        return [e for e in numbers if not lib.xl_bt_exit(self.t, e, x) and x.kind == kind]

    def names(self, i: object) -> str:
        """The field of struct bt that a host instruction uses, or ""."""
        found, out = re.search(r"gs:\[(0x[0-9a-f]+|\d+)\]", i.op_str), ffi.new("char[]", lib.XL_BT_NAME)
        return ffi.string(out).decode() if found and lib.xl_bt_field_name(self.t, int(found[1], 0), out) else ""

    def field(self, name: str) -> int:
        """Offset of a field of struct bt by its name, as code says it."""
        out = ffi.new("char[]", lib.XL_BT_NAME)
        for offset in range(0, 0x1000, 4):
            if lib.xl_bt_field_name(self.t, offset, out) and ffi.string(out).decode() == name:
                return offset
        raise AssertionError(name)


def machine(source: str, *, translate: bool, options: int = 0, moved: bool = False) -> Machine:
    """moved: the page of data is not where all others are, from its address, so that no span fits there; the stack has been used before."""
    m = Machine(64, 0)
    assert lib.xl_bare_engine(m.c, translate, options) == 0
    if moved:
        for n in range(512):
            m.put(TABLE + 8 * n, (MOVED if n == DATA >> 12 else n << 12) | 7)
        m.put(m.system + lib.XL_BARE_PD, TABLE | 7)
        m["cr3"] = m["cr3"]
        m.code("push rax; pop rax; hlt", at=CODE)
        m["rsp"] = STACK
        assert m.run(WHOLE) == "halted"
    m.code(source, at=CODE)
    reset(m)
    return m


def reset(m: Machine) -> None:
    for name, value in START.items():
        m[name] = value
    m["rip"] = CODE
    m["halted"] = 0
    data = bytes(k * 7 + k // 256 * 3 & 255 for k in range(4096))
    m.write(DATA, data)
    m.write(MOVED, data[::-1])
    m.write(STACK - 64, bytes(128))


def outcome(m: Machine, budget: int) -> tuple:
    before = m["retired"]
    exit = m.run(budget)
    state = [m[name] for name in REGISTERS]
    state[-1] -= before
    return exit, *state, m.read(DATA, 0x600), m.read(MOVED, 0x600), m.read(STACK - 64, 128)


def in_child(work: Callable[[], bool]) -> bool:
    """Whether ``work`` says True in a child process; one that dies or hangs says False."""
    child = os.fork()
    if not child:
        signal.alarm(10)
        faulthandler.disable()          # pytest's: a crash here is an answer
        try:
            os._exit(0 if work() else 1)
        except BaseException:           # noqa: BLE001 - whatever it is, the outcome is not the interpreter's
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# ---- what is changed -------------------------------------------------------------------------------------------------

#: The program: each kind of access, flags that are kept, saved and made again, slots of r13-r15, a loop, calls, an indirect jump. It runs on two machines:
#: where all pages are at one distance from their place in the host, so that spans fit; and where DATA's is not (``machine``).
PROGRAM = """
    mov rdx, [rbx]
    add rdx, r8
    mov [rsi + rcx*8 + 16], rdx
    movzx r12d, byte ptr [rdi + 7]
    cmp r8, 5
    mov r9, [rbp + 24]
    sete al
    inc r10
    mov [rsi], r9
    mov [rsi + 8], r9
    adc r11, 0
    xchg r13, r12
    add [r14], r15
    lea r15, [r13 + r10*4 + 9]
    or r9, r8
    mov r9, [rbp + 32]
    movaps xmm1, [rbx + 0x40]
    mov r12, [rbx + 0x48]
    movaps [rbx + 0x50], xmm1
    push r13
    pop rdx
    imul r12, r8, 7
    call 2f
    dec rcx
    jnz 3f
    hlt
2:  sub rdi, 8
    push ax
    pop ax
    mov rax, [rdi]
    ret
3:  test rcx, rcx
    jz 4f
    xor r10, [rbx + rcx*8 + 64]
    mov [rbx + rcx*8 + 72], r10
    mov rbp, 0x20300
4:  jmp 5f
5:  lea rax, [rip + 6f]
    jmp rax
6:  jmp 7f
    .org 0x1000
7:  jmp 0x1000
"""


@dataclass(frozen=True)
class Defect:
    """``plant`` changes translations and says which block it changed. ``seen_by``: what must notice it. ``moved``: on the machine where DATA is."""

    name: str
    plant: Callable[[Code], int]
    seen_by: str        # "verifier", "comparison" or "both"
    moved: bool = False


def by_entry(code: Code, listing: list, k: int) -> bool:
    """Host instruction k stands in a sequence that goes by an L0 entry, with an addend of its own."""
    names = [name for i in listing[max(k - 4, 0):k + 1] if (name := code.names(i)) and ("l0." in name or "slid" in name)]
    return bool(names) and "l0." in names[-1]


def edit(pattern: str, new: Callable[[object, Code], bytes], *, nth: int = 0, apart: bool = False) -> Callable[[Code], int]:
    """Replaces the nth host instruction whose text (capstone's) matches, over all blocks in their order, by ``new`` of it. ``apart``: of those that stand
    in a sequence for a page that is not like most."""
    def plant(code: Code) -> int:
        found = []
        for n in code.blocks():
            listing = list(code.instructions(n))
            found += [(n, i) for k, i in enumerate(listing) if re.match(pattern, f"{i.mnemonic} {i.op_str}".strip())
                      and (not apart or by_entry(code, listing, k))]
        assert len(found) > nth, f"no host instruction is like {pattern}: the translator has changed, so must the defect"
        block, i = found[nth]
        code.plant(i.address, bytes(new(i, code)))
        return block
    return plant


def record(kind: int, change: Callable[[object], None], *, nth: int = 0) -> Callable[[Code], int]:
    """Changes the record of the nth exit of a kind."""
    def plant(code: Code) -> int:
        block, number = [(n, e) for n in code.blocks() for e in code.exits(n, kind)][nth]
        x = ffi.new("struct xl_bt_exit *")
        assert lib.xl_bt_exit(code.t, number, x) == 0
        change(x)
        assert lib.xl_bt_plant_exit(code.t, number, x) == 0
        return block
    return plant


def nops(i: object, _c: Code) -> bytes:
    return b"\x90" * i.size


def xor(byte: int, mask: int) -> Callable[[object, Code], bytes]:
    """The instruction with one byte changed; negative: from its end."""
    def new(i: object, _c: Code) -> bytes:
        code = bytearray(i.bytes)
        code[byte] ^= mask
        return bytes(code)
    return new


def add32(n: int, *, end: int = 0) -> Callable[[object, Code], bytes]:
    """The instruction with n added to its 32-bit field, which ends ``end`` bytes before its end."""
    def new(i: object, _c: Code) -> bytes:
        code = bytearray(i.bytes)
        to = len(code) - end
        code[to - 4:to] = (int.from_bytes(code[to - 4:to], "little") + n & 0xFFFFFFFF).to_bytes(4, "little")
        return bytes(code)
    return new


def never(i: object, _c: Code) -> bytes:
    """A conditional jump that never jumps."""
    return i.bytes[:-4] + bytes(4)


def other_field(name: str) -> Callable[[object, Code], bytes]:
    return lambda i, c: i.bytes[:-4] + c.field(name).to_bytes(4, "little")


def loads_entry_for_a_store(code: Code) -> int:
    """Both words of a store's L0 entry are those of the same slot for loads."""
    for n in code.blocks():
        hits = [(i, name) for i in code.instructions(n) if (name := code.names(i)) and ".write[" in name and i.mnemonic in ("mov", "add")
                and i.op_str.startswith("r1")]
        for a, b in zip(hits, hits[1:]):
            if a[1].endswith("negated") and b[1].endswith("addend") and a[1][:-7] == b[1][:-6]:
                for i in (a[0], b[0]):
                    code.plant(i.address, add32(-128 * 16)(i, code))
                return n
    raise AssertionError("no store uses L0: the translator has changed, so must the defect")


GS = r"qword ptr gs:\[0x[0-9a-f]+\]"
BOTH, VERIFIER, COMPARISON = "both", "verifier", "comparison"
L0, L1 = 128, 16384     # of csrc/bt/internal.h
DEFECTS = [
    Defect("copied instruction with another register (`add rdx, r9` for `r8`)", edit(r"add rdx, r8$", xor(-1, 0x08)), BOTH),
    Defect("operands swapped (`add r8, rdx`)", edit(r"add rdx, r8$", lambda i, c: bytes.fromhex("4901d0")), BOTH),
    Defect("another operation (`adc` for `add`)", edit(r"add rdx, r8$", xor(1, 0x10)), BOTH),
    Defect("wrong operand size (`imul` of 32 bits)", edit(r"imul r12, r8, 7$", xor(0, 0x08)), VERIFIER),
    Defect("wrong immediate", edit(r"imul r12, r8, 7$", xor(-1, 0x01)), BOTH),
    Defect("address with another base register", edit(r"movzx r12d, byte ptr \[rdi \+ r14 \+ 7\]$", xor(-2, 0x01)), BOTH),
    Defect("displacement wrong by one", edit(r"movzx r12d, byte ptr \[rdi \+ r14 \+ 7\]$", xor(-1, 0x01)), BOTH),
    Defect("wrong scale of an index", edit(r"lea r14, \[rsi \+ rcx\*8", xor(-2, 0x40)), BOTH),
    Defect("load for a store (direction of `mov`)", edit(r"mov qword ptr \[r14\], rdx$", xor(1, 0x02)), BOTH),
    Defect("store of half the operand", edit(r"mov qword ptr \[r14\], rdx$", xor(0, 0x08)), BOTH),
    Defect("span not tested", edit(r"ja 0x", never), BOTH, moved=True),
    Defect("test of a span the wrong way (`jbe` for `ja`)", edit(r"ja 0x", xor(1, 0x01)), BOTH, moved=True),
    Defect("test of a span that admits bytes beyond the page", edit(r"cmp r15, 0xff8$", add32(7)), VERIFIER),
    Defect("limit of a span too large by what a later access needs", edit(r"cmp r15, 0xff0$", add32(8)), VERIFIER),
    Defect("span tested behind its lowest byte", edit(r"lea r15, \[rbp \+ 0x18\]$", xor(-1, 0x08)), VERIFIER),
    Defect("span tested by another register", edit(r"lea r15, \[rsi\]$", xor(-1, 0x01)), VERIFIER),
    Defect("access by a span of another register", edit(r"mov qword ptr \[rsi \+ r14 \+ 8\], r9$", xor(-2, 0x01)), BOTH),
    Defect("alignment of a span not tested", edit(r"rorx r15, r15, 4$", nops), VERIFIER),
    Defect("store through a span for loads (`slid.read`)", edit(rf"add r15, {GS}$", add32(-L0 * 8), nth=3), VERIFIER),
    Defect("span's entry of the other TLB set", edit(rf"add r15, {GS}$", add32(2 * L0 * 8)), VERIFIER),
    Defect("`bt->slide` of the other TLB set", edit(rf"mov r14, {GS}$", add32(8)), BOTH),
    Defect("an entry's addend for `bt->slide`", edit(rf"mov r14, {GS}$", other_field("l0.kernel.read[4].addend")), BOTH),
    Defect("`bt->slide` not loaded", edit(rf"mov r14, {GS}$", nops), BOTH),
    Defect("`bt->slide` not loaded behind a lookup", edit(rf"mov r14, {GS}$", nops, nth=8), BOTH),
    Defect("no look whether the page that L1 has found has `bt->slide`", edit(r"jne 0x", never), BOTH, moved=True),
    Defect("no second test of a span behind a lookup", edit(r"ja 0x", never, nth=8), VERIFIER),
    Defect("span's entry for loads gets one for stores", edit(rf"mov {GS}, rcx$", add32(-L0 * 8), nth=3), VERIFIER),
    Defect("L1 in line asked on the other side", edit(r"mov r15, qword ptr gs:\[r15 \+", add32(-L1 * 8)), VERIFIER),
    Defect("L1 in line asked for any page", edit(r"mov r15, qword ptr gs:\[r15 \+", add32(4 * L1 * 8)), VERIFIER),
    Defect("span of a place with another scale", edit(r"lea r14, \[rbx \+ rcx\*8 \+ 0x48\]$", xor(-2, 0x40)), BOTH),
    Defect("span of a place with another index", edit(r"lea r14, \[rbx \+ rcx\*8 \+ 0x48\]$", xor(-2, 0x08)), BOTH),
    Defect("beyond the span of a place", edit(r"lea r14, \[rbx \+ rcx\*8 \+ 0x48\]$", xor(-1, 0x04)), BOTH),
    Defect("no comparison with the entry's page", edit(r"ja 0x", never, apart=True), BOTH, moved=True),
    Defect("comparison the wrong way (`jbe` for `ja`)", edit(r"ja 0x", xor(1, 0x01), apart=True), BOTH, moved=True),
    Defect("comparison that admits bytes beyond the page", edit(r"cmp r1[45], 0xff8$", add32(7), apart=True), VERIFIER, moved=True),
    Defect("comparison with another entry than is used", edit(rf"add r15, {GS}$", add32(16), apart=True), VERIFIER, moved=True),
    Defect("addend of another entry", edit(rf"mov r14, {GS}$", add32(16), apart=True), BOTH, moved=True),
    Defect("an entry's page used as addend", edit(rf"mov r14, {GS}$", add32(-8), apart=True), BOTH, moved=True),
    Defect("addend not added", edit(rf"mov r14, {GS}$", nops, apart=True), BOTH, moved=True),
    Defect("comparison of a near access with the first one's limit", edit(r"cmp r15, 0xff0$", add32(8), apart=True), VERIFIER, moved=True),
    Defect("alignment not tested", edit(r"test r15, -0xff1$", xor(-4, 0x0f), apart=True), VERIFIER, moved=True),
    Defect("entry for loads used for a store", loads_entry_for_a_store, VERIFIER, moved=True),
    Defect("`bt->slide` used for a page whose addend is another", edit(rf"mov r14, {GS}$", other_field("slide[0]"), apart=True), BOTH, moved=True),
    Defect("index of L1 not cut to its size", edit(r"and r15d, 0x", add32(0x1000)), VERIFIER),
    Defect("flag-free test with the mask of another size", edit(rf"pext rcx, rcx, {GS}", other_field("mask_size[0]"), nth=1), VERIFIER),
    Defect("`rcx` not restored behind a test", edit(r"mov rcx, r15$", nops), BOTH),
    Defect("slot of r13 not written back", edit(r"mov qword ptr gs:\[0x18\], r1[45]$", nops), BOTH),
    Defect("slot of another register", edit(r"mov r1[45], qword ptr gs:\[0x20\]$", add32(8)), BOTH),
    Defect("flags not made again before they are read", edit(r"sahf", nops), VERIFIER),
    Defect("stack pointer not moved by a push", edit(r"lea r13, \[r13 - 8\]$", nops), BOTH),
    Defect("wrong return address pushed", edit(r"mov qword ptr \[r13 \+ r14 - 8\], 0x10", add32(1)), BOTH),
    Defect("host's frame of a call with another address", edit(r"push 0x10", add32(1)), VERIFIER),
    Defect("host's frame not compared with the return address", edit(r"cmp r14, qword ptr \[rsp \+ 8\]$", xor(-1, 0x08)), VERIFIER),
    Defect("frame dropped that is not there", edit(rf"cmp rsp, {GS}$", add32(8)), VERIFIER),
    Defect("frame not dropped behind the call", edit(r"lea rsp, \[rsp \+ 8\]$", nops), VERIFIER),
    Defect("operand of flags saved behind another's name", edit(rf"mov {GS}, r9$", other_field("flag_b")), VERIFIER),
    Defect("time of one instruction too few", edit(r"(lea rcx, \[rcx - |sub qword ptr gs:\[0\], )", xor(-1, 0x01)), BOTH),
    Defect("no check whether time is left", edit(r"js 0x", never), VERIFIER),
    Defect("condition of a branch inverted", edit(r"je 0x", xor(1, 0x01), nth=2), BOTH),
    Defect("number of another exit", edit(r"mov dword ptr gs:\[0x50\], ", add32(1), nth=2), BOTH),
    Defect("exit's record counts one instruction too few", record(lib.XL_BT_EXIT_TIME, lambda x: setattr(x, "k", x.k - 1)), BOTH),
    Defect("exit's record names another instruction", record(lib.XL_BT_EXIT_TIME, lambda x: setattr(x, "off", x.off + 1)), BOTH),
    Defect("exit's record has another target", record(lib.XL_BT_EXIT_LINK, lambda x: setattr(x, "target", x.target + 2)), BOTH),
    Defect("exit's record says of a store that it only loads", record(lib.XL_BT_EXIT_MISS, lambda x: setattr(x, "early", 1)), VERIFIER),
    Defect("exit's record says that any page will do", record(lib.XL_BT_EXIT_MISS, lambda x: setattr(x, "slid", 1 - x.slid)), VERIFIER),
    Defect("block resumed at a wrong place", record(lib.XL_BT_EXIT_STEP, lambda x: setattr(x, "behind", x.behind + 3)), BOTH),
    Defect("privileged instruction copied (`cli`)", edit(r"inc r10$", lambda i, c: b"\xfa\x90\x90"), BOTH),
    Defect("write to the host's stack pointer (`inc rsp`)", edit(r"inc r10$", lambda i, c: b"\x48\xff\xc4"), BOTH),
]


# ---- tests -----------------------------------------------------------------------------------------------------------

def translated(*, moved: bool = False) -> tuple[Machine, Code]:
    """A machine that has run the program once, by translation, and is ready to run it again."""
    m = machine(PROGRAM, translate=True, moved=moved)
    m.run(WHOLE)
    reset(m)
    return m, Code(m)


def outcomes(m: Machine) -> list[tuple]:
    found = []
    for budget in BUDGETS:
        reset(m)
        found.append(outcome(m, budget))
    return found


def verifier_sees(defect: Defect) -> bool:
    _m, code = translated(moved=defect.moved)
    return code.why(defect.plant(code)) is not None


def comparison_sees(defect: Defect) -> bool:
    """In a child: the interpreter's outcomes are not had with the defect."""
    want = outcomes(machine(PROGRAM, translate=False, moved=defect.moved))

    def same() -> bool:
        m, code = translated(moved=defect.moved)
        defect.plant(code)
        return outcomes(m) == want

    return not in_child(same)


@pytest.mark.parametrize("moved", [False, True])
def test_sound_translations_pass_and_agree(moved: bool) -> None:
    """The verifier would refuse what is right, or the comparison find differences where no defect is: then neither finds defects."""
    want = outcomes(machine(PROGRAM, translate=False, moved=moved))
    m, code = translated(moved=moved)
    assert any(by_entry(code, listing, k) for n in code.blocks() for listing in [list(code.instructions(n))] for k in range(len(listing))) or not moved
    assert {code.row(n).va: code.why(n) for n in code.blocks()} == {code.row(n).va: None for n in code.blocks()}
    assert len(code.blocks()) >= 6 and code.stats.rejected == 0
    assert outcomes(m) == want


FINDERS = {VERIFIER: verifier_sees, COMPARISON: comparison_sees}


@pytest.mark.parametrize("finder, defect", [pytest.param(finder, d, id=f"{finder}: {d.name}") for d in DEFECTS for finder in FINDERS
                                            if d.seen_by in (finder, BOTH)])
def test_a_planted_defect_is_seen(finder: str, defect: Defect) -> None:
    """A wrong line in the emitter would go unnoticed by the finder that is said to notice it."""
    assert FINDERS[finder](defect), f"the {finder} does not see it: {what_changes(defect)}"


def what_changes(defect: Defect) -> str:
    """The host instructions that it changes, before and after; of a record nothing is to be seen there."""
    _m, code = translated(moved=defect.moved)

    def host(n: int) -> dict[int, str]:
        return {i.address: f"{i.mnemonic} {i.op_str}".strip() for i in code.instructions(n)}

    before = {n: host(n) for n in code.blocks()}
    block = defect.plant(code)
    after = host(block)
    return "; ".join(f"`{text}` became `{after[at]}`" for at, text in before[block].items() if after.get(at, text) != text) or "an exit's record"


def test_each_defect_is_one_change() -> None:
    """A defect would be more than one wrong line (two instructions at most, or one record): that is easily seen. Or it would change nothing at all."""
    for defect in DEFECTS:
        _m, code = translated(moved=defect.moved)
        host = {n: code.host(n)[1] for n in code.blocks()}
        exits = {e: bytes(ffi.buffer(x)) for e, x in exit_records(code)}
        defect.plant(code)
        changed = [k for n in host for k, (a, b) in enumerate(zip(host[n], code.host(n)[1])) if a != b]
        records = [e for e, x in exit_records(code) if bytes(ffi.buffer(x)) != exits[e]]
        assert (len(records) == 1 and not changed) or (not records and 1 <= len(changed) <= 2 * 9), (defect.name, what_changes(defect))


def exit_records(code: Code) -> list[tuple[int, object]]:
    found = []
    for n in code.blocks():
        row = code.row(n)
        for e in range(row.first_exit, row.first_exit + row.nr_exits):
            x = ffi.new("struct xl_bt_exit *")
            assert lib.xl_bt_exit(code.t, e, x) == 0
            found.append((e, x))
    return found


def test_both_see_half_and_more_than_twenty() -> None:
    """The table would not be what the project promises: twenty defects, half of them seen by each."""
    assert len(DEFECTS) >= 20
    for who in (VERIFIER, COMPARISON):
        assert sum(d.seen_by in (who, BOTH) for d in DEFECTS) * 2 >= len(DEFECTS)


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("options", [0, lib.XL_BT_ONE, lib.XL_BT_NO_CHAIN, lib.XL_BT_TINY_TLB, lib.XL_BT_FLUSH, lib.XL_BT_PROFILE],
                         ids=["plain", "one", "no-chain", "tiny-tlb", "flush", "profile"])
def test_a_refused_block_is_not_run(options: int, moved: bool) -> None:
    """With the debug option, translations in every manner of emission are checked as they are made, and none is refused."""
    m = machine(PROGRAM, translate=True, options=options | lib.XL_BT_VERIFY, moved=moved)
    m.run(WHOLE)
    code = Code(m)
    assert code.stats.rejected == 0 and code.stats.blocks > 0
    assert [code.why(n) for n in code.blocks() if code.why(n)] == []


@pytest.mark.parametrize("moved", [False, True])
def test_changed_instructions_are_refused(moved: bool) -> None:
    """Translated code could be changed without the verifier noticing. One bit of each byte in turn; where capstone still reads the same
    instructions (a prefix bit, a scale without index) nothing has changed. What is accepted are changes that are as good, such as a
    comparison that admits less."""
    m = machine(PROGRAM, translate=True, options=lib.XL_BT_NO_CHAIN, moved=moved)      # chained jumps leave stubs that nobody reaches
    m.run(WHOLE)
    code = Code(m)
    accepted, changed = [], 0

    def read(n: int) -> list[tuple]:
        return [(i.address, i.mnemonic, re.sub(r"riz\*\d \+ |riz\*\d", "", i.op_str)) for i in code.instructions(n)]

    for n in code.blocks():
        at, host = code.host(n)
        before = read(n)
        for k in range(len(host)):
            code.plant(at + k, bytes([host[k] ^ 1 << (k * 5 + n) % 8]))
            after = read(n)
            changed += after != before
            if after != before and code.why(n) is None:
                accepted += [(was, new) for was, new in zip(before, after) if was != new][:1]
            code.plant(at + k, host[k:k + 1])
    assert changed > 1500
    assert len(accepted) * 50 < changed, accepted
    assert all(code.why(n) is None for n in code.blocks())


def test_capstone_agrees_on_instruction_borders() -> None:
    """Our decoder, by which the verifier reads host code, would see other instructions there than the CPU does."""
    _m, code = translated()
    insn = ffi.new("struct xl_x86_insn *")
    for n in code.blocks():
        at, host = code.host(n)
        for i in code.instructions(n):
            k = i.address - at
            assert lib.xl_x86_decode(host[k:k + 15], len(host[k:k + 15]), 64, 2**64 - 1, insn) == i.size, i
        assert i.address + i.size == at + len(host)


@pytest.mark.parametrize("page", ["docs/translator-viewer.md"])
def test_the_table_of_defects_is_the_tests(page: str) -> None:
    """The documentation would list other defects than are planted, or other finders."""
    text = (ROOT / page).read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \| (yes|) ?\| (yes|) ?\|$", text, re.M)
    assert [(name, bool(v == "yes"), bool(c == "yes")) for name, v, c in rows] == \
        [(d.name, d.seen_by in (VERIFIER, BOTH), d.seen_by in (COMPARISON, BOTH)) for d in DEFECTS]
