"""From score rows to tables: cells first, then drawn for a terminal (or a notebook)."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table

from cold_flower.config import ALL_PROTOCOLS, PROTOCOLS
from cold_flower.reporting.statistics import Row, apart_se, gains, mean_and_sem, pick


def console() -> Console:
    """Return where we print; lines in a file are not broken."""
    return Console(soft_wrap=not sys.stdout.isatty())


@dataclass(frozen=True)
class Cells:
    """A table's text: the first column is a name, all others are figures."""

    head: list[str]
    lines: list[list[str]]
    totals: list[list[str]]
    """The last lines, set apart: a gain, a mean."""


def points(value: float, error: float = math.nan, *, digits: int = 1, sign: str = "") -> str:
    """Write a score or a gain in points, and its error; blank for what was not measured (NaN).

    >>> points(0.5, 0.01), points(0.1, sign="+"), points(math.nan)
    ('50.0 ± 1.0', '+10.0', '')
    """
    if math.isnan(value):
        return ""
    after = "" if math.isnan(error) else f" ± {100 * error:.{digits}f}"
    return f"{100 * value:{sign}.{digits}f}{after}"


def step_length(length: float | None, own: float | None) -> str:
    """Write how long a step was, in the plain mean's, and the rule's own before `fusion.norm`.

    >>> step_length(1.0, 3.914), step_length(0.0, None), step_length(None, None)
    ('1.00 (its own 3.91)', '0.00', '')
    """
    if length is None:
        return ""
    return f"{length:.2f}" + (f" (its own {own:.2f})" if own else "")


def summary(rows: Sequence[Row], iteration: int, *, trained: bool = True) -> str:
    """Say one iteration's mean scores in points, and how far they are from the start.

    Where scores of the base are missing, its mean says of how many tasks it is; where the start
    lacks some that the base has, the gain does.

    Args:
        rows: of a run.
        iteration: which.
        trained: the run has iterations; where it only scores a model, no task was seen.
    """
    parts = []
    for group, protocol in columns(rows):
        picked = pick(rows, iteration=iteration, group=group, protocol=protocol)
        if not picked:
            continue
        mean = mean_and_sem([row["value"] for row in picked])[0]
        moves = gains(rows, group, protocol, iteration) if iteration else []
        gain = mean_and_sem(moves)[0]
        of = len({row["task"] for row in pick(rows, group=group, protocol=protocol)})
        on = f" on {len(moves)}" if len(moves) < len(picked) else ""  # sites came since the start
        moved = f" ({points(gain, sign='+')}{on})" if points(gain) else ""
        some = _some(len(picked), of)
        parts.append(f"{protocol} {_group(group, trained)} {points(mean)}{some}{moved}")
    return ", ".join(parts)


def columns(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return the pairs of group and protocol that have scores, in the order of a table."""
    scored = {(row["group"], row["protocol"]) for row in rows}
    pairs = ((group, protocol) for group in ("seen", "unseen") for protocol in ALL_PROTOCOLS)
    return [pair for pair in pairs if pair in scored]


def _group(group: str, trained: bool) -> str:
    return "tasks" if group == "seen" and not trained else group


def _some(found: int, of: int) -> str:
    return f" ({found} of {of})" if 0 < found < of else ""


def partly(kept: Sequence[Sequence[Row]], of: Sequence[Sequence[Row]]) -> tuple[str, str]:
    """Say of how many tasks, and of how many seeds, a mean is; each only where it is not of all.

    Args:
        kept: of each seed, the rows that the mean is of.
        of: of each seed, all of its rows in that group and under that protocol.

    Returns:
        As ``2 of 6``, of the seed that misses most of its tasks, and ``1 of 2 seeds``.
    """
    sizes = [
        tuple(len({row["task"] for row in rows}) for rows in of_seed)
        for of_seed in zip(kept, of, strict=True)
    ]
    there = [pair for pair in sizes if pair[0]]
    some, whole = min(there or sizes, key=lambda pair: (pair[0] / max(1, pair[1]), -pair[1]))
    seeds = f"{len(there)} of {len(sizes)} seeds" if 0 < len(there) < len(sizes) else ""
    return (f"{some} of {whole}" if some < whole else ""), seeds


def score_cells(rows: Sequence[Row], *, trained: bool = True) -> Cells:
    """Return mean scores in points, a line per base and a column per group and protocol.

    The totals are the gain of the last iteration over the start: its mean over tasks and the
    standard error of that mean. ``trained``: see `summary`. Where scores of a base are missing, its
    mean and the gain say of how many tasks they are.
    """
    pairs, iterations = columns(rows), sorted({row["iteration"] for row in rows})
    tasks = {
        (group, protocol): len({r["task"] for r in pick(rows, group=group, protocol=protocol)})
        for group, protocol in pairs
    }
    head = ["base"]
    head += [f"{protocol}\n{tasks[g, protocol]} {_group(g, trained)}" for g, protocol in pairs]
    lines = []
    for iteration in iterations:
        line = [str(iteration) if iteration else "start"]
        for group, protocol in pairs:
            picked = pick(rows, iteration=iteration, group=group, protocol=protocol)
            mean = mean_and_sem([row["value"] for row in picked])[0]
            line.append(points(mean) + _some(len(picked), tasks[group, protocol]))
        lines.append(line)
    totals = []
    if len(iterations) > 1 and iterations[0] == 0:
        own = {pair: gains(rows, *pair, iterations[-1]) for pair in pairs}
        gained = [mean_and_sem(own[pair]) for pair in pairs]
        means = [points(mean, sign="+") for mean, _ in gained]
        of = [_some(len(own[pair]), tasks[pair]) for pair in pairs]
        totals.append(["gain", *map("".join, zip(means, of, strict=True))])
        if not all(math.isnan(sem) for _, sem in gained):  # one task has none
            totals.append(["± SEM", *(points(sem) for _, sem in gained)])
    return Cells(head, lines, totals)


def gain_cells(before: Sequence[Row], after: Sequence[Row]) -> Cells:
    """Return the gain of one model over another, a line per task and two columns per protocol.

    Compared are the first base of each run (iteration 0), task by task; ± is the binomial
    standard error of a difference, and in the last line the standard error over tasks.
    """
    old = {(row["task"], row["protocol"]): row for row in pick(before, iteration=0)}
    new = {(row["task"], row["protocol"]): row for row in pick(after, iteration=0)}
    pairs = old.keys() & new.keys()
    protocols = [p for p in PROTOCOLS if any(protocol == p for _, protocol in pairs)]
    head = ["task", *(cell for protocol in protocols for cell in (protocol, "gain ± SE"))]
    lines = []
    differences: dict[str, list[float]] = {protocol: [] for protocol in protocols}
    for task in sorted({task for task, _ in pairs}):
        line = [task]
        for protocol in protocols:
            if (task, protocol) not in pairs:
                line += ["", ""]
                continue
            row, other = new[task, protocol], old[task, protocol]
            difference = row["value"] - other["value"]
            differences[protocol].append(difference)
            line += [points(row["value"]), points(difference, apart_se(row, other), sign="+")]
        lines.append(line)
    mean = ["mean"]
    for protocol in protocols:
        mean += ["", points(*mean_and_sem(differences[protocol]), digits=2, sign="+")]
    return Cells(head, lines, [mean])


def listed(names: Sequence[str], most: int = 5) -> str:
    """Write names one after another, the first few of many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def table_of(cells: Cells, title: str) -> Table:
    """Draw cells."""
    drawn = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for number, name in enumerate(cells.head):
        drawn.add_column(name, justify="right" if number else "left")
    for line in cells.lines:
        drawn.add_row(*line, end_section=line is cells.lines[-1])
    for number, line in enumerate(cells.totals):
        drawn.add_row(*line, style="" if number else "bold")
    return drawn
