"""How the page of report_html.py looks, and the few lines of script that sort its tables."""

from __future__ import annotations

STYLE = """
:root {
  --paper: #fbfbf9; --panel: #ffffff; --ink: #1b1d21; --soft: #5c6270; --line: #dfe1e6;
  --accent: #2458b8; --fill: #9db7e4; --band: #e9effa; --good: #14713c; --bad: #b3261e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15171b; --panel: #1d2026; --ink: #e8e9ec; --soft: #a0a6b3; --line: #343943;
    --accent: #8fb4ff; --fill: #47639c; --band: #232d42; --good: #6fd08f; --bad: #ff8f85;
  }
}
* { box-sizing: border-box; }
html { color-scheme: light dark; -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; max-width: 68rem; padding: 1.5rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
h1 { font-size: clamp(1.35rem, 1rem + 1.8vw, 2.1rem); line-height: 1.25; margin: 0 0 1rem; text-wrap: balance; }
h2 { font-size: 1.25rem; margin: 3rem 0 .5rem; padding-top: 1rem; border-top: 1px solid var(--line); }
p { margin: .35rem 0; max-width: 46rem; overflow-wrap: anywhere; }
.kicker { color: var(--soft); font-size: .875rem; margin: 0 0 .75rem; }
.lead { font-size: 1.1rem; }
.hint, figcaption, .note { color: var(--soft); font-size: .875rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .75rem; margin: 1.25rem 0; }
.facts > div { background: var(--panel); border: 1px solid var(--line); border-radius: .5rem; padding: .75rem 1rem; }
.facts dt { color: var(--soft); font-size: .875rem; }
.facts dd { margin: 0; font-variant-numeric: tabular-nums; }
.facts .value { font-size: 1.6rem; font-weight: 600; line-height: 1.3; }
.scroll { overflow-x: auto; margin: .75rem 0 1.25rem; }
.scroll:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; min-width: 50%; font-size: .9rem; }
caption { text-align: left; font-weight: 600; padding: .25rem 0; }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: baseline; }
th { color: var(--soft); font-weight: 500; white-space: nowrap; }
th.text, td.text { text-align: left; overflow-wrap: anywhere; min-width: 3.5rem; }
td.text:first-child { min-width: 9rem; }
th.number, td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
th[role=button] { cursor: pointer; }
th[role=button]:hover, th[role=button]:focus-visible { color: var(--accent); }
th[aria-sort=ascending]::after { content: " \\2191"; }
th[aria-sort=descending]::after { content: " \\2193"; }
.better { color: var(--good); }
.worse { color: var(--bad); }
details { margin: .75rem 0; }
summary { cursor: pointer; color: var(--accent); padding: .25rem 0; }
figure { margin: 0 0 1.5rem; }
figcaption { overflow-wrap: anywhere; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(18rem, 100%), 1fr)); gap: .75rem; }
.pair img { width: 100%; height: auto; display: block; border-radius: .35rem; }
.pair p { font-size: .875rem; margin: .25rem 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(15rem, 100%), 1fr)); gap: 1rem; }
.charts figure { margin: 0; }
.charts svg {
  display: block; width: 100%; height: 4.5rem; background: var(--panel); border-bottom: 1px solid var(--soft);
}
.charts .range { fill: var(--band); }
.charts .bars { fill: var(--fill); }
.charts line { stroke: var(--bad); stroke-width: 1.5; vector-effect: non-scaling-stroke; }
.charts .ends {
  display: flex; justify-content: space-between; margin: 0; color: var(--soft); font-size: .75rem;
  font-variant-numeric: tabular-nums;
}
.charts b { color: var(--ink); font-weight: 600; display: block; }
.sqnr { width: 9rem; height: .75rem; display: block; }
.sqnr .track { fill: var(--band); }
.sqnr .bar { fill: var(--fill); }
.sqnr .mark { fill: var(--accent); }
@media print { body { max-width: none; } .scroll { overflow: visible; } }
"""

# A click on a column's title sorts by it; without script, tables are in the order in which they were written.
SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const titles = table.querySelectorAll("thead th"), body = table.tBodies[0];
  if (body.rows.length < 3) continue;
  titles.forEach((title, column) => {
    if (!title.textContent) return;
    const sort = () => {
      const falling = title.getAttribute("aria-sort") === "ascending";
      const text = row => row.cells[column].textContent.replace("\\u2212", "-");
      const value = row => text(row) === "exact" ? Infinity : parseFloat(text(row));
      const isNumber = title.className === "number";
      const known = row => isNumber ? !isNaN(value(row)) : true;
      const compare = (a, b) => {
        if (known(a) !== known(b)) return known(a) ? -1 : 1;
        if (isNumber && !known(a)) return 0;
        const order = isNumber ? (value(a) > value(b)) - (value(a) < value(b)) : text(a).localeCompare(text(b));
        return falling ? -order : order;
      };
      body.append(...[...body.rows].sort(compare));
      titles.forEach(other => other.removeAttribute("aria-sort"));
      title.setAttribute("aria-sort", falling ? "descending" : "ascending");
    };
    title.setAttribute("role", "button");
    title.tabIndex = 0;
    title.addEventListener("click", sort);
    title.addEventListener("keydown", event => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      sort();
    });
  });
}
"""
