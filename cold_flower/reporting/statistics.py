"""Means of scores over tasks, gains over the start, and their standard errors.

A task counts once, however large its test set (paper, section 4.4: the unweighted mean).
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

Row = Mapping[str, Any]
"""A line of scores.jsonl."""


def mean_and_sem(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error (NaN for fewer than two values)."""
    mean, deviation = mean_and_sd(values)
    return mean, deviation / math.sqrt(len(values)) if values else math.nan


def mean_and_sd(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the sample's standard deviation (NaN for fewer than two values).

    The sums are exact: scores come in the order in which contributors answer, and a mean must not
    depend on it.
    """
    mean = fmean(values) if values else math.nan
    if len(values) < 2:
        return mean, math.nan
    return mean, math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))


def binomial_se(accuracy: float, size: int) -> float:
    """Return the standard error of an accuracy that was measured on ``size`` examples."""
    return math.sqrt(max(0.0, accuracy * (1 - accuracy)) / size)


def pick(rows: Iterable[Row], **wanted: Any) -> list[Row]:
    """Return the rows that have all the wanted values."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def gains(rows: Sequence[Row], group: str, protocol: str, iteration: int) -> list[float]:
    """Return each task's score at an iteration minus its score at the start (iteration 0)."""
    picked = pick(rows, group=group, protocol=protocol)
    return [*paired(pick(picked, iteration=0), pick(picked, iteration=iteration)).values()]


def paired(before: Iterable[Row], after: Iterable[Row]) -> dict[str, float]:
    """Return by how much each task's score rose, of the tasks that are in both."""
    start = {row["task"]: row["value"] for row in before}
    return {row["task"]: row["value"] - start[row["task"]] for row in after if row["task"] in start}


def at_all(rows: Iterable[Row], iterations: Collection[int]) -> list[Row]:
    """Return the rows at these iterations, of the tasks that were scored at each of them.

    Others are missing where a run was stopped amid an evaluation, or where somebody was away.

    Args:
        rows: of one group and protocol.
        iterations: which.
    """
    tasks: dict[int, set[str]] = {iteration: set() for iteration in iterations}
    there = [row for row in rows if row["iteration"] in tasks]
    for row in there:
        tasks[row["iteration"]].add(row["task"])
    common = set.intersection(*tasks.values()) if tasks else set()
    return [row for row in there if row["task"] in common]


def along(
    runs: Sequence[Sequence[Row]], group: str, protocol: str, last: float = math.inf
) -> list[list[Row]]:
    """Return each seed's rows that a curve is of, up to ``last``.

    They are at the iterations that all seeds have which have any, and of the tasks that the seed
    scored at each of those: else a curve would move by what is missing. None remain where no task
    is at all of them.
    """
    picked = [pick(rows, group=group, protocol=protocol) for rows in runs]
    scored = [{row["iteration"] for row in rows} for rows in picked if rows]
    shared = set.intersection(*scored) if scored else set()
    return [at_all(rows, {i for i in shared if i <= last}) for rows in picked]


def ends(runs: Sequence[Sequence[Row]], group: str, protocol: str, last: int) -> list[list[Row]]:
    """Return each seed's rows at the start and at ``last``, of the tasks that it scored at both.

    Where no seed has both, they are those of the start, else of ``last``: there is no gain then.
    """
    picked = [pick(rows, group=group, protocol=protocol) for rows in runs]
    for iterations in ({0, last}, {0}, {last}):
        if any(kept := [at_all(rows, iterations) for rows in picked]):
            return kept
    return [[] for _ in runs]


def curve(
    runs: Sequence[Sequence[Row]], group: str, protocol: str, last: float = math.inf
) -> dict[int, tuple[float, float]]:
    """Return mean and SD over seeds of the mean over tasks, by iteration up to ``last``.

    A seed's means are of the same tasks at every iteration, and so are the iterations those that
    all seeds have (`along`); a seed without scores does not count.

    Args:
        runs: the scores of each seed.
        group: ``seen`` or ``unseen``.
        protocol: of `cold_flower.config.PROTOCOLS`.
        last: iteration.
    """
    points: dict[int, list[float]] = {}
    for rows in along(runs, group, protocol, last):
        for iteration in sorted({row["iteration"] for row in rows}):
            values = [row["value"] for row in pick(rows, iteration=iteration)]
            points.setdefault(iteration, []).append(fmean(values))
    return {iteration: mean_and_sd(values) for iteration, values in sorted(points.items())}


def task_gains(
    runs: Sequence[Sequence[Row]], protocol: str, iteration: int
) -> dict[tuple[str, str], tuple[float, float]]:
    """Return each task's gain over the start, by group and task: mean over seeds, and its error.

    A task may be seen with one seed and unseen with another (``pool``, ``folds``).
    The error is over seeds. With a single seed it is that of two scores measured apart
    (`apart_se`): too large, because both are measured on the same test set.
    """
    differences: dict[tuple[str, str], list[float]] = {}  # of each task, one a seed
    single_seed_error: dict[tuple[str, str], float] = {}
    for rows in runs:
        picked = pick(rows, protocol=protocol)
        start = {row["task"]: row for row in pick(picked, iteration=0)}
        for row in pick(picked, iteration=iteration):
            if before := start.get(row["task"]):
                key = row["group"], row["task"]
                differences.setdefault(key, []).append(row["value"] - before["value"])
                single_seed_error[key] = apart_se(row, before)
    return {
        key: mean_and_sem(values) if len(values) > 1 else (values[0], single_seed_error[key])
        for key, values in differences.items()
    }


def mean_gain(
    runs: Sequence[Sequence[Row]], group: str, protocol: str, iteration: int
) -> tuple[float, float]:
    """Return the mean gain over the start, over tasks and seeds, and its standard error.

    The error is over the seeds' means. With one seed it is over the tasks; with one seed and one
    task it is that task's own (`task_gains`).
    """
    by_seed = [gains(rows, group, protocol, iteration) for rows in runs]
    means = [fmean(values) for values in by_seed if values]
    if len(means) > 1:
        return mean_and_sem(means)
    values = [value for seed in by_seed for value in seed]
    if len(values) == 1:
        of_group = [pick(rows, group=group) for rows in runs]
        (only_task,) = task_gains(of_group, protocol, iteration).values()
        return only_task
    return mean_and_sem(values)


def apart_se(one: Row, other: Row) -> float:
    """Return the standard error of the difference of two accuracies; NaN of other metrics.

    It takes the two as measured on different examples.
    """
    if one["metric"] != "accuracy":
        return math.nan
    errors = [binomial_se(row["value"], row["n_test"]) for row in (one, other)]
    return math.hypot(*errors)
