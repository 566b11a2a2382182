"""Translations as text: guest code on the left, its host code on the right, colours if the terminal has them.

Owns: the layout for terminals. Called by: ``xenlike.cli_bt``, ``btview.example``, tests.
"""

from __future__ import annotations

from collections.abc import Iterable

from xenlike.btview.model import Block, Line, Translation

__all__ = ["render_block", "render_text"]

_COLOURS = {"copied": "32", "rewritten": "36", "inlined": "35", "called out": "31", "branch": "33", "cold": "2", "head": "1", "note": "2"}
_LEFT = 58          # columns of the guest's side
_HOST = 52          # of a host instruction, before its remark


def render_text(translation: Translation, blocks: Iterable[Block], *, colour: bool = False, cold: bool = True) -> str:
    """A summary and these blocks."""
    s = translation.stats
    paint = _Paint(colour)
    shown = list(blocks)
    rate = f"{s['host_bytes'] / s['guest_bytes']:.1f} host bytes a guest byte" if s["guest_bytes"] else "nothing was translated"
    head = [paint("head", translation.title),
            f"{s['blocks']} blocks of {s['translated']} instructions, {rate}; {s['interpreted']} instructions were interpreted; "
            f"{s['exits']} returns to the loop; {s['flushes']} flushes, {s['invalidated']} blocks invalidated by writes"
            + (f"; {s['rejected']} REFUSED by the verifier" if s["rejected"] else ""),
            f"shown: {len(shown)} of {len(translation.blocks)} blocks, hottest first"]
    return "\n\n".join(["\n".join(head), *(render_block(b, colour=colour, cold=cold) for b in shown)]) + "\n"


def render_block(block: Block, *, colour: bool = False, cold: bool = True) -> str:
    """One block: a line about it, instructions, cold code, ways out."""
    paint = _Paint(colour)
    title = (f"block {block.number} at {block.va:#x}: {block.nr} instruction{'s' * (block.nr != 1)}, {block.guest_len} -> {block.code_len} bytes, "
             f"begun {block.hits} time{'s' * (block.hits != 1)} ({block.context})")
    title += ", INVALID: its code was written" if block.invalid else ""
    rows = [paint("head", title)]
    if block.refused:
        rows.append(paint("called out", f"  refused by the verifier: {block.refused}"))
    for line in block.before:
        rows.append(_row("", "", line, paint, "cold"))
    for piece in block.pieces:
        left = f"{piece.va:x}  {piece.text}"
        extra = [f"{'':8}{piece.treatment}" + (f", flags: {piece.flags}" if piece.flags else "")]
        for n in range(max(len(piece.lines), 2)):
            side = left if n == 0 else extra[0] if n == 1 else ""
            rows.append(_row(side, piece.treatment, piece.lines[n] if n < len(piece.lines) else None, paint, "" if n == 0 else "note"))
    if cold and block.cold:
        rows.append(paint("cold", f"  {'cold code':-<{_LEFT + _HOST}}"))
        rows += [_row("", "cold", line, paint, "cold") for line in block.cold]
    for way in block.ways:
        if way.kind in ("chain", "link", "next"):
            rows.append(f"  way out {way.number}: {way.text}")
    return "\n".join(row.rstrip() for row in rows)


def _row(left: str, treatment: str, line: Line | None, paint: "_Paint", kind: str) -> str:
    cut = left if len(left) < _LEFT else left[:_LEFT - 2] + "…"
    side = paint("note" if kind == "note" else treatment or "cold", f"  {cut:<{_LEFT}}")
    if line is None:
        return side
    return side + paint("cold" if kind == "cold" else "", f"+{line.at:03x}  {line.text:<{_HOST}}") + (paint("note", f" ; {line.note}") if line.note else "")


class _Paint:
    def __init__(self, on: bool) -> None:
        self._on = on

    def __call__(self, what: str, text: str) -> str:
        code = _COLOURS.get(what)
        return f"\x1b[{code}m{text}\x1b[0m" if self._on and code else text
