"""The classic example of binary translation, block by block: ``mov ebx, eax; cli; and ebx, ~0xfff; mov cr3, ebx; sti; ret``.

Owns: a bare machine at CPL 0 (64-bit, 2 MiB pages mapped one to one) with a loop that calls this routine, and the steps in which it is run:
a block is made, runs, is chained to others, and is dropped when somebody writes into its guest code. Called by: ``xenlike bt --example``,
tests. The routine is what 32-bit kernels did, with the registers' 64-bit names.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from xenlike.btview.model import Block, Line, Translation
from xenlike.btview.reader import read_translation
from xenlike.btview.symbols import Symbols
from xenlike.engine import XenError, ffi, lib

__all__ = ["ABOUT", "CALLER", "ROUTINE", "SOURCE", "Step", "run_example", "told"]

#: What there is to see, and the code, for readers.
ABOUT = ("The routine that papers on binary translation show, and a caller that calls it a hundred times. Run at a lower level, cli, sti and mov cr3 would "
         "each cost a trap. Translated, cli and sti are a few instructions on the vCPU's state; mov cr3, which changes the mapping of the page that the code "
         "stands in, is left to the interpreter. The machine is stopped after each step of the list, and what is new is shown.")
SOURCE = """\
caller:                                 routine:
1000    mov  ecx, 100                   1040    mov  ebx, eax
1005    call routine                    1042    cli
100a    add  edx, ebx                   1043    and  ebx, ~0xfff
100c    dec  ecx                        1049    mov  cr3, rbx
100e    jnz  1005                       104c    sti
1010    hlt                             104d    ret
1011    jmp  1010
"""

#: A caller that loops, and the routine, 64 bytes behind it. Assembled by hand, so that nobody needs an assembler.
CALLER, ROUTINE, STACK = 0x1000, 0x1040, 0x8000
_CALLER = bytes.fromhex("b964000000"        # mov ecx, 100
                        "e836000000"        # call ROUTINE
                        "01da"              # add edx, ebx
                        "ffc9"              # dec ecx
                        "75f5"              # jnz the call
                        "f4"                # hlt
                        "ebfd")             # jmp the hlt
_ROUTINE = bytes.fromhex("89c3"             # mov ebx, eax
                         "fa"               # cli
                         "81e300f0ffff"     # and ebx, ~0xfff
                         "0f22db"           # mov cr3, rbx
                         "fb"               # sti
                         "c3")              # ret
_PATCH = ROUTINE + 12, b"\x90"              # nop for sti
_RAM = 1 << 20
#: How far to run, in instructions: the caller's first block; the routine, and what follows it up to the next call; many rounds; then, the
#: routine having been changed, to the end. Blocks follow each other without the loop only while the budget has room for the largest, so
#: what is chained shows in the long pieces.
_PIECES = (2, 10, 250, 1000)


class _Names(Symbols):
    """What an image's symbol table would say."""

    def name(self, at: int) -> str:
        for start, length, name in ((CALLER, len(_CALLER), "caller"), (ROUTINE, len(_ROUTINE), "routine")):
            if start <= at < start + length:
                return f"{name}+{at - start:#x}" if at > start else name
        return ""


@dataclass(frozen=True)
class Step:
    """The machine after some more instructions. ``made``: blocks that are new; ``linked``: pairs of blocks that are newly chained;
    ``dropped``: blocks that became invalid; ``wrote``: the routine was overwritten before."""

    retired: int
    rip: int
    halted: bool
    wrote: bool
    translation: Translation
    made: list[Block]
    linked: list[tuple[int, int]]
    dropped: list[int]

    def text(self) -> str:
        """What is new, in a sentence."""
        news = [_many("block", self.dropped, "became invalid"), _many("block", [b.number for b in self.made], "made"),
                "chained: " + ", ".join(f"block {a} to {'itself' if a == b else f'block {b}'}" for a, b in self.linked) if self.linked else ""]
        first = f"The routine is overwritten (at {_PATCH[0]:#x}: nop for sti), and what was made of code in its page is dropped. " if self.wrote else ""
        return (f"{first}After {self.retired} instruction{'s' * (self.retired != 1)}, at {self.rip:#x}{', halted' if self.halted else ''}: "
                f"{'; '.join(filter(None, news)) or 'nothing new'}.")

    def jumps(self, a: int, b: int) -> list[Line]:
        """The lines of block ``a`` that jump to block ``b``."""
        pieces = (piece for block in self.translation.blocks if block.number == a for piece in block.pieces)
        return [line for piece in pieces for line in piece.lines if line.block == b]


def told(steps: list[Step]) -> Translation:
    """All steps as one translation, in the order in which blocks were made; those that were dropped have the code beside them that they were made of."""
    end, valid = steps[-1].translation, {b.number: b for step in steps for b in step.translation.blocks if not b.invalid}
    blocks = [replace(b, pieces=valid[b.number].pieces, kept=True) if b.invalid and b.number in valid else b for b in end.blocks]
    return replace(end, blocks=sorted(blocks, key=lambda b: b.number), ordered="in the order in which they were made", about=ABOUT, source=SOURCE,
                   story=[step.text() for step in steps])


def _many(noun: str, numbers: list[int], what: str) -> str:
    """``"blocks 1, 2 and 5 made"``."""
    text = " and ".join(filter(None, (", ".join(map(str, numbers[:-1])), str(numbers[-1])))) if numbers else ""
    return f"{noun}{'s' * (len(numbers) > 1)} {text} {what}" if numbers else ""


def run_example(*, options: int = 0) -> Iterator[Step]:
    """Runs it in small pieces and looks at the translator after each. ``options``: ``XL_BT_*`` beside profile. Raises XenError without a
    translator."""
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
    invalid: set[int] = set()
    start = lib.xl_bare_get(machine, reg["retired"])
    for n, count in enumerate(_PIECES):
        last = n + 1 == len(_PIECES)
        if last:
            assert lib.xl_bare_write(machine, _PATCH[0], _PATCH[1], len(_PATCH[1])) == 0
        halted = lib.xl_bare_run(machine, count) == lib.XL_BARE_HALTED
        retired = lib.xl_bare_get(machine, reg["retired"]) - start
        ended = f"{'halted' if halted else 'stopped'} after {retired} instructions"
        seen = read_translation(lib.xl_bt_of_bare(machine), "the classic example: cli and mov cr3 in a routine", symbols=_Names(),
                                retired=retired, ended=ended)
        now = {(b.number, w.leads_to) for b in seen.blocks for w in b.ways if w.leads_to}
        made = sorted((b for b in seen.blocks if b.number not in known), key=lambda b: b.number)
        dropped = sorted({b.number for b in seen.blocks if b.invalid and not b.replaced} - invalid)
        yield Step(retired, lib.xl_bare_get(machine, reg["rip"]), halted, last, seen, made, sorted(now - links), dropped)
        known |= {b.number for b in seen.blocks}
        links |= now
        invalid |= set(dropped)
        if halted:
            return


def _text(why: object) -> str:
    return "the host cannot" if why == ffi.NULL else ffi.string(why).decode()
