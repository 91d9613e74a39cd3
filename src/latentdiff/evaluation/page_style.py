"""How report.html looks: one column, light or dark as the reader's system says."""

PAIR_GAP = 4
"""Pixels between an image and what it was made from."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fbfaf8; --raised: #ffffff; --ink: #1d1f23; --quiet: #646a73; --line: #e2dfd9; --accent: #2f5d8a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #16181c; --raised: #1e2126; --ink: #e6e4df; --quiet: #9aa1ab; --line: #33373e; --accent: #8ab4de;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
main { max-width: 76rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; font-weight: 600; margin: 0 0 .35rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; font-weight: 600; margin: 2.75rem 0 .75rem; }
p { margin: .25rem 0 .75rem; max-width: 46rem; }
.quiet { color: var(--quiet); font-size: .9rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem; text-align: left; vertical-align: baseline; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { padding-left: 0; }
thead th { font-size: .85rem; font-weight: 600; color: var(--quiet); white-space: nowrap; }
tbody th { font-weight: 400; }
tbody tr.metric th { padding-top: 1rem; font-weight: 600; color: var(--accent); }
.number { text-align: right; white-space: nowrap; }
.own { font-weight: 600; }
code, pre { font: .85rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
pre {
  background: var(--raised); border: 1px solid var(--line); border-radius: 6px;
  padding: .7rem .9rem; white-space: pre-wrap; overflow-wrap: anywhere;
}
td code { overflow-wrap: anywhere; }
img { display: block; max-width: 100%; height: auto; border-radius: 3px; }
img.small { image-rendering: pixelated; }
.grid { display: flex; flex-wrap: wrap; gap: 1.25rem 1rem; align-items: flex-start; }
figure { margin: 0; }
figure .pair { display: flex; gap: PAIR_GAPpx; }
figcaption {
  margin-top: .35rem; font-size: .8rem; line-height: 1.35; color: var(--quiet); overflow-wrap: anywhere;
  font-variant-numeric: tabular-nums;
}
.rows { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 35rem), 1fr)); gap: 1.5rem; }
.row { display: flex; flex-wrap: wrap; gap: .6rem; align-items: flex-start; }
.row figure:first-child { margin-right: 1.2rem; }
.curve { background: #ffffff; padding: .75rem; border: 1px solid var(--line); border-radius: 6px; max-width: 42rem; }
details { margin-top: 2.75rem; border-top: 1px solid var(--line); padding-top: 1rem; }
details details { margin-top: 1rem; }
summary { cursor: pointer; font-weight: 600; }
details h3 { font-size: .95rem; font-weight: 600; margin: 1.4rem 0 .3rem; color: var(--accent); }
details td, details th { font-size: .85rem; }
""".replace("PAIR_GAP", str(PAIR_GAP))
