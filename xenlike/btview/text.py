"""Translations as text: guest code on the left, its host code on the right; below each other where the terminal is narrow. Colours if
wanted.

Owns: the layout for terminals. Called by: ``xenlike.cli_bt``, tests.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from xenlike.btview.model import Block, Line, Piece, Translation

__all__ = ["DEFAULT_WIDTH", "render_block", "render_text"]

DEFAULT_WIDTH = 140     #: columns where nobody says otherwise
_COLOURS = {"copied": "32", "rewritten": "36", "inlined": "35", "called out": "31", "branch": "33", "dim": "2", "head": "1", "own": "1",
            "refused": "1;31"}
_SIDES = 120            # columns from which on there is room for two sides
_LEFT = (58, 68)        # columns of the left one, at least and at most
_INDENT = 8             # of host code that stands below the guest's, and of remarks
_WORD = 11              # columns of a treatment
_NOTES = (34, 44)       # where remarks on host code begin: below each other, side by side


def render_text(translation: Translation, blocks: Iterable[Block], *, colour: bool = False, cold: bool = True,
                width: int = DEFAULT_WIDTH) -> str:
    """A summary and these blocks. ``cold``: with their stubs, the lines that count executions, all rounds of unrolled loops."""
    shown = list(blocks)
    head = "\n".join([_Paint(colour)("head", translation.title), *textwrap.wrap(_summary(translation, len(shown)), width)])
    return "\n\n".join([head, *(render_block(b, colour=colour, cold=cold, width=width) for b in shown)]) + "\n"


def _summary(t: Translation, shown: int) -> str:
    s = t.stats
    share = t.share()
    ran = f"{t.retired:,} instructions ran, {share} of them translated" if share else f"{s['interpreted']:,} instructions were interpreted"
    rare = (("flushes", "flushes"), ("invalidated", "blocks invalidated by writes"), ("rejected", "REFUSED by the verifier"))
    parts = [t.ended, ran + f"; {s['exits']:,} returns to the loop",
             f"{s['blocks']:,} blocks were made of {s['translated']:,} instructions, {t.density()} host bytes a guest byte",
             *(f"{s[name]:,} {what}" for name, what in rare if s[name]),
             f"{shown} of {t.total:,} shown, hottest first" if shown > 1 else ""]
    return ". ".join(part[0].upper() + part[1:] for part in parts if part) + "."


def render_block(block: Block, *, colour: bool = False, cold: bool = True, width: int = DEFAULT_WIDTH) -> str:
    """One block: a line about it, its instructions, stubs, ways out."""
    out = _Layout(_Paint(colour), width)
    rounds = block.rounds()
    name = f" <{block.symbol}>" if block.symbol else ""
    unrolled = f" in {len(rounds)} rounds of its loop" if len(rounds) > 1 else ""
    title = (f"block {block.number} at {block.va:#x}{name}: {block.nr} instruction{'s' * (block.nr != 1)}{unrolled}, "
             f"{block.guest_len} -> {block.code_len} bytes, begun {block.hits} time{'s' * (block.hits != 1)} ({block.context})")
    out.text(title + (f", {block.state()}" if block.state() else ""), "head")
    if block.refused:
        out.text(f"refused by the verifier: {block.refused}", "refused")
    if cold:
        out.lines(block.before)
    hidden = range(rounds[1], rounds[-1]) if not cold and len(rounds) > 3 else range(0)
    for n, piece in enumerate(block.pieces):
        if n == hidden.start and hidden:
            out.text(f"-- {len(rounds) - 2} rounds of the loop, about the same (--cold shows them) {'':-<{width}}"[:width], "dim")
        if n not in hidden:
            out.piece(piece)
    if cold and block.cold:
        out.text(f"{'-- stubs, reached rarely ':-<{width}}", "dim")
        out.lines(block.cold)
    for way in block.leading():
        out.text(f"way out {way.number}: {way.text}")
    if others := block.others():
        out.text(f"ways to the loop: {others}", "dim")
    return "\n".join(row.rstrip() for row in out.rows)


class _Layout:
    """Rows of text, ``width`` wide."""

    def __init__(self, paint: "_Paint", width: int) -> None:
        self.rows: list[str] = []
        self._paint, self._width = paint, width
        self._sides = width >= _SIDES
        self._left = min(max(width * 9 // 20, _LEFT[0]), _LEFT[1])

    def text(self, text: str, kind: str = "") -> None:
        for row in textwrap.wrap(text, self._width, subsequent_indent="    "):
            self.rows.append(self._paint(kind, row))

    def piece(self, p: Piece) -> None:
        left, flags = f"{p.va:x}  {p.text}", f"flags: {p.flags}" if p.flags else ""
        room = self._left - 5 - _WORD
        if self._sides:
            beside = len(left) <= room
            below = [f"; {p.note}" if p.note else "", ", ".join(filter(None, ("" if beside else p.treatment, flags)))]
            sides = [f"{left:<{room}} {p.treatment:>{_WORD}}" if beside else left, *(f"{'':{_INDENT}}{row}" for row in below if row)]
            for n in range(max(len(p.lines), len(sides))):
                self._row(sides[n] if n < len(sides) else "", p.treatment if n == 0 else "dim", p.lines[n] if n < len(p.lines) else None)
            return
        about = [f"{left}  ; {p.note}" if p.note else left, ", ".join(filter(None, (p.treatment, flags)))]
        if len(about[0]) + len(about[1]) + 2 <= self._width:
            about = [f"{about[0]}  {about[1]:>{self._width - len(about[0]) - 2}}"]
        for n, row in enumerate(about):
            self.rows.append(self._paint(p.treatment if n == 0 else "dim", _cut(f"{'':{n * _INDENT // 2}}{row}", self._width)))
        self.lines(p.lines)

    def lines(self, lines: list[Line]) -> None:
        for line in lines:
            if self._sides:
                self._row("", "", line)
            else:
                self.rows.append(" " * _INDENT + self._host(line, self._width - _INDENT))

    def _row(self, left: str, kind: str, line: Line | None) -> None:
        side = self._paint(kind, f"  {_cut(left, self._left - 4):<{self._left - 2}}")
        self.rows.append(side + (self._host(line, self._width - self._left) if line else ""))

    def _host(self, line: Line, width: int) -> str:
        text, column = f"+{line.at:03x}  {line.text}", _NOTES[self._sides]
        room, kind = width - len(text), "own" if line.own else "dim" if line.part in ("flags", "time", "out") else ""
        note = _cut(f"{'':{max(column - len(text), 0)}}  ; {line.note}", room) if line.note and room > _WORD else ""
        return self._paint(kind, _cut(text, width)) + self._paint("dim", note)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[:max(width - 1, 0)] + "…"


class _Paint:
    def __init__(self, on: bool) -> None:
        self._on = on

    def __call__(self, what: str, text: str) -> str:
        code = _COLOURS.get(what)
        return f"\x1b[{code}m{text}\x1b[0m" if self._on and code and text.strip() else text
