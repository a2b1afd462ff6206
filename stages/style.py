"""The style sheet of the report: light and dark, wide and narrow, screen and paper.

Seven colours that differ in lightness as well as in hue, so that they stay apart in the common
forms of colour blindness; they never stand alone: each recipe has a sign of its own.
"""

STYLE = """
:root {
  --paper: #fff; --ink: #1b1d21; --muted: #5b616b; --rule: #d9dce1; --tint: #f4f5f7;
  --best: #e6f0f8; --link: #00578f;
  --p0: #1a73c2; --p1: #b23a08; --p2: #138a63; --p3: #54207c; --p4: #ad8c14; --p5: #2b2b2b;
  --p6: #cf5a96;
  --r0: #9cc4e4; --r1: #68a3d2; --r2: #3b80b8; --r3: #1d5c92; --r4: #0b3a63;
  --alert: #fdf0e8;
  --s0: #fff; --s1: #eef4fa; --s2: #dbe8f4; --s3: #c4d9ec; --s4: #a8c8e4;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #15171a; --ink: #e6e8eb; --muted: #a2a9b3; --rule: #363b42; --tint: #1d2024;
    --best: #1d3447; --link: #7cc0f5;
    --p0: #6cbcf7; --p1: #ff8a4a; --p2: #42c298; --p3: #9b70e6; --p4: #f0dc7a; --p5: #b4bac1;
    --p6: #d04a8a;
    --r0: #34597a; --r1: #467caa; --r2: #609fd2; --r3: #8cc0ea; --r4: #cbe5fb;
    --alert: #35231a;
    --s0: #15171a; --s1: #1a2735; --s2: #1f364c; --s3: #254663; --s4: #2c577c;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
  font-variant-numeric: tabular-nums;
}
main { max-width: 1340px; margin: 0 auto; padding: 40px 30px 80px; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .6em; letter-spacing: -.01em; }
h2 { font-size: 1.3rem; line-height: 1.3; margin: 3em 0 .8em; padding-top: .7em;
  border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 2.2em 0 .7em; }
p { margin: 0 0 .9em; max-width: 46em; }
.lead { font-size: 1.06rem; }
.note { color: var(--muted); font-size: .875rem; }
.note strong { color: var(--ink); }
a { color: var(--link); }
nav { display: flex; flex-wrap: wrap; gap: .3em 1.5em; margin-top: 1.4em; font-size: .95rem; }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; }
code { font-size: .85em; overflow-wrap: anywhere; }
pre { margin: 0 0 .9em; padding: 10px 12px; background: var(--tint); border-radius: 4px;
  font-size: .8rem; line-height: 1.5; overflow-x: auto; }
.sr { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
  white-space: nowrap; }

.scroll { overflow-x: auto; margin: 0 0 1.1em; position: relative; }
.scroll:focus-visible, summary:focus-visible, a:focus-visible {
  outline: 2px solid var(--link); outline-offset: 2px; }
table { border-collapse: collapse; font-size: .875rem; line-height: 1.4; }
th, td { padding: 6px 9px; text-align: right; white-space: nowrap; vertical-align: baseline;
  border-bottom: 1px solid var(--rule); }
thead th { font-weight: 600; color: var(--muted); vertical-align: bottom;
  border-bottom: 1.5px solid var(--ink); }
th.word, td.word { text-align: left; }
tbody th { font-weight: 600; }
.main { width: 100%; font-size: .8125rem; }
.main th, .main td { padding: 6px 7px; }
thead th, .main tbody th { white-space: normal; }
.main tbody th { min-width: 10.5em; }
.main th.word { position: sticky; left: 0; background: var(--paper); padding-left: 2px; }
.best { background: var(--best); }
.listed span, .digests span { display: block; }
.range { display: block; font-size: .75rem; font-weight: 400; color: var(--muted); }
.seeds, .other { font-weight: 400; color: var(--muted); }
.warning { max-width: 46em; padding: 9px 14px; background: var(--alert);
  border-left: 4px solid var(--p1); }
.matrix td { text-align: center; min-width: 6.5em; }
.shade0 { background: var(--s0); } .shade1 { background: var(--s1); }
.shade2 { background: var(--s2); } .shade3 { background: var(--s3); }
.shade4 { background: var(--s4); }

figure { margin: 0 0 1.6em; }
figcaption { font-size: .95rem; font-weight: 600; margin: 0 0 .5em; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg.swatch { display: inline-block; width: 24px; height: 12px; vertical-align: -1px;
  margin-right: .15em; }
.narrow { display: none; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr));
  gap: 0 20px; margin-top: 2em; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr));
  gap: 8px 24px; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr));
  gap: 30px 28px; margin-top: 1.6em; }
.card { margin: 0; min-width: 0; }
.card h3 { display: flex; justify-content: space-between; align-items: baseline; gap: 1em;
  margin: 0 0 .6em; }
.card .side { font-weight: 400; color: var(--muted); white-space: nowrap; }
.recipe { overflow-wrap: anywhere; }
.card img { display: block; width: 100%; height: auto; image-rendering: pixelated;
  border: 1px solid var(--rule); margin-bottom: .9em; }
.picture img { display: block; max-width: 100%; height: auto; image-rendering: pixelated; }
.card figcaption { font-weight: 400; font-size: .875rem; }
.card pre { white-space: pre-wrap; }
.digests { color: var(--muted); font-size: .85rem; line-height: 1.45; }

details { border-bottom: 1px solid var(--rule); }
details[open] { padding-bottom: 1em; }
summary { padding: .6em 0; cursor: pointer; }
details pre { max-height: 34em; overflow: auto; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .25em 1.5em;
  margin: .4em 0 1.4em; font-size: .875rem; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }

.c0 { --c: var(--p0); } .c1 { --c: var(--p1); } .c2 { --c: var(--p2); } .c3 { --c: var(--p3); }
.c4 { --c: var(--p4); } .c5 { --c: var(--p5); } .c6 { --c: var(--p6); }
svg text { font-size: 12px; fill: var(--ink); }
svg .tick, svg .name { fill: var(--muted); }
svg .tick { font-size: 11.5px; }
svg .strong { font-weight: 600; }
svg path { fill: none; }
.grid { stroke: var(--rule); stroke-width: 1; }
.axis { stroke: var(--muted); stroke-width: 1; }
.reference { stroke: var(--muted); stroke-width: 1.3; stroke-dasharray: 6 4; }
.line { stroke: var(--c); stroke-width: 2; stroke-linejoin: round; }
.leader { stroke: var(--c); stroke-width: 1; stroke-dasharray: 1 3; opacity: .8; }
.dot { fill: var(--c); stroke: var(--paper); stroke-width: 1; }
.curve { stroke-width: 1.1; stroke-linejoin: round; }
.plain { stroke: var(--c); stroke-width: 1.8; stroke-linejoin: round; }
.steps { stroke-linejoin: round; }
.steps.strong { stroke: var(--r4); stroke-width: 1.7; }
.steps.faint { stroke: var(--r1); stroke-width: 1.4; }
.bound { stroke: var(--ink); stroke-width: 1.1; stroke-dasharray: 2 3; }
.cut { stroke: #111; stroke-width: 1.2; stroke-dasharray: 4 3; }
svg path.area { stroke: none; fill: var(--c, var(--r3)); fill-opacity: .16; }
.heat { image-rendering: pixelated; }
.r0 { stroke: var(--r0); } .r1 { stroke: var(--r1); } .r2 { stroke: var(--r2); }
.r3 { stroke: var(--r3); } .r4 { stroke: var(--r4); }
.band { fill: var(--c); }
.b0 { fill-opacity: .12; } .b1 { fill-opacity: .27; }
.state { stroke: var(--c); stroke-width: 1.5; }
.visit { stroke: var(--muted); stroke-width: 3.2; stroke-linecap: round; }
svg path.first, .first { fill: var(--c); opacity: .22; }
svg path.sum0 { fill: var(--c); } svg path.sum1 { fill: var(--c); opacity: .62; }
.each { fill: var(--c); opacity: .8; }

@media screen and (max-width: 760px) {
  main { padding: 24px 16px 60px; }
  h1 { font-size: 1.6rem; }
  .wide { display: none; }
  .narrow { display: block; }
  .main tbody th { white-space: normal; min-width: 11.5em; }
  .narrow svg, .panels svg { max-width: 480px !important; }
}
@media print {
  @page { margin: 16mm 14mm; }
  body { font-size: 10pt; }
  main { max-width: none; padding: 0; }
  nav { display: none; }
  h2 { margin-top: 1.6em; }
  h2, h3, h2 + p, figcaption { break-after: avoid; }
  figure, tr, .card { break-inside: avoid; }
  .scroll { overflow: visible; }
  table { font-size: 7.6pt; }
  th, td { padding: 3px 5px; }
  details pre { max-height: none; white-space: pre-wrap; }
  .best, .warning, .matrix td, .band, .dot, svg * {
    print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
