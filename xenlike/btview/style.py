"""How the page of ``html`` looks: one style sheet, light or dark as the reader's system is, for screens of any width and for paper."""

__all__ = ["STYLE"]

STYLE = """\
:root { color-scheme: light dark; --bg: #f7f7f4; --fg: #1b2230; --dim: #5d6675; --line: #dfe0da; --card: #fff; --code: #fcfcfa; --accent: #1d4fae; --mark: #fff3c4;
  --copied: #17713f; --rewritten: #0f5f9e; --inlined: #7d35a0; --called: #b3261e; --branch: #855a00; --bar: #e0a21b; --mmu: #0f5f9e; --time: #6d5b00; --flag: #8a3478; --jump: #1d4fae }
@media (prefers-color-scheme: dark) { :root { --bg: #12151a; --fg: #dce1ea; --dim: #98a2b3; --line: #2c323d; --card: #1a1e26; --code: #161a21; --accent: #8ab4ff; --mark: #4a3f12;
  --copied: #6fcf97; --rewritten: #7cc4f5; --inlined: #d3a4ec; --called: #ff8a80; --branch: #f2c14e; --bar: #b7801f; --mmu: #7cc4f5; --time: #d9c76a; --flag: #e3a1d6; --jump: #8ab4ff } }
* { box-sizing: border-box }
html { scroll-padding-top: .75rem }
body { margin: 0 auto; max-width: 1400px; padding: 1.5rem 1.25rem 4rem; background: var(--bg); color: var(--fg); font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 } h2 { font-size: 1.05rem; margin: 0 } p { margin: .25rem 0 }
code, pre { font: 12.5px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace }
small { font-size: 11.5px; color: var(--dim) } small code { font-size: 11.5px }
a { color: var(--accent); text-decoration: none } a:hover { text-decoration: underline }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px }
.dim { color: var(--dim) } .symbol { font-weight: 600 }
.skip { position: absolute; left: -99rem } .skip:focus { left: 1rem; top: .5rem; padding: .25rem .5rem; background: var(--card) }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .25rem 1rem; margin: 1rem 0; padding: 0; list-style: none; color: var(--dim); font-size: 13px }
.facts b { display: block; font-size: 1.2rem; line-height: 1.3; color: var(--fg); font-variant-numeric: tabular-nums }
.story { margin: 1rem 0; padding-left: 1.5rem } pre.source { margin: .75rem 0; padding: .6rem 1rem; border: 1px solid var(--line); border-radius: 8px; background: var(--card); overflow-x: auto }
.legend { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1rem; margin: 1rem 0; padding: .75rem 1rem; border: 1px solid var(--line); border-radius: 8px; background: var(--card); font-size: 13px }
.legend dt { font-weight: 600 } .legend dd { margin: 0 } .legend ul { display: flex; flex-wrap: wrap; gap: .15rem 1.25rem; margin: 0; padding: 0; list-style: none }
.legend details summary { padding: 0; border: 0 } .legend details p { margin: .15rem 0 } .legend .treatments li { border-left: 4px solid var(--kind); padding-left: .5rem } .legend .parts { font: 12.5px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace }
nav table { border-collapse: collapse; width: 100%; margin: 1.25rem 0 1.75rem; font-size: 13.5px } nav td, nav th { padding: .12rem 1rem .12rem 0; text-align: left; white-space: nowrap }
nav th { font-weight: 600; color: var(--dim) } nav tr:hover td { background: var(--card) } nav .n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums } nav .bar { width: 40%; padding-right: 0 }
.bar i, .heat i { display: block; height: .6rem; min-width: 2px; background: var(--bar); border-radius: 2px; print-color-adjust: exact; -webkit-print-color-adjust: exact }
.heat { height: 4px; background: var(--line) } .heat i { height: 4px; border-radius: 0 }
article { background: var(--card); border: 1px solid var(--line); border-radius: 8px; margin: 0 0 1.5rem; overflow: hidden }
article:target { border-color: var(--accent); box-shadow: 0 0 0 2px var(--accent) }
article > header h2, article > header p { padding: 0 1rem } article > header h2 { padding-top: .7rem } article > header p { padding-bottom: .45rem }
.scroll { overflow-x: auto }
table.code { border-collapse: collapse; width: 100% } table.code td { vertical-align: top; padding: .35rem 1rem; border-top: 1px solid var(--line) } table.code tr:first-child td { border-top: 0 }
td.guest { width: 38%; border-left: 4px solid var(--kind) } td.guest code { white-space: nowrap } td.guest small { display: block; line-height: 1.45 } td.guest small code { white-space: normal } td.guest em { font-style: normal; font-weight: 600; color: var(--kind) }
td.host, details .host { background: var(--code) } pre { margin: 0; white-space: pre }
.at { color: var(--dim) } .at:target { background: var(--mark); color: var(--fg) } .note { color: var(--dim) }
.copied { --kind: var(--copied) } .rewritten { --kind: var(--rewritten) } .inlined { --kind: var(--inlined) } .called-out { --kind: var(--called) } .branch { --kind: var(--branch) } .cold { --kind: var(--line) }
.own { font-weight: 700 } .mmu { color: var(--mmu) } .flags { color: var(--dim) } pre .flags, .parts .flags { color: var(--flag) } .time { color: var(--time) } .state { color: var(--inlined) } .jump { color: var(--jump) } .out { color: var(--called) }
.flag { display: inline-block; min-width: 1.25em; margin-right: 1px; padding: 0 .15em; border: 1px solid transparent; border-radius: 3px; font: 600 11px/1.35 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  text-align: center; print-color-adjust: exact; -webkit-print-color-adjust: exact }
.flag.reads { border-color: currentColor; color: var(--accent) } .flag.used { background: var(--copied); color: var(--card) } .flag.live { background: var(--branch); color: var(--card) }
.flag.unseen { border-color: var(--line); color: var(--dim); text-decoration: line-through; font-weight: 400 }
details summary { padding: .45rem 1rem; cursor: pointer; color: var(--dim); border-top: 1px solid var(--line); font-size: 13px } details .host { padding: .5rem 1rem; overflow-x: auto } details pre + pre { margin-top: .6rem }
ul.ways { margin: 0; padding: .5rem 1rem .6rem 2.2rem; border-top: 1px solid var(--line); font-size: 13.5px } .refused { color: var(--called); font-weight: 600 }
@media (max-width: 820px) { body { padding: 1rem .6rem 3rem } .legend { grid-template-columns: 1fr } .legend dt { margin-top: .25rem } nav .bar { width: 20% } nav td, nav th { padding-right: .6rem; white-space: normal }
  table.code, table.code tbody, table.code tr, table.code td { display: block; width: auto } table.code td { padding: .35rem .7rem } table.code td.host { border-top: 0; padding-left: 1.5rem; border-left: 4px solid var(--kind); overflow-x: auto } }
@media print { :root { --bg: #fff; --fg: #000; --dim: #444; --line: #bbb; --card: #fff; --code: #fff; --accent: #000; --mark: #fff; --copied: #17713f; --rewritten: #0f5f9e; --inlined: #7d35a0; --called: #b3261e; --branch: #855a00;
    --bar: #999; --mmu: #0f5f9e; --time: #6d5b00; --flag: #8a3478; --jump: #000 }
  body { max-width: none; padding: 0; font-size: 10pt } code, pre { font-size: 7.5pt } pre { white-space: pre-wrap } .skip { display: none } article { border-radius: 0; overflow: visible } .scroll { overflow: visible }
  table.code tr { break-inside: avoid } article > header { break-after: avoid } details::details-content { content-visibility: visible; block-size: auto } }
"""
