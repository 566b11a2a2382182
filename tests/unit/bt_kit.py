"""What the tests of the translator on a bare machine share: when they run, the manners of translation, its counters, a loop with calls.

Owns: ``needs_translator``, ``MARKS``, ``OPTIONS``, ``VERIFIED``, ``stats``, ``trap``, ``calling_loop``. Used by: ``test_bt*.py``, ``test_pv_quick.py``. What a comparison of engines looks at (registers
of 64 or 32 bits, system state, memory) is each test file's own.
"""

from __future__ import annotations

from typing import Any

import pytest
from x86_kit import Machine, needs_assembler

from xenlike.engine import ffi, lib

needs_translator = pytest.mark.skipif(lib.xl_bt_unavailable() != ffi.NULL, reason="this host cannot translate (no BMI2, FSGSBASE, LAHF, or not x86-64)")
#: ``pytestmark`` of a file that assembles code and translates it.
MARKS = [needs_assembler, needs_translator]
VERIFY = lib.XL_BT_VERIFY
#: As it is, and in each manner that makes something rare frequent: blocks of one instruction, no chains, a flush every few blocks, a TLB of one page.
OPTIONS = [0, lib.XL_BT_ONE, lib.XL_BT_NO_CHAIN, lib.XL_BT_FLUSH, lib.XL_BT_TINY_TLB]
#: The same with each block verified.
VERIFIED = [VERIFY | more for more in OPTIONS]


def stats(m: Machine) -> Any:
    """The translator's counters."""
    found = ffi.new("struct xl_bt_stats *")
    lib.xl_bt_stats(lib.xl_bt_of_bare(m.c), found)
    return found


def trap(m: Machine) -> tuple[int, ...] | None:
    """The exception that stopped the last run: vector, error code, address and more; None: it was none."""
    out = ffi.new("u64[5]")
    return tuple(out) if lib.xl_bare_exception(m.c, out) else None


def calling_loop(bits: int, rounds: int, data: int, *, push: str = "", pop: str = "", sometimes: str, end: str = "", double: str, enter: str = "") -> str:
    """A loop over ``ecx`` that computes, stores into a table at ``data``, calls ``double`` and goes on in blocks that it may skip; in the mode's
    own registers. ``push`` and ``pop`` stand around the call, ``enter`` and ``end`` around the loop. Only flags that are defined are looked at: in
    translated code the others are the host's."""
    a, b, c, d = (f"{'r' if bits == 64 else 'e'}{name}x" for name in "abcd")
    return f"""
    mov ecx, {rounds}
    xor eax, eax
    {enter}
again:
    lea {d}, [{c} + {c} * 8 + 77]
    xor {a}, {d}
    mov [{data} + {c} * 8], {a}
    push {a}
    {push}
    call double
    {pop}
    pop {b}
    test cl, 3
    jz skip
    {sometimes}
skip:
    dec ecx
    jnz again
    {end}
    hlt
double:
    {double}
    ret
"""
