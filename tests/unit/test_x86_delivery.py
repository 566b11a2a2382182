"""Delivery and IRETQ in long mode, where the pages that they touch are in the TLB: what is done at once must be what the general code does word by word.

Oracles: SDM vol. 3, 6.14, and vol. 2, INT n and IRET, for what comes out; and the same run with a data breakpoint somewhere else, for everything: while one is
set, every access takes the general way. Registers, segments, all memory (accessed bits with it) and the count of instructions must agree. A first ``int`` and
its IRETQ bring the tables and stacks into the TLB.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from x86_rig import (
    CODE, CODE0, CODE3, DATA0, DATA3, DB, FREE, GDT, GP, HALTED, HANDLERS, IDT, IF, NP, NT, PF, RF, SIZE, SS, SYSTEM, TF, TSS, Rig, assemble, descriptor,
)
from xenlike.engine import ffi, lib

TABLE, IST_STACK, PLAIN, LOG = 0xa000, 0x9000, 0x8000, 0x6000
FIRST, SECOND, READ_ONLY, ABSENT, KERNEL = (n << 12 for n in range(0x20, 0x25))        # pages that are not where their neighbours are
BEHIND = {FIRST: 0x30000, SECOND: 0x2e000, READ_ONLY: 0x32000, KERNEL: 0x34000}
WARM, WARM_IST = 0x40, 0x41             # their handlers only return
STATE = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)), "rip", "rflags", "retired", "cpl", "mode", "cr0", "cr2",
         "cr3", "dr6", "halted", "shutdown", "pending_db",
         *(f"{s}.{part}" for s in ("es", "cs", "ss", "ds", "fs", "gs") for part in ("sel", "base", "attr", "limit"))]
Setup = Callable[[Rig], None]


@pytest.fixture(params=["interp", "bt"], autouse=True)
def _engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "bt" and lib.xl_bt_unavailable() != ffi.NULL:
        pytest.skip("no translator on this host")
    monkeypatch.setenv("XENLIKE_ENGINE", request.param)


def machine(cpl: int) -> Rig:
    """Pages of 4 KiB, one to one but for the five; CR0.WP; faults are handled on a stack of their own, so that what they left is still there."""
    m = Rig(64, cpl)
    for n in range(512):
        m.poke(TABLE + 8 * n, 8, n << 12 | 7)
    for page, frame in BEHIND.items():
        m.poke(TABLE + (page >> 9), 8, frame | {READ_ONLY: 5, KERNEL: 3}.get(page, 7))
    m.poke(TABLE + (ABSENT >> 9), 8, 0)
    m.poke(SYSTEM + lib.XL_BARE_PD, 8, TABLE | 7)
    m.poke(TSS + 28 + 8, 8, IST_STACK)
    for vector in (DB, NP, SS, GP, PF):
        m.set_gate(vector, ist=1)
    for vector in (WARM, WARM_IST):
        m.set_gate(vector, dpl=3, ist=vector == WARM_IST)
        m.write(HANDLERS + 16 * vector, assemble("iretq", at=HANDLERS))
    m.set_gate(0x30, dpl=3)
    m["cr0"] |= 1 << 16
    m["cr3"] = m["cr3"]
    return m


def run(cpl: int, code: str, setup: Setup | None = None, *, interrupt: int | None = None, end: str = HALTED) -> Rig:
    """The code behind a warm-up, both ways. The machine that had its pages in the TLB."""
    seen, machines = [], []
    for strict in (False, True):
        m = machine(cpl)
        if setup:
            setup(m)
        if strict:
            m["dr0"], m["dr7"] = SIZE - 64, 0x30401
            assert m["strict"]
        m.start(f"int {WARM}; int {WARM_IST}; {code}")
        if interrupt is not None:
            m.interrupt(interrupt)
        assert m.go() == end
        seen.append(({name: m[name] for name in STATE}, m.read(0, SIZE)))
        machines.append(m)
    assert seen[0] == seen[1]
    return machines[0]


def at(address: int) -> int:
    """Where a linear address is in RAM."""
    return BEHIND.get(address & ~0xfff, address & ~0xfff) | address & 0xfff


def words(m: Rig, address: int, n: int = 5) -> list[int]:
    return [m.word(at(address + 8 * k)) for k in range(n)]


def here(m: Rig, source: str) -> int:
    """The address behind `source`, which is the beginning of what is run."""
    return CODE + len(assemble(f"int {WARM}; int {WARM_IST}; {source}", at=CODE))


# ---- delivery ----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("cpl", [0, 3])
def test_frame(cpl: int) -> None:
    """Wrong: a word of the frame is not where it belongs, or the handler has another stack, level or flags."""
    m = run(cpl, "std; int 0x30")
    top = SYSTEM + lib.XL_BARE_RING0_STACK if cpl else PLAIN
    assert m["rsp"] == top - 40 and words(m, m["rsp"]) == [here(m, "std; int 0x30"), CODE3 if cpl else CODE0, 0x402, PLAIN, DATA3 if cpl else DATA0]
    assert (m["cpl"], m["ss.sel"], m["cs.sel"]) == (0, 0 if cpl else DATA0, CODE0) and m.frame().vector == 0x30


@pytest.mark.parametrize("cpl", [0, 3])
def test_error_code(cpl: int) -> None:
    """Wrong: a fault's error code is not below the frame, or the frame is not aligned to 16 bytes with it."""
    m = run(cpl, f"mov rax, [{ABSENT}]")
    assert m["rsp"] == IST_STACK - 48 and words(m, m["rsp"], 3) == [4 if cpl else 0, here(m, ""), CODE3 if cpl else CODE0] and m["cr2"] == ABSENT
    assert m.word(IST_STACK - 24) & RF and m.word(IST_STACK - 16) == PLAIN


@pytest.mark.parametrize("cpl", [0, 3])
def test_handler_not_canonical(cpl: int) -> None:
    """Wrong: a handler's address that is not canonical is gone to, or #GP(0) comes after the frame was written."""
    m = run(cpl, "int 0x30", lambda m: (m.set_gate(0x30, offset=1 << 47, dpl=3), m.write(PLAIN - 64, bytes(64))))
    assert m.frame().what == (GP, 0) and m.frame().rip == here(m, "")
    assert cpl or m.read(PLAIN - 24, 24) != bytes(24), "the warm-up's frame has been there"
    assert cpl or m.word(PLAIN - 40) == CODE + 2, "and still is"


@pytest.mark.parametrize("rsp", [SECOND + 8, SECOND + 0x18, SECOND + 0x20, SECOND + 0x28, SECOND + 0x30])
def test_stack_across_pages(rsp: int) -> None:
    """Wrong: a frame across two pages goes behind the first one in the host's memory, or one that just fits is cut."""
    m = run(0, f"mov qword ptr [{FIRST}], 0; mov qword ptr [{SECOND}], 0; mov rsp, {rsp}; int 0x30")
    assert m.frame().vector == 0x30 and m["rsp"] == (rsp & ~15) - 40
    assert words(m, m["rsp"])[1:] == [CODE0, 2, rsp, DATA0]


@pytest.mark.parametrize("rsp,error,address", [
    (READ_ONLY + 0x800, 3, READ_ONLY + 0x7d8), (ABSENT + 0x800, 2, ABSENT + 0x7d8), (READ_ONLY + 0x10, 3, READ_ONLY), (ABSENT + 0x10, 3, READ_ONLY + 0xfe8),
])
def test_stack_that_cannot_be_written(rsp: int, error: int, address: int) -> None:
    """Wrong: level 0 pushes to a page that only may be read, or that is not there, or half of a frame is written before its second page faults."""
    code = f"mov rax, [{READ_ONLY}]; mov qword ptr [{SECOND} + 0xff8], 7; mov rsp, {rsp}; int 0x30"
    m = run(0, code, lambda m: m.write(at(SECOND) + 0xfe0, bytes(32)))
    assert m.frame().what == (PF, error) and m["cr2"] == address and m.frame().rsp == rsp
    assert m.read(at(SECOND) + 0xfe0, 32) == bytes(24) + (7).to_bytes(8, "little")


def test_stack_not_canonical() -> None:
    """Wrong: pushes to where no address is canonical are another fault than #SS(0), also where a frame begins below the hole and ends in it."""
    for rsp in (1 << 47 | 0x100, (1 << 47) + 16, 0x10):
        m = run(0, f"mov rsp, {rsp}; int 0x30")
        assert m.frame().what == ((PF, 2) if rsp == 0x10 else (SS, 0)) and m.frame().rsp == rsp


GATES = [
    ("not present", dict(present=False), (NP, 0x30 * 8 + 2)), ("no gate", dict(kind=12), (GP, 0x30 * 8 + 2)), ("inner level's", dict(dpl=0), (GP, 0x30 * 8 + 2)),
    ("null", dict(selector=0), (GP, 0)), ("beyond the GDT", dict(selector=0x1000), (GP, 0x1000)), ("data", dict(selector=DATA0), (GP, DATA0)),
    ("of the LDT, which is not there", dict(selector=0xc), (GP, 0xc)),
]


@pytest.mark.parametrize("what,how,expected", GATES, ids=[row[0] for row in GATES])
def test_bad_gate(what: str, how: dict[str, int], expected: tuple[int, int]) -> None:
    """Wrong: a gate or its code segment is believed because the table is in the TLB."""
    m = run(3, "int 0x30", lambda m: m.set_gate(0x30, **{"dpl": 3, **how}))
    assert m.frame().what == expected and m.frame().rip == here(m, "")


def test_end_of_the_tables() -> None:
    """Wrong: a descriptor or gate is read whose last byte the limit cuts off, or the last whole one is not."""
    for limit, expected in ((FREE + 7, 0x30), (FREE + 6, GP)):
        def setup(m: Rig, limit: int = limit) -> None:
            m.gdt(FREE, descriptor(access=0x9b, flags=0xa))
            m.set_gate(0x30, selector=FREE)
            m["gdtr.limit"] = limit
        m = run(0, "int 0x30", setup)
        assert m.frame().vector == expected
    for limit, expected in ((0x41 * 16 + 15, 0x41), (0x41 * 16 + 14, GP)):
        m = machine(0)
        m["idtr.limit"] = limit
        m.write(HANDLERS + 16 * 0x41, b"\xf4")
        assert m.catch(f"int {WARM}; int 0x41").vector == expected


@pytest.mark.parametrize("cpl", [0, 3])
@pytest.mark.parametrize("ist", [1, 2])
def test_interrupt_stack_table(cpl: int, ist: int) -> None:
    """Wrong: an IST gate uses the stack that is there, the level's, or another slot."""
    m = run(cpl, "int 0x30", lambda m: (m.poke(TSS + 28 + 16, 8, FIRST + 0x808), m.set_gate(0x30, dpl=3, ist=ist)))
    assert m["rsp"] == (IST_STACK, FIRST + 0x800)[ist - 1] - 40 and words(m, m["rsp"])[3] == PLAIN


def test_inner_stack_is_read_each_time() -> None:
    """Wrong: rsp0 is remembered from an earlier delivery."""
    m = run(3, f"mov qword ptr [{TSS + 4}], {FIRST + 0x900}; int 0x30")
    assert m["rsp"] == FIRST + 0x900 - 40 and words(m, m["rsp"])[1] == CODE3


def test_tables_across_pages() -> None:
    """Wrong: a gate, descriptor or rsp0 that lies across two pages is read on in the host's memory."""
    def setup(m: Rig) -> None:
        m.gdt(FREE, descriptor(access=0x9b, flags=0xa))
        m.set_gate(0x30, selector=FREE, dpl=3)
        for register, old, new, size in (("gdtr", GDT, SECOND - FREE - 4, 0x200), ("idtr", IDT, READ_ONLY - 0x308, 0x500), ("tr", TSS, FIRST - 8, 0x68)):
            for k, byte in enumerate(m.read(old, size)):        # the middle of FREE, of gate 0x30, of rsp0 is where a page ends
                m.write(at(new + k), bytes([byte]))
            m[f"{register}.base"] = new
    m = run(3, "int 0x30", setup)
    assert m.frame().vector == 0x30 and m["cs.sel"] == FREE and m["rsp"] == SYSTEM + lib.XL_BARE_RING0_STACK - 40


def test_accessed_bit() -> None:
    """Wrong: the first use of a code segment does not set its accessed bit; or where the GDT may not be written it is used all the same."""
    code = descriptor(access=0x9a, flags=0xa)
    m = run(3, "int 0x30", lambda m: (m.gdt(FREE, code), m.set_gate(0x30, selector=FREE, dpl=3)))
    assert m.frame().vector == 0x30 and m.access(FREE) == 0x9b

    def protect(m: Rig) -> None:
        m.gdt(FREE, code)
        m.set_gate(0x30, selector=FREE, dpl=3)
        m.poke(TABLE + (GDT >> 9), 8, GDT | 5)
        m["cr3"] = m["cr3"]
    m = run(3, "int 0x30", protect)
    assert m.frame().what == (PF, 3) and m["cr2"] == GDT + FREE + 4 and m.access(FREE) == 0x9a and m.frame().cs == CODE3


def test_flags_that_delivery_clears() -> None:
    """Wrong: NT or TF outlives a delivery, or the frame lacks them."""
    m = run(0, f"pushfq; or qword ptr [rsp], {NT | TF}; popfq; int 0x30")
    assert m.frame().vector == 0x30 and m.frame().rflags & (NT | TF) == NT | TF and not m["rflags"] & (NT | TF | IF)


def test_breakpoint_on_the_stack() -> None:
    """Wrong: a push of a delivery does not hit a data breakpoint: the word was stored at once with others."""
    m = machine(0)
    m["dr1"], m["dr7"] = PLAIN - 24, 0x400 | 4 | 0x9 << 20
    m.write(HANDLERS + 16 * 0x30, b"\x90\xf4")
    assert m.catch("int 0x30").vector == DB and m["dr6"] & 15 == 2 and m.frame().rip == HANDLERS + 16 * 0x30


def test_stack_page_with_code() -> None:
    """Wrong: a frame is written over code that was translated, and the old code runs."""
    def setup(m: Rig) -> None:
        m.write(at(FIRST + 0xb0), assemble("inc ecx; ret"))
        m.write(HANDLERS + 16 * 0x30, assemble(f"mov esp, {PLAIN}; call rax; hlt"))
    m = run(0, f"mov eax, {FIRST + 0xb0}; call rax; call rax; mov esp, {FIRST + 0xc3}; int 0x30", setup)
    assert m.word(at(FIRST + 0xb0)) == FIRST + 0xc3, "the frame's rsp, which begins with a ret"
    assert m["rcx"] == 2


# ---- return ------------------------------------------------------------------------------------------------------------------

TARGET = CODE + 0x200


def iretq(rip: int = TARGET, cs: int = CODE0, flags: int = 2, rsp: int = PLAIN - 256, ss: int = DATA0, frame: int = FIRST + 0x400) -> str:
    """Code that writes a frame and returns by it."""
    store = "".join(f"mov rax, {word}; mov [{frame + 8 * k}], rax; " for k, word in enumerate((rip, cs, flags, rsp, ss)))
    return f"{store} mov rsp, {frame}; iretq"


def target(source: str, bits: int = 64) -> Setup:
    return lambda m: m.load(source, bits, TARGET)


def test_return() -> None:
    """Wrong: IRETQ loads something else than its frame has."""
    m = run(0, iretq(flags=0x4d7), target("hlt"))
    assert (m["rip"], m["rsp"], m["rflags"], m["ss.sel"]) == (TARGET + 1, PLAIN - 256, 0x4d7, DATA0)


@pytest.mark.parametrize("frame", [SECOND - n for n in (8, 16, 24, 32, 40, 4)] + [FIRST + 3])
def test_frame_of_iret_across_pages(frame: int) -> None:
    """Wrong: IRETQ reads a frame across two pages on in the host's memory."""
    m = run(0, iretq(frame=frame, rsp=0x7fff8), target("hlt"))
    assert m["rip"] == TARGET + 1 and m["rsp"] == 0x7fff8


@pytest.mark.parametrize("there", range(5))
def test_frame_of_iret_that_cannot_be_read(there: int) -> None:
    """Wrong: IRETQ whose frame ends in a page that is not there has changed registers, or the fault's address is not the first word's behind the end."""
    def setup(m: Rig) -> None:
        m.write(at(ABSENT - 8 * there if there else FIRST), struct.pack("<5Q", TARGET, CODE0, 2, PLAIN - 256, DATA0)[:8 * there])
    m = run(0, f"mov rax, [{READ_ONLY}]; mov rsp, {ABSENT - 8 * there}; iretq", setup)
    assert m.frame().what == (PF, 0) and m["cr2"] == ABSENT
    assert (m.frame().rsp, m.frame().cs, m.frame().ss) == (ABSENT - 8 * there, CODE0, DATA0)


BAD_RETURNS = [
    ("rip not canonical", dict(rip=1 << 47), (GP, 0)), ("null code", dict(cs=0), (GP, 0)), ("null stack to level 3", dict(cs=CODE3, ss=3), (GP, 0)),
    ("code is data", dict(cs=DATA0), (GP, DATA0)), ("code beyond the GDT", dict(cs=0x1000), (GP, 0x1000)), ("RPL of the stack", dict(ss=DATA3), (GP, DATA3 & ~3)),
    ("stack is code", dict(ss=CODE0), (GP, CODE0)), ("code not present", dict(cs=FREE), (NP, FREE)), ("stack not present", dict(ss=FREE + 8), (SS, FREE + 8)),
    ("stack read-only", dict(ss=FREE + 16), (GP, FREE + 16)), ("inner level", dict(cs=CODE0 | 1), (GP, CODE0)),
]


@pytest.mark.parametrize("what,how,expected", BAD_RETURNS, ids=[row[0] for row in BAD_RETURNS])
def test_bad_return(what: str, how: dict[str, int], expected: tuple[int, int]) -> None:
    """Wrong: IRETQ takes what it must refuse, or with another error code, or has changed the stack pointer."""
    m = run(0, iretq(**how), lambda m: m.gdt(FREE, descriptor(access=0x1b, flags=0xa), descriptor(access=0x13), descriptor(access=0x91)))
    assert m.frame().what == expected and m.frame().rsp == FIRST + 0x400 and m.frame().ss == DATA0


def test_nested_task() -> None:
    """Wrong: IRETQ with NT set returns, instead of #GP(0) in long mode."""
    m = run(0, f"pushfq; or qword ptr [rsp], {NT}; popfq; {iretq()}")
    assert m.frame().what == (GP, 0) and m.frame().rflags & NT


def test_accessed_bits_of_a_return() -> None:
    """Wrong: IRETQ does not set the accessed bits of the segments that it loads; or, where it cannot, returns all the same."""
    def segments(m: Rig) -> None:
        m.gdt(FREE, descriptor(access=0x9a, flags=0xa), descriptor(access=0x92))
        m.load("hlt", at=TARGET)
    m = run(0, iretq(cs=FREE, ss=FREE + 8), segments)
    assert m["rip"] == TARGET + 1 and (m.access(FREE), m.access(FREE + 8)) == (0x9b, 0x93)

    def protect(m: Rig) -> None:
        segments(m)
        m.poke(TABLE + (GDT >> 9), 8, GDT | 5)
        m["cr3"] = m["cr3"]
    m = run(0, iretq(cs=FREE, ss=FREE + 8), protect)
    assert m.frame().what == (PF, 3) and m["cr2"] == GDT + FREE + 4 and m.frame().rsp == FIRST + 0x400 and m.access(FREE) == 0x9a


def test_return_to_user_mode() -> None:
    """Wrong: after IRETQ to level 3 accesses still have level 0's rights or TLB, or data segments of level 0 stay usable."""
    def setup(m: Rig) -> None:
        m.load(f"mov rbx, [{FIRST}]; mov rax, [{KERNEL}]", at=TARGET)
    m = run(0, f"mov rax, [{KERNEL}]; mov eax, {DATA0}; mov ds, eax; mov eax, {DATA3}; mov es, eax; {iretq(cs=CODE3, ss=DATA3)}", setup)
    trap = m.frame()
    assert trap.what == (PF, 5) and m["cr2"] == KERNEL and (trap.cs, trap.ss, trap.rsp) == (CODE3, DATA3, PLAIN - 256)
    assert (m["ds.sel"], m["es.sel"]) == (0, DATA3)


def test_return_to_compatibility_mode() -> None:
    """Wrong: after IRETQ to 32-bit code the code size, the segments' bases or the width of rsp are those of 64-bit code; or after the interrupt out of it they
    are still those of 32-bit code."""
    def setup(m: Rig) -> None:
        m.gdt(FREE, descriptor(access=0xfa, flags=0xc), descriptor(base=0x1000, access=0xf2))
        m.write(at(LOG), (0x12345678).to_bytes(4, "little"))
        m.load(f"dec eax; mov ebx, [{LOG - 0x1000}]; int 0x30", 32, TARGET)
        m.write(HANDLERS + 16 * 0x30, assemble(f"mov ecx, [{LOG}]; hlt", at=HANDLERS + 0x300))
    m = run(0, f"mov eax, {FREE + 8 | 3}; mov ds, eax; {iretq(cs=FREE | 3, rsp=1 << 32 | PLAIN, ss=DATA3)}", setup)
    assert m["rbx"] == m["rcx"] == 0x12345678 and m["mode"] == 64
    assert words(m, m["rsp"])[1:] == [FREE | 3, words(m, m["rsp"])[2], PLAIN, DATA3]


def test_interrupt_from_compatibility_mode_to_level_3() -> None:
    """Wrong: a handler at level 3, in 64-bit code, finds the bases that data segments had in the 32-bit code that was interrupted."""
    def setup(m: Rig) -> None:
        m.gdt(FREE, descriptor(access=0xfa, flags=0xc), descriptor(base=0x1000, access=0xf2))
        m.write(LOG, (0x12345678).to_bytes(4, "little"))
        m.load("int 0x30", 32, TARGET)
        m.set_gate(0x30, selector=CODE3, dpl=3)
        m.write(HANDLERS + 16 * 0x30, assemble(f"mov ecx, [{LOG}]; hlt"))
    m = run(0, f"mov eax, {FREE + 8 | 3}; mov ds, eax; {iretq(cs=FREE | 3, ss=DATA3)}", setup)
    assert m["rcx"] == 0x12345678 and m.frame().what == (GP, 0) and m.frame().cs == CODE3 and m.frame().rsp == PLAIN - 256 - 40


def test_return_with_tf() -> None:
    """Wrong: TF that IRETQ loads traps at once, or not behind the next instruction."""
    m = run(0, iretq(flags=2 | TF), target("nop; nop; hlt"))
    assert m.frame().vector == DB and m.frame().rip == TARGET + 1 and m["dr6"] & 1 << 14


def test_return_with_rf() -> None:
    """Wrong: RF that IRETQ loads is lost, or outlives the next instruction."""
    m = run(0, iretq(flags=2 | RF), target("ud2"))
    assert m.frame().rip == TARGET and m.frame().rflags & RF
    m = run(0, iretq(flags=2 | RF), target("nop; int 0x30"))
    assert m.frame().vector == 0x30 and not m.frame().rflags & RF


def test_return_to_alignment_checks() -> None:
    """Wrong: AC that IRETQ to level 3 loads does not check the next access."""
    m = run(0, f"mov rax, cr0; or eax, 1 << 18; mov cr0, rax; {iretq(cs=CODE3, ss=DATA3, flags=1 << 18 | 2)}", target(f"mov rax, [{FIRST + 1}]"))
    assert m.frame().what == (17, 0) and m.frame().rip == TARGET


def test_interrupt_behind_a_return() -> None:
    """Wrong: an interrupt that waits is not taken before the first instruction that IRETQ with IF leads to."""
    m = run(0, iretq(flags=2 | IF), target("mov ecx, 5; hlt"), interrupt=0x50)
    assert m.frame().vector == 0x50 and m.frame().rip == TARGET and m["rcx"] == 0 and not m["rflags"] & IF


def test_shadow_of_sti() -> None:
    """Wrong: an interrupt that waits is taken between STI and the INT or IRETQ behind it, or is lost in its handler."""
    m = run(0, "sti; int 0x30", interrupt=0x50)
    assert m.frame().vector == 0x30 and m.frame().rflags & IF and not m["rflags"] & IF
    m = run(0, f"{iretq(flags=2 | IF)}".replace("iretq", "sti; iretq"), target("hlt"), interrupt=0x50)
    assert m.frame().vector == 0x50 and m.frame().rip == TARGET
    m = run(0, "sti; int 0x30", lambda m: m.set_gate(0x30, kind=15), interrupt=0x50)
    assert m.frame().vector == 0x50 and m.frame().rip == HANDLERS + 16 * 0x30, "a trap gate leaves IF"
