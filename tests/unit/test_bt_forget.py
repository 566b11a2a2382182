"""INVLPG in translated code: nothing of the page is left at either level of the translator's TLB, whatever other pages had its place in L1."""

from __future__ import annotations

import pytest

from bt_kit import MARKS, VERIFY
from x86_rig import SYSTEM, HALTED, Rig
from xenlike.engine import lib

pytestmark = MARKS
TABLES, PAGE, ALIAS = (0xa000, 0xc000), 0x40000, 0x40000 + (64 << 20)          # L1 has 16,384 entries: both pages have one place there
FRAMES = 0x50000


def entry(page: int) -> int:
    """Where the page-table entry is."""
    return TABLES[page >= ALIAS] + (page >> 9) % 4096


def machine(source: str, engine: str) -> Rig:
    """Pages of 4 KiB: the first 2 MiB one to one, but for PAGE; ALIAS. Frame n of FRAMES begins with n."""
    m = Rig(64)
    if engine == "bt":
        assert lib.xl_bare_engine(m.c, True, VERIFY) == 0
    for n in range(512):
        m.poke(TABLES[0] + 8 * n, 8, n << 12 | 7)
    m.poke(SYSTEM + lib.XL_BARE_PD, 8, TABLES[0] | 7)
    m.poke(SYSTEM + lib.XL_BARE_PD + 8 * 32, 8, TABLES[1] | 7)
    for n, page in enumerate((PAGE, ALIAS)):
        m.poke(entry(page), 8, FRAMES + (n << 12) | 7)
    for n in range(8):
        m.poke(FRAMES + (n << 12), 8, n)
    m["cr3"] = m["cr3"]
    m.start(source)
    return m


def map_to(page: int, frame: int) -> str:
    return f"mov qword ptr [{entry(page)}], {FRAMES + (frame << 12) | 7}; mov edx, {page}; invlpg [rdx];"


@pytest.mark.parametrize("engine", ["interp", "bt"])
@pytest.mark.parametrize("first,second", [(PAGE, ALIAS), (ALIAS, PAGE)])
@pytest.mark.parametrize("copies", [1, 2])
def test_pages_with_one_place(engine: str, first: int, second: int, copies: int) -> None:
    """Wrong: when one page's entries are dropped it is forgotten that the first level still has the other's, and its INVLPG leaves the old translation."""
    loads = "mov rax, [rsi]; nop; mov rbx, [rdi];" + "mov rcx, [rsi]; nop; mov rbp, [rdi];" * (copies - 1)
    m = machine(f"""
        mov esi, {PAGE}
        mov edi, {ALIAS}
        xor r8d, r8d
    1:  {loads}
        inc r8d
        cmp r8d, 2
        je 2f
        {map_to(first, 6)}
        {map_to(second, 7)}
        jmp 1b
    2:  hlt""", engine)
    assert m.go() == HALTED
    assert (m["rax"], m["rbx"]) == ((6, 7) if first == PAGE else (7, 6))
    if copies == 2:
        assert (m["rcx"], m["rbp"]) == (m["rax"], m["rbx"])
