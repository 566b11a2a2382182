"""The binary translator's spans against the interpreter: accesses whose page an earlier one has looked up, where that holds and where not.

A span (csrc/bt/near.c) is for pages at the same distance from their place in the host as most pages are; blocks for others are apart. What
is compared: bt_paging.py. Pages that come to be elsewhere are in test_bt_mappings.py.
"""

from __future__ import annotations

import pytest
from bt_kit import MARKS, VERIFY, stats
from bt_paging import (
    ACCESSED, CODE, DIRTY, LOG, MANNERS, SLOW, STACK, TABLE, WINDOW, check, elsewhere, identity, machine, outcome, pair, same,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from x86_kit import assemble

from xenlike.engine import lib

pytestmark = MARKS


# ---- loads before stores ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("options", MANNERS)
@pytest.mark.parametrize("where", [identity, elsewhere])
@pytest.mark.parametrize("between", ["", "mov rdx, [rbx + 24]", "push rcx; pop rdx", "lea rdx, [rax + 1]; add rdx, rax"])
def test_a_store_faults_and_not_the_load_before_it(where: object, between: str, options: int) -> None:
    """A load whose page is looked up for a later store would fault on a page that can only be read, or the store with the load's error code or address."""
    source = f"cmp rcx, rdi; mov rax, [rbx]; {between}; cmp rax, rdx; mov [rbx + 8], rcx; hlt"
    for readable in (True, False):
        machines = pair(source, options, pages={1: where(1) & ~(2 if readable else 7)}, rbx=WINDOW + 0x1100, rcx=3, rdi=5)
        assert check(machines)[1][:3] == (14, 3 if readable else 0, WINDOW + 0x1100 + 8 * readable)


@pytest.mark.parametrize("options", MANNERS)
@pytest.mark.parametrize("where", [identity, elsewhere])
@pytest.mark.parametrize("stopped", ["cmp rax, rax; je 1f", "cmp rax, 0; jns 1f", "mov rdx, [r9]", "jmp 1f", "ud2", "hlt", "cmp rax, rdx; mov rdx, [r9]; cmp rax, rcx"])
def test_a_store_that_does_not_happen_makes_no_page_dirty(where: object, stopped: str, options: int) -> None:
    """The dirty bit would be set by a load, as its page was looked up for a store that a branch or a fault then kept from happening."""
    source = f"""
        cmp rcx, rdi
        mov rax, [rbx]
        movzx eax, ax
        {stopped}
        mov [rbx + 8], rcx
    1:  mov rdx, [rbx + 16]
        hlt
    """
    machines = same(source, options, pages={1: where(1), 2: 0}, rbx=WINDOW + 0x1100, r9=WINDOW + 0x2000, rcx=3)
    assert machines[0].word(TABLE + 8 * (WINDOW // 0x1000 + 1)) & (ACCESSED | DIRTY) == ACCESSED


@pytest.mark.parametrize("options", MANNERS)
@pytest.mark.parametrize("where", [identity, elsewhere])
def test_a_page_that_becomes_writable_later(where: object, options: int) -> None:
    """After a load by an entry for stores was left to the interpreter, a later round would take the page for one that can be written, or never do so."""
    same("""
        lea r15, [rip + 2f]
        mov ebp, 30
    1:  mov rax, [rbx]
        add rax, [rbx + 16]
        mov [rbx + 8], rax
        add rdx, rax
    2:  test ebp, 7
        jnz 3f
        xor qword ptr [rsi], 2          # read only, writable, ...
        invlpg [rbx]
    3:  dec ebp
        jnz 1b
        hlt
    """, options, pages={1: where(1) & ~2}, deliver=True, rbx=WINDOW + 0x1100, rsi=TABLE + 8 * (WINDOW // 0x1000 + 1), rdx=1)


# ---- ends of pages ---------------------------------------------------------------------------------------------------

KINDS = {
    "all alike": {},
    "the second elsewhere": {2: elsewhere(2)},
    "all elsewhere": {n: elsewhere(n) for n in range(5)},
    "the second not there": {2: 0},
    "the second read only": {2: identity(2) & ~2},
    "the second read only, and elsewhere": {1: elsewhere(1), 2: elsewhere(2) & ~2},
    "the second beyond RAM": {2: 0x3000_0007},
    "two in one place": {2: identity(1)},
    "changed places": {1: identity(2), 2: identity(1)},
}
WALKS = {
    "bytes": (5, "mov al, [rbx]; add dl, [rbx + 8]; mov [rbx - 16], dl"),
    "words": (7, "mov ax, [rbx]; add dx, [rbx + 8]; mov [rbx - 16], dx"),
    "doublewords": (8, "mov eax, [rbx]; add edx, [rbx + 8]; mov [rbx - 16], edx"),
    "quadwords": (8, "mov rax, [rbx]; add rdx, [rbx + 8]; mov [rbx - 16], rdx"),
    "odd": (3, "mov rax, [rbx]; add edx, [rbx + 8]; mov [rbx - 16], dx; mov [rbx - 3], al"),
    "stores first": (8, "mov [rbx], rdx; mov rax, [rbx + 8]; add [rbx - 16], rax"),
    "loads alone": (8, "add rax, [rbx]; add rdx, [rbx + 8]; add rax, [rbx - 16]"),
    "sixteen": (8, "movups xmm0, [rbx]; movups xmm1, [rbx + 8]; movups [rbx - 16], xmm0; movups [rbx + 40], xmm1"),
    "aligned": (16, "movaps xmm0, [rbx]; movaps xmm1, [rbx + 16]; movaps [rbx - 16], xmm0; mov rax, [rbx + 8]"),
    "aligned, now and then": (8, "movaps xmm0, [rbx]; add rax, [rbx + 8]; movaps [rbx - 16], xmm0"),
    "the second not aligned": (16, "movaps xmm0, [rbx]; add rax, 5; movaps xmm1, [rbx + 8]; movaps [rbx - 16], xmm0"),
    "aligned behind others": (8, "mov rax, [rbx]; mov [rbx - 16], rax; movaps xmm0, [rbx + 24]; movaps [rbx + 8], xmm0"),
    "two registers": (8, "mov rax, [rbx]; mov [rdi], rax; add rax, [rbx + 8]; mov [rdi - 16], rax; add rdi, 8"),
    "a base that moves": (8, "mov rax, [rbx]; add rbx, 8; add rax, [rbx]; lea rbx, [rbx - 24]; mov [rbx], rax; sub rbx, -16"),
    "an index": (8, "mov r8d, 4; mov rax, [rbx + r8 * 2 - 8]; add rdx, rax; mov [rbx + r8 * 2 - 24], rdx; add rax, [rbx + r8 * 2]"),
    "an index, loads alone": (8, "mov r8d, 2; mov rax, [rbx + r8 * 4]; add rdx, [rbx + r8 * 4]; add rax, [rbx + r8 * 4 - 8]"),
    "an index that moves": (8, "mov r8d, 1; mov rax, [rbx + r8 * 8 - 8]; add r8, 2; add rax, [rbx + r8 * 8 - 16]; lea r8, [r8 - 1]; mov [rbx + r8 * 8 - 32], rax"),
    "an index, and its base moves": (3, "mov r8d, 1; mov eax, [rbx + r8]; add rbx, 3; add eax, [rbx + r8]; lea rbx, [rbx - 9]; mov [rbx + r8], ax"),
    "an index alone": (8, "mov r8, rbx; shr r8, 3; add r8, 0; mov rax, [r8 * 8]; add rax, [r8 * 8 + 8]; mov [r8 * 8 - 16], rax"),
    "an index, aligned": (16, "mov r8d, 2; movaps xmm0, [rbx + r8 * 8 - 16]; movaps xmm1, [rbx + r8 * 8]; movaps [rbx + r8 * 8 - 32], xmm0"),
    "an index, aligned now and then": (8, "mov r8d, 2; movaps xmm0, [rbx + r8 * 8 - 16]; add rax, [rbx + r8 * 8]; movaps [rbx + r8 * 8 - 32], xmm0"),
    "an index, and flags that must stay": (8, "mov r8d, 1; mov rax, [rbx + r8 * 8]; cmp rax, rdx; mov r9, [rbx + r8 * 8 - 8]; adc r9, [rbx + r8 * 8 + 8]; mov [rbx + r8 * 8], r9"),
    "two places": (8, "mov r8d, 1; mov rax, [rbx + r8 * 8]; mov [rdi + r8 * 4], rax; add rax, [rbx + r8 * 8 + 8]; mov [rdi + r8 * 4 - 16], rax"),
    "more places than are kept": (8, "mov r8d, 1; " + "; ".join(f"add rax, [rbx + r8 * {k}]; add rdx, [rdi + r8 * {k}]" for k in (1, 2, 4, 8))
                                  + "; " + "; ".join(f"mov [rbx + r8 * {k} - 8], rdx; mov [rdi + r8 * {k} + 8], rax" for k in (1, 2, 4, 8))),
    "far": (64, "mov rax, [rbx]; add rax, [rbx + 240]; mov [rbx - 200], rax"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("walk", WALKS)
def test_a_walk_over_the_ends_of_pages(walk: str, kind: str) -> None:
    """Where a span runs over a page's end its other accesses would reach the neighbour in the host; or one that does fit would fault; or a fault come at
    another access than the first that has one, with other flags. A misaligned movaps would be done, or raise the host's own fault."""
    step, body = WALKS[walk]
    for options in (VERIFY, VERIFY | lib.XL_BT_TINY_TLB, VERIFY | SLOW) if walk in ("quadwords", "aligned, now and then") else (VERIFY,):
        for start in (WINDOW + 0x1000, WINDOW + 0x1F00):
            same(f"""
                lea r15, [rip + 2f]
            1:  mov rsi, rbx
                mov rbp, rdi
                cmp rbx, rcx
                {body.replace('; ', chr(10))}
            2:  lea rdi, [rbp + 8]
                lea rbx, [rsi + {step}]
                cmp rbx, rcx
                jb 1b
                hlt
            """, options, pages=KINDS[kind], deliver=True, rbx=start, rcx=WINDOW + 0x3100 if start % 0x1000 else WINDOW + 0x1100, rdi=start + 0x1010, rdx=1)


STACKED = {
    "push [mem]": "push qword ptr [rbx]; push qword ptr [rsp + 8]; push qword ptr [rsp - 24]",
    "pop [mem]": "pop qword ptr [rbx]; pop qword ptr [rsp + 8]; pop qword ptr [rsp - 16]",
    "call [mem]": "lea rax, [rip + 9f]; mov [rbx], rax; call qword ptr [rbx]; hlt; 9: pop rdx; mov rax, [rsp - 16]",
    "call": "call 9f; hlt; 9: mov rdx, [rsp]; push rdx; ret 8",
    "leave": "mov rbp, rsp; mov rax, [rbp + 16]; leave; push rax; mov [rsp - 16], rax",
    "enter": "enter 32, 0; mov [rsp + 8], rax; mov rdx, [rbp + 8]; leave; pop rax",
    "push and pop": "push rax; push rbx; mov rdx, [rsp + 8]; pop rcx; pop rcx; pop rcx",
    "pop rsp": "mov rdx, [rsp - 8]; pop rsp; push rdx",
    "xchg": "push rax; xchg rsp, rbx; mov rdx, [rsp]; push rdx; xchg rsp, rbx; pop rax",
    "return": "lea rax, [rip + 9f]; push rax; mov rdx, [rsp + 8]; ret; 9: mov [rsp - 8], rdx",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("operation", STACKED)
def test_the_stack_at_the_end_of_a_page(operation: str, kind: str) -> None:
    """What pushes and pops at a page's end would have moved rsp although it faulted, or used the wrong one of two pages."""
    machines = pair(f"mov rax, [rsi]; add rax, 1; mov [rsi], rax; {STACKED[operation]}; mov [rsi], rax; hlt", VERIFY, pages=KINDS[kind])
    for turn in range(2):
        for sp in range(WINDOW + 0x1FE0, WINDOW + 0x2030, 4 if turn else 8):
            for m in machines:
                for name, value in {"rip": CODE, "rsp": sp, "rbx": WINDOW + 0x4010, "rsi": WINDOW + 0x1F00, "rbp": sp, "rflags": 2, "halted": 0}.items():
                    m[name] = value
            check(machines, 100)


# ---- pages that the interpreter has ----------------------------------------------------------------------------------

@pytest.mark.parametrize("options", MANNERS)
@pytest.mark.parametrize("where", [identity, elsewhere])
@pytest.mark.parametrize("distance", [8, 5, 16])
def test_a_span_begins_in_a_page_with_code(distance: int, where: object, options: int) -> None:
    """A store to a page with translated code is the interpreter's; those behind it, which cross to the next page, would be done by a span that was not opened."""
    machines = pair(f"""
        lea rbx, [{WINDOW + 0x1F80}]
        mov ebp, 60
        mov dword ptr [{WINDOW + 0x1000}], 0x07ea8348           # sub rdx, 7
        mov byte ptr [{WINDOW + 0x1004}], 0xc3                  # ret
    1:  mov rax, {WINDOW + 0x1000}
        call rax
        add r8, rdx
        mov [rbx], r8
        mov rcx, [rbx + {distance}]
        add rcx, rbp
        mov [rbx + {2 * distance}], rcx
        add [rbx - {distance}], rcx
        add rbx, {distance // 2 or 1}
        dec ebp
        jnz 1b
        hlt
    """, options, pages={1: where(1), 2: where(2)})
    assert check(machines)[0] == "halted"


# ---- what the interpreter does in between ----------------------------------------------------------------------------

@pytest.mark.parametrize("options", [VERIFY, VERIFY | SLOW])
@pytest.mark.parametrize("where", [identity, elsewhere])
@pytest.mark.parametrize("producer", ["cmp rax, rdi", "add rax, rdi", "sub rax, 5", "add al, dl", "cmp rax, rax", "inc rax", "neg rdx"])
@pytest.mark.parametrize("stop", ["fld1", "movq mm0, mm1", "fadd dword ptr [rbx + 8]", "fstp qword ptr [rbx + 8]", "fwait", "movq [rbx + 16], mm0", "movups [rbx + 32], xmm0"])
def test_flags_that_an_x87_fault_shows(stop: str, producer: str, where: object, options: int) -> None:
    """A fault of an x87 instruction (the task was switched; an exception that waits) comes where an access has destroyed the flags, since the instruction behind it
    writes them: its frame would show the translator's own."""
    source = f"""
        lea r15, [rip + 2f]
        mov ebp, 6
    1:  fninit
        {{before}}
        mov rax, [rsi]
        {producer}
        mov rdx, [rbx]
        mov r8, [rbx + 24]
        {stop}
        add rcx, 1
    2:  clts
        fnclex
        mov rax, rdx
        dec ebp
        jnz 1b
        hlt
    """
    for before in ("mov r9, cr0; or r9, 8; mov cr0, r9", "fldcw word ptr [rsi + 8]; fld1; fldz; fdivp", "test ebp, 1; jz 3f; mov r9, cr0; or r9, 8; mov cr0, r9; 3:"):
        machines = pair(source.replace("{before}", before.replace("; ", "\n")), options, pages={1: where(1)}, deliver=True, rbx=WINDOW + 0x1100, rsi=0x9000,
                        rdi=0x7000000000000011, rdx=0x8000000000000001, cr4=0x620)
        for m in machines:
            m.put(0x9000, 0x8000000000000011)
            m.put(0x9008, 0x37B)                                    # division by zero is not masked
            m.code("push 0\njmp 0x4000", at=0x4800, enter=False)    # no error code
            for vector in (7, 16):
                m.gate(vector, 0x4800)
        assert check(machines)[0] == "halted"
        assert machines[0].word(LOG) or "fldcw" in before, "nothing has faulted"


# ---- any program -----------------------------------------------------------------------------------------------------

BASES = ["rbx", "rsi", "rdi", "rbp"]
NARROW = {1: ("al", "byte"), 2: ("ax", "word"), 4: ("eax", "dword"), 8: ("rax", "qword")}
DISPLACEMENTS = st.sampled_from([-64, -40, -24, -17, -16, -8, -3, -1, 0, 1, 4, 8, 12, 16, 24, 31, 32, 48, 100])


@st.composite
def instructions(draw: st.DrawFn) -> str:
    """One line: an access, or something that moves its base."""
    base, disp = draw(st.sampled_from(BASES)), draw(DISPLACEMENTS)
    register, size = NARROW[draw(st.sampled_from([1, 2, 4, 8, 8, 8]))]
    at = f"[{base} + {disp}]"
    return draw(st.sampled_from([
        f"mov {register}, {at}", f"mov {at}, {register}", f"add {register}, {at}", f"add {at}, {register}", f"mov {register}, {at}", f"mov {at}, {register}",
        f"cmp {at}, {register}", f"inc {size} ptr {at}", f"movups xmm0, {at}", f"movups {at}, xmm0", f"movaps xmm1, [{base} + {disp & ~15}]",
        f"movaps [{base} + {disp & ~15}], xmm1", f"add {base}, {disp}", f"lea {base}, {at}", f"sub {base}, -8", f"mov {base}, r{8 + BASES.index(base)}",
        f"mov rax, [{base} + rcx * 8 + {disp}]", f"mov [{base} + rcx * 8 + {disp}], rax", "push rax", "pop rax", f"push qword ptr {at}", f"pop qword ptr {at}",
        f"mov rax, [rsp + {disp & 63}]", f"mov [rsp - {disp & 63}], rax", "adc rax, rdx", "cmp rax, rdx; jc 4f", "4: sub rdx, rax; cmp rdx, 77", "call 5f",
        "mov r8, [r12 + 16]; mov [r12 + 24], r8", f"invlpg {at}", "stosb", f"xadd {at}, {register}",
    ]))


PAGE = st.sampled_from(["identity", "identity", "identity", "elsewhere", "elsewhere", "read only", "read only elsewhere", "not there"])
NEAR_END = st.builds(lambda page, off: WINDOW + page * 0x1000 + off, st.integers(1, 7), st.sampled_from([-64, -24, -16, -9, -8, -1, 0, 5, 8, 16, 32, 0x700]))


def entry_of(kind: str, n: int) -> int:
    where = elsewhere(n) if "elsewhere" in kind else identity(n)
    return 0 if kind == "not there" else where & ~2 if "read only" in kind else where


@settings(max_examples=120, deadline=None)
@given(st.lists(instructions(), min_size=2, max_size=14), st.lists(PAGE, min_size=9, max_size=9), st.lists(NEAR_END, min_size=5, max_size=5), st.integers(2, 24))
def test_any_program_is_the_interpreters(lines: list[str], kinds: list[str], bases: list[int], rounds: int) -> None:
    """Wrong: any access, any fault, any flag, with pages of each kind, in blocks with spans, without, and half."""
    body = "\n".join(lines).replace("; ", "\n")
    source = f"1: {body}\n4: mov rdi, r10\n5: dec ecx\njnz 1b\nhlt".replace("call 5f", "call 6f") + "\n6: mov rax, [rbx + 8]\nmov [rbx], rax\nret"
    code = assemble(source)
    regs = {"rcx": rounds, "rsp": bases[4] & ~7, "r12": bases[3], "rdx": 1, **dict(zip(BASES, bases)), **{f"r{8 + n}": base for n, base in enumerate(bases[:4])}}
    pages = {n: entry_of(kind, n) for n, kind in enumerate(kinds)}
    tail = CODE + code.index(assemble("mov rdi, r10\ndec ecx"))
    theirs = machine("interp", source, 0, pages=pages, **regs)
    ours = [machine("bt", source, options, pages=pages, **regs) for options in (0, VERIFY, SLOW, VERIFY | SLOW)]
    for _ in range(4):                  # a fault ends the round
        want = outcome(theirs, 1000)
        memory = theirs.read(0, 0x100000)
        for m in ours:
            assert outcome(m, 1000) == want, (source, stats(m).options)
            assert m.read(0, 0x100000) == memory, (source, stats(m).options)
            assert stats(m).rejected == 0
        if not want[1]:
            break
        for m in (theirs, *ours):
            m["rip"], m["rsp"] = tail, STACK if m["rsp"] % 16 else m["rsp"]
