"""Checks on contributions."""

import math
import re
from dataclasses import replace

import pytest
import torch

from strategies.diagnostics import diagnose
from strategies.errors import FusionError, Refused
from strategies.form import check_template, finite
from strategies.fusion import Weights, fingerprint
from strategies.screening import Candidate, Screen, Verdict, outgrown

EXPECTED = {"w": (torch.float32, (2, 3)), "b": (torch.float32, (3,))}
GOOD = {"w": ("float32", (2, 3)), "b": ("float32", (3,))}


def test_the_base_form_passes() -> None:
    check_template(GOOD, EXPECTED)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"w": GOOD["w"]}, "missing tensor b"),
        ({**GOOD, "head": ("float32", (1,))}, "unexpected tensor 'head'"),
        ({**GOOD, "w": ("float32", (3, 2))}, r"w has shape \(3, 2\), the base has \(2, 3\)"),
        ({**GOOD, "w": ("float64", (2, 3))}, "w is float64, expected float32"),
    ],
)
def test_another_form_is_refused_by_name(given, reason) -> None:
    with pytest.raises(Refused, match=reason):
        check_template(given, EXPECTED)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(value) -> None:
    with pytest.raises(Refused, match="w holds NaN or infinity"):
        list(finite([("w", torch.tensor([0.0, value]))]))


BODIES: dict[str, Weights] = {}  # of the candidates, by sha256


def model(*moved: float, examples: float = 10, name: str = "x", **metrics: float) -> Candidate:
    """A contribution whose 32 x 32 matrix and bias moved along the first coordinates."""
    weight = torch.ones(32, 32)
    weight.view(-1)[: len(moved)] += torch.tensor(moved)
    body = {"w": weight, "b": torch.zeros(3)}
    sha256 = fingerprint(body.items())
    BODIES[sha256] = Weights(body)
    return Candidate(name, sha256, {"num-examples": examples, **metrics})


THETA = Weights({"w": torch.ones(32, 32), "b": torch.zeros(3)})
SHA = fingerprint(THETA.items())
USUAL = [[1.0, 0.1], [0.1, 1.0], [0.9, 0.2], [0.0, 0.8]]


def screened(screen: Screen, *given: Candidate) -> dict[str, Verdict]:
    given = tuple(sorted(given, key=lambda one: one.name))
    return screen(SHA, given, diagnose(THETA, [BODIES[one.sha256] for one in given]))


def judge(*odd: Candidate, screen: Screen = Screen()) -> dict[str, Verdict]:  # noqa: B008
    usual = [model(*moved, name=f"n{i}") for i, moved in enumerate(USUAL)]
    found = screened(screen, *usual, *odd)
    assert not any(found[one.name].reason for one in usual), found
    return found


def test_what_is_usual_passes_with_its_figures() -> None:
    figures = judge()["n0"].figures
    assert figures["diff-norm"] == pytest.approx(math.sqrt(1.01))
    cosines = sorted((1 * x + 0.1 * y) / math.sqrt(1.01) / math.hypot(x, y) for x, y in USUAL[1:])
    assert figures["agreement"] == pytest.approx(cosines[1])
    assert figures["similarity"] == pytest.approx(1, abs=1e-2)


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (model(1.0, 0.1, name="z"), "duplicate: the same weights as n0"),
        (model(name="z"), "unchanged: the base, unchanged"),
        (model(0.5, name="z", **{"dev-accuracy": 1.5}), "metrics: dev-accuracy is 1.5, expected"),
        (model(0.5, name="z", **{"train-loss": -1}), "metrics: train-loss is -1, expected 0 to"),
        (model(0.5, name="z", seconds=-1.0), "metrics: seconds is -1"),
        (
            replace(model(0.5, name="z", examples=400), promised=40),
            "metrics: num-examples is 400, it had 40 when it joined",
        ),
        (model(*[-2.0] * 1024, name="z"), "random: w looks new: its cosine .* is -1.00 < 0.25"),
        (model(7.0, name="z"), "norm: its update has norm 7, more than .*: the cohort's median is"),
        (
            replace(model(0.9, name="z"), history=[0.1, 0.12, 0.11]),
            "norm: its update has norm 0.9, more than 0.66: the median of its own earlier ones",
        ),
        (model(-0.5, -0.5, name="z"), "cosine: its update points away .* median cosine -0.7"),
    ],
)
def test_the_first_refusal_is_named(odd, reason) -> None:
    found = judge(odd)
    assert re.match(reason, found["z"].reason), found["z"].reason
    assert found["z"].figures.keys() == {"diff-norm", "similarity", "agreement", "growth"}


def test_more_steps_excuse_a_larger_norm_but_only_so_much() -> None:
    usual = [model(*moved, name=f"n{i}", steps=10.0) for i, moved in enumerate(USUAL)]

    def refused(norm: float, steps: float) -> bool:
        found = screened(Screen(), *usual, model(norm, name="z", steps=steps))
        return bool(found["z"].reason)

    assert refused(7.0, 10.0)
    assert not refused(7.0, 40.0)  # twice as far
    assert not refused(21.0, 1e6)
    assert refused(26.0, 1e6)  # four times at most


def test_a_copy_is_refused_whoever_came_first() -> None:
    one, two = model(0.5, name="aa"), model(0.5, name="zz")
    for pair in ([one, two], [two, one]):
        found = judge(*pair)
        assert found["aa"].reason == ""
        assert found["zz"].reason == "duplicate: the same weights as aa"


def test_who_does_not_say_its_steps_counts_as_usual() -> None:
    """As 1 step it would make all who do say them long, and excuse them."""
    silent = [model(*moved, name=f"n{i}") for i, moved in enumerate(USUAL)]
    for steps in ({}, {"steps": 200.0}):
        found = screened(Screen(checks=("norm",)), *silent, model(10.0, name="z", **steps))
        assert found["z"].reason.startswith("norm: ")


def test_what_is_refused_no_longer_counts_for_the_others() -> None:
    """Three that point the other way, two of them refused before: the third one is alone."""
    away = [model(-0.5, -0.5 - i / 10, name=f"z{i}") for i in range(3)]
    lying = [replace(one, promised=1) for one in away[:2]]
    found = judge(*lying, away[2])
    assert [v.reason.split(":")[0] for n, v in found.items() if n.startswith("z")] == [
        "metrics", "metrics", "cosine",
    ]  # fmt: skip


def together(shared: float, *flipped: int, cosine: float = -0.2) -> dict[str, str]:
    """Judge eight updates, shared * e_0 + e_i for the i-th: pairwise cosines s^2 / (s^2 + 1)."""
    given = []
    for i in range(8):
        moved = torch.zeros(9)
        moved[0], moved[i + 1] = shared, 1.0
        moved *= -1 if i in flipped else 1
        given.append(model(*moved.tolist(), name=f"n{i}"))
    return {
        name: verdict.reason
        for name, verdict in screened(Screen(checks=("cosine",), cosine=cosine), *given).items()
    }


def test_a_sign_flip_is_found_where_the_others_pull_together() -> None:
    found = together(0.3, 2, 5)  # cosines 0.083, of the flipped with the others -0.083
    said = "cosine: its update points away from the others': median cosine -0.08 < -0.041"
    assert {name: reason for name, reason in found.items() if reason} == {"n2": said, "n5": said}
    assert not any(together(0.3).values())
    assert not any(together(0.2, 2, 5).values())  # 0.04: too little to tell one from the other
    assert not any(together(0.3, 2, 5, cosine=-1.0).values())


def turned(decay: float, *flipped: int, **steps: float) -> dict[str, str]:
    """Judge nine updates of which each moves another coordinate by 3, and every one by -decay.

    The weights are ones: <d, theta> = 3 - 1024 decay, |d|^2 = 9 - 6 decay + 1024 decay^2.
    """
    given = []
    for i in range(9):
        moved = torch.full((1024,), -decay)
        moved[i] += 3
        moved *= -1 if i in flipped else 1
        given.append(model(*moved.tolist(), name=f"n{i}", steps=steps.get(f"n{i}", 10.0)))
    found = screened(Screen(checks=("growth",)), *given)
    return {name: verdict.reason for name, verdict in found.items() if verdict.reason}


def test_a_sign_flip_is_found_where_the_others_weights_all_shrink_or_all_grow() -> None:
    said = "growth: its weights grew by {} updates' squares, the cohort's by {}".format
    # 1 + 2 (3 - 10.24) / 9.0424 = -0.601, and 2.601 turned around
    assert turned(0.01, 1, 4) == dict.fromkeys(("n1", "n4"), said("2.60", "-0.60"))
    # 1 + 2 (3 + 10.24) / 9.1624 = 3.890, and -1.890
    assert turned(-0.01, 1, 4) == dict.fromkeys(("n1", "n4"), said("-1.89", "3.89"))
    assert turned(0.01) == turned(-0.01) == {}
    assert [*turned(0.01, 1, 4, n1=30.0)] == ["n4"]  # a longer finetuning may grow otherwise


@pytest.mark.parametrize(
    ("growth", "cohort", "refused"),
    [
        # Median 0.5; above it 0, 0, 0, 0.1, 0.1 and the growth's own: a spread of 0.074, and the 1
        # of noise is 6.7 of them away, where 1.5 + 8 / 8 are asked for.
        (1.6, [0.1, 0.3, 0.5, 0.5, 0.5, 0.6, 0.6, 1.6], True),
        (1.25, [0.1, 0.3, 0.5, 0.5, 0.5, 0.6, 0.6, 1.25], True),  # half as far on the other side
        (1.2, [0.1, 0.3, 0.5, 0.5, 0.5, 0.6, 0.6, 1.2], False),
        (0.4, [1.9, 1.7, 1.5, 1.5, 1.5, 1.4, 1.4, 0.4], True),
        (1.6, [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 1.6], False),  # seven tell no spread
        # Above it 0, 0, 0.1, 0.2, 1.1: a spread of 0.148, 3.4 of them; with 0.3 and 0.4: 1.1.
        (1.6, [0.1, 0.2, 0.3, 0.5, 0.5, 0.6, 0.7, 1.6], True),
        (1.6, [0.1, 0.2, 0.3, 0.5, 0.5, 0.8, 0.9, 1.6], False),
        # A spread of 0.222, so 2.25 of them: enough for sixteen (1.5 + 8 / 16), not for eight.
        (1.6, [0.2, 0.3, 0.4, 0.5, 0.5, 0.65, 0.65, 1.6], False),
        (1.6, [0.2, 0.3, 0.4, 0.5, 0.5, 0.65, 0.65, 1.6] * 2, True),
        (4.5, [-2.9, -0.1, 0.4, 1.2, 3.7, 4.5, -1.0, 2.0], False),  # a low learning rate: noise
    ],
)
def test_growth_tells_two_sides_apart_or_says_nothing(growth, cohort, refused) -> None:
    assert bool(outgrown(growth, cohort)) == refused


def test_two_contributions_have_no_median_to_be_compared_with() -> None:
    found = screened(Screen(), model(0.1, name="a"), model(-9.0, name="b"))
    assert [verdict.reason for verdict in found.values()] == ["", ""]


def test_checks_can_be_chosen() -> None:
    only = Screen(checks=("norm",))
    assert judge(model(-0.5, -0.5, name="z"), screen=only)["z"].reason == ""
    assert judge(model(99.0, name="z"), screen=Screen(checks=()))["z"].reason == ""
    with pytest.raises(FusionError, match="unknown check 'nrom'. Did you mean 'norm'"):
        Screen(checks=("nrom",))
