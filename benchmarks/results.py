"""What was measured, kept: benchmarks/results/<date>.json and the tables of docs/results.md."""

import json
import os
import platform
import sys
import textwrap
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent / "results"
PAGE = FOLDER.parents[1] / "docs" / "results.md"
BEGIN, END = "<!-- written by benchmarks/results.py -->", "<!-- end -->"
HEADER = ("| what | ours | peer | better by | | measured |", "|---|---|---|---|---|---|")
MEASURED = "measured"  # the peer of an estimate, which is to be equal, not better
WIDTH = 100  # of the page
VERSIONS = ("torch", "transformers", "flwr", "ray")


def keep(what: str, ours: float, peer: str, theirs: float, unit: str, note: str = "") -> None:
    """Write one comparison down, in place of the same one of today; write the table anew.

    Args:
        what: that is measured.
        ours: its figure.
        peer: whom it is compared with, in the same run.
        theirs: the peer's figure.
        unit: of both; where it ends in "/s" more is better, else less.
        note: what belongs to them.
    """
    row = {
        "what": what,
        "ours": ours,
        "peer": peer,
        "theirs": theirs,
        "unit": unit,
        "note": note,
        "command": _command(),
        "machine": machine(),
        "versions": {name: number for name in VERSIONS if (number := package_version(name))},
    }
    FOLDER.mkdir(exist_ok=True)
    today = FOLDER / f"{time.strftime('%Y-%m-%d')}.json"
    rows = json.loads(today.read_text()) if today.exists() else []
    rows = [*(r for r in rows if _same(r) != _same(row)), row]
    today.write_text(json.dumps(rows, indent=1) + "\n")
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table()}{END}{rest.partition(END)[2]}")


def package_version(package: str) -> str:
    """Return a package's version; empty where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:  # flwr and ray, where torch alone is measured
        return ""


def _same(row: dict[str, Any]) -> tuple[str, ...]:
    return row["machine"], row["what"], row["peer"]


def _command() -> str:
    name = sys.modules["__main__"].__spec__
    module = name.name if name else Path(sys.argv[0]).stem
    real = ["COLD_FLOWER_REAL=..."] if "COLD_FLOWER_REAL" in os.environ else []
    arguments = ["..." if a.startswith(os.sep) else a for a in sys.argv[1:]]
    return " ".join([*real, "python -m", module, *arguments])


def machine() -> str:
    """Return the GPU's name, or how many cores of which kind."""
    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0))
    bf16 = " with AVX512-BF16" if torch.cpu._is_avx512_bf16_supported() else ""
    return f"{cores} cores of {(names or [platform.machine()])[0]}{bf16}"


def table() -> str:
    """Return the newest figure of each comparison, by machine, as Markdown."""
    newest: dict[tuple[str, ...], dict[str, Any]] = {}
    for path in sorted(FOLDER.glob("*.json")):
        for row in json.loads(path.read_text()):
            newest[_same(row)] = {**row, "date": path.stem}
    lines = []
    for machine in dict.fromkeys(row["machine"] for row in newest.values()):
        rows = [row for row in newest.values() if row["machine"] == machine]
        lines += [f"**{machine}**", "", *HEADER, *map(_line, rows), "", *_commands(rows)]
    return "\n".join(lines) + "\n" if lines else ""


def _line(row: dict[str, Any]) -> str:
    ours, theirs, unit = row["ours"], row["theirs"], row["unit"]
    better = ours / theirs if unit.endswith("/s") else theirs / ours
    ratio = "" if row["peer"] == MEASURED else f"{better:.3g}"
    return (
        f"| {row['what']} | {ours:.4g} {unit} | {row['peer']}: {theirs:.4g} | {ratio} "
        f"| {row['note']} | {row['date']} |"
    )


def _commands(rows: list[dict[str, Any]]) -> list[str]:
    """List the commands of some rows under the versions that they ran with."""
    newest = {row["command"]: row["versions"] for row in rows}
    by_versions: dict[str, list[str]] = {}
    for command, versions in newest.items():
        named = ", ".join(f"{name} {number}" for name, number in versions.items())
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
