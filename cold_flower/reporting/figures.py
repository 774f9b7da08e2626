"""The figures of a report. Scores are in points; a protocol has the same colour in all."""

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import offset_copy

from cold_flower.config import ALL_PROTOCOLS
from cold_flower.reporting import reference
from cold_flower.reporting.conditions import Condition
from cold_flower.reporting.markup import PROTOCOL_COLOURS
from cold_flower.reporting.paired import difference
from cold_flower.reporting.statistics import (
    along,
    curve,
    mean_and_sem,
    mean_gain,
    pick,
    task_gains,
)
from cold_flower.reporting.tables import columns, partly, points

CONDITION_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LEAST_SPAN = 4.0  # points that an axis of scores spans at least
LONGEST = 24  # characters of a name that stands beside its line
WIDE = 88  # of a line of the legend below a figure
LINE_STYLES = {"seen": "-", "unseen": (0, (4, 2))}
MEAN_STYLES = {"seen": (":", "dotted"), "unseen": ("--", "dashed")}


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    ax = figure.add_subplot()
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=10)
    return figure, ax


def _draw(
    ax: Axes, condition: Condition, group: str, protocol: str, **style: Any
) -> tuple[float, float]:
    """Draw a condition's means, in a band of their SD over seeds; return the last point.

    There has to be one.
    """
    found = curve(condition.scores, group, protocol, condition.last)
    x = list(found)
    means = [100 * mean for mean, _ in found.values()]
    deviations = [0.0 if math.isnan(sd) else 100 * sd for _, sd in found.values()]
    ax.plot(x, means, marker="o", markersize=4, linewidth=2, **style)
    low = [mean - sd for mean, sd in zip(means, deviations, strict=True)]
    high = [mean + sd for mean, sd in zip(means, deviations, strict=True)]
    ax.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
    return x[-1], means[-1]


def _of_how_many(condition: Condition, group: str, protocol: str) -> str:
    """Return what to add to the name of a curve that is not of all tasks and seeds."""
    kept = along(condition.scores, group, protocol, condition.last)
    of = [pick(rows, group=group, protocol=protocol) for rows in condition.scores]
    tasks, seeds = partly(kept, of)
    said = ", ".join(filter(None, [tasks and f"{tasks} tasks", seeds]))
    return f" ({said})" if said else ""


def _name_lines(ax: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write each line's name beside its end; names that would overlap are moved apart.

    Args:
        ax: where the lines are; its height becomes `LEAST_SPAN` if it is less.
        ends: of each line, the last x and y, name and colour.
    """
    low, high = ax.get_ylim()
    if high - low < LEAST_SPAN:  # noise that fills the axis would look like a trend
        low, high = (low + high - LEAST_SPAN) / 2, (low + high + LEAST_SPAN) / 2
        ax.set_ylim(low, high)
    text_height = (high - low) / 18
    beside = offset_copy(ax.transData, ax.get_figure(root=True), x=8, units="points")
    text_y = -math.inf
    for x, y, name, colour in sorted(ends, key=lambda end: end[1]):
        text_y = max(y, text_y + text_height)
        ax.text(x, text_y, name, color=colour, va="center", fontsize=10, transform=beside)


def _label_iterations(ax: Axes, last: int) -> None:
    ax.set_xlabel("iteration (0: the start)", fontsize=10)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlim(-0.1, max(1, last) + 0.1)


def curves(condition: Condition) -> Figure:
    """Draw one condition's scores by iteration, a line per protocol and group (Fig. 2, 3).

    A line is of the same tasks and seeds at every iteration (`curve`); its name says of how many,
    where it is not of all. There is none where the bases have no task in common.
    """
    pairs = columns(condition.rows)
    figure, ax = _figure(7, 4)
    ends = []
    for group, protocol in pairs:
        if not curve(condition.scores, group, protocol, condition.last):
            continue
        colour = PROTOCOL_COLOURS[protocol]
        x, y = _draw(ax, condition, group, protocol, color=colour, linestyle=LINE_STYLES[group])
        both = len({g for g, p in pairs if p == protocol}) > 1
        name = f"{protocol}, {group}" if both else protocol
        ends.append((x, y, name + _of_how_many(condition, group, protocol), colour))
    ax.set_ylabel("mean test score, points", fontsize=10)
    _label_iterations(ax, condition.last)
    _name_lines(ax, ends)
    return figure


def compare(conditions: Sequence[Condition], group: str, protocol: str) -> Figure:
    """Draw conditions against each other; levels are dashed (Fig. 4 to 6).

    Each is of the same tasks and seeds at every iteration, and says so as in `curves`.
    """
    labels = [c.label + _of_how_many(c, group, protocol) for c in conditions]
    names = ["\n".join(textwrap.wrap(label, WIDE)) for label in labels]
    below = max(map(len, names)) > LONGEST
    lines = sum(name.count("\n") + 1 for name in names)
    figure, ax = _figure(7, 4 + (0.2 * lines if below else 0))
    last = max(condition.last for condition in conditions)
    ends = []
    for i, condition in enumerate(conditions):
        colour = CONDITION_COLOURS[i % len(CONDITION_COLOURS)]
        found = curve(condition.scores, group, protocol, condition.last)
        if not found:
            continue
        if condition.is_level:
            level = 100 * found[max(found)][0]
            ax.axhline(level, color=colour, linestyle="--", linewidth=1.5, label=names[i])
            ends.append((last + 0.1, level, names[i], colour))  # where the line ends
        else:
            x, y = _draw(ax, condition, group, protocol, color=colour, label=names[i])
            ends.append((x, y, names[i], colour))
    ax.set_ylabel(f"{protocol}, {group}: points", fontsize=10)
    _label_iterations(ax, last)
    _name_lines(ax, [(x, y, "" if below else name, colour) for x, y, name, colour in ends])
    if below:
        figure.legend(loc="outside lower left", fontsize=9, frameon=False)
    return figure


def differences(conditions: Sequence[Condition]) -> Figure | None:
    """Draw how each condition differs from the first, with its 95 % interval, a panel per score.

    None where nothing can be paired.
    """
    first, *others = conditions
    found = {}
    for group, protocol in columns([row for c in conditions for row in c.rows]):
        of = {c.label: difference(c, first, group, protocol) for c in others}
        if paired := {label: one for label, one in of.items() if one}:
            found[group, protocol] = paired
    if not found:
        return None
    labels = [condition.label for condition in reversed(others)]
    width, height = max(7.0, 2 + 2.2 * len(found)), 1.3 + 0.5 * len(labels)
    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for ax, ((group, protocol), of_label) in zip(panels, found.items(), strict=True):
        ax.spines[["top", "right"]].set_visible(False)
        ax.axvline(0, color="black", linewidth=0.8)
        for y, label in enumerate(labels):
            if one := of_label.get(label):
                half = 0.0 if math.isnan(one.half) else 100 * one.half
                colour = PROTOCOL_COLOURS[protocol]
                face = colour if one.verdict else "white"
                ax.errorbar(
                    100 * one.mean, y, xerr=half, marker="o", markersize=6, linewidth=2,
                    color=colour, markerfacecolor=face,
                )  # fmt: skip
        ax.set_title(f"{protocol}, {group}", fontsize=10)
        ax.set_yticks(range(len(labels)), [_beside(label) for label in labels])
        ax.set_ylim(-0.6, len(labels) - 0.4)
        ax.tick_params(labelsize=10)
        low, high = ax.get_xlim()
        if high - low < LEAST_SPAN:
            ax.set_xlim((low + high - LEAST_SPAN) / 2, (low + high + LEAST_SPAN) / 2)
    figure.supxlabel(f"points above {first.label}, 95 %; filled: better or worse", fontsize=10)
    return figure


def gains(condition: Condition, protocol: str) -> Figure:
    """Draw each task's gain of the last base over the start, with its error (Fig. 7)."""
    by_task = task_gains(condition.scores, protocol, condition.last)
    groups = sorted({group for group, _ in by_task})
    gain_of = {  # a task may be seen with one seed and unseen with another
        f"{task} ({group})" if len(groups) > 1 else task: one
        for (group, task), one in by_task.items()
    }
    tasks = sorted(gain_of, key=lambda task: gain_of[task][0])
    figure, ax = _figure(7, 1.1 + 0.22 * len(tasks))
    values = [100 * gain_of[task][0] for task in tasks]
    errors = [0.0 if math.isnan(gain_of[t][1]) else 100 * gain_of[t][1] for t in tasks]
    ax.barh(
        tasks, values, xerr=errors, color=PROTOCOL_COLOURS[protocol], ecolor="#555555", height=0.7
    )
    ax.axvline(0, color="black", linewidth=0.8)
    means = []
    for group in groups:
        mean, sem = mean_and_sem([gain for (g, _), (gain, _) in by_task.items() if g == group])
        ax.axvline(100 * mean, color="black", linewidth=1, linestyle=MEAN_STYLES[group][0])
        means.append(f"{MEAN_STYLES[group][1]}: mean of {group} {points(mean, sem, sign='+')}")
    ax.set_xlabel(
        f"{protocol}: gain of iteration {condition.last} over the start, points\n"
        f"{'; '.join(means)} (SEM over tasks)",
        fontsize=10,
    )
    ax.margins(y=0.01)
    return figure


def worth(
    bars: Mapping[str, tuple[float, float]], rings: Mapping[str, float], protocol: str, label: str
) -> Figure:
    """Draw what contributions are worth, from the top; 0.01 is a point.

    Args:
        bars: by name, a Shapley value and half its interval (NaN for none); or empty.
        rings: by name, the leave-one-out value.
        protocol: whose colour it is.
        label: of the axis.
    """
    names = [*rings][::-1]
    figure, ax = _figure(7, 1.1 + 0.3 * len(names))
    if bars:
        halves = [0.0 if math.isnan(bars[name][1]) else 100 * bars[name][1] for name in names]
        values, colour = [100 * bars[name][0] for name in names], PROTOCOL_COLOURS[protocol]
        ax.barh(names, values, xerr=halves, color=colour, ecolor="#555555", height=0.6)
    ax.plot([100 * rings[name] for name in names], names, "o", color="black", mfc="white")
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_xlabel(label, fontsize=9)
    return figure


def beside_the_paper(condition: Condition) -> Figure:
    """Draw the finetuned gain with its error, and that of the paper's released models."""
    figure, ax = _figure(7, 4)
    kept = along(condition.scores, "seen", "finetuned", condition.last)
    iterations = sorted({row["iteration"] for rows in kept for row in rows})
    gain_of = {i: mean_gain(kept, "seen", "finetuned", i) for i in iterations}
    ours = {
        i: (100 * mean, 100 * error) for i, (mean, error) in gain_of.items() if not math.isnan(mean)
    }
    released = {i: mean_and_sem(gains) for i, gains in sorted(reference.released().items())}
    ends, mine = [], "this run" + _of_how_many(condition, "seen", "finetuned")
    for gains_at, colour, name in (
        ({0: (0.0, 0.0), **released}, "#777777", "the paper's, RoBERTa-base"),
        (ours, PROTOCOL_COLOURS["finetuned"], mine),
    ):
        if not gains_at:
            continue
        x, (means, errors) = list(gains_at), zip(*gains_at.values(), strict=True)
        bars = [0.0 if math.isnan(error) else error for error in errors]
        ax.errorbar(
            x, means, bars, marker="o", markersize=4, linewidth=2, elinewidth=1, color=colour
        )
        ends.append((x[-1], means[-1], name, colour))
    ax.axhline(0, color="black", linewidth=0.8)
    ax.set_ylabel("finetuned: gain over the start, points", fontsize=10)
    _label_iterations(ax, max(x for x, *_ in ends))
    _name_lines(ax, ends)
    return figure


def all_figures(conditions: Sequence[Condition]) -> dict[str, Figure]:
    """Return every figure that these conditions make, by file name."""
    figures: dict[str, Figure] = {}
    moving = [c for c in conditions if not c.is_level] or conditions
    slugs = [_slug(condition.label) for condition in moving]
    for i, condition in enumerate(moving):
        name = slugs[i] if slugs.count(slugs[i]) == 1 else f"{slugs[i]}-{i + 1}"
        tail = f"-{name}" if len(moving) > 1 else ""
        figures[f"curves{tail}"] = curves(condition)
        if condition.as_published and ("seen", "finetuned") in columns(condition.rows):
            figures[f"beside-the-paper{tail}"] = beside_the_paper(condition)
        for protocol in ALL_PROTOCOLS:
            if len(task_gains(condition.scores, protocol, condition.last)) > 1:
                figures[f"gains-{protocol}{tail}"] = gains(condition, protocol)
    if len(conditions) > 1:
        if (against := differences(conditions)) is not None:
            figures["differences"] = against
        for group, protocol in columns([row for c in conditions for row in c.rows]):
            figures[f"compare-{protocol}-{group}"] = compare(conditions, group, protocol)
    return figures


def _beside(label: str) -> str:
    """Return a label as it fits beside a row: three lines at most."""
    return "\n".join(textwrap.wrap(label, LONGEST, max_lines=3, placeholder=" ..."))


def _slug(label: str) -> str:
    """Return a label as a part of a file name."""
    return re.sub(r"[^\w.,=-]+", "", label.replace("/", "-"))[:100]
