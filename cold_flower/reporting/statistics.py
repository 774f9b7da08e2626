"""Means of scores over tasks, gains over the start, and their standard errors.

A task counts once, however large its test set (paper, section 4.4: the unweighted mean).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
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


def curve(
    runs: Sequence[Sequence[Row]], group: str, protocol: str
) -> dict[int, tuple[float, float]]:
    """Return mean and SD over seeds of the mean over tasks, by iteration.

    Args:
        runs: the scores of each seed.
        group: ``seen`` or ``unseen``.
        protocol: of `cold_flower.config.PROTOCOLS`.
    """
    points: dict[int, list[float]] = {}
    for rows in runs:
        picked = pick(rows, group=group, protocol=protocol)
        for iteration in sorted({row["iteration"] for row in picked}):
            values = [row["value"] for row in pick(picked, iteration=iteration)]
            points.setdefault(iteration, []).append(fmean(values))
    return {iteration: mean_and_sd(values) for iteration, values in sorted(points.items())}


def task_gains(
    runs: Sequence[Sequence[Row]], protocol: str, iteration: int
) -> dict[str, tuple[float, float]]:
    """Return each task's gain over the start: mean over seeds, and standard error.

    The error is over seeds. With a single seed it is that of two scores measured apart
    (`apart_se`): too large, because both are measured on the same test set.
    """
    differences: dict[str, list[float]] = {}  # of each task, one a seed
    single_seed_error: dict[str, float] = {}
    for rows in runs:
        picked = pick(rows, protocol=protocol)
        start = {row["task"]: row for row in pick(picked, iteration=0)}
        for row in pick(picked, iteration=iteration):
            if before := start.get(row["task"]):
                differences.setdefault(row["task"], []).append(row["value"] - before["value"])
                single_seed_error[row["task"]] = apart_se(row, before)
    return {
        task: mean_and_sem(values) if len(values) > 1 else (values[0], single_seed_error[task])
        for task, values in differences.items()
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
