"""Reads a translator's tables (``csrc/xenlike_bt.h``) into a ``Translation``. Called by: ``xenlike.cli_bt``, ``example``, tests.

The CPU must stand still meanwhile. What is read is a copy: it outlives the translator. Needs capstone.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import replace
from typing import Any

from xenlike.btview.flags import flag_fates
from xenlike.btview.model import TREATMENTS, Block, Line, Piece, Translation, Way
from xenlike.btview.symbols import Symbols
from xenlike.engine import ffi, lib

__all__ = ["read_translation"]

_KINDS = ("chain", "link", "next", "miss", "step", "branch", "time", "misfit")
_WHY = {"next": "the loop looks for the next block", "miss": "no TLB entry", "step": "interpreted, then on",
        "branch": "interpreted", "time": "the budget is used up", "misfit": "the page has another addend than most, or not all of the span; interpreted for a while"}
_LINKED = {"chain": "chained", "link": "linked", "next": ""}
_GS = re.compile(r"(?:(?:qword|dword|word|byte) )?gs:\[(?:(r\w+(?:\*8)?) ?\+ ?)?(0x[0-9a-f]+|\d+)\]")
_NUMBER = re.compile(r"0x[0-9a-f]+|\d+")
_RIP = re.compile(r"\[rip ([+-]) (0x[0-9a-f]+|\d+)\]")
_IMMEDIATE = re.compile(r", 0x[0-9a-f]+$")
_PARTS = (("l0.", "mmu"), ("l1.", "mmu"), ("slid", "mmu"), ("mask_jump", "jump"), ("mask_sign", ""), ("mask_flags", "state"), ("mask_", "mmu"),
          ("sti_flags", "state"), ("left", "time"), ("saved_flags", "flags"), ("flag_", "flags"), ("jumps.", "jump"), ("link[", "jump"), ("exit", "out"))
_FLAG_MOVES = ("lahf", "sahf", "seto")
_NOTED = ("miss", "time", "step", "branch", "misfit")       # ways out that a jump to their stub is annotated with
_CODE_32 = 0x100          # of a block's context, whose other bits (csrc/bt/internal.h) are:
_ASSUMED = ((_CODE_32, "32-bit code"), (0x200, "flat FS"), (0x400, "flat GS"), (4, "SSE"), (8, "floating point"), (0x800, "x87"))
_MAX_LINE, _SHORT = 15, 2


def read_translation(t: Any, title: str, *, top: int | None = None, at: int | None = None, symbols: Symbols | None = None,
                     retired: int = 0, ended: str = "") -> Translation:
    """What translator ``t`` (``struct bt *``) has. ``top``: only so many blocks, the hottest; ``at``: only those whose guest code has this
    address. The rest is for the reader: names of guest addresses, how much the vCPU retired, how the run ended."""
    stats = ffi.new("struct xl_bt_stats *")
    lib.xl_bt_stats(t, stats)
    reader = _Reader(t, stats, symbols or Symbols())
    rows = sorted(reader.rows.items(), key=lambda r: (-r[1].hits * r[1].nr, r[1].va, r[0]))
    chosen = [r for r in rows if at is None or 0 <= at - r[1].va - r[1].low < max(r[1].bytes, 1)][:top]
    names = ("blocks", "translated", "interpreted", "exits", "flushes", "invalidated", "host_bytes", "guest_bytes", "rejected")
    return Translation(title, {name: int(getattr(stats, name)) for name in names}, [reader.block(number, row) for number, row in chosen],
                       len(rows), sum(row.hits * row.nr for _, row in rows), retired, ended)


class _Reader:
    """``rows``: every block that has code, by number."""

    def __init__(self, t: Any, stats: Any, symbols: Symbols) -> None:
        import capstone

        self._t, self._symbols = t, symbols
        self._md = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        self._guests = [capstone.Cs(capstone.CS_ARCH_X86, mode) for mode in (capstone.CS_MODE_64, capstone.CS_MODE_32)]
        for guest in self._guests:
            guest.detail = True
        self.rows: dict[int, Any] = {}
        for number in range(1, stats.nr_blocks):
            row = ffi.new("struct xl_bt_block *")
            if not lib.xl_bt_block(t, number, row) and row.nr:
                self.rows[number] = row
        self._by_code = sorted((row.code, number) for number, row in self.rows.items())
        self._came_from: dict[int, list[int]] = {}
        x = ffi.new("struct xl_bt_exit *")
        for number, row in self.rows.items():
            for n in range(row.first_exit + 1, row.first_exit + row.nr_exits):
                if not lib.xl_bt_exit(t, n, x) and x.linked and (to := self._block_at(x.leads_to)):
                    self._came_from.setdefault(to, []).append(number)

    def _block_at(self, code: int) -> int:
        """The block that has cache offset ``code``; 0: none."""
        n = bisect_right(self._by_code, (code, 1 << 32)) - 1
        number = self._by_code[n][1] if n >= 0 else 0
        return number if number and code < self.rows[number].code + self.rows[number].code_len else 0

    def block(self, number: int, row: Any) -> Block:
        """All of one."""
        maps = ffi.new("struct xl_bt_map[]", lib.XL_BT_MAX_BLOCK)
        count = lib.xl_bt_maps(self._t, number, maps, lib.XL_BT_MAX_BLOCK)
        guest = self._bytes(lib.xl_bt_guest_code, number, row.bytes)
        host = self._bytes(lib.xl_bt_code, row.code, row.code_len)
        ways = self._ways(row)
        edges = [m.code - row.code for m in maps[0:count]]
        lines = self._lines(host, row, {way.number: way for way in ways}, edges[0] if row.invalid else 0)
        cold_at = _cold_start(lines, edges[-1])
        stubs = _stubs(lines, cold_at, {way.number: way for way in ways})
        lines = [replace(n, note=f"{stubs[n.target].kind}: {stubs[n.target].brief}" if stubs[n.target].kind in _NOTED else "")
                 if n.target in stubs and not n.note and n.at < cold_at else n for n in lines]
        pieces = self._pieces(row, guest, maps, count)
        for piece, start, end in zip(pieces, edges, [*edges[1:], cold_at]):
            piece.lines = _mark_own(piece, [n for n in lines if start <= n.at < end])
        before = [n for n in lines if n.at < edges[0]]
        replaced = lines[0].block if row.invalid and lines[0].text.startswith("jmp block") else 0
        if before and not row.invalid:
            hits = _IMMEDIATE.sub(", &hits", before[0].text)        # its address differs from run to run
            before[0] = replace(before[0], text=hits, note="counts executions")
        at = ffi.new("u32 *")
        why = ffi.NULL if row.invalid else lib.xl_bt_verify(self._t, number, at)
        return Block(number, row.va, self._symbols.name(row.va), row.hits, row.nr, row.code, row.code_len, row.bytes, _context(row.context),
                     bool(row.invalid), "" if why == ffi.NULL else f"{ffi.string(why).decode()} (at +{at[0] - row.code:03x})",
                     before, pieces, [n for n in lines if n.at >= cold_at], ways, stubs,
                     sorted(set(self._came_from.get(number, []))), replaced)

    def _bytes(self, get: Any, which: int, n: int) -> bytes:
        buf = ffi.new("u8[]", max(n, 1))
        return bytes(buf[0:get(self._t, which, buf, n)])

    def _field(self, offset: int) -> str:
        name = ffi.new("char[]", lib.XL_BT_NAME)
        return ffi.string(name).decode() if lib.xl_bt_field_name(self._t, offset, name) else ""

    def _named(self, va: int) -> str:
        name = self._symbols.name(va)
        return f"{va:#x} <{name}>" if name else f"{va:#x}"

    def _ways(self, row: Any) -> list[Way]:
        ways = []
        x = ffi.new("struct xl_bt_exit *")
        for number in range(row.first_exit, row.first_exit + row.nr_exits):
            if number == row.first_exit or lib.xl_bt_exit(self._t, number, x):
                continue                # the first is what an invalid block's entry becomes
            kind = _KINDS[x.kind]
            leads_to = self._block_at(x.leads_to) if x.linked else 0
            brief = _WHY.get(kind, "")
            if kind in _LINKED:
                brief = self._named(x.target)
                how = f"{_LINKED[kind]} to block {leads_to}" if leads_to else _WHY["next"] if kind == "next" else f"not {_LINKED[kind]} yet"
                text = f"to {brief}: {how}"
            elif kind == "miss":
                what, aligned = "store" if x.write else "load", ", aligned" if x.align else ""
                brief = f"{what} of {x.size} byte{'s' * (x.size > 1)}{aligned}"
                text = f"{brief}: {_WHY[kind]}"
            else:
                text = brief
            ways.append(Way(number, kind, x.target if kind in _LINKED else row.va + x.off, text, brief, leads_to))
        return ways

    # ---- guest code --------------------------------------------------------------------------------------------------

    def _pieces(self, row: Any, guest: bytes, maps: Any, count: int) -> list[Piece]:
        md = self._guests[row.context & _CODE_32 != 0]
        codes = [guest[m.off - row.low:m.off - row.low + m.len] for m in maps[0:count]]
        found = [next(md.disasm(code, row.va + m.off), None) for m, code in zip(maps[0:count], codes)]
        treatments = [TREATMENTS[m.treatment][0] for m in maps[0:count]]
        known = [i for i in found if i is not None]
        leaves = [t in ("branch", "called out") for t, i in zip(treatments, found) if i is not None]
        fates = iter(flag_fates(known, leaves))
        pieces = []
        for m, code, i, treatment in zip(maps[0:count], codes, found, treatments):
            if i is None:
                pieces.append(Piece(row.va + m.off, code, f".byte {code.hex(' ')}", treatment))
                continue
            text, note = f"{i.mnemonic} {i.op_str}".strip().replace(" ptr ", " "), ""
            if rip := _RIP.search(text):
                offset = int(rip[2], 0)
                note = self._named((i.address + i.size + (offset if rip[1] == "+" else -offset)) % 2**64)
            elif _NUMBER.fullmatch(i.op_str):       # one operand alone: where a branch leads, what a push pushes
                note = self._symbols.name(int(i.op_str, 0))
            reads, writes = next(fates)
            pieces.append(Piece(row.va + m.off, code, text, treatment, reads, writes, note=note))
        return pieces

    # ---- host code ---------------------------------------------------------------------------------------------------

    def _lines(self, host: bytes, row: Any, ways: dict[int, Way], entry: int) -> list[Line]:
        """``entry``: of the bytes before it the first have become a jump elsewhere; the rest is of no instruction."""
        lines, at = [], 0
        while at < len(host):
            if at < entry and lines and lines[-1].text.startswith("jmp"):
                lines.append(Line(at, host[at:entry], "(overwritten)"))
                at = entry
            i = next(self._md.disasm(host[at:at + _MAX_LINE], row.code + at), None)
            if i is None:
                lines.append(Line(at, host[at:at + 1], f".byte {host[at]:#04x}"))
                at += 1
                continue
            lines.append(self._line(i, row, ways))
            at += i.size
        return self._name_state(lines)

    def _name_state(self, lines: list[Line]) -> list[Line]:
        """The CPU's state by name, where a register was loaded with its address and has not been overwritten since."""
        holder, out = "", []
        for line in lines:
            if holder and (found := re.search(rf"\[{holder} \+ (0x[0-9a-f]+|\d+)\]", line.text)):
                name = ffi.new("char[]", lib.XL_BT_NAME)
                if lib.xl_bt_cpu_name(int(found[1], 0), name):
                    line = replace(line, text=line.text.replace(found[0], f"[cpu.{ffi.string(name).decode()}]"), part="state")
            if loads := re.fullmatch(r"mov (r\w+), \[bt\.cpu\]", line.text):
                holder, line = loads[1], replace(line, part="state")
            elif holder and re.match(rf"\w+ {holder}\b", line.text):
                holder = ""
            out.append(line)
        return out

    def _line(self, i: Any, row: Any, ways: dict[int, Way]) -> Line:
        text, part = f"{i.mnemonic} {i.op_str}".strip().replace(" ptr ", " "), "flags" if i.mnemonic in _FLAG_MOVES else ""
        line = Line(i.address - row.code, bytes(i.bytes), text, part=part)
        if (found := _GS.search(line.text)) and (name := self._field(int(found[2], 0))):
            part = next((part for start, part in _PARTS if name.startswith(start)), line.part)
            line = replace(line, text=line.text.replace(found[0], f"[bt.{name}{f' + {found[1]}' if found[1] else ''}]"), part=part)
            if name == "exit" and i.mnemonic == "mov" and (way := ways.get(int(i.op_str.rsplit(", ", 1)[1], 0))):
                line = replace(line, note=f"{way.kind}: {way.brief}", block=way.leads_to)
        if not (i.mnemonic == "call" or i.mnemonic.startswith("j")) or not _NUMBER.fullmatch(i.op_str):
            return line             # or through a word in memory: a link
        target = int(i.op_str, 0)
        routine = ffi.new("char[]", lib.XL_BT_NAME)
        if lib.xl_bt_routine_name(self._t, target, routine):
            return replace(line, text=f"{i.mnemonic} {ffi.string(routine).decode()}", part="out")
        number = self._block_at(target)
        if number and (target < row.code or target >= row.code + row.code_len or target == row.code):
            return replace(line, text=f"{i.mnemonic} block {number}", note="chained", block=number, part="jump")
        if number:
            return replace(line, text=f"{i.mnemonic} +{target - row.code:03x}", target=target - row.code)
        return line


def _context(bits: int) -> str:
    parts = ["CPL 3" if bits & 2 else "CPL 0", "user TLB" if bits & 1 else "kernel TLB"]
    parts += [what for bit, what in _ASSUMED if bits & bit]
    return ", ".join(parts)


def _cold_start(lines: list[Line], last: int) -> int:
    """Where the stubs begin: behind the jump or return that ends the last instruction's code, which begins at ``last``. Short jumps stay
    within that; long ones lead to stubs."""
    reach = last
    for n in lines:
        if n.at < last:
            continue
        if n.target is not None and len(n.code) == _SHORT:
            reach = max(reach, n.target)
        end = n.at + len(n.code)
        if n.text.startswith(("jmp ", "ret")) and len(n.code) != _SHORT and end > reach:
            return end
    return lines[-1].at + len(lines[-1].code)


def _stubs(lines: list[Line], cold_at: int, ways: dict[int, Way]) -> dict[int, Way]:
    """By offset: where each stub begins, and the first way out that it names. One ends with a jump that nothing short leads over."""
    cold = [n for n in lines if n.at >= cold_at]
    over = {n.target for n in cold if len(n.code) == _SHORT}
    starts = {cold_at} | {n.target for n in lines if n.target is not None and n.target >= cold_at and len(n.code) != _SHORT}
    starts |= {n.at + len(n.code) for n in cold if n.text.startswith("jmp ")} - over
    out: dict[int, Way] = {}
    for n in cold:
        start = max(at for at in starts if at <= n.at)
        if start not in out and n.part == "out" and n.text.startswith("mov ") and (way := ways.get(int(n.text.rsplit(", ", 1)[1], 0))):
            out[start] = way
    return out


def _mark_own(piece: Piece, lines: list[Line]) -> list[Line]:
    """Marks the guest's own instruction among its host code: the same bytes, or the last line that does the same to something."""
    if piece.treatment not in ("copied", "rewritten"):
        return lines
    same = [n for n, line in enumerate(lines) if line.code == piece.code]
    verb = piece.text.split(" ", 1)[0].removeprefix("lock ")
    alike = [n for n, line in enumerate(lines) if line.text.removeprefix("lock ").split(" ", 1)[0] in (verb, verb.replace("movabs", "mov"))]
    which = (same or alike)[-1:]
    return [replace(line, own=n in which) for n, line in enumerate(lines)]
