"""Far transfers of the x86 engine: jmp, call and ret between segments, gates, iret, tasks, syscall and sysenter.

Oracle: SDM vol. 2 (operation and exceptions of each instruction) and vol. 3 (chapters 5, 7); x86_rig.py is the machine.
"""

from __future__ import annotations

import struct

import pytest

from x86_rig import (
    CODE, CODE0, CODE16, CODE3, CODE64, DATA0, DATA3, DB, DONE, END, EXIT, FREE, GP, HALTED, IF, IOPL3, NP, NT, RF, SS, STACK,
    SYSTEM, TR, TS, TSS, UD, Frame, Rig, assemble, descriptor, gate,
)
from xenlike.engine import lib


# ---- far transfers -------------------------------------------------------------------------------------------------------------

def far(m: Rig, kind: str, selector: int, offset: int = CODE + 0x100) -> Frame:
    """Far jmp or call through memory; the target ends the run."""
    m.poke(0x6000, 8, offset | selector << 32)
    m.load(END, at=CODE + 0x100)
    return m.catch(f"{kind} fword ptr [0x6000]")


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("kind", ["jmp", "call"])
@pytest.mark.parametrize("cpl", [0, 3])
def test_far_transfer_to_code(bits: int, kind: str, cpl: int) -> None:
    """Wrong: a direct far transfer to code is allowed or refused against vol. 3, 5.8.1. All access bytes of segments."""
    m = Rig(bits, cpl)
    for access in range(256):
        if not access & 0x10:
            continue
        for rpl in (0, 3):
            m.again(cpl)
            m.gdt(FREE, descriptor(access=access, flags=0xa if bits == 64 else 0xc))
            trap = far(m, kind, FREE | rpl)
            dpl = access >> 5 & 3
            ok = access & 8 and (dpl <= cpl if access & 4 else rpl <= cpl and dpl == cpl)
            expected = (GP, FREE) if not ok else (NP, FREE) if not access & 0x80 else DONE
            assert trap.what == expected, (hex(access), rpl)
            if expected == DONE:
                assert trap.cs == FREE | cpl and m.access(FREE) & 1
                if kind == "call":
                    size = 4
                    rsp = trap.rsp if trap.rsp is not None else m["rsp"] + 12
                    assert rsp == STACK - 2 * size
                    after = CODE + len(assemble(f"{kind} fword ptr [0x6000]", bits=bits, at=CODE))
                    assert (m.word(STACK - 8, 4), m.word(STACK - 4, 4) & 0xffff) == (after, CODE3 if cpl else CODE0)


@pytest.mark.parametrize("bits,selector,offset,expected", [
    (32, 0, 0, (GP, 0)), (32, 3, 0, (GP, 0)), (64, 0, 0, (GP, 0)), (32, 0x1000, 0, (GP, 0x1000)), (32, CODE16, 0x20000, (GP, 0)),
    (32, DATA0, 0, (GP, DATA0)), (64, TR, 0, (GP, TR)), (32, TR, 0, (GP, TR)),
])
def test_far_transfer_errors(bits: int, selector: int, offset: int, expected: tuple) -> None:
    """Wrong: null selectors, table limits, CS's limit, a busy TSS or (in long mode) any TSS are not refused, or change something."""
    for kind in ("jmp", "call"):
        m = Rig(bits)
        trap = far(m, kind, selector, offset)
        assert trap.what == expected and trap.rip == CODE and trap.cs == CODE0


def test_far_jump_with_rex_w_checks_canonical() -> None:
    """Wrong: jmp m16:64 to a non-canonical address is taken."""
    m = Rig(64)
    m.poke(0x6000, 8, 1 << 47)
    m.poke(0x6008, 2, CODE0)
    assert m.catch("rex.w jmp fword ptr [0x6000]").what == (GP, 0)


@pytest.mark.parametrize("kind,size", [(4, 2), (12, 4)])
def test_call_gate_to_inner_level(kind: int, size: int) -> None:
    """Wrong: a call gate from level 3 does not switch stacks, copy the parameters, or RETF n does not take all that back."""
    m = Rig(32, 3)
    m.gdt(FREE, gate(CODE0, CODE + 0x100 & (0xffff if size == 2 else ~0), kind, 3, True, 3))
    entry = CODE + 0x100 & (0xffff if size == 2 else ~0)
    retf = f"data16 retf {3 * size}" if size == 2 else f"retf {3 * size}"
    m.load(f"mov ebx, esp; mov edx, cs; mov ebp, ss; mov esi, esp; mov edi, 0x6000; mov ecx, {7 * size}; rep movsb; {retf}", at=entry)
    m.write(STACK - 3 * size, b"".join(n.to_bytes(size, "little") for n in (0x11, 0x22, 0x33)))
    m["rsp"] = STACK - 3 * size
    code = f"call 0x50:0; {END}".replace("call 0x50:0", ".byte 0x9a; .long 0; .word 0x50")
    origin = 0x4000                     # a return address of 16 bits
    trap = m.catch(code, at=origin)
    assert trap.what == DONE and trap.cs == CODE3 and trap.rsp == STACK, trap
    top = SYSTEM + lib.XL_BARE_RING0_STACK
    words = [m.word(0x6000 + n * size, size) for n in range(7)]
    assert m["rbx"] == top - 7 * size and (m["rdx"], m["rbp"]) == (CODE0, DATA0)
    assert words == [origin + 7, CODE3, 0x11, 0x22, 0x33, STACK - 3 * size, DATA3]


def test_call_gate_64() -> None:
    """Wrong: a 64-bit call gate does not push 64-bit words on the TSS's stack with a null SS, or REX.W RETF does not come back."""
    m = Rig(64, 3)
    m.gdt(FREE, gate(CODE0, CODE + 0x100, 12, 3), 0)
    m.load("mov rbx, rsp; mov edx, cs; mov ebp, ss; mov rsi, rsp; mov edi, 0x6100; mov ecx, 32; rep movsb; rex.w retf", at=CODE + 0x100)
    m.poke(0x6000, 8, FREE << 32)
    code = f"call fword ptr [0x6000]; {END}"
    trap = m.catch(code)
    assert trap.what == DONE and (trap.cs, trap.ss, trap.rsp) == (CODE3, DATA3, STACK)
    assert m["rbx"] == SYSTEM + lib.XL_BARE_RING0_STACK - 32 and (m["rdx"], m["rbp"]) == (CODE0, 0)
    assert [m.word(0x6100 + 8 * n, 8) for n in range(4)] == [CODE + len(assemble(code, bits=64, at=CODE)) - 2, CODE3, STACK, DATA3]


CALL_GATE_ERRORS = [
    ("gate's DPL", dict(dpl=2), [], (GP, FREE)),
    ("not present", dict(dpl=3, present=False), [], (NP, FREE)),
    ("null target", dict(dpl=3, selector=0), [], (GP, 0)),
    ("target is data", dict(dpl=3, selector=DATA0), [], (GP, DATA0)),
    ("target beyond the GDT", dict(dpl=3, selector=0x1000), [], (GP, 0x1000)),
    ("target not present", dict(dpl=3, selector=FREE + 0x10), [0x1a], (NP, FREE + 0x10)),
]


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("what,how,access,expected", CALL_GATE_ERRORS, ids=[row[0] for row in CALL_GATE_ERRORS])
def test_call_gate_errors(bits: int, what: str, how: dict, access: list, expected: tuple) -> None:
    """Wrong: a bad call gate, or what it names, gives another exception than vol. 2, CALL."""
    m = Rig(bits, 3)
    m.gdt(FREE, gate(how.get("selector", CODE0), CODE + 0x100, 12, how["dpl"], how.get("present", True)), 0)
    if access:
        m.gdt(FREE + 0x10, descriptor(access=access[0], flags=0xa if bits == 64 else 0xc))
    assert far(m, "call", FREE | 3).what == expected


def test_jump_gate_keeps_its_level() -> None:
    """Wrong: JMP through a call gate reaches an inner level."""
    m = Rig(32, 3)
    m.gdt(FREE, gate(CODE0, CODE + 0x100, 12, 3))
    assert far(m, "jmp", FREE).what == (GP, CODE0)
    m = Rig(32, 3)
    m.gdt(FREE, gate(CODE3, CODE + 0x100, 12, 3))
    assert far(m, "jmp", FREE).what == DONE


@pytest.mark.parametrize("bits", [32, 64])
def test_upper_half_of_gates(bits: int) -> None:
    """Wrong: a 64-bit call gate with a type in its second half is used; a 32-bit one looks there."""
    m = Rig(bits, 3)
    m.gdt(FREE, gate(CODE0, CODE + 0x100, 12, 3), 1 << 40)
    assert far(m, "call", FREE).what == (DONE if bits == 32 else (GP, FREE))


# ---- returns -------------------------------------------------------------------------------------------------------------------

def returns(bits: int, kind: str, frame: list[int], size: int, *, cpl: int = 0, prepare=None, flags: int = 2) -> tuple[Rig, Frame]:
    m = Rig(bits, cpl)
    m["rflags"] = flags
    m.write(0x6000, b"".join((w & (1 << 8 * size) - 1).to_bytes(size, "little") for w in frame))
    m["rsp"] = 0x6000
    m.load(END, at=CODE + 0x100)
    if prepare:
        prepare(m)
    op = {("retf", 4): "retf", ("retf", 8): "rex.w retf", ("iret", 4): "iretd", ("iret", 8): "iretq"}[kind, size]
    return m, m.catch(op)


TARGET = CODE + 0x100
RETURN_ERRORS = [
    # CS, SS, expected
    (0, DATA3, (GP, 0)), (3, DATA3, (GP, 0)), (0x1000, DATA3, (GP, 0x1000)), (DATA0, DATA0, (GP, DATA0)), (CODE3 & ~3, DATA0, (GP, CODE3 & ~3)),
    (CODE0 | 3, DATA3, (GP, CODE0)), (CODE3, 0, (GP, 0)), (CODE3, 3, (GP, 0)), (CODE3, 0x1003, (GP, 0x1000)), (CODE3, DATA0, (GP, DATA0)),
    (CODE3, DATA3 & ~3, (GP, DATA3 & ~3)), (CODE3, DATA0 | 3, (GP, DATA0)), (CODE3, CODE3, (GP, CODE3 & ~3)), (CODE3, DATA3, DONE),
    (FREE | 3, DATA3, (NP, FREE)), (CODE3, FREE + 8 | 3, (SS, FREE + 8)),
]


@pytest.mark.parametrize("bits,size", [(32, 4), (64, 8)])
@pytest.mark.parametrize("kind", ["retf", "iret"])
@pytest.mark.parametrize("cs,ss,expected", RETURN_ERRORS)
def test_returns_to_level_3(bits: int, size: int, kind: str, cs: int, ss: int, expected: tuple) -> None:
    """Wrong: RETF or IRET to an outer level takes a selector that it must refuse, with another error, or has moved rsp before it faults."""
    frame = [TARGET, cs, 2, STACK, ss] if kind == "iret" else [TARGET, cs, STACK, ss]
    def prepare(m: Rig) -> None:
        m.gdt(FREE, descriptor(access=0x7a, flags=0xa if bits == 64 else 0xc), descriptor(access=0x72))
    m, trap = returns(bits, kind, frame, size, prepare=prepare)
    assert trap.what == expected
    if expected == DONE:
        assert (trap.cs, trap.ss, trap.rsp, trap.rip) == (CODE3, DATA3, STACK, TARGET + 2)
    else:
        assert trap.rip == CODE and trap.cs == CODE0
        assert m["rsp"] + (12 + 4 if bits == 32 else 48) == 0x6000


def test_outer_return_drops_inner_data_segments() -> None:
    """Wrong: after IRET to level 3 a data segment of level 0 is still usable, or a conforming or level-3 one is lost."""
    m, trap = returns(32, "iret", [TARGET, CODE3, 2, STACK, DATA3], 4, prepare=lambda m: (
        m.gdt(FREE, descriptor(access=0x9f)), [m.__setitem__(f"{s}.sel", FREE) or m.__setitem__(f"{s}.attr", 0xc9f) for s in ("fs",)],
        m.__setitem__("gs.sel", DATA3), m.__setitem__("gs.attr", 0xcf3)))
    assert trap.what == DONE
    assert [m[f"{s}.sel"] for s in ("es", "ds", "fs", "gs")] == [0, 0, FREE, DATA3]


@pytest.mark.parametrize("cpl,iopl", [(0, 0), (3, 0), (3, 3)])
def test_iret_flags(cpl: int, iopl: int) -> None:
    """Wrong: IRET lets level 3 change IOPL, or IF below IOPL 3; or it does not restore the flags that it may."""
    free = 0x240cd5                     # all that any level may change, without TF and NT
    image = free | IF | IOPL3
    m, trap = returns(32, "iret", [TARGET, CODE3 if cpl else CODE0, image], 4, cpl=cpl, flags=iopl << 12 | 2)
    expected = free | 2 | iopl << 12
    if cpl == 0:
        expected |= IF | IOPL3
    elif iopl == 3:
        expected |= IF
    assert trap.what == DONE and trap.rflags == expected
    m, trap = returns(32, "iret", [TARGET, CODE3 if cpl else CODE0, 2], 4, cpl=cpl, flags=IF | iopl << 12 | 2)
    assert trap.rflags == 2 | (0 if cpl == 0 else iopl << 12 | (IF if iopl < 3 else 0))


def test_iret_in_64_bit_mode_always_pops_the_stack() -> None:
    """Wrong: IRETQ at one level leaves rsp where the frame ended, or refuses a null SS above level 3, or takes one at level 3."""
    m, trap = returns(64, "iret", [TARGET, CODE0, 2, STACK - 64, 0], 8)
    assert trap.what == DONE and (trap.rsp, trap.ss) == (STACK - 64, 0)
    assert returns(64, "iret", [TARGET, CODE3, 2, STACK, 3], 8, cpl=3)[1].what == (GP, 0)
    assert returns(64, "iret", [TARGET, CODE0, 2, STACK, 1], 8)[1].what == (GP, 0)
    assert returns(64, "iret", [1 << 47, CODE0, 2, STACK, 0], 8)[1].what == (GP, 0)
    assert returns(64, "iret", [TARGET, CODE0, 2, STACK, 0], 8, flags=NT | 2)[1].what == (GP, 0), "NT in long mode"
    assert returns(64, "iret", [TARGET, CODE0, 2, STACK, 0], 4)[1].what == DONE


def test_iret_to_compatibility_mode() -> None:
    """Wrong: IRETQ to 32-bit code does not change the code size, or keeps the upper half of rsp."""
    m = Rig(64)
    m.gdt(FREE, descriptor(access=0xfa, flags=0xc))
    m.write(0x6000, struct.pack("<5Q", TARGET, FREE | 3, 2, 0x1_0000_0000 | STACK, DATA3))
    m.load(f"dec eax; {END}", 32, TARGET)           # 48 is REX.W in 64-bit mode
    m["rsp"], m["rax"] = 0x6000, 5
    trap = m.catch("iretq")
    assert trap.what == DONE and m["rax"] == 4 and trap.rsp == STACK and trap.cs == FREE | 3


def test_iret_to_a_16_bit_stack_keeps_the_upper_half() -> None:
    """Wrong: a return to a 16-bit stack segment loads all of ESP (CPUs load SP; the upper half stays the kernel's)."""
    m = Rig(32)
    m.gdt(FREE, descriptor(0, 0xffff, 0xf2, 0))
    m["rsp"] = 0x16000
    m.write(0x16000, struct.pack("<5I", TARGET, CODE3, 2, 0x7fff4000, FREE | 3))
    m.load(END, at=TARGET)
    trap = m.catch("iretd")
    assert trap.what == DONE and trap.rsp == 0x14000


# ---- tasks ----------------------------------------------------------------------------------------------------------------------

NEW = 0x9000


def make_task(m: Rig, *, cs: int = CODE0, ss: int = DATA0, flags: int = 2, ldt: int = 0, ds: int = DATA0, trap: int = 0, access: int = 0x89,
              limit: int = 0x67, es: int = DATA0, eip: int = CODE + 0x100) -> None:
    m.write(NEW, struct.pack("<26I", 0xffff0000, 0x5000, DATA0, *[0] * 4, m["cr3"], eip, flags, 1, 2, 3, 4, 0x7000, 6, 7, 8,
                             es, cs, ss, ds, 0, 0, ldt, trap))
    m.gdt(FREE, descriptor(NEW, limit, access, 0))
    m.load(END, at=CODE + 0x100)


JMP_TASK, CALL_TASK = ".byte 0xea; .long 0; .word 0x50", ".byte 0x9a; .long 0; .word 0x50"


def test_task_jump() -> None:
    """Wrong: a jump to a TSS does not save the old task, load all of the new one, move the busy bit, or set CR0.TS."""
    m = Rig(32)
    make_task(m)
    m["rdx"], m["rsi"], m["rflags"] = 0xabcd, 0x1234, IF | 2
    trap = m.catch(JMP_TASK)
    assert trap == Frame(EXIT, None, CODE + 0x102, CODE0, 2)
    assert [m[r] for r in ("rax", "rcx", "rdx", "rbx", "rbp", "rsi", "rdi")] == [1, 2, 3, 4, 6, 7, 8] and m["rsp"] == 0x7000 - 12
    assert m["tr.sel"] == FREE and m["cr0"] & 8
    assert (m.access(TR), m.access(FREE)) == (0x89, 0x8b)
    old = struct.unpack("<26I", m.read(TSS, 104))
    assert old[8:10] == (CODE + 7, IF | 2) and old[12] == 0xabcd and old[16] == 0x1234 and old[14] == STACK
    assert [x & 0xffff for x in old[18:24]] == [DATA0, CODE0, DATA0, DATA0, DATA0, DATA0]


def test_task_call_and_return() -> None:
    """Wrong: a called task is not linked to its caller with NT, or IRET does not go back, free it and clear NT in its TSS."""
    m = Rig(32)
    make_task(m)
    m.load("again: mov edi, 0x77; pushfd; pop ebx; iretd; jmp again", at=CODE + 0x100)
    trap = m.catch(f"{CALL_TASK}; nop; {END}")
    assert trap == Frame(EXIT, None, CODE + 10, CODE0, 2)
    assert m["tr.sel"] == TR and (m.access(TR), m.access(FREE)) == (0x8b, 0x89)
    assert m.word(NEW, 2) == TR
    saved = struct.unpack("<26I", m.read(NEW, 104))
    assert saved[17] == 0x77 and saved[13] & NT and not saved[9] & NT, "NT was set inside and is clear in the image"


def test_task_gate_for_an_exception() -> None:
    """Wrong: an exception through a task gate does not switch, or its error code is not on the new task's stack."""
    m = Rig(32, 3)
    make_task(m)
    m.set_gate(GP, kind=5, selector=FREE)
    m.load("hlt", at=CODE + 0x100)
    m.start("mov eax, 0x1000; mov ds, eax")
    assert m.go() == HALTED and m["rip"] == CODE + 0x101
    assert m["rsp"] == 0x7000 - 4 and m.word(0x6ffc, 4) == 0x1000 and m["rflags"] & NT and m["cpl"] == 0
    old = struct.unpack("<26I", m.read(TSS, 104))
    assert old[8] == CODE + 5 and old[9] & RF and old[19] & 0xffff == CODE3


@pytest.mark.parametrize("how,expected,new_context", [
    (dict(access=0x8b), (GP, FREE), False), (dict(access=0x09), (NP, FREE), False), (dict(limit=0x66), (TS, FREE), False),
    (dict(cs=DATA0), (TS, DATA0), True), (dict(cs=0), (TS, 0), True), (dict(cs=0x1000), (TS, 0x1000), True), (dict(ss=0), (TS, 0), True),
    (dict(ss=DATA3), (TS, DATA3 & ~3), True), (dict(ds=CODE64 | 4), (TS, CODE64 | 4), True), (dict(ldt=DATA0), (TS, DATA0), True),
    (dict(ldt=0x2c), (TS, 0x2c), True), (dict(eip=0xfffff000, cs=CODE16), (GP, 0), True), (dict(es=FREE + 8), (NP, FREE + 8), True),
])
def test_task_switch_errors(how: dict, expected: tuple, new_context: bool) -> None:
    """Wrong: a bad TSS is not refused before the switch in the old task's context, or a bad selector in it after, in the new one's."""
    m = Rig(32)
    make_task(m, **how)
    m.gdt(FREE + 8, descriptor(access=0x12))
    for vector in (TS, NP, SS, GP):     # the new task's stack may be unusable: these get a task of their own
        m.set_gate(vector, kind=5, selector=FREE + 0x10)
    m.write(0xc000, struct.pack("<26I", 0, 0x5000, DATA0, *[0] * 4, 0, 0x4000, 2, 0, 0, 0, 0, 0x7800, 0, 0, 0, DATA0, CODE0, DATA0, DATA0, 0, 0, 0, 0))
    m.gdt(FREE + 0x10, descriptor(0xc000, 0x67, 0x89, 0))
    m.load("hlt", at=0x4000)
    m.start(JMP_TASK)
    assert m.go() == HALTED and m["rip"] == 0x4001
    assert m.word(m["rsp"], 4) == expected[1]
    assert m.word(0xc000, 2) == (FREE if new_context else TR), "whose context the fault was in"
    base = NEW if new_context else TSS
    assert m.word(base + 0x20, 4) == (how.get("eip", CODE + 0x100) if new_context else CODE)


def test_task_switch_16_bit_tss() -> None:
    """Wrong: a 16-bit TSS is read with the 32-bit layout."""
    m = Rig(32)
    m.write(NEW, struct.pack("<22H", 0, 0, 0, 0, 0, 0, 0, 0x4000, 2, 0x11, 0x22, 0x33, 0x44, 0x7000, 0x66, 0x77, 0x88, DATA0, CODE0, DATA0, DATA0, 0))
    m.gdt(FREE, descriptor(NEW, 0x2b, 0x81, 0))
    m.load(END, at=0x4000)
    assert m.catch(JMP_TASK).what == DONE
    assert [m[r] & 0xffff for r in ("rax", "rcx", "rdx", "rbx", "rdi")] == [0x11, 0x22, 0x33, 0x44, 0x88] and m["fs.sel"] == 0


def test_task_debug_trap() -> None:
    """Wrong: the T bit of a TSS does not give #DB with DR6.BT before the task's first instruction."""
    m = Rig(32)
    make_task(m, trap=1)
    trap = m.catch(JMP_TASK)
    assert trap.vector == DB and trap.rip == CODE + 0x100 and m["dr6"] & 1 << 15


def test_no_tasks_in_long_mode() -> None:
    """Wrong: long mode switches tasks."""
    m = Rig(64)
    m.gdt(FREE, descriptor(NEW, 0x67, 0x89, 0), 0)
    assert far(m, "jmp", FREE).what == (GP, FREE)


# ---- syscall, sysenter -------------------------------------------------------------------------------------------------------------------

STAR = (CODE3 - 0x13 & ~3) << 48 | CODE0 << 32


def test_syscall_and_sysret() -> None:
    """Wrong: SYSCALL does not load CS, SS, rip, rcx, r11 and the masked flags as vol. 2 says, or SYSRET does not undo it."""
    m = Rig(64, 3)
    m.gdt(FREE, descriptor(access=0xfa, flags=0xc), descriptor(access=0xf2), descriptor(access=0xfa, flags=0xa))
    m["star"], m["lstar"], m["sfmask"] = (FREE | 3) << 48 | CODE0 << 32, CODE + 0x100, IF | 0x400
    m["rflags"] = IF | 0x401 | 2
    m.load("pushfq; pop rbx; mov esi, cs; mov edi, ss; sysretq", at=CODE + 0x100)
    trap = m.catch(f"syscall; {END}")
    assert trap.what == DONE and m["rcx"] == CODE + 2 and m["r11"] == IF | 0x403 and m["rbx"] == 3
    assert (m["rsi"], m["rdi"]) == (CODE0, DATA0)
    assert (trap.cs, trap.ss, trap.rflags) == (FREE + 0x10 | 3, FREE + 8 | 3, IF | 0x403)


def test_sysret_to_compatibility_mode_and_errors() -> None:
    """Wrong: SYSRET without REX.W does not go to 32-bit code; SYSCALL or SYSRET run without EFER.SCE; a non-canonical rcx is taken."""
    m = Rig(64)
    m.gdt(FREE, descriptor(access=0xfa, flags=0xc), descriptor(access=0xf2), descriptor(access=0xfa, flags=0xa))
    m["star"] = (FREE | 3) << 48
    m["rcx"], m["r11"], m["rax"] = 0x100000000 | CODE + 0x100, 2, 5
    m.load(f"dec eax; {END}", 32, CODE + 0x100)
    trap = m.catch(".byte 0x0f, 0x07")
    assert trap.what == DONE and trap.cs == FREE | 3 and m["rax"] == 4
    m = Rig(64)
    m["rcx"] = 1 << 47
    assert m.catch("sysretq").what == (GP, 0) and m["cpl"] == 0
    for source in ("syscall", "sysretq"):
        m = Rig(64)
        m["efer"] &= ~1
        assert m.catch(source).vector == UD
    assert Rig(64, 3).catch("sysretq").what == (GP, 0)


@pytest.mark.parametrize("bits", [32, 64])
def test_sysenter_and_sysexit(bits: int) -> None:
    """Wrong: SYSENTER does not load the flat segments, rsp and rip of its MSRs and clear IF; SYSEXIT does not go to level 3."""
    m = Rig(bits, 3)
    if bits == 64:
        m.gdt(0x50, descriptor(access=0x9a, flags=0xa), descriptor(access=0x92), 0, 0, descriptor(access=0xfa, flags=0xa), descriptor(access=0xf2))
        cs, user = 0x50, 0x50 + 32 | 3
    else:
        cs, user = CODE0, CODE3
    m["sysenter_cs"], m["sysenter_esp"], m["sysenter_eip"] = cs, 0x7000, CODE + 0x100
    m["rflags"] = IF | 2
    wide = bits == 64
    rbp, rex = ("rbp", "rex.w;") if wide else ("ebp", "")
    m.load(f"""mov ebx, esp; mov esi, cs; mov edi, ss; pushf; pop {rbp}; mov ecx, {STACK - 8}; mov edx, {CODE + 2}
        {rex} .byte 0x0f, 0x35""", at=CODE + 0x100)
    trap = m.catch(f"sysenter; {END}")
    assert trap.what == DONE and (m["rbx"], m["rsi"], m["rdi"], m["rbp"]) == (0x7000, cs, cs + 8, 2)
    assert (trap.cs, trap.ss, trap.rsp) == (user, user + 8, STACK - 8)
    m = Rig(bits, 3)
    assert m.catch("sysenter").what == (GP, 0), "SYSENTER_CS is null"
    m = Rig(bits)
    assert m.catch(".byte 0x0f, 0x35").what == (GP, 0)
