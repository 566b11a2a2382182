"""Segments, descriptors, and the delivery of exceptions and interrupts in all modes but virtual-8086.

Oracle: SDM vol. 2 (MOV, INT n, LAR ...) and vol. 3 (chapters 5, 6, 20), as tables below; x86_rig.py is the machine.
"""

from __future__ import annotations

import struct

import pytest

from x86_rig import (
    BP, CODE, CODE0, CODE3, DATA0, DATA3, DB, DF, DONE, END, FREE, GDT, GP, HALTED, HANDLERS, IF, NP, NT, OF, RF, SHUTDOWN, SS,
    STACK, SYSTEM, TR, TS, TSS, UD, Frame, Rig, assemble, descriptor,
)
from xenlike.engine import lib


# ---- segment registers -----------------------------------------------------------------------------------------------------

def load_model(access: int, flags: int, selector: int, cpl: int, ss: bool) -> tuple[int | None, int | None]:
    """MOV to a segment register by SDM vol. 2: the exception that a descriptor in range causes."""
    error, rpl, dpl = selector & ~3, selector & 3, access >> 5 & 3
    present, is_segment, code, conforming, rw = access & 0x80, access & 0x10, access & 8, access & 4, access & 2
    if ss:
        if rpl != cpl or not is_segment or code or not rw or dpl != cpl:
            return GP, error
        return DONE if present else (SS, error)
    if not is_segment or (code and not rw):
        return GP, error
    if not (code and conforming) and (rpl > dpl or cpl > dpl):
        return GP, error
    return DONE if present else (NP, error)


@pytest.mark.parametrize("bits,cpl", [(32, 0), (32, 3), (64, 0), (64, 3)])
@pytest.mark.parametrize("register", ["ds", "ss", "gs"])
def test_segment_loads(bits: int, cpl: int, register: str) -> None:
    """Wrong: a data segment register takes a descriptor that it must refuse, or with another exception; or its accessed bit is not set.
    All 256 access bytes, each with two RPLs."""
    m = Rig(bits, cpl)
    for access in range(256):
        for rpl in {0, cpl, 3}:
            m.again(cpl)
            selector = FREE | rpl
            m.gdt(FREE, descriptor(access=access, limit=0 if access & 0x1c == 0x14 else 0xfffff))       # expand-down: room for the stack
            m["rax"] = selector
            trap = m.catch(f"mov {register}, eax; {END}")
            expected = load_model(access, 0xc, selector, cpl, register == "ss")
            assert trap.what == expected, (hex(access), rpl)
            if expected == DONE:
                assert m.access(FREE) == access | 1
                if register != "ss" or cpl == 0:
                    assert m[f"{register}.sel"] == selector
            else:
                assert m.access(FREE) == access and trap.rip == CODE


@pytest.mark.parametrize("bits,cpl,register,selector,expected", [
    (32, 0, "ds", 0, DONE), (32, 0, "ds", 3, DONE), (32, 3, "fs", 1, DONE), (32, 0, "ss", 0, (GP, 0)), (32, 3, "ss", 3, (GP, 0)),
    (64, 0, "ss", 0, DONE), (64, 0, "ss", 1, (GP, 0)), (64, 3, "ss", 3, (GP, 0)), (64, 0, "gs", 0, DONE),
    (32, 0, "ds", 0x200, (GP, 0x200)), (32, 0, "ss", 0x202, (GP, 0x200)), (64, 0, "fs", 0xfff8, (GP, 0xfff8)),
    (32, 0, "es", 0x0c, (GP, 0x0c)), (64, 0, "es", 0x17, (GP, 0x14)),
])
def test_null_and_out_of_range_selectors(bits: int, cpl: int, register: str, selector: int, expected: tuple) -> None:
    """Wrong: a null selector is refused where it is allowed (or the other way round), or a table's limit, the absent LDT's too, is not kept."""
    m = Rig(bits, cpl)
    m["ldtr.attr"] = 0x8000
    m["rax"] = selector
    assert m.catch(f"mov {register}, eax; {END}").what == expected


def test_null_segment_is_unusable() -> None:
    """Wrong: an access through a null DS does not fault, or faults as #PF."""
    m = Rig(32)
    assert m.catch("xor eax, eax; mov ds, eax; mov eax, [0x1000]").what == (GP, 0)


def test_ldt() -> None:
    """Wrong: LLDT or a selector with TI = 1 is taken from the wrong table, or beyond the LDT's limit."""
    m = Rig(32)
    m.gdt(FREE, descriptor(0x6000, 0x0f, 0x82, 0))
    m.poke(0x6008, 8, descriptor(0x1234, 0xff, 0x92, 0))
    assert m.catch(f"mov eax, {FREE}; lldt ax; mov eax, 0x0c; mov fs, eax; sldt ecx; {END}").what == DONE
    assert (m["fs.base"], m["fs.limit"], m["rcx"], m["ldtr.limit"]) == (0x1234, 0xff, FREE, 0x0f)
    assert m.catch("mov eax, 0x14; mov fs, eax").what == (GP, 0x14)
    assert m.catch(f"mov eax, {DATA0}; lldt ax").what == (GP, DATA0)
    assert m.catch("mov eax, 4; lldt ax").what == (GP, 4)
    m.gdt(FREE, descriptor(0x6000, 0x0f, 0x02, 0))
    assert m.catch(f"mov eax, {FREE}; lldt ax").what == (NP, FREE)
    assert m.catch("xor eax, eax; lldt ax; mov eax, 0x0c; mov fs, eax").what == (GP, 0x0c)


@pytest.mark.parametrize("bits", [32, 64])
def test_ltr(bits: int) -> None:
    """Wrong: LTR takes a busy TSS, a null selector or the LDT, does not mark it busy, or loses the upper half of a 64-bit base."""
    m = Rig(bits)
    m.gdt(FREE, descriptor(0x123456, 0x67, 0x89, 0), 0xffff8000)
    assert m.catch(f"mov eax, {FREE}; ltr ax; str edx; {END}").what == DONE
    assert m.access(FREE) == 0x8b and m["rdx"] == FREE
    assert m["tr.base"] == (0xffff800000123456 if bits == 64 else 0x123456)
    m["tr.base"] = TSS                  # for the stack of level 0
    assert m.catch(f"mov eax, {FREE}; ltr ax").what == (GP, FREE)
    assert m.catch("xor eax, eax; ltr ax").what == (GP, 0)
    assert m.catch("mov eax, 0x0c; ltr ax").what == (GP, 0x0c)
    m.gdt(FREE, descriptor(0x123456, 0x67, 0x09, 0), 0)
    assert m.catch(f"mov eax, {FREE}; ltr ax").what == (NP, FREE)
    m.gdt(FREE, descriptor(0x123456, 0x67, 0x81, 0), 0)         # a 16-bit TSS
    assert m.catch(f"mov eax, {FREE}; ltr ax; {END}").what == (DONE if bits == 32 else (GP, FREE))
    if bits == 64:
        m.gdt(FREE, descriptor(0x123456, 0x67, 0x89, 0), 0x8000)
        assert m.catch(f"mov eax, {FREE}; ltr ax").what == (GP, FREE), "non-canonical base"
        m.gdt(FREE, descriptor(0x123456, 0x67, 0x89, 0), 1 << 40)
        assert m.catch(f"mov eax, {FREE}; ltr ax").what == (GP, FREE), "type in the upper half"


def test_real_mode_segments_and_unreal_limits() -> None:
    """Wrong: a segment load in real mode changes the limit that protected mode left ("unreal mode"), or the base is not selector * 16."""
    m = Rig(16)
    m["fs.limit"] = 0xffffffff
    m.poke(0x123458, 4, 0xdeadbeef)
    trap = m.catch("mov ax, 0x1234; mov fs, ax; mov ebx, 0x111118; mov edx, fs:[ebx]; hlt", at=0x7c00)
    assert trap.vector is None and m["rdx"] == 0xdeadbeef and m["fs.base"] == 0x12340
    assert m.catch("mov ebx, 0x10000; mov eax, [ebx]", at=0x7c00).vector == GP, "other segments keep 64 KiB"


def test_far_pointer_loads() -> None:
    """Wrong: LDS and its kin load the wrong register, or leave half of their work done when the selector faults."""
    m = Rig(32)
    m.poke(0x6000, 8, 0x001012345678)
    assert m.catch(f"les eax, [0x6000]; lfs ecx, [0x6000]; lgs edx, [0x6000]; lss ebx, [0x6000]; lds esi, [0x6000]; {END}").what == DONE
    assert [m[r] for r in ("rax", "rcx", "rdx", "rbx", "rsi")] == [0x12345678] * 5
    assert all(m[f"{s}.sel"] == DATA0 for s in ("es", "fs", "gs", "ss", "ds"))
    m.poke(0x6000, 8, 0x200012345678)
    m["rax"] = 7
    assert m.catch("lfs eax, [0x6000]").what == (GP, 0x2000) and m["rax"] == 7


# ---- LAR, LSL, VERR, VERW, ARPL: what can be seen of a descriptor ------------------------------------------------------------

@pytest.mark.parametrize("bits,cpl", [(32, 0), (32, 3), (64, 3)])
def test_descriptor_queries(bits: int, cpl: int) -> None:
    """Wrong: a query shows a descriptor that its privilege hides, or a wrong limit or access byte; checked for all access bytes."""
    lar = {1, 2, 3, 4, 5, 9, 11, 12} if bits == 32 else {2, 9, 11, 12}
    lsl = {1, 2, 3, 9, 11} if bits == 32 else {2, 9, 11}
    if bits == 64:
        queries = f"lar ecx, eax; setz r8b; lsl edx, eax; setz r9b; verr ax; setz r10b; verw ax; setz r11b; {END}"
    else:
        queries = f"lar ecx, eax; setz bl; lsl edx, eax; setz bh; verr ax; lahf; mov esi, eax; mov eax, {FREE | 3}; verw ax; lahf; {END}"
    m = Rig(bits, cpl)
    for access in range(256):
        m.again(cpl)
        m.gdt(FREE, descriptor(0, 0x12345, access, 0xd))
        m["rax"] = FREE | 3
        assert m.catch(queries).what == DONE
        segment, code, rw, dpl, kind = access & 0x10, access & 8, access & 2, access >> 5 & 3, access & 15
        seen = dpl == 3 or (segment and kind & 12 == 12)
        see = [seen and (segment or kind in lar), seen and (segment or kind in lsl), seen and segment and (not code or rw),
               seen and segment and not code and rw]
        if bits == 64:
            got = [m[r] & 1 for r in ("r8", "r9", "r10", "r11")]
        else:
            got = [m["rbx"] & 1, m["rbx"] >> 8 & 1, m["rsi"] >> 14 & 1, m["rax"] >> 14 & 1]
        assert got == [bool(x) for x in see], hex(access)
        assert m["rcx"] & 0xffffffff == (0xd00000 | access << 8 if see[0] else 0)
        assert m["rdx"] & 0xffffffff == (0x12345fff if see[1] else 0)


def test_arpl() -> None:
    """Wrong: ARPL lowers an RPL, raises it without ZF, or exists in real mode."""
    m = Rig(32)
    m["rax"], m["rcx"] = 0x10, 3
    assert m.catch(f"arpl ax, cx; {END}").rflags & 0x40 and m["rax"] == 0x13
    m["rcx"] = 1
    assert not m.catch(f"arpl ax, cx; {END}").rflags & 0x40 and m["rax"] == 0x13
    assert Rig(16).catch("arpl ax, cx", at=0x7c00).vector == UD


# ---- delivery in real mode ---------------------------------------------------------------------------------------------------

def test_real_mode_interrupt() -> None:
    """Wrong: INT in real mode does not push FLAGS, CS, IP in this order, or leaves IF or TF set; IRET does not take it all back."""
    m = Rig(16)
    m["rflags"] = IF | 2
    m["ss.sel"], m["ss.base"] = 0x100, 0x1000
    trap = m.catch("int 0x21", at=0x7c00)
    assert trap.what == (0x21, None) and (trap.rip, trap.cs, trap.rflags) == (0x7c02, 0, IF | 2)
    assert m["rflags"] == 2 and m["rsp"] == STACK - 6
    m.load("iret", at=0x7000)
    m.load("hlt", at=0x7c02)
    m["rip"], m["halted"] = 0x7000, 0
    m.go()
    assert (m["rip"], m["rflags"], m["rsp"]) == (0x7c03, IF | 2, STACK)


def test_real_mode_interrupt_beyond_the_table_doubles_into_shutdown() -> None:
    """Wrong: with an interrupt table too short for INT, #GP and #DF, the machine goes on."""
    m = Rig(16)
    m["idtr.limit"] = 0
    m.start("int 0x21", at=0x7c00)
    assert m.go() == SHUTDOWN and m.go() == SHUTDOWN
    m = Rig(16)
    m["idtr.limit"] = 4 * 9 - 1         # up to #DF
    assert m.catch("int 0x21", at=0x7c00).vector == DF


def test_real_mode_divide_error() -> None:
    """Wrong: a fault's return address in real mode is not the instruction itself, or an error code is pushed."""
    m = Rig(16)
    trap = m.catch("xor cx, cx; div cx", at=0x7c00)
    assert trap.what == (0, None) and trap.rip == 0x7c02 and m["rsp"] == STACK - 6


# ---- delivery in protected mode ----------------------------------------------------------------------------------------------

def test_interrupt_gate_same_level() -> None:
    """Wrong: the frame of an interrupt at level 0, or the flags that gates clear: IF by interrupt gates only; TF, NT, RF by both."""
    for kind, keeps in ((14, 0), (15, IF)):
        m = Rig(32)
        m["rflags"] = IF | NT | 2
        m.set_gate(0x30, kind=kind)
        trap = m.catch("int 0x30")
        assert trap == Frame(0x30, None, CODE + 2, CODE0, IF | NT | 2)
        assert m["rflags"] == keeps | 2 and m["rsp"] == STACK - 12


def test_16_bit_gates() -> None:
    """Wrong: a 16-bit gate pushes 32-bit words, or keeps the upper half of its offset."""
    m = Rig(32)
    m.set_gate(0x30, kind=6, offset=0x12340000 | HANDLERS + 16 * 0x30)
    m.catch("int 0x30")
    assert m["rsp"] == STACK - 6 and m["rip"] == HANDLERS + 16 * 0x30 + 1
    assert struct.unpack("<HHH", m.read(STACK - 6, 6)) == (CODE + 2 & 0xffff, CODE0, 2)


def test_interrupt_to_inner_level() -> None:
    """Wrong: from level 3, the frame is not on the stack of the TSS, lacks SS:ESP, or data segments change."""
    m = Rig(32, 3)
    m["rflags"] = IF | 2
    trap = m.catch("xor edx, edx; div edx")
    assert trap == Frame(0, None, CODE + 2, CODE3, trap.rflags, STACK, DATA3)
    assert trap.rflags & RF and trap.rflags & IF and not m["rflags"] & (RF | IF)
    assert m["cpl"] == 0 and m["ss.sel"] == DATA0 and m["cs.sel"] == CODE0 and m["ds.sel"] == DATA3
    assert m["rsp"] == SYSTEM + lib.XL_BARE_RING0_STACK - 20


def tweak_gate(**changes):
    return lambda m: m.set_gate(0x30, **{"dpl": 3, **changes})


def both(*steps):
    return lambda m: [step(m) for step in steps]


def with_code(access: int, flags: int = 0xc):
    return both(tweak_gate(selector=FREE), lambda m: m.gdt(FREE, descriptor(access=access, flags=flags)))


IDT30 = 0x30 * 8 + 2
GATE_ERRORS = [
    # what is wrong, how it is made so, mode, level, expected
    ("beyond the IDT", lambda m: m.__setitem__("idtr.limit", 0x30 * 8 - 1), 32, 0, (GP, IDT30)),
    ("not a gate", tweak_gate(kind=12), 32, 0, (GP, IDT30)),
    ("a 16-bit gate in long mode", tweak_gate(kind=6), 64, 0, (GP, IDT30)),
    ("a task gate in long mode", tweak_gate(kind=5), 64, 0, (GP, IDT30)),
    ("the gate's DPL", tweak_gate(dpl=2), 32, 3, (GP, IDT30)),
    ("the gate's DPL in long mode", tweak_gate(dpl=0), 64, 3, (GP, IDT30)),
    ("gate not present", tweak_gate(present=False), 32, 0, (NP, IDT30)),
    ("gate not present in long mode", tweak_gate(present=False), 64, 3, (NP, IDT30)),
    ("null code segment", tweak_gate(selector=0), 32, 0, (GP, 0)),
    ("null code segment with RPL", tweak_gate(selector=3), 64, 0, (GP, 0)),
    ("code segment beyond the GDT", tweak_gate(selector=0x1000), 32, 0, (GP, 0x1000)),
    ("code segment is data", with_code(0x92), 32, 0, (GP, FREE)),
    ("code segment of an outer level", with_code(0xfa), 32, 0, (GP, FREE)),
    ("code segment not present", with_code(0x1a), 32, 0, (NP, FREE)),
    ("32-bit code in long mode", with_code(0x9a, 0xc), 64, 0, (GP, FREE)),
    ("L and D", with_code(0x9a, 0xe), 64, 0, (GP, FREE)),
    ("handler beyond CS's limit", both(tweak_gate(selector=FREE, offset=0x20000), lambda m: m.gdt(FREE, descriptor(0, 0xffff, 0x9a, 0x4))),
     32, 0, (GP, 0)),
    ("handler not canonical", tweak_gate(offset=1 << 47), 64, 0, (GP, 0)),
    ("TSS too short for the stack", lambda m: (tweak_gate()(m), m.__setitem__("tr.limit", 8)), 32, 3, (TS, TR)),
    ("inner SS null", lambda m: (tweak_gate()(m), m.poke(TSS + 8, 4, 0)), 32, 3, (TS, 0)),
    ("inner SS beyond the GDT", lambda m: (tweak_gate()(m), m.poke(TSS + 8, 4, 0x1000)), 32, 3, (TS, 0x1000)),
    ("inner SS with another RPL", lambda m: (tweak_gate()(m), m.poke(TSS + 8, 4, DATA0 | 1)), 32, 3, (TS, DATA0)),
    ("inner SS with another DPL", lambda m: (tweak_gate()(m), m.poke(TSS + 8, 4, DATA3 & ~3)), 32, 3, (TS, DATA3 & ~3)),
    ("inner SS is code", lambda m: (tweak_gate()(m), m.poke(TSS + 8, 4, CODE0)), 32, 3, (TS, CODE0)),
    ("inner SS not present", lambda m: (tweak_gate()(m), m.poke(TSS + 8, 4, FREE), m.gdt(FREE, descriptor(access=0x12))), 32, 3, (SS, FREE)),
    ("inner stack too small", lambda m: (tweak_gate()(m), m.poke(TSS + 8, 4, FREE), m.gdt(FREE, descriptor(0, 0x3ff, 0x92, 4))), 32, 3, (SS, FREE)),
    ("inner rsp not canonical", lambda m: (tweak_gate()(m), m.poke(TSS + 4, 8, 1 << 47)), 64, 3, (SS, 0)),
    ("TSS too short for rsp0", lambda m: (tweak_gate()(m), m.__setitem__("tr.limit", 10)), 64, 3, (TS, TR)),
]


@pytest.mark.parametrize("what,change,bits,cpl,expected", GATE_ERRORS, ids=[row[0] for row in GATE_ERRORS])
def test_gate_errors(what: str, change, bits: int, cpl: int, expected: tuple) -> None:
    """Wrong: INT n through a bad gate, code segment or inner stack gives another exception or error code than vol. 2, INT n, says.
    The fault itself is handled by a task of its own stack: an IST, or a conforming segment that needs no stack of the TSS."""
    m = Rig(bits, cpl)
    m.start("int 0x30")
    if bits == 64:
        m.poke(TSS + 36, 8, 0x9000)
        for vector in range(32):
            m.set_gate(vector, ist=1)
    elif cpl == 3:                      # handlers at level 3, on the stack that is there
        for vector in range(32):
            m.set_gate(vector, selector=CODE3)
    change(m)
    if m["tr.limit"] < 0x67 and bits == 64:
        assert m.go() == SHUTDOWN       # no IST either: #TS, #DF, shutdown
        return
    if "beyond the IDT" in what:
        m.go()
        assert m.frame().what == expected
        return
    if cpl == 3 and bits == 32:
        for vector in range(32):        # a hlt at level 3 is #GP: stop by a loop instead
            m.write(HANDLERS + 16 * vector, b"\xeb\xfe")
        m.go(100)
        vector = (m["rip"] - HANDLERS) // 16
        assert (vector, m.word(m["rsp"], 4)) == expected
        assert m.word(m["rsp"] + 4, 4) == CODE
    else:
        assert m.go() == HALTED
        trap = m.frame()
        assert trap.what == expected and trap.rip == CODE


@pytest.mark.parametrize("bits", [32, 64])
def test_ext_bit(bits: int) -> None:
    """Wrong: a fault while an exception (not INT n) is delivered lacks EXT; a present check is #NP even for exceptions."""
    m = Rig(bits)
    m.set_gate(UD, present=False)
    assert m.catch("ud2").what == (NP, UD * 8 + 3)
    m.set_gate(UD, selector=FREE)
    m.gdt(FREE, descriptor(access=0x1a, flags=0xa if bits == 64 else 0xc))
    assert m.catch("ud2").what == (NP, FREE | 1)
    m.set_gate(BP, present=False)
    assert m.catch("int3").what == (NP, BP * 8 + 2), "INT3 is a software interrupt"
    m.set_gate(DB, present=False)
    assert m.catch(".byte 0xf1").what == (NP, DB * 8 + 3), "INT1 is not"


def test_soft_interrupts_and_dpl() -> None:
    """Wrong: INT3 and INTO skip the gate's DPL, or INT1 (which must) keeps it; or their return address is not behind them."""
    m = Rig(32, 3)
    assert m.catch("int3").what == (GP, BP * 8 + 2)
    m = Rig(32, 3)
    m.set_gate(BP, dpl=3)
    assert m.catch("int3") == Frame(BP, None, CODE + 1, CODE3, 2, STACK, DATA3)
    m = Rig(32, 3)
    m["rflags"] = 0x802
    assert m.catch("into").what == (GP, OF * 8 + 2)
    m = Rig(32, 3)
    assert m.catch(f"into; {END}").what == DONE
    m = Rig(32, 3)
    trap = m.catch(".byte 0xf1")
    assert trap.vector == DB and trap.rip == CODE + 1


# ---- delivery in long mode ---------------------------------------------------------------------------------------------------

def test_long_mode_frames() -> None:
    """Wrong: the stack is not aligned to 16, SS:RSP is missing without a change of level, or SS is not null after one."""
    m = Rig(64)
    m["rsp"] = STACK + 5
    assert m.catch("int 0x30") == Frame(0x30, None, CODE + 2, CODE0, 2, STACK + 5, DATA0)
    assert m["rsp"] == STACK - 40 and m["ss.sel"] == DATA0
    m = Rig(64, 3)
    trap = m.catch("xor edx, edx; div edx")
    assert trap == Frame(0, None, CODE + 2, CODE3, trap.rflags, STACK, DATA3)
    assert m["ss.sel"] == 0 and m["cpl"] == 0 and m["rsp"] == SYSTEM + lib.XL_BARE_RING0_STACK - 40
    m.write(HANDLERS + 1, assemble("push rax; pop rax; iretq", bits=64, at=HANDLERS + 1))      # a null SS can be used
    m.load(f"nop; nop; {END}")
    m["halted"] = 0
    assert m.go() == HALTED and m.frame().what == DONE and m["cpl"] == 0 and m.frame().cs == CODE3


def test_interrupt_stack_table() -> None:
    """Wrong: an IST entry is not used, or used from the wrong slot, at either level."""
    for cpl in (0, 3):
        m = Rig(64, cpl)
        for ist in range(1, 8):
            m.poke(TSS + 28 + 8 * ist, 8, 0x9000 + 0x100 * ist + 8)
        m.set_gate(UD, ist=5)
        trap = m.catch("ud2")
        assert trap.vector == UD and m["rsp"] == 0x9500 - 40 and trap.rsp == STACK


def test_interrupt_from_compatibility_mode() -> None:
    """Wrong: an exception in 32-bit code under long mode pushes a legacy frame, or does not switch to 64-bit code."""
    m = Rig(64, 3)
    m.gdt(FREE, descriptor(access=0xfa, flags=0xc))
    m.load("ud2", 32, CODE + 0x100)
    m.poke(0x6000, 8, CODE + 0x100 | (FREE | 3) << 32)
    trap = m.catch("jmp fword ptr [0x6000]")
    assert trap == Frame(UD, None, CODE + 0x100, FREE | 3, trap.rflags, STACK, DATA3) and m["mode"] == 64


def test_pushes_to_a_user_stack_are_user_accesses() -> None:
    """Wrong: an interrupt handled at level 3 pushes with the CPU's own rights, in 64-bit or in compatibility mode: a hole in page protection."""
    for flags in (0xa, 0xc):
        m = Rig(64, 3)
        m.gdt(FREE, descriptor(access=0xfa, flags=flags))
        m.set_gate(0x30, selector=CODE3, dpl=3)
        page_directory = SYSTEM + lib.XL_BARE_PD
        m.poke(page_directory + 8, 8, 0x83)                     # 0x200000: supervisor only
        m["cr3"] = m["cr3"]
        m.load("int 0x30", 64 if flags == 0xa else 32, CODE + 0x100)
        m.poke(0x6000, 8, CODE + 0x100 | (FREE | 3) << 32)
        trap = m.catch("mov esp, 0x200800; jmp fword ptr [0x6000]")
        assert trap == Frame(14, 7, CODE + 0x100, FREE | 3, trap.rflags, 0x200800, DATA3), flags
        assert 0x200800 - 40 <= m["cr2"] < 0x200800


# ---- double faults -----------------------------------------------------------------------------------------------------------

CONTRIBUTORY = {0, 10, 11, 12, 13}


@pytest.mark.parametrize("first", [0, 6, 13, 14])
@pytest.mark.parametrize("second", [11, 13, 14])
def test_double_fault_classes(first: int, second: int) -> None:
    """Wrong: two faults that the table of vol. 3, 6.15 calls serial become #DF, or two that it does not stay two."""
    m = Rig(32)
    cause = {0: "xor ecx, ecx; div ecx", 6: "ud2", 13: "mov eax, 0x1000; mov ds, eax", 14: "mov eax, [0x80000000]"}[first]
    page_tables(m)
    m.gdt(FREE, descriptor(access=0x1a), descriptor(0x80000000, 0xffff, 0x9a, 4))
    if second == 11:
        m.set_gate(first, selector=FREE)
    elif second == 13:
        m.set_gate(first, selector=0x1000)
    else:
        m.set_gate(first, kind=0xe, selector=FREE)
        m["gdtr.base"] = GDT
        m.gdt(FREE, 0)
        split_gdt(m)
    doubled = first == 14 or (first in CONTRIBUTORY and second in CONTRIBUTORY)
    trap = m.catch(cause)
    assert trap.vector == (DF if doubled else second)
    if doubled:
        assert trap.error == 0
    if second == 14:
        assert m["cr2"] == SPLIT + FREE, "the address is of the second fault, even if it doubles"


SPLIT = 0x100000 + 0x1000 - FREE        # a GDT whose selectors from FREE on lie in a page that is not present


def page_tables(m: Rig) -> None:
    """32-bit paging: the first 2 MiB one to one, writable by everybody."""
    directory, table = 0xa000, 0xb000
    m.poke(directory, 4, table | 7)
    for n in range(512):
        m.poke(table + 4 * n, 4, n << 12 | 7)
    m["cr3"] = directory
    m["cr0"] |= 1 << 31


def split_gdt(m: Rig) -> None:
    m.write(SPLIT, m.read(GDT, FREE))
    m.poke(0xb000 + 4 * 0x101, 4, 0)
    m["gdtr.base"] = SPLIT
    m["cr3"] = m["cr3"]


def test_triple_fault() -> None:
    """Wrong: a fault while #DF is delivered does not shut the CPU down, at any level or mode, or the CPU runs on after it."""
    for bits in (32, 64):
        for cpl in (0, 3):
            m = Rig(bits, cpl)
            m["idtr.limit"] = 0
            m.start("ud2")
            assert m.go() == SHUTDOWN and m["shutdown"]
            before = m["retired"]
            assert m.go() == SHUTDOWN and m["retired"] == before


def test_fault_in_delivery_of_a_page_fault_keeps_state() -> None:
    """Wrong: a delivery that faults half-way leaves rsp, flags or segments changed for the exception that follows."""
    m = Rig(64, 3)
    m.poke(TSS + 4, 8, 0x7fff00000000)   # rsp0: nothing there, so the push faults
    m.poke(TSS + 36, 8, 0x9000)
    m.set_gate(DF, ist=1)
    m["rflags"] = IF | 2
    trap = m.catch("mov rax, [0x40000000]")
    assert trap == Frame(DF, 0, CODE, CODE3, trap.rflags, STACK, DATA3) and trap.rflags & IF
