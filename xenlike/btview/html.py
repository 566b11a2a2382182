"""Translations as one HTML page: nothing is loaded from elsewhere, no scripts, light or dark as the reader's system is, printable.

Owns: the page; its looks are in ``style``. Called by: ``xenlike.cli_bt``, tests. All text of guests is escaped: what it shows may be hostile.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

from xenlike.btview.flags import FLAGS
from xenlike.btview.model import TREATMENTS, Block, Line, Piece, Translation, Way
from xenlike.btview.style import STYLE

__all__ = ["render_html"]

#: What a host instruction is for: class in the style sheet, and in words.
_PARTS = (("own", "the guest's instruction"), ("mmu", "software MMU"), ("state", "the vCPU's state"), ("flags", "flags kept or made again"),
          ("time", "budget of instructions"), ("jump", "to other blocks"), ("out", "to the loop"))
_FATES = (("reads", "read here"), ("used", "written, read in the block"), ("live", "written, may be seen elsewhere"),
          ("unseen", "written, seen by nobody unless something faults"))
_FATE_CLASS = {"used": "used", "live out": "live", "unseen": "unseen"}
_COUNTS = ("in front: instructions that count how often the block is begun, while it is watched",
           "in front: a way out, since the block is begun no more")
#: Words that the page uses and a reader of x86 need not know.
_WORDS = (("block", "guest code from where control arrives to a branch, translated at once; guest → host bytes"),
          ("begun", "how often it was entered"),
          ("the loop", "the C code that looks for the next block, makes it, and runs what is left to the interpreter"),
          ("stub", "code behind a block for what is rare"),
          ("chained", "patched to jump to the next block; linked: through a word, if that is in another page"),
          ("budget", "the instructions that the vCPU may still run (bt.left)"),
          ("bt.", "the translator's own state, by way of GS: l0 and l1 its TLB, an entry for each page: negated address, addend (host's minus guest's)"),
          ("cpu.", "the vCPU's state"),
          ("r13", "holds the guest's rsp; r14 and r15 are scratch, the guest's r13 to r15 in memory (bt.)"),
          ("CPL 0, kernel TLB, SSE, floating point, x87, flat FS",
           "what the block takes for granted: the level, which of two TLBs, that instructions of these kinds, and segments, raise nothing"))
_COLUMNS = ('<th>block</th><th>guest address</th><th class="n">begun</th><th class="n">instructions</th><th class="n">share</th>'
            '<th class="bar"></th>')


def render_html(translation: Translation, blocks: Iterable[Block]) -> str:
    """The page: what was counted, the blocks by heat, then each block."""
    shown = list(blocks)
    page = _Page({b.number for b in shown}, translation.heat or 1)
    hottest = max((b.heat for b in shown), default=0)
    title = escape(translation.title)
    about = f"Guest code and the host code that stands for it: {len(shown)} of {translation.total:,} blocks, {translation.ordered}."
    if translation.ended:
        about += f" {translation.ended[0].upper()}{translation.ended[1:]}."
    story = "".join(f"<li>{page.linked(text)}</li>" for text in translation.story)
    told = f"<p>{escape(translation.about)}</p>\n<pre class=\"source\">{escape(translation.source)}</pre>" if translation.about else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
{STYLE}</style></head><body>
<a class="skip" href="#blocks">to the blocks</a>
<header id="top"><h1>{title}</h1>
<p class="dim">{escape(about)}</p>
{told}
{f'<ol class="story">{story}</ol>' if story else ''}
{_facts(translation)}
{_legend()}</header>
<nav aria-label="Blocks by heat"><table><thead><tr>{_COLUMNS}</tr></thead><tbody>
{"".join(page.row(b, hottest) for b in shown)}</tbody></table></nav>
<main id="blocks">
{"".join(page.block(b) for b in shown)}</main></body></html>
"""


def _facts(t: Translation) -> str:
    s = t.stats
    facts = [(f"{t.retired:,}", "instructions ran") if t.retired else (f"{t.heat:,}", "instructions begun in blocks"),
             (t.share(), "of them translated"), (f"{s['interpreted']:,}", "interpreted"), (f"{s['exits']:,}", "returns to the loop"),
             (f"{s['blocks']:,}", "blocks made"), (f"{s['translated']:,}", "instructions in them"), (t.density(), "host bytes a guest byte")]
    rare = (("invalidated", "blocks invalidated by writes"), ("flushes", "flushes"), ("rejected", "refused by the verifier"))
    facts += [(f"{s[name]:,}", what) for name, what in rare if s[name]]
    return f'<ul class="facts">{"".join(f"<li><b>{n}</b> {what}</li>" for n, what in facts if n)}</ul>'


def _legend() -> str:
    treatments = "".join(f'<li class="{_class(name)}"><b>{name}</b> {escape(what)}</li>' for name, what in TREATMENTS)
    fates = "".join(f'<li><i class="flag {name}">Z</i> {escape(what)}</li>' for name, what in _FATES)
    parts = "".join(f'<li class="{name}">{escape(what)}</li>' for name, what in _PARTS)
    words = "".join(f"<p><b>{escape(word)}</b>: {escape(what)}.</p>" for word, what in _WORDS)
    return (f'<dl class="legend"><dt>Guest\'s side</dt><dd><ul class="treatments">{treatments}</ul></dd>\n'
            f'<dt>Flags</dt><dd><ul>{fates}</ul><span class="dim">O overflow, S sign, Z zero, A adjust, P parity, C carry</span></dd>\n'
            f'<dt>Host\'s side</dt><dd><ul class="parts">{parts}</ul></dd>\n'
            f'<dt>Words</dt><dd><details><summary>{escape(", ".join(word for word, _ in _WORDS[:6]))} …</summary>{words}</details></dd></dl>')


def _bar(part: int, whole: int) -> str:
    return f'<i style="width:{100 * part / max(whole, 1):.1f}%"></i>'


def _class(treatment: str) -> str:
    return treatment.replace(" ", "-")


def _many(n: int, noun: str) -> str:
    return f"{n:,} {noun}{'s' * (n != 1)}"


def _flags(p: Piece) -> str:
    """A letter for each flag that the instruction reads or writes."""
    reads = "".join(f'<i class="flag reads" title="reads {name}">{name[0]}</i>' for name in FLAGS if name in p.reads)
    writes = "".join(f'<i class="flag {_FATE_CLASS[fate]}" title="writes {name}: {fate}">{name[0]}</i>'
                     for name in FLAGS if (fate := p.fates.get(name)))
    text = " ".join(([f"reads {reads}"] if reads else []) + ([f"writes {writes}"] if writes else []))
    return f' <span class="flags" aria-label="flags: {escape(p.flags)}">{text}</span>' if text else ""


class _Page:
    """What links on the page may lead to (``numbers`` of blocks), and the heat of all that the translator has."""

    def __init__(self, numbers: set[int], heat: int) -> None:
        self._numbers, self._heat = numbers, heat

    def linked(self, text: str) -> str:
        """Text with links to the blocks that it names."""
        return re.sub(r"\bblock (\d+)\b", lambda found: self._link(int(found[1])), escape(text))

    def row(self, b: Block, hottest: int) -> str:
        """One block, in the table of all."""
        return (f'<tr><td>{self._link(b.number, str(b.number))}</td><td><a href="#b{b.number}">{self._where(b)}</a></td>'
                f'<td class="n">{b.hits:,}</td><td class="n">{b.nr}</td>'
                f'<td class="n">{self._share(b)}</td><td class="bar">{_bar(b.heat, hottest)}</td></tr>\n')

    def block(self, b: Block) -> str:
        """One block, whole."""
        targets = {n.target for n in [*b.before, *(n for p in b.pieces for n in p.lines), *b.cold] if n.target is not None}
        front = f'<tr class="cold"><td class="guest" colspan="2"><small>{_COUNTS[b.invalid]}</small></td></tr>\n' if b.before else ""
        return (f'<article id="b{b.number}" aria-labelledby="h{b.number}">{self._head(b)}\n'
                f'<div class="scroll" tabindex="0" role="region" aria-label="code of block {b.number}"><table class="code"><tbody>\n'
                f'{front}{"".join(self._piece(b, p, targets) for p in b.pieces)}</tbody></table></div>\n'
                f'{self._stubs(b, targets) if b.cold else ""}{self._ways(b)}</article>\n')

    def _head(self, b: Block) -> str:
        rounds = f", {len(b.rounds())} rounds of its loop" if len(b.rounds()) > 1 else ""
        facts = (f"begun {_many(b.hits, 'time')}, {self._share(b)} of all", _many(b.nr, "instruction") + rounds,
                 f"{b.guest_len} → {b.code_len} bytes", escape(b.context), '<a href="#top">top</a>')
        notes = [f"Replaced by {self._link(b.replaced)}, in which its loop is unrolled."] if b.replaced else \
            [f"Invalid: its page was written since. The guest code shown is what {'it was made of' if b.kept else 'stands there now'}."] if b.invalid else []
        notes += [f"Refused by the verifier: {escape(b.refused)}"] if b.refused else []
        told = "".join(f'<p class="refused">{note}</p>' for note in notes)
        return (f'<header><h2 id="h{b.number}">Block {b.number} {self._where(b)}</h2><p class="dim">{" · ".join(facts)}</p>'
                f'<div class="heat">{_bar(b.heat, self._heat)}</div>{told}</header>')

    def _piece(self, b: Block, p: Piece, targets: set[int]) -> str:
        note = f"<small><code>{escape(p.note)}</code></small>" if p.note else ""
        return (f'<tr class="{_class(p.treatment)}"><td class="guest"><code><span class="at">{p.va:x}</span> <b>{escape(p.text)}</b></code>'
                f'{note}<small><em>{p.treatment}</em> <code>{p.code.hex(" ")}</code>{_flags(p)}</small></td>'
                f'<td class="host">{self._lines(b, p.lines, targets)}</td></tr>\n')

    def _lines(self, b: Block, lines: list[Line], targets: set[int]) -> str:
        return "<pre>" + "\n".join(self._line(b, n, targets) for n in lines) + "</pre>" if lines else "<small>nothing</small>"

    def _line(self, b: Block, line: Line, targets: set[int]) -> str:
        text, here = escape(line.text), f"b{b.number}-{line.at:03x}"
        if line.target is not None:
            text = text.replace(f"+{line.target:03x}", f'<a href="#b{b.number}-{line.target:03x}">+{line.target:03x}</a>')
        elif line.block and line.part == "jump":
            text = text.replace(f"block {line.block}", self._link(line.block))
        at = f'<span class="at" id="{here}">' if line.at in targets else '<span class="at">'
        kind = "own" if line.own else line.part
        note = f' <span class="note">; {escape(line.note)}</span>' if line.note else ""
        return f"{at}+{line.at:03x}</span>  " + (f'<span class="{kind}">{text}</span>' if kind else text) + note

    def _stubs(self, b: Block, targets: set[int]) -> str:
        first, parts = b.cold[0].at, []
        for end in (*sorted(at for at in b.stubs if at != first), 1 << 32):
            if lines := [n for n in b.cold if first <= n.at < end]:
                parts.append(self._lines(b, lines, targets))
            first = end
        return (f'<details><summary>{_many(len(b.stubs) or 1, "stub")}, reached rarely: {_many(len(b.cold), "instruction")}</summary>'
                f'<div class="host" tabindex="0" role="region" aria-label="stubs of block {b.number}">{"".join(parts)}</div></details>\n')

    def _ways(self, b: Block) -> str:
        ways = [f"<li>{self._way(way)}</li>" for way in b.leading()]
        ways += [f"<li>linked from {', '.join(self._link(n) for n in b.came_from)}</li>"] if b.came_from else []
        ways += [f'<li class="dim">ways to the loop: {escape(b.others())}</li>'] if b.others() else []
        return f'<ul class="ways">{"".join(ways)}</ul>' if ways else ""

    def _way(self, way: Way) -> str:
        text = escape(way.text)
        return text.replace(f"block {way.leads_to}", self._link(way.leads_to)) if way.leads_to else text

    def _where(self, b: Block) -> str:
        return f"<code>{b.va:#x}</code>" + (f' <span class="symbol">{escape(b.symbol)}</span>' if b.symbol else "")

    def _share(self, b: Block) -> str:
        return f"{100 * b.heat / self._heat:.1f} %"

    def _link(self, number: int, text: str = "") -> str:
        text = text or f"block {number}"
        return f'<a href="#b{number}">{text}</a>' if number in self._numbers else text
