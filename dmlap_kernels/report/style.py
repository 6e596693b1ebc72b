"""The style sheet of the page: light and dark, wide and narrow."""

from __future__ import annotations

CSS = """
:root { color-scheme: light dark; --ink: #1c1c1c; --paper: #ffffff; --line: #cccccc;
  --right: #0072b2; --wrong: #d55e00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8e8; --paper: #16181c; --line: #444950; --right: #56b4e9; --wrong: #e69f00; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 75rem; color: var(--ink);
  background: var(--paper); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1, h2, h3 { line-height: 1.2; }
h1 { font-size: clamp(1.4rem, 5vw, 2rem); }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
p { max-width: 46rem; }
.wide { overflow-x: auto; }
#comparison table { font-size: 0.9rem; }
.wide + .wide { margin-top: 1.5rem; }
table { border-collapse: separate; border-spacing: 0; font-variant-numeric: tabular-nums;
  overflow-wrap: normal; }
th, td { padding: 0.2rem 0.45rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; vertical-align: baseline; }
thead th { white-space: normal; vertical-align: bottom; }
th:first-child { text-align: left; padding-left: 0; position: sticky; left: 0;
  background: var(--paper); }
td.text { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 12rem; }
.curves { display: grid; gap: 0.8rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)); }
.plot { width: 100%; max-width: 50rem; height: auto; background: #ffffff; border-radius: 0.4rem; }
.sample { width: 4.4rem; height: 4.4rem; object-fit: contain; display: block; }
.coarse { image-rendering: pixelated; }
.row { display: flex; flex-wrap: wrap; gap: 0.35rem; padding: 0.4rem 0;
  border-bottom: 1px solid var(--line); }
figure { margin: 0; }
.row figure { width: clamp(4.2rem, 9.6vw, 7.2rem); font-size: 0.75rem; line-height: 1.25; }
.row .sample { width: 100%; height: auto; aspect-ratio: 1; border: 4px solid var(--line); }
.row .query { margin-right: 0.8rem; }
.row .right .sample { border: 4px solid var(--right); }
.row .wrong .sample { border: 4px dashed var(--wrong); }
.right .sign { color: var(--right); font-weight: bold; }
.wrong .sign { color: var(--wrong); font-weight: bold; }
.row figcaption { max-height: 3.75em; overflow: hidden; }
.pair { display: flex; flex-wrap: wrap; gap: 0.5rem 2rem; align-items: center;
  padding: 0.6rem 0; border-bottom: 1px solid var(--line); }
.class div { display: flex; gap: 0.2rem; }
.class figcaption { font-size: 0.8rem; max-width: 18.2rem; }
.settings { margin-top: 1.5rem; }
.settings :is(td, thead th) { text-align: left; white-space: normal; overflow-wrap: anywhere; }
summary { cursor: pointer; padding: 0.5rem 0; }
.multiples { display: grid; gap: 0.6rem 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 10rem), 1fr)); }
.multiples figcaption { display: flex; gap: 0.5rem; justify-content: space-between;
  font-size: 0.75rem; line-height: 1.3; }
.multiples figure { min-width: 0; }
.multiples span { white-space: nowrap; font-variant-numeric: tabular-nums; }
.multiples span:first-child { overflow: hidden; text-overflow: ellipsis; }
.multiples svg { display: block; width: 100%; height: 2.4rem; border: solid var(--line);
  border-width: 0 0 1px 1px; }
.multiples path { fill: none; stroke: var(--right); stroke-width: 1.5;
  stroke-linejoin: round; vector-effect: non-scaling-stroke; }
"""
