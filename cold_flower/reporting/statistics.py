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

    A seed's means are of the same tasks at every iteration (`in_all`), and the iterations those
    that all seeds have: else a curve would move by what is missing.

    Args:
        runs: the scores of each seed.
        group: ``seen`` or ``unseen``.
        protocol: of `cold_flower.config.PROTOCOLS`.
    """
    by_seed = []
    for rows in runs:
        tasks, means = in_all(rows, group, protocol), dict[int, list[float]]()
        for row in pick(rows, group=group, protocol=protocol):
            if row["task"] in tasks:
                means.setdefault(row["iteration"], []).append(row["value"])
        if means:
            by_seed.append({iteration: fmean(values) for iteration, values in means.items()})
    shared = sorted(set.intersection(*map(set, by_seed))) if by_seed else []
    return {i: mean_and_sd([means[i] for means in by_seed]) for i in shared}


def in_all(rows: Sequence[Row], group: str, protocol: str) -> set[str]:
    """Return the tasks that one run scored at each of its bases.

    Others are missing where it was stopped amid an evaluation, or where somebody left or was away.
    """
    tasks: dict[int, set[str]] = {}
    for row in pick(rows, group=group, protocol=protocol):
        tasks.setdefault(row["iteration"], set()).add(row["task"])
    return set.intersection(*tasks.values()) if tasks else set()


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
