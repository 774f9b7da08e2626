"""Small SVG drawings that are part of a page: its colours are theirs, and a title shows on hover.

Lengths are pixels. Colours are classes of `cold_flower.reporting.markup.STYLE`, so that a drawing
is right on light and dark paper alike.
"""

import html
from collections.abc import Iterable, Sequence


def drawing(width: float, height: float, parts: Iterable[str], label: str) -> str:
    """Return a drawing that keeps its size, and scrolls where the page is narrower."""
    return (
        f'<div class="wide"><svg width="{width:.0f}" height="{height:.0f}" role="img" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" aria-label="{html.escape(label)}">'
        f"{''.join(parts)}</svg></div>"
    )


def rect(x: float, y: float, width: float, height: float, kind: str, **more: object) -> str:
    """Return a rectangle; ``title`` shows on hover, other keys are attributes."""
    size = f'x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}" height="{height:.1f}"'
    return _closed("rect", size, kind, more)


def circle(x: float, y: float, radius: float, kind: str, **more: object) -> str:
    """Return a circle."""
    return _closed("circle", f'cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"', kind, more)


def path(points: Sequence[tuple[float, float]], kind: str, **more: object) -> str:
    """Return a line through some points."""
    through = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return _closed("polyline", f'points="{through}"', f"line {kind}", more)


def text(x: float, y: float, words: str, kind: str = "", *, anchor: str = "start") -> str:
    """Return words; they begin, or end or have their middle, at x."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">'
        f"{html.escape(words)}</text>"
    )


def _closed(tag: str, size: str, kind: str, more: dict[str, object]) -> str:
    title = more.pop("title", "")
    rest = "".join(f' {k.replace("_", "-")}="{v}"' for k, v in more.items())
    inside = f"<title>{html.escape(str(title))}</title>" if title else ""
    return f'<{tag} {size} class="{kind}"{rest}>{inside}</{tag}>'
