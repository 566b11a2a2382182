"""The verifier of translated code (``xl_bt_verify``): what is sound passes, in every manner of emission; what is changed is refused.

Planted defects, each as one wrong line of the emitter would cause it, are in test_bt_defects.py.
"""

from __future__ import annotations

import re

import pytest
from bt_code import PROGRAM, WHOLE, Code, by_entry, machine, outcomes, translated
from bt_kit import MARKS

from xenlike.engine import ffi, lib

pytestmark = MARKS


@pytest.mark.parametrize("moved", [False, True])
def test_sound_translations_pass_and_agree(moved: bool) -> None:
    """The verifier would refuse what is right, or the comparison find differences where no defect is: then neither finds defects."""
    want = outcomes(machine(PROGRAM, translate=False, moved=moved))
    m, code = translated(moved=moved)
    assert any(by_entry(code, listing, k) for n in code.blocks() for listing in [list(code.instructions(n))] for k in range(len(listing))) or not moved
    assert {code.row(n).va: code.why(n) for n in code.blocks()} == {code.row(n).va: None for n in code.blocks()}
    assert len(code.blocks()) >= 6 and code.stats.rejected == 0
    assert outcomes(m) == want


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("options", [0, lib.XL_BT_ONE, lib.XL_BT_NO_CHAIN, lib.XL_BT_TINY_TLB, lib.XL_BT_FLUSH, lib.XL_BT_PROFILE],
                         ids=["plain", "one", "no-chain", "tiny-tlb", "flush", "profile"])
def test_a_refused_block_is_not_run(options: int, moved: bool) -> None:
    """With the debug option, translations in every manner of emission are checked as they are made, and none is refused."""
    m = machine(PROGRAM, translate=True, options=options | lib.XL_BT_VERIFY, moved=moved)
    m.run(WHOLE)
    code = Code(m)
    assert code.stats.rejected == 0 and code.stats.blocks > 0
    assert [code.why(n) for n in code.blocks() if code.why(n)] == []


@pytest.mark.parametrize("moved", [False, True])
def test_changed_instructions_are_refused(moved: bool) -> None:
    """Translated code could be changed without the verifier noticing. One bit of each byte in turn; where capstone still reads the same
    instructions (a prefix bit, a scale without index) nothing has changed. What is accepted are changes that are as good, such as a
    comparison that admits less."""
    m = machine(PROGRAM, translate=True, options=lib.XL_BT_NO_CHAIN, moved=moved)      # chained jumps leave stubs that nobody reaches
    m.run(WHOLE)
    code = Code(m)
    accepted, changed = [], 0

    def read(n: int) -> list[tuple]:
        return [(i.address, i.mnemonic, re.sub(r"riz\*\d \+ |riz\*\d", "", i.op_str)) for i in code.instructions(n)]

    for n in code.blocks():
        at, host = code.host(n)
        before = read(n)
        for k in range(len(host)):
            code.plant(at + k, bytes([host[k] ^ 1 << (k * 5 + n) % 8]))
            after = read(n)
            changed += after != before
            if after != before and code.why(n) is None:
                accepted += [(was, new) for was, new in zip(before, after) if was != new][:1]
            code.plant(at + k, host[k:k + 1])
    assert changed > 1500
    assert len(accepted) * 50 < changed, accepted
    assert all(code.why(n) is None for n in code.blocks())


def test_capstone_agrees_on_instruction_borders() -> None:
    """Our decoder, by which the verifier reads host code, would see other instructions there than the CPU does."""
    _m, code = translated()
    insn = ffi.new("struct xl_x86_insn *")
    for n in code.blocks():
        at, host = code.host(n)
        for i in code.instructions(n):
            k = i.address - at
            assert lib.xl_x86_decode(host[k:k + 15], len(host[k:k + 15]), 64, 2**64 - 1, insn) == i.size, i
        assert i.address + i.size == at + len(host)
