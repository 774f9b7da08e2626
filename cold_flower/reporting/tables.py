"""From score rows to the tables at the end of a run."""

import math
import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from cold_flower.config import PROTOCOLS
from cold_flower.reporting.statistics import Row, apart_se, gains, mean_and_sem, pick


def console() -> Console:
    """Return where we print; lines in a file are not broken."""
    return Console(soft_wrap=not sys.stdout.isatty())


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


def gain_table(before: Sequence[Row], after: Sequence[Row], title: str) -> Table:
    """Draw the gain of one model over another, a line per task and a column per protocol.

    Compared are the first base of each run (iteration 0), task by task; ± is the binomial
    standard error of a difference, and in the last line the standard error over tasks.
    """
    old, new = pick(before, iteration=0), pick(after, iteration=0)
    known = {(row["task"], row["protocol"]): row for row in old}
    protocols = [p for p in PROTOCOLS if pick(new, protocol=p) and pick(old, protocol=p)]
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    made.add_column("task")
    for protocol in protocols:
        made.add_column(protocol, justify="right")
        made.add_column("gain ± SE", justify="right")
    tasks = sorted({row["task"] for row in new if (row["task"], row["protocol"]) in known})
    found: dict[str, list[float]] = {protocol: [] for protocol in protocols}
    for task in tasks:
        cells = []
        for protocol in protocols:
            rows = pick(new, task=task, protocol=protocol)
            if not rows or (task, protocol) not in known:
                cells += ["", ""]
                continue
            row, other = rows[0], known[task, protocol]
            found[protocol].append(row["value"] - other["value"])
            gain, error = 100 * found[protocol][-1], 100 * apart_se(row, other)
            cells += [f"{100 * row['value']:.1f}", f"{gain:+.1f} ± {error:.1f}"]
        made.add_row(task, *cells, end_section=task == tasks[-1])
    ends = []
    for protocol in protocols:
        mean, error = (100 * figure for figure in mean_and_sem(found[protocol]))
        ends += ["", f"{mean:+.2f} ± {error:.2f}"]
    made.add_row("mean", *ends, style="bold")
    return made
