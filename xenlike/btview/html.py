"""Translations as one HTML page: nothing is loaded from elsewhere, light or dark as the reader's system is.

Owns: the page. Called by: ``xenlike.cli_bt``, tests. All text of guests is escaped: what it shows may be hostile.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from xenlike.btview.model import TREATMENTS, Block, Line, Translation

__all__ = ["render_html"]

_STYLE = """
:root { color-scheme: light dark; --bg: #fbfbf9; --fg: #1d2330; --dim: #6b7280; --line: #e3e3dd; --card: #ffffff; --accent: #2757b8;
  --copied: #1a7f4b; --rewritten: #1466a8; --inlined: #8a3ea8; --called: #b3261e; --branch: #9a6700; --bar: #f0b429; }
@media (prefers-color-scheme: dark) { :root { --bg: #14171d; --fg: #d9dee7; --dim: #8b94a3; --line: #2b313c; --card: #1b1f27; --accent: #82aaff;
  --copied: #6fcf97; --rewritten: #7cc4f5; --inlined: #d3a4ec; --called: #ff8a80; --branch: #f2c14e; --bar: #b7791f; } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1500px; padding: 2rem 1.25rem 4rem; background: var(--bg); color: var(--fg);
  font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 1.5rem; margin: 0 0 .25rem } h2 { font-size: 1.05rem; margin: 0 }
code, pre, table.code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: 12.5px }
.facts { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; margin: 1rem 0; padding: 0; list-style: none } .facts b { display: block; font-size: 1.2rem }
.facts li, .dim { color: var(--dim) } .facts b { color: var(--fg); font-variant-numeric: tabular-nums }
.legend span { margin-right: 1rem }
nav table { border-collapse: collapse; width: 100%; margin: 1rem 0 2rem } nav td, nav th { padding: .15rem .75rem .15rem 0; text-align: left }
nav .n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums } nav td.bar { width: 35% } nav td.bar i { display: block; height: .6rem; min-width: 2px;
  background: var(--bar); border-radius: 2px }
a { color: var(--accent); text-decoration: none } a:hover { text-decoration: underline }
article { background: var(--card); border: 1px solid var(--line); border-radius: 8px; margin: 0 0 1.5rem; overflow: hidden }
article > header { padding: .7rem 1rem; border-bottom: 1px solid var(--line) }
.scroll { overflow-x: auto }
table.code { border-collapse: collapse; width: 100%; line-height: 1.45 } table.code td { vertical-align: top; padding: .3rem 1rem; border-top: 1px solid var(--line) }
table.code tr:first-child td { border-top: 0 } td.guest { width: 34%; border-left: 4px solid var(--kind); min-width: 21rem } td.guest b { font-weight: 600 }
td.guest small { display: block; font-size: 11.5px; color: var(--dim) } td.guest small em { font-style: normal; color: var(--kind) }
td pre { margin: 0; white-space: pre } .at, .note, .addr { color: var(--dim) }
.copied { --kind: var(--copied) } .rewritten { --kind: var(--rewritten) } .inlined { --kind: var(--inlined) } .called-out { --kind: var(--called) }
.branch { --kind: var(--branch) } .cold { --kind: var(--line) } .legend span::before { content: ""; display: inline-block; width: .7rem; height: .7rem;
  margin-right: .35rem; border-radius: 2px; background: var(--kind) }
details summary { padding: .5rem 1rem; cursor: pointer; color: var(--dim); border-top: 1px solid var(--line) } details pre { margin: 0; padding: 0 1rem .75rem }
ul.ways { margin: 0; padding: .5rem 1rem .75rem 2rem; border-top: 1px solid var(--line) } .refused { color: var(--called); font-weight: 600 }
"""


def render_html(translation: Translation, blocks: Iterable[Block]) -> str:
    """The page: what was counted, the blocks by heat, then each block."""
    shown = list(blocks)
    numbers = {b.number for b in shown}
    s = translation.stats
    total = sum(b.heat for b in translation.blocks) or 1
    facts = [(f"{s['blocks']:,}", "blocks made"), (f"{s['translated']:,}", "guest instructions in them"),
             (f"{s['host_bytes'] / max(s['guest_bytes'], 1):.1f}", "host bytes a guest byte"), (f"{sum(b.heat for b in translation.blocks):,}", "instructions begun in blocks"),
             (f"{s['interpreted']:,}", "instructions interpreted"), (f"{s['exits']:,}", "returns to the loop"), (f"{s['flushes']:,}", "flushes"),
             (f"{s['invalidated']:,}", "blocks invalidated by writes"), (f"{s['rejected']:,}", "refused by the verifier")]
    rows = "".join(f"<tr><td><a href='#b{b.number}'><code>{b.va:#x}</code></a></td><td class=n>{b.hits:,}</td><td class=n>{b.nr}</td>"
                   f"<td class=n>{100 * b.heat / total:.1f} %</td><td class=bar><i style='width:{100 * b.heat / max(shown[0].heat, 1):.1f}%'></i></td></tr>\n" for b in shown)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(translation.title)}</title><style>{_STYLE}</style></head><body>
<h1>{escape(translation.title)}</h1>
<p class="dim">Guest code and the host code that stands for it, hottest blocks first: {len(shown)} of {len(translation.blocks)}.</p>
<ul class="facts">{"".join(f"<li><b>{n}</b>{escape(what)}</li>" for n, what in facts)}</ul>
<p class="legend">{"".join(f"<span class='{name.replace(' ', '-')}'>{name}: {escape(what)}</span> " for name, what in TREATMENTS)}</p>
<nav><table><thead><tr><th>block</th><th class=n>begun</th><th class=n>instructions</th><th class=n>of all</th><th></th></tr></thead><tbody>
{rows}</tbody></table></nav>
{"".join(_block(b, numbers) for b in shown)}</body></html>
"""


def _block(b: Block, numbers: set[int]) -> str:
    rows = []
    if b.before:
        rows.append(f"<tr><td class='guest cold'><small>counts executions</small></td><td>{_lines(b.before)}</td></tr>")
    for p in b.pieces:
        flags = f" · flags: {escape(p.flags)}" if p.flags else ""
        rows.append(f"<tr class='{p.treatment.replace(' ', '-')}'><td class=guest><span class=addr>{p.va:x}</span> <b>{escape(p.text)}</b>"
                    f"<small><code>{p.code.hex(' ')}</code></small><small><em>{p.treatment}</em>{flags}</small></td><td>{_lines(p.lines)}</td></tr>")
    refused = f"<div class=refused>Refused by the verifier: {escape(b.refused)}</div>" if b.refused else ""
    invalid = "<div class=refused>Invalid: its guest code was written.</div>" if b.invalid else ""
    cold = f"<details><summary>cold code: {len(b.cold)} instructions</summary><div class=scroll>{_lines(b.cold)}</div></details>" if b.cold else ""
    ways = "".join(f"<li>{_way(w.text, w.leads_to, numbers)}</li>" for w in b.ways if w.kind in ("chain", "link", "next"))
    return (f"<article id='b{b.number}'><header><h2>Block {b.number} at <code>{b.va:#x}</code></h2><div class=dim>begun {b.hits:,} times · {b.nr} instructions · "
            f"{b.guest_len} → {b.code_len} bytes · {escape(b.context)}</div>{refused}{invalid}</header><div class=scroll><table class=code>"
            f"{''.join(rows)}</table></div>{cold}{f'<ul class=ways>{ways}</ul>' if ways else ''}</article>\n")


def _way(text: str, leads_to: int, numbers: set[int]) -> str:
    label = f"block {leads_to}"
    safe = escape(text)
    return safe.replace(label, f"<a href='#b{leads_to}'>{label}</a>") if leads_to in numbers else safe


def _lines(lines: list[Line]) -> str:
    if not lines:
        return "<span class=dim>nothing</span>"
    return "<pre>" + "\n".join(f"<span class=at>+{n.at:03x}</span>  {escape(n.text)}" + (f"  <span class=note>; {escape(n.note)}</span>" if n.note else "")
                               for n in lines) + "</pre>"
