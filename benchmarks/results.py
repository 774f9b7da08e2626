"""What was measured, kept: benchmarks/results/<date>.json and the tables of docs/results.md.

``python -m benchmarks.results FILE`` takes up what `benchmarks.gpu` measured, perhaps elsewhere.
"""

import json
import os
import sys
import textwrap
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import machine

FOLDER = Path(__file__).parent / "results"
PAGE = FOLDER.parents[1] / "docs" / "results.md"
BEGIN, END = "<!-- written by benchmarks/results.py -->", "<!-- end -->"
HEADER = ("| what | ours | peer | better by | | measured |", "|---|---|---|---|---|---|")
MEASURED = "measured"  # the peer of an estimate, which is to be equal, not better
WIDTH = 100  # of the page
VERSIONS = ("torch", "transformers", "flwr", "ray")
Row = dict[str, Any]
Figure = float | Sequence[float]


def keep(
    what: str, ours: Figure, peer: str, theirs: Figure | None, unit: str, note: str = ""
) -> None:
    """Write one comparison down, in place of the same one of today; write the table anew.

    Prints how it compares with the last one kept of the same kind of machine. For the arguments
    see `row`.
    """
    _keep([row(what, ours, peer, theirs, unit, note)], time.strftime("%Y-%m-%d"))


def row(
    what: str, ours: Figure, peer: str, theirs: Figure | None, unit: str, note: str = ""
) -> Row:
    """Return one comparison as it is kept.

    Args:
        what: that is measured.
        ours: its figure, or those of several repetitions: their median counts.
        peer: whom it is compared with, in the same run; empty where there is nobody.
        theirs: the peer's figure, or figures.
        unit: of both; where it ends in "/s" more is better, else less.
        note: what belongs to them.
    """
    return {
        "what": what,
        "ours": _median(ours),
        "spread": None if isinstance(ours, float) or len(ours) < 2 else max(ours) - min(ours),
        "peer": peer,
        "theirs": None if theirs is None else _median(theirs),
        "unit": unit,
        "note": note,
        "command": _command(),
        "machine": machine.name(),
        "versions": versions(),
    }


def take_up(path: Path) -> None:
    """Keep what `benchmarks.gpu` measured, perhaps on another machine.

    Raises:
        SystemExit: the file is not its, or of a machine without a GPU.
    """
    try:
        found = json.loads(path.read_text())
        rows, date, gpu = found["rows"], found["date"], found["gpu"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SystemExit(
            f"{path}: expected is a file of `python -m benchmarks.gpu`, not so "
            f"({type(error).__name__}: {error})"
        ) from error
    if not gpu:
        raise SystemExit(
            f"{path} was measured without a GPU, at the smallest size: nothing of it is kept. "
            "Expected is a file of `python -m benchmarks.gpu` from a machine with one."
        )
    _keep(rows, date)


def _keep(rows: list[Row], date: str) -> None:
    """Say how these compare with the last; write them down under a date, then the table anew."""
    FOLDER.mkdir(exist_ok=True)
    file = FOLDER / f"{date}.json"
    known, last = json.loads(file.read_text()) if file.exists() else [], _newest()
    for one in rows:
        print(against(one, last.get(_same(one))), flush=True)
        known = [*(r for r in known if _same(r) != _same(one)), one]
    file.write_text(json.dumps(known, indent=1) + "\n")
    write(BEGIN, table(), END)


def write(begin: str, text: str, end: str, page: Path | None = None) -> None:
    """Put a text between two marks of a page, `PAGE` by default, in place of what stands there."""
    page = page or PAGE
    before, _, rest = page.read_text().partition(begin)
    page.write_text(f"{before}{begin}\n{text}{end}{rest.partition(end)[2]}")


def against(now: Row, last: Row | None) -> str:
    """Say in a line how a figure compares with the last one kept of the same kind of machine.

    Of an estimate it is what was measured that is compared. A figure fell if it is worse by more
    than the spread of its own repetitions: the largest less the smallest.
    """
    estimate = now["peer"] == MEASURED
    figure, unit = "theirs" if estimate else "ours", now["unit"]
    spread = None if estimate else now["spread"]
    peer = "" if estimate or not now["peer"] else f", against {now['peer']}"
    said = f"  {now['what']}{peer}: {now[figure]:.4g} {unit}"
    said += ", one measurement" if spread is None else f", spread {spread:.2g}"
    if last is None:
        return f"{said}; the first one kept of this kind of machine"
    change = now[figure] / last[figure] - 1
    worse = change < 0 if unit.endswith("/s") else change > 0
    said += f"; {last['date']}: {last[figure]:.4g}"
    if last["versions"] != now["versions"]:
        said += " (other versions)"
    if not worse:
        return f"{said}, did not fall ({abs(change):.1%} better)" if change else f"{said}, the same"
    fell = f"{abs(change):.1%} worse"
    if spread is None:
        return f"{said}, {fell}, spread unknown"
    if abs(now[figure] - last[figure]) > spread:
        return f"{said}, FELL by more than its spread ({fell})"
    return f"{said}, within its spread ({fell})"


def _median(figure: Figure) -> float:
    return figure if isinstance(figure, float) else median(figure)


def versions() -> dict[str, str]:
    """Return the versions of the libraries that are measured, as far as they are here."""
    return {name: number for name in VERSIONS if (number := _version(name))}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # flwr and ray, where torch alone is measured
        return ""


def _same(one: Row) -> tuple[str, ...]:
    return one["machine"], one["what"], one["peer"]


def _command() -> str:
    name = sys.modules["__main__"].__spec__
    module = name.name if name else Path(sys.argv[0]).stem
    real = ["COLD_FLOWER_REAL=..."] if "COLD_FLOWER_REAL" in os.environ else []
    arguments = ["..." if a.startswith(os.sep) else a for a in sys.argv[1:]]
    return " ".join([*real, "python -m", module, *arguments])


def _newest() -> dict[tuple[str, ...], Row]:
    """Return the newest figure of each comparison, with its date."""
    newest: dict[tuple[str, ...], Row] = {}
    for path in sorted(FOLDER.glob("*.json")):
        for one in json.loads(path.read_text()):
            newest[_same(one)] = {**one, "date": path.stem}
    return newest


def table() -> str:
    """Return the newest figure of each comparison, by machine, as Markdown."""
    newest = _newest().values()
    lines = []
    for kind in dict.fromkeys(one["machine"] for one in newest):
        rows = [one for one in newest if one["machine"] == kind]
        lines += [f"**{kind}**", "", *HEADER, *map(_line, rows), "", *_commands(rows)]
    return "\n".join(lines) + "\n" if lines else ""


def _line(one: Row) -> str:
    ours, theirs, unit = one["ours"], one["theirs"], one["unit"]
    begin, end = f"| {one['what']} | {ours:.4g} {unit}", f"| {one['note']} | {one['date']} |"
    if theirs is None:
        return f"{begin} | | {end}"
    better = ours / theirs if unit.endswith("/s") else theirs / ours
    ratio = "" if one["peer"] == MEASURED else f"{better:.3g}"
    return f"{begin} | {one['peer']}: {theirs:.4g} | {ratio} {end}"


def _commands(rows: list[Row]) -> list[str]:
    """List the commands of some rows under the versions that they ran with."""
    newest = {one["command"]: one["versions"] for one in rows}
    by_versions: dict[str, list[str]] = {}
    for command, numbers in newest.items():
        named = ", ".join(f"{name} {number}" for name, number in numbers.items())
        by_versions.setdefault(named, []).append(command)
    lines = []
    for named, commands in by_versions.items():
        lines += [f"With {named}:", ""]
        for command in commands:
            lines += textwrap.wrap(
                f"- `{command}`", WIDTH, subsequent_indent="  ", break_on_hyphens=False
            )
        lines.append("")
    return lines


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m benchmarks.results FILE, of `python -m benchmarks.gpu`")
    take_up(Path(sys.argv[1]))
