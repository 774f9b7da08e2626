"""Means, errors and gains, by hand."""

import math

import numpy as np
import pytest

from cold_flower.reporting.statistics import (
    binomial_se,
    curve,
    gains,
    in_all,
    mean_and_sd,
    mean_and_sem,
    mean_gain,
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


def test_a_curve_is_of_the_same_tasks_and_seeds_everywhere() -> None:
    """Else it would jump where a run was stopped amid an evaluation, or one seed goes further."""
    whole = rows(0.0)
    (missing,) = (
        r for r in whole if (r["iteration"], r["task"], r["protocol"]) == (2, "b", "frozen")
    )
    cut = [row for row in whole if row is not missing]
    (one,) = {row["value"] for row in whole if (row["iteration"], row["task"]) == (2, "a")}
    assert in_all(cut, "seen", "frozen") == {"a"}
    assert curve([cut], "seen", "frozen")[2][0] == one
    short = [row for row in whole if row["iteration"] == 0]
    assert list(curve([whole, short], "seen", "frozen")) == [0]


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
