"""Differences that are paired by task and seed: means and intervals by hand, and how often true."""

import math
from pathlib import Path

import numpy as np
import pytest

from cold_flower.reporting.conditions import Condition
from cold_flower.reporting.paired import Difference, apart, difference, paired, quantile
from cold_flower.reporting.runs import RunDirectory


def test_students_t_of_the_tables() -> None:
    table = {1: 12.706, 2: 4.303, 5: 2.571, 30: 2.042, 1e9: 1.960}
    assert [quantile(n) for n in table] == pytest.approx([*table.values()], abs=6e-4)


def test_tasks_and_seeds_cross() -> None:
    # Means of tasks 1.5 and 5.5, of seeds 2 and 5; mean squares 16, 9, and 4 of what is left.
    found = paired(np.array([[1.0, 2.0], [3.0, 8.0]]))
    degrees = (16 + 9 - 4) ** 2 / (16**2 + 9**2 + 4**2)
    error = math.sqrt((16 + 9 - 4) / 4)
    assert found == Difference(3.5, pytest.approx(error), pytest.approx(degrees), 2, 2)
    assert found.half == pytest.approx(quantile(degrees) * error)
    assert found.verdict == ""


def test_where_only_one_of_them_varies() -> None:
    tasks = paired(np.array([[1.0], [3.0]]))  # SE 1, one degree of freedom
    assert (tasks.mean, tasks.half) == (2, pytest.approx(quantile(1)))
    seeds = paired(np.array([[1.0, 3.0, 5.0]]))
    assert (seeds.mean, seeds.half) == (3, pytest.approx(quantile(2) * 2 / math.sqrt(3)))
    alone = paired(np.array([[0.25]]))
    assert math.isnan(alone.half)
    assert (str(alone), alone.verdict) == ("+25.0", "")


def test_a_verdict_only_where_the_interval_leaves_0_out() -> None:
    rising = np.array([[0.02, 0.03, 0.02], [0.03, 0.02, 0.03], [0.02, 0.03, 0.02]])
    assert paired(rising).verdict == "better"
    assert paired(-rising).verdict == "worse"
    assert paired(rising * 0).verdict == ""
    alone = paired(np.array([[0.02], [0.021], [0.02]]))
    assert (alone.mean > alone.half, alone.verdict) == (True, "")  # one seed proves nothing
    two = paired(rising[:, :2])
    assert (two.mean > two.half, two.verdict) == (True, "")
    assert str(paired(rising * 0)) == "+0.0 ± 0.0"


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    draw, kinds = np.random.default_rng(0), ((8, 3, 1, 0.5), (24, 3, 0, 0), (24, 3, 0.2, 1))
    for tasks, seeds, by_task, by_seed in kinds:
        held = 0
        for _ in range(150):
            noise = draw.normal(size=(tasks, seeds))
            varied = by_task * draw.normal(size=(tasks, 1)) + by_seed * draw.normal(size=(1, seeds))
            found = paired(noise + varied)
            held += abs(found.mean) <= found.half
        assert 0.9 <= held / 150 < 1


def test_two_means_of_other_tasks_by_hand() -> None:
    found = apart(Difference(5.0, 3.0, 4.0, 6, 3), Difference(1.0, 4.0, 9.0, 12, 2))
    degrees = 25**2 / (9**2 / 4 + 16**2 / 9)
    assert found == Difference(4.0, 5.0, pytest.approx(degrees), 18, 2)
    assert math.isnan(apart(paired(np.array([[1.0]])), found).half)


def condition(*seeds, baseline: str = "", iterations: int = 3) -> Condition:
    """Return a condition of runs whose scores are given: {(iteration, task): value} each."""
    runs = []
    for seed, scores in enumerate(seeds):
        config = {"seed": seed, "baseline": baseline, "iterations": iterations}
        run = RunDirectory(Path(), config)
        row = {"protocol": "frozen", "group": "seen"}
        run.__dict__["scores"] = [
            {**row, "iteration": i, "task": task, "value": value}
            for (i, task), value in scores.items()
        ]
        runs.append(run)
    return Condition("", tuple(runs))


def test_paired_are_tasks_and_seeds_that_both_have() -> None:
    one = condition({(1, "a"): 0.75, (1, "b"): 0.5}, {(1, "a"): 0.5}, {(1, "a"): 0.0})
    other = condition({(1, "a"): 0.25}, {(1, "a"): 0.25, (1, "b"): 0.5})
    found = difference(one, other, "seen", "frozen")
    assert found
    assert (found.mean, found.tasks, found.seeds) == (0.375, 1, 2)
    assert difference(one, other, "seen", "few-shot") is None


def test_curves_are_compared_where_both_are_and_a_level_at_its_own_end() -> None:
    curve = condition({(1, "a"): 0.5, (2, "a"): 0.75, (3, "a"): 1.0})
    short = condition({(1, "a"): 0.25, (2, "a"): 0.25})
    union = condition({(0, "a"): 0.0, (1, "a"): 0.5}, baseline="multitask")
    once = condition({(0, "a"): 0.0, (1, "a"): 0.5}, iterations=1)
    pairs = (curve, short, 0.5), (curve, union, 0.5), (union, curve, -0.5), (once, curve, -0.5)
    for one, other, mean in pairs:
        found = difference(one, other, "seen", "frozen")
        assert found and found.mean == mean
