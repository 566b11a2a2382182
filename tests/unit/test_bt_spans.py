"""The binary translator's spans against the interpreter: accesses whose page an earlier one has looked up, on pages where that holds and where it does not.

A span (csrc/bt/near.c) is for pages at the same distance from their place in the host as most pages are; blocks for others are apart. The page table here
puts the pages of a window where a test wants them. Both engines run the same machine: registers, faults, all memory with the page table's own accessed
and dirty bits, and the count of instructions must be the same; no block is refused by the verifier.
"""

from __future__ import annotations

import pytest
from bt_kit import MARKS, VERIFIED, VERIFY, stats, trap
from hypothesis import given, settings
from hypothesis import strategies as st
from x86_kit import Machine, assemble

from xenlike.engine import lib

pytestmark = MARKS
REGS = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)), "rip", "rflags", "retired", "cr2"]
CODE, HANDLER, STACK, LOG, TABLE = 0x1000, 0x4000, 0x8000, 0xA000, 0x60000
WINDOW, PAGES = 0x40000, 16             # linear: pages that tests put elsewhere
ACCESSED, DIRTY = 0x20, 0x40
SLOW = lib.XL_BT_ONE | lib.XL_BT_NO_CHAIN | lib.XL_BT_FLUSH | lib.XL_BT_TINY_TLB
FILLING = bytes(k * 7 + k // 251 & 255 for k in range(0x20000))
IN_PLACE = b"".join((n << 12 | 7).to_bytes(8, "little") for n in range(512))
MANNERS = [*VERIFIED, VERIFY | SLOW]

# Notes of each fault: cr2, error code (16 bytes further a word of the frame if there is none), rip, flags; and goes on at r15.
NOTE = f"""
    push rax
    push rcx
    mov rcx, [{LOG}]
    mov rax, cr2
    mov [{LOG} + 8 + rcx], rax
    mov rax, [rsp + 16]
    mov [{LOG} + 16 + rcx], rax
    mov rax, [rsp + 24]
    mov [{LOG} + 24 + rcx], rax
    mov rax, [rsp + 40]
    mov [{LOG} + 32 + rcx], rax
    add rcx, 32
    and rcx, 0x7ff
    mov [{LOG}], rcx
    mov [rsp + 24], r15
    pop rcx
    pop rax
    add rsp, 8
    iretq
"""


def identity(n: int) -> int:
    return WINDOW + n * 0x1000 | 7


def elsewhere(n: int) -> int:
    """Each page at another distance, all of them within the window and the one behind."""
    return WINDOW + 0x10000 + (n * 7 + 3 & 15) * 0x1000 | 7


def machine(engine: str, source: str, options: int, *, pages: dict[int, int] | None = None, deliver: bool = False, **regs: int) -> Machine:
    """pages: entries of the page table by page number within the window; the others are where their addresses say. The stack has been used before, so that
    bt->slide is that of such pages."""
    m = Machine(64, engine=engine, options=options, deliver=deliver)
    m.write(TABLE, IN_PLACE)
    for n, entry in (pages or {}).items():
        m.put(TABLE + 8 * (WINDOW // 0x1000 + n), entry)
    m.put(m.system + lib.XL_BARE_PD, TABLE | 7)
    m.write(WINDOW, FILLING)
    for vector in (13, 14):
        m.gate(vector, HANDLER)
    m.code(NOTE, at=HANDLER)
    m.code("push rax; pop rax; hlt", at=0x3000)
    m["rsp"] = STACK
    m.run(10)
    m.code(source)
    m["halted"] = 0
    for name, value in regs.items():
        m[name] = value
    return m


def outcome(m: Machine, budget: int) -> tuple[object, ...]:
    end = m.run(budget)
    return end, trap(m), {name: m[name] for name in REGS}


def pair(source: str, options: int, **how: object) -> list[Machine]:
    return [machine(engine, source, options if engine == "bt" else 0, **how) for engine in ("bt", "interp")]


def check(machines: list[Machine], budget: int = 20_000) -> tuple[object, ...]:
    """Both come to the same end, in the same state; the outcome."""
    bt, interp = (outcome(m, budget) for m in machines)
    assert bt == interp
    ours, theirs = (m.read(0, 0x100000) for m in machines)
    assert ours == theirs, [hex(k) for k in range(len(ours)) if ours[k] != theirs[k]][:16]
    assert stats(machines[0]).rejected == 0
    return bt


def same(source: str, options: int = VERIFY, *, budget: int = 20_000, **how: object) -> list[Machine]:
    machines = pair(source, options, **how)
    check(machines, budget)
    assert stats(machines[0]).translated > 0
    return machines


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
    same(f"""
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


# ---- pages with other addends ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("options", MANNERS)
def test_pages_in_any_order(options: int) -> None:
    """Pages whose distance is another than most pages' would be taken for those, in one of several registers' spans or in an access with an index."""
    same(f"""
        mov ebp, 400
        mov edx, 1
    1:  imul edx, edx, 1103515245
        add edx, 12345
        mov eax, edx
        shr eax, 12
        and eax, 0xfff8
        lea rbx, [{WINDOW} + rax]
        mov ecx, edx
        shr ecx, 9
        and ecx, 0xfff8
        lea rdi, [{WINDOW} + rcx]
        mov r8, [rbx]
        add r8, [rdi]
        push r8
        mov [rbx + 8], r8
        add r9, [{WINDOW} + rax * 1 + 16]
        mov [{WINDOW} + rcx * 1 + 24], r9
        sub [rdi - 8], r9
        pop r10
        add r11, r10
        dec ebp
        jnz 1b
        hlt
    """, options, pages={n: identity(n) if n % 5 == 0 else elsewhere(n) for n in range(PAGES)}, r9=3)


@pytest.mark.parametrize("body", ["mov rax, [rbx]; add rax, [rdi]; mov [rbx + 8], rax; mov [rdi + 8], rax",
                                  "add rax, [rbx + rsi * 8]; mov [rdi + rsi * 8], rax", "mov rax, [rbx]; push rax; mov [rdi], rax; pop rdx"])
def test_a_loop_on_other_pages_stays_in_translated_code(body: str) -> None:
    """Each round would leave for the loop, as its block takes for granted what is not so: right, but at a tenth of the speed. After a few rounds it is replaced by
    one that is apart."""
    source = f"mov rcx, -1; 1: {body}; dec rcx; jnz 1b; hlt"
    machines = pair(source, 0, pages={1: elsewhere(1), 2: elsewhere(2)}, rbx=WINDOW + 0x1000, rdi=WINDOW + 0x2000)
    exits = []
    for _ in range(6):
        check(machines, 3000)
        exits.append(stats(machines[0]).exits)
    grew = [b - a for a, b in zip(exits, exits[1:])]
    assert exits[0] > 8 and max(grew[1:]) <= 4, (exits, "3000 instructions each")


@pytest.mark.parametrize("body", ["mov rax, [rbx]; add rax, [rbx + 8]; mov [rbx + 16], rax", "mov rax, [rbx + rsi * 8]"])
def test_a_page_now_and_then_does_not_make_a_block_apart(body: str) -> None:
    """A rare page elsewhere would make a block apart for good, or be done wrong each time."""
    source = f"""
    1:  mov rbx, r8
        test cx, 0x3ff
        jnz 2f
        mov rbx, r9
    2:  {body}
        add rdx, rax
        dec rcx
        jnz 1b
        hlt
    """
    machines = same(source, 0, pages={1: elsewhere(1)}, rcx=30_000, r8=WINDOW, r9=WINDOW + 0x1000, budget=400_000)
    assert stats(machines[0]).exits < 400


# ---- mappings that change --------------------------------------------------------------------------------------------

FLUSHES = {
    "invlpg": "invlpg [rbx]",
    "mov cr3": "mov r10, cr3; mov cr3, r10",
    "mov cr4": "mov r10, cr4; xor r10, 0x80; mov cr4, r10; xor r10, 0x80; mov cr4, r10",
    "by a handler": "int 0x30",
    "by a call": "call 7f",
    "by a call that follows another access": "mov r10, [rsi + 8]; call 7f; add r10, [rsi + 16]",
}


@pytest.mark.parametrize("options", MANNERS)
@pytest.mark.parametrize("flush", FLUSHES)
@pytest.mark.parametrize("frames", [(1, 2), (2, 1)])
def test_a_page_goes_elsewhere_between_two_accesses_of_a_span(flush: str, frames: tuple[int, int], options: int) -> None:
    """The second access would be to where the page was when the first one looked, in its block or in what goes on for it."""
    source = f"""
        mov ebp, 40
    1:  mov rax, [rbx]
        add r8, [rbx + 24]
        mov rdx, [rsi]
        xor rdx, 0x3000                 # frame 1 <-> frame 2 of the window
        mov [rsi], rdx
        cmp rdx, rbp
        {FLUSHES[flush].replace('; ', chr(10))}
        mov rcx, [rbx + 8]
        add [rbx + 16], rcx
        add r9, rax
        add r9, rcx
        dec ebp
        jnz 1b
        hlt
    7:  invlpg [rbx]
        ret
    """
    machines = pair(source, options, pages={n: identity(m) for n, m in zip((1, 2), frames)}, deliver=True, rbx=WINDOW + 0x1100,
                    rsi=TABLE + 8 * (WINDOW // 0x1000 + 1))
    for m in machines:
        m.code("invlpg [rbx]; iretq", at=0x4800, enter=False)
        m.gate(0x30, 0x4800)
    end = check(machines)
    assert end[0] == "halted"


@pytest.mark.parametrize("options", MANNERS)
def test_a_page_goes_away_between_two_accesses_of_a_span(options: int) -> None:
    """The second access would not fault, or a store still be done on a page that has become read only."""
    for entry in (0, identity(1) & ~2, elsewhere(1) & ~2):
        for access, goes in (("mov rcx, [rbx + 8]", not entry), ("mov [rbx + 8], rcx", True)):
            machines = same(f"mov rax, [rbx]; add rax, rcx; mov [rbx + 16], rax; mov [rsi], rdx; invlpg [rbx]; add rax, 1; {access}; cmp rax, rbx; hlt", options,
                            rbx=WINDOW + 0x1100, rdx=entry, rsi=TABLE + 8 * (WINDOW // 0x1000 + 1))
            assert bool(trap(machines[0])) == goes


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


# ---- bt->slide -------------------------------------------------------------------------------------------------------

A, B, MANY = 0x70000, 0x100000, 40      # linear: pages where their addresses say; as many at another distance


@pytest.mark.parametrize("options", MANNERS)
@pytest.mark.parametrize("flush", ["", "mov rax, cr3; mov cr3, rax"])
@pytest.mark.parametrize("walk", ["one after the other", "at once", "by turns"])
def test_most_pages_come_to_be_elsewhere(walk: str, flush: str, options: int) -> None:
    """When another addend becomes that of most pages, spans that were opened before, entries of the old one, and blocks made for it would be used with the new
    one."""
    access = "mov rax, [{0} + 16]; add rax, [{0} + 24]; mov [{0} + 8], rax; add rdx, [{0} + r8 * 8]; push rax; pop r9; mov [{0} + r8 * 8 + 64], r9; add [{0} + 32], rdx"
    first, second = access.format("rbx"), access.format("rdi")
    step = "add rbx, 0x1000; add rdi, 0x1000"
    loop = "; ".join((f"mov ebx, {A}; mov edi, {B}; mov ecx, {MANY}; 2:", {
        "one after the other": f"{first}; {step}; dec ecx; jnz 2b; {flush}; mov edi, {B}; mov ecx, {MANY}; 3: {second}; {step}; dec ecx; jnz 3b",
        "at once": f"mov r10, [rbx + 40]; mov r11, [rdi + 40]; {first}; {second}; add [rbx + 40], r11; add [rdi + 40], r10; {step}; dec ecx; jnz 2b",
        "by turns": f"{first}; {step}; test cl, 7; jz 3f; {second}; test cl, 8; jz 3f; {second.replace('rdi', 'rdi + 0x1000')}; 3: dec ecx; jnz 2b",
    }[walk], flush))
    source = f"mov ebp, 8; mov r8d, 3; 1: {loop}; cmp rdx, rax; dec ebp; jnz 1b; hlt"
    machines = pair(source, options)
    for m in machines:
        for n in range(MANY + 1):
            m.put(TABLE + 8 * (B // 0x1000 + n), A + (MANY + n) * 0x1000 | 7)
        m["cr3"] = m["cr3"]
    assert check(machines, 100_000)[0] == "halted"


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
