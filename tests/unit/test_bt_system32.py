"""System instructions of 32-bit code in the translator, in line and called out, against the interpreter: as test_bt_system.py has those of 64-bit code.

What differs is the stack, whose words have four bytes and whose pointer has 32 bits, a segment register's push, which writes two of the four, and control
registers, of which 32 bits are shown.
"""

from __future__ import annotations

import pytest
from bt_code import GS, Code, add32, edit, nops
from bt_kit import MARKS, VERIFIED, stats
from hypothesis import given, settings
from hypothesis import strategies as st
from test_bt_system import CPU, STACK, always, budgets_leave_the_shadow, interrupts_wait_alike, machine, outcome, rounds, same
from x86_kit import IF

pytestmark = MARKS
HIGH = 0x1234_5678 << 32        # upper halves, which 32-bit code does not see

# ---- one by one ------------------------------------------------------------------------------------------------------

ANYWHERE = ["cld", "std; cld", "pushfd; pop eax", "pushfd; popfd", "mov eax, ds", "mov ecx, ss", "mov edi, cs", "mov edx, es", "push fs; pop eax", "push gs; pop edx",
            "push -1; pop edi; push es; pop eax", "push cs; push ss; push ds; pop eax; pop ecx; pop edx", "sldt eax", "str ecx", "smsw edx", "smsw esp; mov esp, 0x8000",
            "mov esp, ds; mov esp, 0x8000"]
LEVEL_0 = ["cli", "sti; nop", "cli; sti; nop; cli", "push 0x46; popfd", "push 0x247; popfd", "push 0xad7; popfd", "push 0x402; popfd; cld", "mov eax, cr0",
           "mov edi, cr2", "mov ecx, cr3", "mov edx, cr4", "mov esp, cr2; mov esp, 0x8000"]


@pytest.mark.parametrize("high", [0, HIGH])
@pytest.mark.parametrize("source,cpl", [*((s, 0) for s in LEVEL_0 + ANYWHERE), *((s, 3) for s in ANYWHERE)])
def test_an_instruction_in_line_does_what_the_interpreter_does(source: str, cpl: int, high: int) -> None:
    """Wrong: a register (an upper half, too), a flag or a field of the CPU differs behind it; or it is not done in line at all."""
    for flags in (2, 2 | IF, 0xad7, 0x8d7 | 0x400, 0x3202, 0x202000):
        m = same("mov ebp, esp; add esi, edi; " + source + "; jmp 1f; 1: hlt", bits=32, cpl=cpl, deliver=False, rflags=flags, cr2=0x1234 | high, rax=0x55 | high,
                 rcx=0x66 | high, rdx=0x77 | high, rdi=2**31 + 7 | high, rsi=2**31 + 9 | high, rsp=STACK | high)
        assert flags & 0x203000 or stats(m).interpreted <= 1, source


@pytest.mark.parametrize("at", [0x8001, 0x8002, 0x9001, 0x9002, 0x9003, 0x9004])
@pytest.mark.parametrize("source", ["pushfd", "popfd", "push ds", "push gs", "pushfd; popfd", "push es; push cs"])
def test_a_stack_that_is_not_aligned(source: str, at: int) -> None:
    """Wrong: a word of the stack that crosses pages, or that of a segment register, of which the half that is written does not."""
    for flags in (2, 0x8d7):
        m = same(f"mov ecx, 3; 1: add edi, eax; {source}; mov esp, {at}; adc edx, ecx; dec ecx; jnz 1b; hlt", bits=32, deliver=False, rflags=flags, rsp=at)
        assert stats(m).translated > 5


@pytest.mark.parametrize("at", [0x8010, 0x8013])
def test_a_segment_register_is_pushed_as_two_bytes(at: int) -> None:
    """Wrong: the upper half of the four bytes, which stays, is written; or what is written is not at the lower end."""
    source = "mov eax, -1; mov ecx, 2; 1: mov [0x8000], eax; mov [0x8008], eax; mov [0x800c], eax; mov [0x8010], eax; push ds; add esp, 4; dec ecx; jnz 1b; hlt"
    for m in (same(source, bits=32, deliver=False, rsp=at), machine("interp", source, bits=32, deliver=False, rsp=at)):
        m.run(5000)
        assert m.read(at - 4, 4) == m["ds.sel"].to_bytes(2, "little") + b"\xff\xff" and m.read(at - 8, 4) == b"\xff" * 4


NOT_IN_LINE = ["push 0x302; popfd; nop; nop", "push 0x4002; popfd; nop", "push 0x40002; popfd; nop", "push 0x200002; popfd; nop", "push 0x3002; popfd; nop",
               "push 0x20002; popfd; pushfd; nop", "push 0x10002; popfd; pushfd; nop", "pushfw; popfw; nop", "cli; nop", "sti; nop", "mov eax, cr0", "mov eax, cr3",
               ".byte 0x0f, 0x20, 0xc0 + 8", ".byte 0x44, 0x0f, 0x20, 0xc0", ".byte 0xf0, 0x0f, 0x20, 0xc0", "mov word ptr [0x9800], ds", "smsw word ptr [0x9800]", "smsw ax",
               "mov ax, ds", "sldt cx", "data16 push ds; data16 pop ds", "data16 push fs; nop; pop ax", "push ds; pop ds", "push ss; pop ss; nop; nop", "push es; pop es",
               "push ds; pop fs; push ds; pop gs; mov ebx, gs:[0x9000]", "mov eax, cr3; mov cr3, eax; mov ebx, [0x9000]", "hlt", "in al, 0x71; nop", "int 0x30; nop",
               "mov eax, ds; mov ds, eax; nop", "mov eax, ss; mov ss, eax; nop; nop", "mov eax, 0x1234; mov fs, eax", "clts; nop", "iretd",
               "push 2; push cs; push offset 2f; iretd; nop; 2: nop", "mov esp, 0x12345678; pushfd", "mov esp, 0x12345678; popfd", "mov esp, 0x12345678; push ds",
               "mov esp, 2; pushfd", "mov esp, 2; push ds", "mov esp, 3; push ds", "mov esp, -2; popfd", "xor esp, esp; push cs", "push 0x246; popfd; int3"]


@pytest.mark.parametrize("cpl", [0, 3])
@pytest.mark.parametrize("source", NOT_IN_LINE)
def test_what_is_called_out_faults_and_changes_as_in_the_interpreter(source: str, cpl: int) -> None:
    """Wrong: rules by level (IOPL 0 and 3), faults with their rip and error code, operands of 16 bits, TF, the shadow of mov ss, a stack that wraps."""
    for flags in (2 | IF, 0x3002 | 0x8d5):
        for budgets in ((50,), (1,) * 6):
            same("add esi, edi; " + source + "; mov ebp, [0x9000]; jmp 1f; 1: hlt", bits=32, budgets=budgets, cpl=cpl, deliver=False, rflags=flags, rdi=2**31 + 7,
                 rsi=2**31 + 9, rcx=5)


@pytest.mark.parametrize("change", [{"ss.base": 0x100}, {"ss.limit": 0x7fff}, {"ss.attr": 0x893}, {"ss.attr": 0xc97, "ss.limit": 0x100}, {"ds.base": 16}])
def test_a_stack_segment_that_is_not_flat(change: dict[str, int]) -> None:
    """Wrong: pushf, popf or the push of a segment register goes beside a segment's base, beyond its limit, or by 32 bits of a 16-bit stack pointer."""
    ends = []
    for engine in ("bt", "interp"):
        m = machine(engine, "mov ecx, 3; 1: pushfd; push ds; pop eax; popfd; push es; pop edx; dec ecx; jnz 1b; hlt", bits=32, deliver=False)
        for name, value in change.items():
            m[name] = value
        ends.append([outcome(m, budget) for budget in (7, 100)])
    assert ends[0] == ends[1]


# ---- interrupts ------------------------------------------------------------------------------------------------------

OPENINGS = {
    "sti": "cli; nop; sti; inc ebx; inc ebx; cli",
    "sti twice": "cli; sti; sti; inc ebx; cli",
    "sti, then a branch": "cli; sti; jmp 2f; 2: inc ebx; cli",
    "sti, then a call": "cli; sti; call 3f; inc ebx; cli",
    "sti, then a return": "cli; push offset 2f; sti; ret; 2: inc ebx; cli",
    "sti, then a miss": "cli; sti; mov eax, [0x7ff8]; inc ebx; cli",
    "sti, then a called out one": "cli; sti; verr ax; inc ebx; cli",
    "sti, then a push": "cli; sti; push ds; pop eax; cli",
    "sti and cli": "cli; sti; cli; inc ebx",
    "popf": "cli; pushfd; or dword ptr [esp], 0x200; popfd; inc ebx; inc ebx; cli",
    "popf that closes": "pushfd; and dword ptr [esp], ~0x200; popfd; inc ebx; sti; inc ebx",
    "iret": "cli; pushfd; or dword ptr [esp], 0x200; push cs; mov word ptr [esp + 2], 0; push offset 2f; iretd; 2: inc ebx; cli",
    "sti, then mov ss": "cli; mov eax, ss; sti; mov ss, eax; inc ebx; inc ebx; cli",
}


@pytest.mark.parametrize("options", VERIFIED)
@pytest.mark.parametrize("opening", OPENINGS)
def test_an_interrupt_waits_for_the_same_instruction(opening: str, options: int) -> None:
    """Wrong: an interrupt that waits with IF clear, or is raised after any number of instructions, comes an instruction early or late."""
    interrupts_wait_alike(OPENINGS[opening], options, bits=32)


@pytest.mark.parametrize("opening", OPENINGS)
def test_a_budget_that_ends_in_the_shadow_leaves_it(opening: str) -> None:
    """Wrong: a run that is cut between sti and the next instruction forgets the shadow, so that what is raised meanwhile comes too early."""
    budgets_leave_the_shadow(OPENINGS[opening], bits=32)


# ---- any sequence ----------------------------------------------------------------------------------------------------

SNIPPETS = [*LEVEL_0, *ANYWHERE, "add eax, ecx", "cmp esi, edi", "adc edx, esi", "setc dl", "push eax; popfd", "mov [0x9800], eax", "jc 2f; inc ebx; 2:", "int 0x30",
            "lock xadd [0x9808], ecx", "out 0xe9, al", "in eax, 0x71", "mov eax, ds; mov es, eax", "mov edi, cr3; mov cr3, edi", "clts", "call 3f", "lar eax, ecx",
            "sgdt [0x9810]", "invlpg [0x9000]", "mov edx, [0x7000]", "mov eax, ss; mov ss, eax", "push ds; pop ds", "pushfw; popfw", "dec esp; pushfd; popfd; inc esp"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(SNIPPETS), min_size=1, max_size=12), st.sampled_from([2, 2 | IF, 0xad7, 0x3606]), st.sampled_from([0, 0, 3]),
       st.sampled_from(VERIFIED), st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_any_sequence_is_the_interpreters(snippets: list[str], flags: int, cpl: int, options: int, budgets: list[int]) -> None:
    """Wrong: state that one instruction leaves in another place than the interpreter, seen by a later one, a fault or an interrupt."""
    same(rounds(3, "\n".join(snippets)), options, bits=32, budgets=(*budgets, 400), interrupts=True, cpl=cpl, rflags=flags)


# ---- the verifier ----------------------------------------------------------------------------------------------------

IN_LINE = "cli; sti; nop; pushfd; popfd; push ds; mov eax, cr3; hlt"

DEFECTS = {
    "pushf pushes eight bytes": edit(r"mov dword ptr \[r14\], r15d", lambda i, c: b"\x4d" + i.bytes[1:]),
    "pushf moves all of rsp": edit(r"lea r13d, \[r13 - 4\]", lambda i, c: b"\x4d" + i.bytes[1:]),
    "pushf moves by eight": edit(r"lea r13d, \[r13 - 4\]", lambda i, c: i.bytes[:-1] + b"\xf8"),
    "pushf stores where rsp, not cut, is": edit(r"lea r14d, \[r13 - 4\]", lambda i, c: b"\x4d" + i.bytes[1:]),
    "popf pops eight bytes": edit(r"mov r15d, dword ptr \[r14\]", lambda i, c: b"\x4d" + i.bytes[1:]),
    "popf moves by eight": edit(r"lea r13d, \[r13 \+ 4\]", lambda i, c: i.bytes[:-1] + b"\x08"),
    "popf does not look for interrupts": edit(r"jrcxz", always, nth=4),
    "popf compares less": edit(r"lea rcx, \[rcx \+ r15 \+ 1\]", lambda i, c: i.bytes[:-1] + b"\x02"),
    "push of a selector writes four bytes": edit(r"mov word ptr \[r14\], r15w", lambda i, c: b"\x90" + i.bytes[1:]),
    "push of a selector moves by two": edit(r"lea r13d, \[r13 - 4\]", lambda i, c: i.bytes[:-1] + b"\xfe", nth=1),
    "push of another selector": edit(r"movzx r15d, word ptr \[r15 \+ 0x[0-9a-f]+\]", add32(16)),
    "push of a selector with its neighbour": edit(r"movzx r15d, word ptr \[r15 \+ 0x[0-9a-f]+\]", lambda i, c: b"\x90\x45\x8b" + i.bytes[3:]),
    "all 64 bits of a control register": edit(rf"mov r15d, dword ptr {CPU}", lambda i, c: b"\x4d" + i.bytes[1:]),
    "cli changes nothing": edit(rf"mov qword ptr {CPU}, r15", nops),
    "pushf shows the host's IF": edit(rf"pext r15, r15, {GS}", add32(8), nth=4),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_the_verifier_sees_a_defect_of_what_is_in_line(name: str) -> None:
    """Wrong: an emitter with this defect would pass. Without one the same block must pass."""
    m = machine("bt", IN_LINE.replace("; ", "\n"), 0, bits=32, deliver=False)
    assert m.run(50) == "halted"
    code = Code(m)
    first = code.at(0x1000)
    assert code.why(first) is None
    assert DEFECTS[name](code) == first, "the pattern must match there"
    assert code.why(first) is not None
