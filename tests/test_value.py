"""What contributions are worth, of made-up values: identities and hand numbers."""

import math

import pytest

from strategies.worth import Counted, SpentError, leave_one_out, shapley

ADDITIVE = {"a": 3.0, "b": -1.0, "c": 0.25, "d": 0.0, "e": 8.0}


def additive(names) -> float:
    return 2.0 + sum(ADDITIVE[name] for name in names)


def drawn(value, names, budget, tolerance=0.0, seed=0):
    return shapley(Counted(value, budget), list(names), tolerance=tolerance, seed=seed)


@pytest.mark.parametrize("budget", [32, 31])
def test_of_an_additive_value_each_is_worth_what_it_adds(budget) -> None:
    found = drawn(additive, ADDITIVE, budget)
    assert found.mean == pytest.approx(ADDITIVE)
    assert found.error == pytest.approx(dict.fromkeys(ADDITIVE, 0.0), abs=1e-12)
    assert (found.orders == 0) == (budget == 32)
    assert leave_one_out(additive, list(ADDITIVE)) == pytest.approx(ADDITIVE)


def mean(names) -> float:
    """The plain mean of what each moves a model by; nothing moves without any."""
    return sum(ADDITIVE[name] for name in names) / max(1, len(names))


def of_a_mean() -> dict[str, float]:
    """The closed form: a_i H_n / n - (mean of the others') (H_n - 1) / n."""
    n, harmonic = len(ADDITIVE), sum(1 / k for k in range(1, len(ADDITIVE) + 1))
    total = sum(ADDITIVE.values())
    return {
        name: a * harmonic / n - (total - a) / (n - 1) * (harmonic - 1) / n
        for name, a in ADDITIVE.items()
    }


def test_of_a_mean_it_is_the_closed_form() -> None:
    exact = drawn(mean, ADDITIVE, 32)
    assert exact.mean == pytest.approx(of_a_mean())
    assert sum(exact.mean.values()) == pytest.approx(mean(ADDITIVE))
    without = leave_one_out(mean, list(ADDITIVE))
    assert without["e"] == pytest.approx(10.25 / 5 - 2.25 / 4)


def test_drawn_orders_agree_within_their_error_and_share_out_the_whole() -> None:
    found = drawn(mean, ADDITIVE, 31)
    assert found.orders > 20
    assert sum(found.mean.values()) == pytest.approx(mean(ADDITIVE))
    for name, truth in of_a_mean().items():
        assert found.error[name] > 0
        assert abs(found.mean[name] - truth) < 4 * found.error[name]


def test_gloves() -> None:
    """Shapley's own: one left glove, two right ones; a pair is worth 1. (2/3, 1/6, 1/6)"""
    pair = lambda names: float("left" in names and len(names) > 1)  # noqa: E731
    names = ["left", "right", "other"]
    assert drawn(pair, names, 8).mean == pytest.approx(
        {"left": 2 / 3, "right": 1 / 6, "other": 1 / 6}
    )
    assert leave_one_out(pair, names) == {"left": 1, "right": 0, "other": 0}


def test_a_set_is_valued_once_and_the_budget_is_kept() -> None:
    asked = []

    def value(names) -> float:
        asked.append(names)
        return mean(names)

    found = shapley(Counted(value, 20), list(ADDITIVE), tolerance=0.0, seed=3)
    assert len(asked) == len(set(asked)) == 20
    assert found.orders >= 3
    with pytest.raises(SpentError):
        shapley(Counted(value, 4), list(ADDITIVE), tolerance=0.0, seed=3)


def test_one_order_has_no_error_and_two_seeds_other_orders() -> None:
    found = drawn(mean, ADDITIVE, 7)
    assert found.orders == 1
    assert all(map(math.isnan, found.error.values()))
    assert found.mean != drawn(mean, ADDITIVE, 7, seed=1).mean
    assert found.mean == drawn(mean, ADDITIVE, 7).mean


def test_contributions_that_cancel_out_are_not_all_worth_nothing() -> None:
    """The whole is as good as none of them: an order that ended there would never begin."""
    cancel = {"a": 1.0, "b": -1.0, "c": 0.5, "d": -0.5}
    found = drawn(lambda names: sum(cancel[n] for n in names), cancel, 15, tolerance=0.01)
    assert found.mean["a"] > 0.4 > 0 > -0.4 > found.mean["b"]


def test_an_order_ends_where_it_has_come_near_the_whole() -> None:
    only_a = lambda names: float("a" in names)  # noqa: E731
    asked = []

    def value(names) -> float:
        asked.append(names)
        return only_a(names)

    found = shapley(Counted(value, 31), list(ADDITIVE), tolerance=0.01, seed=0)
    assert found.mean == {**dict.fromkeys(ADDITIVE, 0.0), "a": 1.0}
    assert 0.3 < found.truncated < 0.5  # of five, on average two come after a
    assert sum("a" in names for names in asked) < 16
