"""Defects planted in translations: which the verifier sees, which a comparison with the interpreter.

A defect is a change of an emitted block's bytes, or of an exit's record, as one wrong line of the emitter would cause it (DEFECTS; the
table in docs/translator-viewer.md is made from it). Each is judged twice: by ``xl_bt_verify`` on the changed block, and by running the
block with the same registers and memory as the interpreter, in a child process, since wrong code may do anything.
"""

from __future__ import annotations

import faulthandler
import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from bt_code import GS, PROGRAM, Code, add32, edit, machine, never, nops, other_field, outcomes, record, translated, xor
from bt_kit import MARKS

from xenlike.engine import ffi, lib

ROOT = Path(__file__).parents[2]
pytestmark = MARKS


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


@dataclass(frozen=True)
class Defect:
    """``plant`` changes translations and says which block it changed. ``seen_by``: what must notice it. ``moved``: on the machine where DATA is."""

    name: str
    plant: Callable[[Code], int]
    seen_by: str        # "verifier", "comparison" or "both"
    moved: bool = False


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


@pytest.mark.parametrize("page", ["docs/translator-viewer.md"])
def test_the_table_of_defects_is_the_tests(page: str) -> None:
    """The documentation would list other defects than are planted, or other finders."""
    text = (ROOT / page).read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \| (yes|) ?\| (yes|) ?\|$", text, re.M)
    assert [(name, bool(v == "yes"), bool(c == "yes")) for name, v, c in rows] == \
        [(d.name, d.seen_by in (VERIFIER, BOTH), d.seen_by in (COMPARISON, BOTH)) for d in DEFECTS]
