"""The classic example of binary translation, block by block: ``mov ebx, eax; cli; and ebx, ~0xfff; mov cr3, ebx; sti; ret``.

Owns: a bare machine at CPL 0 (64-bit, 2 MiB pages mapped one to one) with a loop that calls this routine, and the steps in which it is run.
Called by: ``xenlike bt --example``, tests. The routine is what 32-bit kernels did, with the registers' 64-bit names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from xenlike.btview.model import Block, Translation, read_translation
from xenlike.engine import XenError, ffi, lib

__all__ = ["Step", "run_example"]

#: A caller that loops five times, and the routine, 64 bytes behind it. Assembled by hand, so that nobody needs an assembler.
CALLER, ROUTINE, STACK = 0x1000, 0x1040, 0x8000
_CALLER = bytes.fromhex("b905000000"        # mov ecx, 5
                        "e836000000"        # call ROUTINE
                        "ffc9"              # dec ecx
                        "75f7"              # jnz the call
                        "f4")               # hlt
_ROUTINE = bytes.fromhex("89c3"             # mov ebx, eax
                         "fa"               # cli
                         "81e300f0ffff"     # and ebx, ~0xfff
                         "0f22db"           # mov cr3, rbx
                         "fb"               # sti
                         "c3")              # ret
_RAM = 1 << 20
#: Instructions of each step: a block each, a round, and the rest in one go: near its end a budget allows no jump from block to block.
_PIECES = (2, 6, 2, 9, 1000)


@dataclass(frozen=True)
class Step:
    """The machine after some more instructions. ``made``: numbers of blocks that are new; ``linked``: pairs of blocks that are newly chained."""

    retired: int
    rip: int
    ended: str
    translation: Translation
    made: list[Block]
    linked: list[tuple[int, int]]


def run_example(*, options: int = 0) -> Iterator[Step]:
    """Runs it in small pieces and looks at the translator after each. ``options``: ``XL_BT_*`` beside profile. Raises XenError without a translator."""
    machine = ffi.gc(lib.xl_bare_create(_RAM), lib.xl_bare_destroy)
    error = lib.xl_bare_engine(machine, True, lib.XL_BT_PROFILE | options)
    if error:
        raise XenError(-error, f"no binary translation here: {_text(lib.xl_bt_unavailable())}")
    assert lib.xl_bare_setup(machine, 64, 0) == 0
    for at, code in ((CALLER, _CALLER), (ROUTINE, _ROUTINE)):
        assert lib.xl_bare_write(machine, at, code, len(code)) == 0
    reg = {name: lib.xl_bare_reg(name.encode()) for name in ("rip", "rax", "cr3", "rsp", "retired")}
    lib.xl_bare_set(machine, reg["rip"], CALLER)
    lib.xl_bare_set(machine, reg["rsp"], STACK)
    lib.xl_bare_set(machine, reg["rax"], lib.xl_bare_get(machine, reg["cr3"]) | 0xabc)      # low bits for `and` to clear
    known: set[int] = set()
    links: set[tuple[int, int]] = set()
    start = lib.xl_bare_get(machine, reg["retired"])
    for count in _PIECES:
        ended = lib.xl_bare_run(machine, count)
        seen = read_translation(lib.xl_bt_of_bare(machine), "the classic example: cli and mov cr3 in a routine")
        now = {(b.number, w.leads_to) for b in seen.blocks for w in b.ways if w.leads_to}
        made = sorted((b for b in seen.blocks if b.number not in known), key=lambda b: b.number)
        yield Step(lib.xl_bare_get(machine, reg["retired"]) - start, lib.xl_bare_get(machine, reg["rip"]),
                   "halted" if ended == lib.XL_BARE_HALTED else "", seen, made, sorted(now - links))
        known |= {b.number for b in seen.blocks}
        links |= now
        if ended == lib.XL_BARE_HALTED:
            return


def _text(why: object) -> str:
    return "the host cannot" if why == ffi.NULL else ffi.string(why).decode()
