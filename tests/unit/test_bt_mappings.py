"""Translated accesses to pages that are not where most pages are, or come to be elsewhere: page-table changes, another ``bt->slide``.

Spans (csrc/bt/near.c) take for granted where most pages are; here that does not hold, or no longer. What is compared with the interpreter:
bt_paging.py.
"""

from __future__ import annotations

import pytest
from bt_kit import MARKS, stats, trap
from bt_paging import MANNERS, PAGES, TABLE, WINDOW, check, elsewhere, identity, pair, same

pytestmark = MARKS


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
