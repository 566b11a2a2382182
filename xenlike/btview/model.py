"""A translator's tables as Python objects: blocks, guest instructions with their host code, ways out, flags.

Owns: the model that ``text`` and ``html`` show. Called by: ``xenlike.cli_bt``, ``btview.example``, tests. Reads through ``xenlike_bt.h``; the CPU must
stand still meanwhile. What is read is a copy: it outlives the translator.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from xenlike.engine import ffi, lib

__all__ = ["TREATMENTS", "Block", "Line", "Piece", "Translation", "Way", "read_translation"]

#: What became of a guest instruction, by the translator's number: name, and what it means.
TREATMENTS = (("copied", "the same bytes"), ("rewritten", "other registers, memory through the software MMU"), ("inlined", "its effect on the vCPU's state"),
              ("called out", "left to the interpreter"), ("branch", "ends the block"))
_COLD = ("cold", "reached rarely: a lookup that missed, a way out")
_KINDS = ("chain", "link", "next", "miss", "step", "branch", "time")
_WHY = {"chain": "jump within the page, patched when its target exists", "link": "jump to another page, through a word that a TLB flush resets",
        "next": "to the loop, which looks for the next block", "miss": "no TLB entry: the interpreter does the access",
        "step": "the interpreter does this instruction, the block goes on behind it", "branch": "the interpreter does this branch",
        "time": "the budget is used up"}
_GS = re.compile(r"(?:(?:qword|dword|word|byte) ptr )?gs:\[(?:(r\w+(?:\*8)?) ?\+ ?)?(0x[0-9a-f]+|\d+)\]")
_TARGET = re.compile(r"(0x[0-9a-f]+|\d+)$")
_MAX_MAPS, _MAX_LINE = 64, 15


@dataclass(frozen=True)
class Line:
    """One host instruction: its offset in the block, bytes, text with names for addresses, and a remark."""

    at: int
    code: bytes
    text: str
    note: str = ""


@dataclass
class Piece:
    """A guest instruction and its host code. ``flags``: what it does with the arithmetic flags, and what becomes of them."""

    va: int
    code: bytes
    text: str
    treatment: str
    flags: str
    lines: list[Line] = field(default_factory=list)


@dataclass(frozen=True)
class Way:
    """A way out of a block: ``kind`` (chain, link, next, miss, step, branch, time), the guest instruction, where it leads."""

    number: int
    kind: str
    va: int
    text: str
    leads_to: int       # number of the block it is linked to; 0: it leaves


@dataclass
class Block:
    """One block. ``hits``: how often it was begun. ``before``: host code in front of the first instruction; ``cold``: behind the last."""

    number: int
    va: int
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

    @property
    def heat(self) -> int:
        """Guest instructions begun in it: hits times length."""
        return self.hits * self.nr


@dataclass
class Translation:
    """All of a translator. ``stats``: the counters of ``struct xl_bt_stats`` by name."""

    title: str
    stats: dict[str, int]
    blocks: list[Block]

    def hottest(self, top: int | None = None) -> list[Block]:
        """Blocks by heat, hottest first; equally hot ones by address."""
        order = sorted(self.blocks, key=lambda b: (-b.heat, b.va, b.number))
        return order if top is None else order[:top]

    def at(self, va: int) -> list[Block]:
        """Blocks whose guest code has the address ``va``."""
        return [b for b in self.blocks if b.va <= va < b.va + max(b.guest_len, 1)]


def read_translation(t: Any, title: str, *, cold_limit: int = 1 << 16) -> Translation:
    """Everything of translator ``t`` (``struct bt *``). At most the ``cold_limit`` hottest blocks are read in full."""
    stats = ffi.new("struct xl_bt_stats *")
    lib.xl_bt_stats(t, stats)
    reader = _Reader(t, stats)
    rows = []
    for number in range(1, stats.nr_blocks):
        row = ffi.new("struct xl_bt_block *")
        if not lib.xl_bt_block(t, number, row) and row.nr:
            rows.append((number, row))
    rows.sort(key=lambda r: (-r[1].hits * r[1].nr, r[1].va))
    blocks = [reader.block(number, row) for number, row in rows[:cold_limit]]
    names = ("blocks", "translated", "interpreted", "exits", "flushes", "invalidated", "host_bytes", "guest_bytes", "rejected", "links_filled", "nr_links")
    return Translation(title, {name: int(getattr(stats, name)) for name in names}, blocks)


class _Reader:
    def __init__(self, t: Any, stats: Any) -> None:
        import capstone

        self._t, self._capstone = t, capstone
        self._md = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        self._guest = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        self._guest.detail = True
        self._entries: dict[int, int] = {}
        row = ffi.new("struct xl_bt_block *")
        for number in range(1, stats.nr_blocks):
            if not lib.xl_bt_block(t, number, row) and row.nr:
                self._entries[row.code] = number

    def block(self, number: int, row: Any) -> Block:
        maps = ffi.new("struct xl_bt_map[]", _MAX_MAPS)
        count = lib.xl_bt_maps(self._t, number, maps, _MAX_MAPS)
        guest = self._bytes(lib.xl_bt_guest_code, number, row.bytes)
        host = self._bytes(lib.xl_bt_code, row.code, row.code_len)
        end = row.code + row.code_len
        ways = self._ways(row)
        edges = [m.code for m in maps[0:count]]
        cold_at = min((x for x in self._cold_starts(host, row.code) if x > edges[-1]), default=end) if count else end
        labels = {w.number: w for w in ways}
        lines = {at: self._lines(host, row.code, at, to, row, labels) for at, to in zip([row.code, *edges, cold_at], [*edges, cold_at, end])
                 if to > at or at != row.code}
        pieces = []
        flags = self._flags(guest, row.va)
        for n in range(count):
            m = maps[n]
            code = guest[m.off:m.off + m.len]
            pieces.append(Piece(row.va + m.off, code, self._guest_text(code, row.va + m.off), TREATMENTS[m.treatment][0], flags.get(m.off, ""),
                                lines.get(m.code, []) if n + 1 == count or maps[n + 1].code != m.code else []))
        at = ffi.new("u32 *")
        why = ffi.NULL if row.invalid else lib.xl_bt_verify(self._t, number, at)
        before = lines.get(row.code, []) if edges and row.code != edges[0] else []
        before = [replace(before[0], note="counts executions"), *before[1:]] if before else []
        return Block(number, row.va, row.hits, row.nr, row.code, row.code_len, row.bytes, self._context(row.context), bool(row.invalid),
                     "" if why == ffi.NULL else f"{ffi.string(why).decode()} (at +{at[0] - row.code:03x})",
                     before, pieces, lines.get(cold_at, []), ways)

    def _bytes(self, get: Any, which: int, n: int) -> bytes:
        buf = ffi.new("u8[]", max(n, 1))
        return bytes(buf[0:get(self._t, which, buf, n)])

    @staticmethod
    def _context(bits: int) -> str:
        parts = ["CPL 3" if bits & 2 else "CPL 0", "user TLB" if bits & 1 else "kernel TLB"]
        parts += ["SSE"] if bits & 4 else []
        return ", ".join(parts + (["floating point"] if bits & 8 else []))

    def _guest_text(self, code: bytes, va: int) -> str:
        found = next(self._md.disasm(code, va), None)
        return f"{found.mnemonic} {found.op_str}".strip() if found else f".byte {code.hex(' ')}"

    def _cold_starts(self, host: bytes, at: int) -> Iterable[int]:
        """Where stubs begin behind a block's code: what is jumped to forwards (but for jrcxz, which jumps over a jump), or says an exit."""
        for i in self._md.disasm(host, at):
            found = _TARGET.match(i.op_str)
            if i.mnemonic.startswith("j") and i.mnemonic != "jrcxz" and found and i.address < int(found[1], 0) < at + len(host):
                yield int(found[1], 0)
            elif i.mnemonic == "mov" and (named := _GS.search(i.op_str)) and self._field(int(named[2], 0)) == "exit":
                yield i.address

    def _field(self, offset: int) -> str:
        name = ffi.new("char[]", lib.XL_BT_NAME)
        return ffi.string(name).decode() if lib.xl_bt_field_name(self._t, offset, name) else ""

    def _ways(self, row: Any) -> list[Way]:
        ways = []
        x = ffi.new("struct xl_bt_exit *")
        for number in range(row.first_exit, row.first_exit + row.nr_exits):
            if number == row.first_exit or lib.xl_bt_exit(self._t, number, x):
                continue                # the first is what an invalid block's entry becomes
            kind = _KINDS[x.kind]
            leads_to = self._entries.get(x.leads_to, 0) if x.linked else 0
            text = _WHY[kind]
            if kind in ("chain", "link", "next"):
                text = f"to {x.target:#x}: " + (f"{kind}ed to block {leads_to}" if leads_to else f"not {kind}ed yet" if kind != "next" else text)
            elif kind == "miss":
                text = f"{'store' if x.write else 'load'} of {x.size} byte{'s' if x.size > 1 else ''}{', aligned' if x.align else ''}: {text}"
            ways.append(Way(number, kind, row.va + x.off if kind not in ("chain", "link", "next") else x.target, text, leads_to))
        return ways

    # ---- host code ---------------------------------------------------------------------------------------------------

    def _lines(self, host: bytes, base: int, at: int, to: int, row: Any, ways: dict[int, Way]) -> list[Line]:
        lines = []
        while at < to:
            i = next(self._md.disasm(host[at - base:at - base + _MAX_LINE], at), None)
            if i is None:
                lines.append(Line(at - base, host[at - base:at - base + 1], f".byte {host[at - base]:#04x}"))
                at += 1
                continue
            text, note = self._name(f"{i.mnemonic} {i.op_str}".strip(), i, base, base + len(host), ways)
            lines.append(Line(at - base, bytes(i.bytes), text, note))
            at += i.size
        return lines

    def _name(self, text: str, i: Any, base: int, end: int, ways: dict[int, Way]) -> tuple[str, str]:
        note = ""
        name = ffi.new("char[]", lib.XL_BT_NAME)
        if found := _GS.search(text):
            if field_name := self._field(int(found[2], 0)):
                text = text.replace(found[0], f"[bt.{field_name}{f' + {found[1]}' if found[1] else ''}]")
                if field_name == "exit" and i.mnemonic == "mov":
                    way = ways.get(int(i.op_str.rsplit(", ", 1)[1], 0))
                    note = f"{way.kind}: {way.text}" if way else ""
        if i.mnemonic == "call" or (i.mnemonic.startswith("j") and _TARGET.match(i.op_str)):
            target = int(i.op_str, 0)
            if lib.xl_bt_routine_name(self._t, target, name):
                text = f"{i.mnemonic} {ffi.string(name).decode()}"
            elif base <= target < end and (target != base):
                text = f"{i.mnemonic} +{target - base:03x}"
            elif target in self._entries:
                text, note = f"{i.mnemonic} block {self._entries[target]}", "chained"
        return text, note

    # ---- flags -------------------------------------------------------------------------------------------------------

    def _flags(self, guest: bytes, va: int) -> dict[int, str]:
        """By offset: "reads", "writes", and of what is written whether an instruction of the block reads it ("used"), or the next writes it before
        ("unseen": only a way out between them would show it), or it lives to the block's end ("live out")."""
        c = self._capstone.x86
        names = ("CF", "PF", "AF", "ZF", "SF", "OF")

        def mask(eflags: int, kinds: tuple[str, ...]) -> set[str]:
            return {n for n in names for k in kinds if eflags & getattr(c, f"X86_EFLAGS_{k}_{n}", 0)}

        rows = []
        for i in self._guest.disasm(guest, va):
            eflags = 0 if i.group(c.X86_GRP_FPU) else i.eflags       # there the same word means other flags
            rows.append((i.address - va, mask(eflags, ("TEST",)), mask(eflags, ("MODIFY", "SET", "RESET", "UNDEFINED"))))
        out = {}
        for n, (off, reads, writes) in enumerate(rows):
            parts = ["reads " + " ".join(sorted(reads))] if reads else []
            if writes:
                live, used = set(writes), False
                for _, later_reads, later_writes in rows[n + 1:]:
                    used |= bool(live & later_reads)
                    live -= later_writes
                parts.append("writes, " + ("used" if used else "live out" if live else "unseen"))
            out[off] = "; ".join(parts)
        return out

