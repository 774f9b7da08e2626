"""The HTML that a report is made of: style, tables, figures; nothing is loaded from elsewhere."""

import html
import re
from collections.abc import Iterable, Sequence

from cold_flower.config import ALL_PROTOCOLS

# Okabe and Ito (2008): told apart by colour-blind readers, too.
PROTOCOL_COLOURS = {
    "frozen": "#0072B2", "finetuned": "#D55E00", "few-shot": "#009E73",
    "ema-frozen": "#56B4E9", "ema-finetuned": "#E69F00", "ema-few-shot": "#CC79A7",
}  # fmt: skip


def _colours() -> str:
    """Return the rules that give lines, points and keys of a protocol its colour."""
    rules = []
    for name in ALL_PROTOCOLS:
        colour = PROTOCOL_COLOURS[name]
        colour = f"var(--{name})" if name in ("frozen", "finetuned") else colour
        rules.append(
            f"svg .line.{name} {{ stroke: {colour} }} svg circle.{name} {{ fill: {colour} }} "
            f".key.{name} {{ --of: {colour} }}"
        )
    return "\n".join(rules)


_DARK = """--paper: #16181c; --ink: #e8e6e3; --soft: #9aa0a6; --line: #3c4043; --stripe: #1f2227;
  --warn: #3a2a10; --frozen: #56B4E9; --finetuned: #F0803C; --good: #2bb389; --bad: #e8743b;"""
STYLE = f"""
:root {{ color-scheme: light; --paper: #fff; --ink: #1a1a1a; --soft: #5f6368; --line: #ccc;
  --stripe: #f6f6f6; --warn: #fff4e5; --frozen: #0072B2; --finetuned: #D55E00; --good: #009E73;
  --bad: #D55E00; }}
:root[data-theme=dark] {{ color-scheme: dark; {_DARK} }}
@media (prefers-color-scheme: dark) {{ :root:not([data-theme=light]) {{ color-scheme: dark;
  {_DARK} }} }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: var(--ink); background: var(--paper) }}
h1 {{ font-size: 1.6rem }}
h2 {{ font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid var(--line) }}
h3 {{ font-size: 1rem; margin: 1.6rem 0 .4rem }}
table {{ border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }}
th, td {{ padding: .2rem .8rem .2rem 0; text-align: right; vertical-align: top }}
th:first-child, td:first-child {{ text-align: left }}
th {{ border-bottom: 1px solid var(--soft); font-weight: 600 }}
tr:nth-child(even) td {{ background: var(--stripe) }}
.figure {{ margin: 1rem 0 }}
.figure svg {{ max-width: 100%; height: auto; fill: var(--ink) }}
p.note {{ color: var(--soft); font-size: .9rem }}
p.warning {{ border-left: 4px solid var(--bad); background: var(--warn); padding: .4rem .8rem }}
code {{ font-size: .9em }} details {{ margin: 1rem 0 }} .wide {{ overflow-x: auto }}
.many {{ display: flex; flex-wrap: wrap; gap: .3rem }}
pre {{ overflow-x: auto; font-size: .85rem }} pre.lines {{ white-space: pre-wrap }}
#theme {{ float: right; font: inherit; font-size: .85rem; color: var(--soft); background: none;
  border: 1px solid var(--line); border-radius: .3rem; padding: .1rem .6rem; cursor: pointer }}
svg text {{ font: 12px system-ui, sans-serif; fill: var(--ink) }}
svg text.small {{ font-size: 11px; fill: var(--soft) }} svg text.strong {{ font-weight: 600 }}
svg .good, .bar .good {{ fill: var(--good); background: var(--good) }}
svg .bad, .bar .bad {{ fill: var(--bad); background: var(--bad) }}
svg .gone {{ fill: var(--line) }} svg .now {{ stroke: var(--ink); stroke-width: 2.5 }}
svg .lane {{ fill: var(--stripe) }} svg .line {{ fill: none; stroke-width: 1.8 }}
svg .soft {{ stroke: var(--line); stroke-width: 1.2 }}
svg .finetune {{ fill: var(--finetuned) }} svg .evaluate {{ fill: var(--frozen) }}
svg .validate {{ fill: #009E73 }}
svg :is(rect, circle):hover {{ stroke: var(--ink); stroke-width: 1.5 }}
{_colours()}
.key::before {{ content: ""; display: inline-block; width: .7em; height: .7em; margin-right: .3em;
  background: var(--of) }}
.key.finetune {{ --of: var(--finetuned) }} .key.evaluate {{ --of: var(--frozen) }}
.key.validate {{ --of: #009E73 }}
.now {{ font-size: 1.05rem }} .now i {{ color: var(--soft); font-style: normal }}
.scores {{ color: var(--good); font-weight: 600 }}
.cohort {{ display: grid; grid-template-columns: minmax(6rem, auto) 2fr minmax(5rem, 1.4fr);
  gap: .25rem .8rem; align-items: center; font-size: .9rem; margin: 1rem 0 }}
.cohort .small {{ color: var(--soft); font-size: .85rem }}
.bar {{ height: .7rem; background: var(--stripe); border: 1px solid var(--line) }}
.bar div {{ height: 100% }}
.bar .work {{ background: var(--frozen); animation: grow linear forwards }}
.bar .unknown {{ width: 30%; opacity: .5; animation: none }}
@keyframes grow {{ to {{ width: 100% }} }}
@media print {{ #theme {{ display: none }} .wide {{ overflow: visible }}
  body {{ max-width: none; margin: 0 }} svg {{ max-width: 100%; height: auto }}
  h2, h3 {{ break-after: avoid }} svg, table {{ break-inside: avoid }} }}
@media (max-width: 40rem) {{ body {{ margin: 1rem auto; font-size: 15px }}
  table {{ display: block; overflow-x: auto }} .cohort {{ grid-template-columns: auto 1fr }}
  .cohort .small {{ grid-column: 1 / -1 }} }}
"""
# Light or dark: as the system has it, until the reader chooses. A file may have no storage.
SCRIPT = """
const root = document.documentElement, kept = "cold-flower-theme";
try { const was = localStorage.getItem(kept); if (was) root.dataset.theme = was } catch (e) {}
addEventListener("DOMContentLoaded", () => {
  const button = document.createElement("button");
  button.id = "theme"; button.textContent = "light / dark";
  button.onclick = () => {
    const dark = root.dataset.theme ? root.dataset.theme == "dark"
      : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    try { localStorage.setItem(kept, root.dataset.theme) } catch (e) {}
  };
  document.body.prepend(button);
});
addEventListener("beforeprint", () => {
  for (const one of document.querySelectorAll("details")) one.open = true;
});
"""
Cell = str | float | int
_OF_PAGE = {
    "#000000": "ink", "#ffffff": "paper", "#555555": "soft",
    **{PROTOCOL_COLOURS[name].lower(): name for name in ("frozen", "finetuned")},
}  # fmt: skip


def table(head: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """Return a table; its cells are text, not HTML."""
    top = "".join(f"<th>{html.escape(cell)}" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}" for cell in row) for row in rows
    )
    return f"<table><tr>{top}{body}</table>"


def figure(name: str, svg: bytes) -> str:
    """Return a figure that matplotlib drew as part of the page: its colours are the page's.

    What refers to a part of the drawing does so by an id, which must be the page's only one.
    """
    drawing = re.sub(r"<metadata>.*?</metadata>", "", svg.decode(), flags=re.S)
    drawing = drawing[drawing.index("<svg") :].replace("*{", ".figure svg *{")  # not the page's
    own = re.sub(r"\W+", "-", name)
    drawing = re.sub(r'( id="|"#|url\(#)', rf"\g<1>{own}-", drawing)
    for colour, of_page in _OF_PAGE.items():
        drawing = drawing.replace(colour, f"var(--{of_page})")
    return f'<div class="figure" role="img" aria-label="{html.escape(name)}">{drawing}</div>'


def figures(page: str) -> list[str]:
    """Return the names of a page's figures."""
    found = re.findall(r'<div class="figure" role="img" aria-label="([^"]*)"', page)
    return [html.unescape(name) for name in found]
