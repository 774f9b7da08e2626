"""Means, errors and gains, by hand."""

import math

import numpy as np
import pytest

from cold_flower.reporting.statistics import (
    along,
    at_all,
    binomial_se,
    curve,
    ends,
    gains,
    mean_and_sd,
    mean_and_sem,
    mean_gain,
    pick,
    task_gains,
)
from tests.test_tables import ROWS


def rows(shift: float):
    return [{**row, "value": row["value"] + shift * row["iteration"]} for row in ROWS]


def test_mean_and_errors() -> None:
    assert mean_and_sem([0.1, 0.3]) == pytest.approx((0.2, 0.1))
    assert mean_and_sd([0.1, 0.3]) == pytest.approx((0.2, math.sqrt(0.02)))
    assert math.isnan(mean_and_sem([0.5])[1])
    assert math.isnan(mean_and_sem([])[0])
    assert binomial_se(0.5, 100) == pytest.approx(0.05)
    assert binomial_se(1.0, 7) == 0


def test_a_mean_does_not_depend_on_the_order_in_which_scores_arrived() -> None:
    drawn = np.random.default_rng(0).random(40).tolist()
    assert len({mean_and_sd(drawn[i:] + drawn[:i]) for i in range(40)}) == 1


def test_gains_are_paired_by_task() -> None:
    assert gains(ROWS, "seen", "frozen", 2) == pytest.approx([0.1, 0.3])


def test_a_curve_is_of_means_over_tasks_then_seeds() -> None:
    means = curve([rows(0.0), rows(0.05)], "seen", "frozen")
    assert list(means) == [0, 2]
    assert means[0] == pytest.approx((0.4, 0.0))
    assert means[2] == pytest.approx((0.65, math.sqrt(2 * 0.05**2)))
    assert math.isnan(curve([rows(0.0)], "seen", "frozen")[2][1])
    assert curve([rows(0.0)], "seen", "finetuned") == {}


def without(rows, **left_out):
    return [row for row in rows if any(row[key] != value for key, value in left_out.items())]


def test_a_curve_is_of_the_same_tasks_and_seeds_everywhere() -> None:
    """Else it would jump where a run was stopped amid an evaluation, or one seed goes further."""
    whole = pick(rows(0.0), group="seen")
    cut = without(whole, iteration=2, task="b")
    assert {row["task"] for row in at_all(cut, {0, 2})} == {"a"}
    assert at_all(cut, {1}) == at_all(cut, set()) == []
    means = curve([cut], "seen", "frozen")
    assert [means[i][0] for i in (0, 2)] == [0.5, 0.6]  # of a alone
    short = pick(whole, iteration=0)
    assert list(curve([whole, short], "seen", "frozen")) == [0]
    assert list(curve([whole], "seen", "frozen", last=1)) == [0]


def test_what_is_missing_beyond_a_curves_end_takes_no_task_from_it() -> None:
    """One seed went further, and was stopped amid its next evaluation."""
    longer, whole = pick(rows(0.0), group="seen", task="a"), pick(rows(0.0), group="seen")
    longer = [*whole, *({**row, "iteration": 3} for row in longer)]
    kept = along([longer, whole], "seen", "frozen")
    assert [{row["task"] for row in of_seed} for of_seed in kept] == [{"a", "b"}] * 2


def test_both_ends_of_a_gain_are_of_the_same_tasks() -> None:
    whole = pick(rows(0.0), group="seen")
    away = [*whole, {**whole[0], "iteration": 1}]  # b was away, and came back
    assert len(ends([away], "seen", "frozen", 2)[0]) == 4
    none = without(without(whole, iteration=2, task="a"), iteration=2, task="b")
    kept = ends([whole, none], "seen", "frozen", 2)
    assert [len(of_seed) for of_seed in kept] == [4, 0]
    assert mean_gain(kept, "seen", "frozen", 2)[0] == pytest.approx(0.2)
    assert [len(of_seed) for of_seed in ends([none], "seen", "frozen", 2)] == [2]  # the start


def test_a_task_that_is_seen_with_one_seed_and_unseen_with_another_is_two() -> None:
    common = {"metric": "accuracy", "n_test": 100}
    first = [{**row, **common} for row in rows(0.0)]
    other = [{**row, **common, "group": "unseen", "value": 0.5} for row in rows(0.0)]
    found = task_gains([first, other], "frozen", 2)
    assert found["seen", "a"][0] == pytest.approx(0.1)
    assert found["unseen", "a"][0] == 0


def test_a_tasks_gain_has_its_error() -> None:
    common = {"metric": "accuracy", "n_test": 100}
    first = [{**row, **common} for row in rows(0.0)]
    mean, error = task_gains([first], "frozen", 2)["seen", "a"]
    assert mean == pytest.approx(0.1)
    assert error == pytest.approx(math.sqrt(0.25 + 0.24) / 10)
    second = [{**row, **common} for row in rows(0.05)]
    mean, error = task_gains([first, second], "frozen", 2)["seen", "b"]
    assert (mean, error) == pytest.approx((0.35, 0.05))


def test_a_mean_gain_has_its_error() -> None:
    def run(*moved: float) -> list[dict[str, object]]:
        common = {"group": "seen", "protocol": "frozen", "metric": "accuracy", "n_test": 100}
        return [
            {**common, "task": f"t{i}", "iteration": iteration, "value": 0.5 + iteration * by}
            for i, by in enumerate(moved)
            for iteration in (0, 1)
        ]

    over_seeds = mean_gain([run(0.1, 0.3), run(0.3, 0.5)], "seen", "frozen", 1)
    assert over_seeds == pytest.approx((0.3, 0.1))  # of the means 0.2 and 0.4
    assert mean_gain([run(0.1, 0.3)], "seen", "frozen", 1) == pytest.approx((0.2, 0.1))
    alone = math.sqrt(0.5 * 0.5 / 100 + 0.6 * 0.4 / 100)
    assert mean_gain([run(0.1)], "seen", "frozen", 1) == pytest.approx((0.1, alone))
    assert math.isnan(mean_gain([run()], "seen", "frozen", 1)[0])
