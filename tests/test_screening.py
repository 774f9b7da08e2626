"""Checks on contributions."""

import math

import pytest
import torch

from strategies.errors import Refused
from strategies.screening import check_template, finite

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
