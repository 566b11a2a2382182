"""Operands that are in one page whatever registers are (csrc/bt/range.c), against the interpreter: tables read by an index that was masked or
extended just before, variables by their addresses. One test a block shows that the page is as most are; where it is not, or is none, all must be as
in the interpreter.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from bt_code import Code
from bt_kit import MARKS, VERIFY
from bt_paging import ACCESSED, CODE, DIRTY, MANNERS, WINDOW, elsewhere, identity, machine, same
from bt_paging import TABLE as PAGE_TABLE
from x86_kit import assemble

pytestmark = MARKS
TABLE = WINDOW + 0x1000
BOUNDS = ["and ecx, 0xff", "movzx ecx, cl", "movzx ecx, ch", "shr ecx, 24", "shr rcx, 56", "and rcx, 0xf0; shr ecx, 2", "and ecx, 7; shl ecx, 5",
          "and ecx, 0x1f; add rcx, 8", "and ecx, 0x1f; sub rcx, 8; add ecx, 8", "xor ecx, ecx", "mov ecx, 200", "and ecx, 15; mov rdx, rcx; mov ecx, edx",
          "sub ecx, ecx; lea rcx, [rcx + 17]", "movzx rcx, cl; and ecx, 0x7c", "and ecx, -16; and ecx, 0xff", "movzx ecx, cl; shl rcx, 1; shr rcx, 3"]
LOOSE = ["and cx, 0xff", "and ecx, 0xff; add rcx, rdx", "movzx cx, cl", "and rcx, -16", "and ecx, 0xff; sub rcx, 1", "mov cl, 3", "and ecx, 7; imul ecx, ecx, 5",
         "and ecx, 0xff; shl rcx, 20", "shl ecx, 1", "and ecx, 0xff; neg rcx", "and ecx, 0xff; xchg rcx, rsi", "and ecx, 0xff; cmp eax, 1; cmovb rcx, rsi",
         "movsx ecx, cl", "and ecx, 0xff; sub ecx, 1"]
OPERANDS = ["qword ptr [rcx * 8 + {at}]", "qword ptr [rcx + {at}]", "qword ptr [rcx * 2 + {at}]"]


def walk(bound: str, operand: str) -> str:
    """A loop over numbers that all bits of change."""
    return f"""
        mov ebp, 60
        mov r8, 0x9e3779b97f4a7c15
        mov rsi, 3
    top: imul r8, r8, 0x5851f42d
        add r8, 12345
        mov rcx, r8
        ror rcx, 17
        mov rdx, rbp
        {bound}
        mov rdi, rcx
        mov r9, {operand}
        add rax, r9
        {bound}
        mov rcx, rdi
        dec ebp
        jnz top
        hlt
    """


@pytest.mark.parametrize("options", MANNERS[:2])
@pytest.mark.parametrize("operand", OPERANDS)
@pytest.mark.parametrize("bound", BOUNDS)
def test_a_table_by_a_bounded_index(bound: str, operand: str, options: int) -> None:
    """An element would be read from elsewhere: the page's test says nothing of the register that it was not made with."""
    same(walk(bound, operand.format(at=TABLE)), options)


@pytest.mark.parametrize("operand", OPERANDS)
@pytest.mark.parametrize("bound", LOOSE)
def test_a_table_by_an_index_that_is_not_bounded(bound: str, operand: str) -> None:
    """A bound would be believed in that does not hold: the access leaves the page, and the guest's memory."""
    same(walk(f"{bound}; cmp rdx, rsi", operand.format(at=TABLE)), VERIFY, deliver=True, r15=CODE)     # flags of the bound may be undefined


@pytest.mark.parametrize("options", MANNERS)
@pytest.mark.parametrize("where", [identity, elsewhere])
@pytest.mark.parametrize("rights", [7, 5, 0], ids=["writable", "read only", "absent"])
@pytest.mark.parametrize("access", ["mov rdx, [{at}]", "mov [{at}], rbp", "add [{at}], rbp", "mov rdx, [{at}]; cmp rax, rdx; mov [{at} + 8], rax",
                                    "and ecx, 15; mov rdx, [rcx * 8 + {at}]; add rdx, 5; mov [rcx * 8 + {at}], rdx",
                                    "and ecx, 0xf0; movaps xmm0, [rcx + {at}]; addps xmm0, xmm1; movaps [rcx + {at}], xmm0",
                                    "shl ecx, 3; and ecx, 0x78; movaps xmm0, [rcx + {at}]", "mov edx, [{end} - 3]", "mov edx, [{end} - 4]",
                                    "and ecx, 3; shl ecx, 2; and ecx, 12; mov edx, [rcx + {end} - 16]", "and ecx, 3; shl ecx, 2; and ecx, 12; mov edx, [rcx + {end} - 15]"])
def test_a_variable_in_any_page(access: str, rights: int, where: Callable[[int], int], options: int) -> None:
    """A fault would show other flags, come at another access, or be missed; a page would become dirty that nothing was stored into. AF behind a shift is
    undefined, so none comes last."""
    source = f"""
        mov ebp, 30
        lea r15, [rip + next]
    top: mov rcx, rbp
        shl rax, 1
        add rax, rbp
        {access.format(at=TABLE + 0x100, end=TABLE + 0x1000)}
        add rbx, rdx
    next: dec ebp
        jnz top
        hlt
    """
    pages = {n: where(n) for n in range(16)}
    pages[1] = pages[1] & ~7 | rights
    same(source, options, pages=pages, deliver=True)


def test_a_load_before_a_branch_to_a_store_makes_no_page_dirty() -> None:
    """The load's page would be tested for a store that never comes."""
    for m in same(f"mov ebp, 20; top: mov rax, [{TABLE}]; cmp rax, rax; je 1f; mov [{TABLE}], rax; 1: dec ebp; jnz top; hlt"):
        assert m.word(PAGE_TABLE + 8 * (TABLE // 0x1000)) & (ACCESSED | DIRTY) == ACCESSED


def loop(body: str) -> tuple[object, Code, int]:
    """The machine, its translations, and the number of the last block with such a test."""
    m = machine("bt", f"mov ebp, 400; mov ecx, 0x1234; top: {body}; dec ebp; jnz top; hlt", 0)
    m.run(10_000)
    code = Code(m)
    blocks = [n for n in code.blocks() if any(i.mnemonic == "cmp" and code.names(i).startswith("slid.") for i in code.instructions(n))]
    return m, code, max(blocks)


BODY = f"mov ecx, ebp; and ecx, 0xff; add rdx, [rcx * 8 + {TABLE}]; mov rax, [{TABLE} + 0x200]; movzx ebx, bpl; add rdx, [rbx + {TABLE} + 0x10]"


def test_one_test_serves_a_page() -> None:
    """Each round would test anew: the loop is unrolled, and all that it reads is in one page."""
    _, code, n = loop(BODY)
    assert code.row(n).nr > 20 and code.why(n) is None
    assert sum(code.names(i).startswith("slid.") and i.mnemonic in ("cmp", "add") for i in code.instructions(n)) == 1


DEFECTS = {
    "another page": lambda i: i.mnemonic == "cmp" and i.bytes[:-4] + (int.from_bytes(i.bytes[-4:], "little") + 0x1000 & 0xffffffff).to_bytes(4, "little"),
    "no whole page": lambda i: i.mnemonic == "cmp" and i.bytes[:-4] + (int.from_bytes(i.bytes[-4:], "little") + 8 & 0xffffffff).to_bytes(4, "little"),
    "the other condition": lambda i: i.mnemonic == "jne" and bytes([i.bytes[0], i.bytes[1] ^ 1, *i.bytes[2:]]),
    "no jump": lambda i: i.mnemonic == "jne" and assemble("nop") * len(i.bytes),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_the_verifier_sees_a_wrong_test(defect: str) -> None:
    """A defect of this emitter would pass: these are not among the program's of bt_code.py."""
    _, code, n = loop(BODY)
    listing = code.instructions(n)
    k = next(k for k, i in enumerate(listing) if i.mnemonic == "cmp" and code.names(i).startswith("slid."))
    i, new = next((i, bytes(new)) for i in listing[k:] if (new := DEFECTS[defect](i)))
    assert len(new) == len(i.bytes) and new != i.bytes
    code.plant(i.address, new)
    assert code.why(n) is not None


@pytest.mark.parametrize("by", [0x800, -0x20, 0x1000])
def test_the_verifier_sees_an_access_beyond_the_page(by: int) -> None:
    """An operand with a wrong displacement, or of a table that is not all in the page, would pass."""
    _, code, n = loop(BODY)
    i = next(i for i in code.instructions(n) if "r14 + rcx*8" in i.op_str)
    at = i.bytes.index((TABLE & 0xffffffff).to_bytes(4, "little"))
    code.plant(i.address + at, (TABLE + by & 0xffffffff).to_bytes(4, "little"))
    assert code.why(n) is not None
