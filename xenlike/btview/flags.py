"""What each instruction of a block does with the six arithmetic flags, and what becomes of those that it writes. Called by: ``reader``.

Reads and writes are capstone's word. Fates within a block: ``used`` by one of its instructions, ``unseen`` because the next writer comes
first, or ``live out``: somewhere else may see them.
"""

from __future__ import annotations

from typing import Any

__all__ = ["FLAGS", "flag_fates"]

FLAGS = ("OF", "SF", "ZF", "AF", "PF", "CF")        # in the order of rflags, from above


def flag_fates(instructions: list[Any], leaves: list[bool]) -> list[tuple[tuple[str, ...], dict[str, str]]]:
    """For each of capstone's ``instructions`` (with details): the flags it reads, and those it writes with their fate. ``leaves``: behind
    this one the block may be left for other guest code (a branch out of the middle) or for the interpreter's hands, which see all flags."""
    rows = [_row(i) for i in instructions]
    out = []
    for n, (reads, writes, _) in enumerate(rows):
        fates = {}
        for flag in writes:
            fates[flag], seen = "live out", False
            for later, (later_reads, later_writes, sure) in enumerate(rows[n + 1:], n + 1):
                if flag in later_reads:
                    fates[flag] = "used"
                    break
                if leaves[later]:
                    seen = True
                if flag in later_writes and sure:
                    fates[flag] = "live out" if seen else "unseen"
                    break
        out.append((reads, fates))
    return out


def _row(i: Any) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
    """Flags read, written, and whether written in every case: a shift by 0 and a ``rep`` of no iterations write none."""
    import capstone.x86 as x86

    if i.group(x86.X86_GRP_FPU):        # there the same word means other flags
        return (), (), True
    sure = not i.op_str.endswith(", cl") and i.prefix[0] not in (0xf2, 0xf3)
    return _named(i.eflags, ("TEST",)), _named(i.eflags, ("MODIFY", "SET", "RESET", "UNDEFINED")), sure


def _named(eflags: int, kinds: tuple[str, ...]) -> tuple[str, ...]:
    import capstone.x86 as x86

    return tuple(name for name in FLAGS if any(eflags & getattr(x86, f"X86_EFLAGS_{kind}_{name}", 0) for kind in kinds))
