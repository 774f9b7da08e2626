"""Differences of two conditions, paired by task and seed, with the interval they leave open.

Tasks and seeds are both samples: of the tasks one may care about, and of the runs one might have
made. So both vary at random and cross each other, and the variance of the mean over T tasks and S
seeds is that of the two-way random-effects model without replication,
(MS_tasks + MS_seeds - MS_rest) / (T S), with Satterthwaite's degrees of freedom (1946). With one
seed only the tasks vary, with one task only the seeds; the interval then speaks of no others.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cold_flower.reporting.conditions import Condition
from cold_flower.reporting.statistics import pick

LEVEL = 0.95
GRID = 20_000


@dataclass(frozen=True)
class Difference:
    """A mean difference, in the scores' own unit (0.01 is a point)."""

    mean: float
    error: float
    """Its standard error; NaN for a single task of a single seed."""
    degrees: float
    """Of freedom, of that error."""
    tasks: int
    seeds: int

    @property
    def half(self) -> float:
        """Return half the 95 % interval; NaN where there is no error."""
        return self.error if math.isnan(self.error) else quantile(self.degrees) * self.error

    @property
    def verdict(self) -> str:
        """Return ``better`` or ``worse`` where the interval leaves 0 out, else nothing.

        Of one seed or two nothing is said: one proves nothing, and of two the interval leaves the
        truth out in up to one case of eight, not of twenty.
        """
        if self.seeds < 3 or not abs(self.mean) > self.half:  # nothing is above NaN
            return ""
        return "better" if self.mean > 0 else "worse"

    def __str__(self) -> str:
        half = "" if math.isnan(self.half) else f" ± {100 * self.half:.1f}"
        return f"{100 * self.mean:+.1f}{half}"


def difference(one: Condition, other: Condition, group: str, protocol: str) -> Difference | None:
    """Return by how much ``one`` scores above ``other`` on the tasks and seeds that both have.

    Two curves that are to have as many iterations are compared at the last one that both have now.
    Others are compared at each one's own end, and so is a level (a baseline, or one model).

    Returns:
        The difference; None where no task was scored in every seed of both.
    """
    alike = one.config["iterations"] == other.config["iterations"]
    last = min(one.last, other.last) if alike and one.is_level == other.is_level else None
    ours, theirs = (
        scores_at(c, c.last if last is None else last, group, protocol) for c in (one, other)
    )
    return above(ours, theirs)


def gain(condition: Condition, group: str, protocol: str, iteration: int) -> Difference | None:
    """Return by how much an iteration's base scores above the start, on tasks of all seeds.

    None where no task was scored in every seed, before and after.
    """
    start, later = (scores_at(condition, i, group, protocol) for i in (0, iteration))
    return above(later, start)


ScoresOf = Mapping[int, Mapping[str, float]]
"""By seed and task."""


def scores_at(condition: Condition, iteration: int, group: str, protocol: str) -> ScoresOf:
    """Return what a condition's base scored at an iteration."""
    return {
        run.config["seed"]: {
            row["task"]: row["value"]
            for row in pick(run.scores, iteration=iteration, group=group, protocol=protocol)
        }
        for run in condition.runs
    }


def above(ours: ScoresOf, theirs: ScoresOf) -> Difference | None:
    """Return by how much ours are above theirs on the seeds and tasks of both; None without any."""
    seeds = sorted(ours.keys() & theirs.keys())
    by_seed = [scores[seed] for scores in (ours, theirs) for seed in seeds]
    if not by_seed or not (tasks := sorted(set.intersection(*map(set, by_seed)))):
        return None
    values = np.array([[row[task] for row in by_seed] for task in tasks])
    return paired(values[:, : len(seeds)] - values[:, len(seeds) :])


def paired(values: NDArray[np.float64]) -> Difference:
    """Return the mean of differences [tasks, seeds] and its interval."""
    tasks, seeds = values.shape
    mean = float(values.mean())
    by_task, by_seed = values.mean(1), values.mean(0)
    rest = values - by_task[:, None] - by_seed[None, :] + mean
    free = [tasks - 1, seeds - 1, (tasks - 1) * (seeds - 1)]
    squares = [
        seeds * ((by_task - mean) ** 2).sum(),
        tasks * ((by_seed - mean) ** 2).sum(),
        (rest**2).sum(),
    ]
    of_task, of_seed, of_rest = (float(s) / max(1, n) for s, n in zip(squares, free, strict=True))
    terms = [of_task, of_seed, -of_rest]
    if of_seed <= of_rest:  # no variance of seeds shows: they are repetitions
        terms, free[1:] = [of_task, 0.0, 0.0], [0, 0]
    elif of_task <= of_rest:
        terms, free = [0.0, of_seed, 0.0], [0, free[1], 0]
    if not any(free):
        return Difference(mean, math.nan, 0.0, tasks, seeds)
    spread = sum(term**2 / n for term, n in zip(terms, free, strict=True) if n)
    degrees = sum(terms) ** 2 / spread if spread else math.inf
    return Difference(mean, math.sqrt(sum(terms) / (tasks * seeds)), degrees, tasks, seeds)


def apart(one: Difference, other: Difference) -> Difference:
    """Return by how much one mean is above another that was measured on other tasks.

    Of their errors, as if they were independent (Welch): wider than it need be where seeds move
    both alike.
    """
    squares = one.error**2, other.error**2
    of_each = zip(squares, (one.degrees, other.degrees), strict=True)
    spread = sum(square**2 / degrees for square, degrees in of_each if square > 0)
    return Difference(
        one.mean - other.mean,
        math.sqrt(sum(squares)),
        sum(squares) ** 2 / spread if spread else math.inf,
        one.tasks + other.tasks,
        min(one.seeds, other.seeds),
    )


def quantile(degrees: float) -> float:
    """Return by how many standard errors a mean of so many degrees of freedom may be off.

    Student's t, two-sided, at `LEVEL`, from 1 degree up. With t = tan(a) sqrt(n) the density is
    cos(a)^(n-1), which a sum over a fine grid of angles integrates to five digits.
    """
    if degrees > 1e6:
        return 1.959964
    edges = np.linspace(0, math.pi / 2, GRID + 1)
    mass = np.cumsum(np.cos((edges[1:] + edges[:-1]) / 2) ** (degrees - 1))
    angle = np.interp(LEVEL * mass[-1], mass, edges[1:])
    return float(math.tan(angle) * math.sqrt(degrees))
