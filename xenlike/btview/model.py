"""A translation as Python objects: blocks, guest instructions with their host code, ways out, flags. Shown by ``text`` and ``html``, made
by ``reader``."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["TREATMENTS", "Block", "Line", "Piece", "Translation", "Way"]

#: What became of a guest instruction, by the translator's number: name, and what it means.
TREATMENTS = (("copied", "the same bytes"), ("rewritten", "other registers, memory through the software MMU"),
              ("inlined", "its effect on the vCPU's state"), ("called out", "left to the interpreter"), ("branch", "leaves the block"))


@dataclass(frozen=True)
class Line:
    """One host instruction: its offset in the block, bytes, text with names for addresses, and a remark.

    ``own``: it is the guest's instruction itself, as it was or with other operands. ``target``: offset in the block that it jumps to.
    ``block``: the block that it jumps to. ``part``: what it is for, where that shows: mmu, state, time, flags, jump, out.
    """

    at: int
    code: bytes
    text: str
    note: str = ""
    own: bool = False
    target: int | None = None
    block: int = 0
    part: str = ""


@dataclass
class Piece:
    """A guest instruction and its host code. ``reads``: flags it reads; ``fates``: those it writes, each used, unseen or live out.
    ``note``: the address that it names."""

    va: int
    code: bytes
    text: str
    treatment: str
    reads: tuple[str, ...] = ()
    fates: dict[str, str] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)
    note: str = ""

    @property
    def flags(self) -> str:
        """``"reads ZF; writes, used: CF"``, or nothing."""
        parts = ["reads " + " ".join(self.reads)] if self.reads else []
        if self.fates:
            used = [flag for flag, fate in self.fates.items() if fate == "used"]
            rest = "live out" if "live out" in self.fates.values() else "" if used else "unseen"
            parts.append(", ".join(filter(None, ("writes", "used: " + " ".join(used) if used else "", rest))))
        return "; ".join(parts)


@dataclass(frozen=True)
class Way:
    """A way out of a block: ``kind`` (chain, link, next, miss, step, branch, time, misfit), the guest instruction or target, what it is, and where
    it leads. ``brief``: ``text`` for where room is short."""

    number: int
    kind: str
    va: int
    text: str
    brief: str
    leads_to: int       # number of the block it is linked to; 0: it leaves


@dataclass
class Block:
    """One block. ``hits``: how often it was begun. ``before``: host code in front of the first instruction; ``cold``: behind the last, in
    stubs that begin at the offsets of ``stubs``, each for a way out. ``came_from``: the blocks that are linked to it. ``invalid``: it is
    begun no more, since its guest code was written, or because block ``replaced`` takes its place. ``kept``: ``pieces`` are from before."""

    number: int
    va: int
    symbol: str
    hits: int
    nr: int
    code: int
    code_len: int
    guest_len: int
    context: str
    invalid: bool
    refused: str
    before: list[Line]
    pieces: list[Piece]
    cold: list[Line]
    ways: list[Way]
    stubs: dict[int, Way]
    came_from: list[int]
    replaced: int = 0
    kept: bool = False

    @property
    def heat(self) -> int:
        """Guest instructions begun in it: hits times length."""
        return self.hits * self.nr

    def rounds(self) -> list[int]:
        """Numbers of the pieces with which its loop begins again: several where it is unrolled."""
        return [n for n, piece in enumerate(self.pieces) if piece.va == self.va]

    def state(self) -> str:
        """Why it is begun no more; nothing if it is."""
        return f"replaced by block {self.replaced}" if self.replaced else "invalid, its code was written" if self.invalid else ""

    def leading(self) -> list[Way]:
        """The ways out to a guest address that is known."""
        return [way for way in self.ways if way.kind in ("chain", "link", "next")]

    def others(self) -> str:
        """The other ways out, counted: ``"5 accesses may miss, 1 instruction is left to the interpreter"``."""
        count = {kind: sum(way.kind == kind for way in self.ways) for kind in ("miss", "misfit", "step", "branch", "time")}
        words = {"miss": ("access may miss", "accesses may miss"), "misfit": ("span may not fit", "spans may not fit"), "step": ("way to the interpreter", "ways to the interpreter"),
                 "branch": ("branch may be left to the interpreter", "branches may be left to the interpreter"),
                 "time": ("check of the budget", "checks of the budget")}
        return ", ".join(f"{n} {words[kind][n != 1]}" for kind, n in count.items() if n)


@dataclass
class Translation:
    """Of all that a translator has, the ``blocks`` that were asked for, as ``ordered`` says. ``stats``: the counters of ``struct xl_bt_stats`` by
    name; ``total`` blocks are valid or invalid in it, with ``heat`` instructions begun in them. ``retired``: instructions of the vCPU, 0 if
    unknown; ``ended``: how the run did. ``about``, ``source``, ``story``: what the guest is for, its code, its steps, if there is something to
    tell."""

    title: str
    stats: dict[str, int]
    blocks: list[Block]
    total: int
    heat: int
    retired: int = 0
    ended: str = ""
    ordered: str = "hottest first"
    about: str = ""
    source: str = ""
    story: list[str] = field(default_factory=list)

    def share(self) -> str:
        """Of the instructions that retired, how many did so in translated code: ``"99.6 %"``."""
        inside = self.retired - self.stats["interpreted"]
        return f"{100 * inside / self.retired:.1f} %" if self.retired and inside >= 0 else ""

    def density(self) -> str:
        """Host bytes for a guest byte."""
        return f"{self.stats['host_bytes'] / max(self.stats['guest_bytes'], 1):.1f}"
