"""From score rows to the table at the end of a run."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from cold_flower.config import PROTOCOLS

Row = Mapping[str, Any]


def mean_and_sem(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error (NaN where there are too few values)."""
    mean = sum(values) / len(values) if values else math.nan
    if len(values) < 2:
        return mean, math.nan
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def gains(rows: Sequence[Row], group: str, protocol: str, iteration: int) -> list[float]:
    """Return each task's score at an iteration minus its score at the start (iteration 0)."""
    picked = [r for r in rows if r["group"] == group and r["protocol"] == protocol]
    start = {r["task"]: r["value"] for r in picked if r["iteration"] == 0}
    return [
        r["value"] - start[r["task"]]
        for r in picked
        if r["iteration"] == iteration and r["task"] in start
    ]


def summary(rows: Sequence[Row], iteration: int) -> str:
    """Say one iteration's mean scores in points, and how far they are from the start."""
    said = []
    for group, protocol in columns(rows):
        scores = [
            row["value"]
            for row in rows
            if (row["iteration"], row["group"], row["protocol"]) == (iteration, group, protocol)
        ]
        gain = mean_and_sem(gains(rows, group, protocol, iteration))[0]
        moved = f" ({100 * gain:+.1f})" if iteration and not math.isnan(gain) else ""
        said.append(f"{protocol} {group} {100 * mean_and_sem(scores)[0]:.1f}{moved}")
    return ", ".join(said)


def columns(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return the pairs of group and protocol that have scores, in the order of a table."""
    there = {(row["group"], row["protocol"]) for row in rows}
    pairs = ((group, protocol) for group in ("seen", "unseen") for protocol in PROTOCOLS)
    return [pair for pair in pairs if pair in there]


def table(rows: Sequence[Row], title: str) -> Table:
    """Draw mean scores, a line per iteration and a column per group and protocol.

    Scores are in points (100 times accuracy); the last lines are the gain of the last
    iteration over the start: its mean over tasks and the standard error of that mean.
    """
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    made.add_column("base")
    for group, protocol in columns(rows):
        tasks = {r["task"] for r in rows if (r["group"], r["protocol"]) == (group, protocol)}
        made.add_column(f"{protocol}\n{len(tasks)} {group}", justify="right")
    iterations = sorted({r["iteration"] for r in rows})
    for iteration in iterations:
        cells = []
        for group, protocol in columns(rows):
            key = (iteration, group, protocol)
            values = [
                r["value"] for r in rows if (r["iteration"], r["group"], r["protocol"]) == key
            ]
            cells.append(f"{100 * mean_and_sem(values)[0]:.1f}" if values else "")
        name = str(iteration) if iteration else "start"
        made.add_row(name, *cells, end_section=iteration == iterations[-1])
    if len(iterations) > 1 and iterations[0] == 0:
        found = [mean_and_sem(gains(rows, *column, iterations[-1])) for column in columns(rows)]
        made.add_row("gain", *(f"{100 * mean:+.1f}" for mean, _ in found), style="bold")
        if not all(math.isnan(sem) for _, sem in found):  # one task has none
            made.add_row("± SEM", *(f"{100 * sem:.1f}" for _, sem in found))
    return made
