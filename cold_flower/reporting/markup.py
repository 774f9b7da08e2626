"""The HTML that a report is made of: style, tables, images; nothing is loaded from elsewhere."""

import base64
import html
import re
from collections.abc import Iterable, Sequence

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #1a1a1a; }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-bottom: 1px solid #ccc }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .8rem .2rem 0; text-align: right; vertical-align: top }
th:first-child, td:first-child { text-align: left }
th { border-bottom: 1px solid #888; font-weight: 600 } tr:nth-child(even) td { background: #f6f6f6 }
img { max-width: 100%; display: block; margin: 1rem 0 } p.note { color: #555; font-size: .9rem }
p.warning { border-left: 4px solid #c60; background: #fff4e5; padding: .4rem .8rem }
code { font-size: .9em } details { margin: 1rem 0 }
"""
Cell = str | float | int


def table(head: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """Return a table; its cells are text, not HTML."""
    top = "".join(f"<th>{html.escape(cell)}" for cell in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}" for cell in row) for row in rows
    )
    return f"<table><tr>{top}{body}</table>"


def image(name: str, png: bytes) -> str:
    """Return a PNG as part of the page."""
    data = base64.b64encode(png).decode()
    return f'<img alt="{html.escape(name)}" src="data:image/png;base64,{data}">'


def images(page: str) -> list[str]:
    """Return the names of a page's images."""
    return [html.unescape(name) for name in re.findall(r'<img alt="([^"]*)"', page)]
