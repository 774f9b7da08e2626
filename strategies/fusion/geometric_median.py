"""The point nearest to all contributors: a defence that does not look at single coordinates.

Pillutla, Kakade, Harchaoui, Robust Aggregation for Federated Learning (RFA), arXiv 1912.13445.

It minimises the sum of the distances to whole models. Smoothed Weiszfeld: starting at the
mean, ``steps`` times each contributor is weighed by 1 / max(eps, its distance). ``eps`` is in
the units of the weights.

Use it when some contributors may be far off, and tasks differ: far models lose weight, but
every one keeps some, in all its coordinates. It does not remove anything: many hostile models
that agree still pull.

Differs from the paper: contributors start with equal weights, not by examples. The distances
come from inner products, so that models are read twice whatever the number of steps.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated

import torch
from torch import Tensor

from strategies.fusion._deltas import deltas, fuse, total, whole
from strategies.fusion._options import Range
from strategies.fusion._weights import Weights


def geometric_median(
    base: Weights,
    given: Sequence[Weights],
    *,
    seed: int,
    steps: Annotated[int, Range("[1, inf)")] = 10,
    eps: Annotated[float, Range("(0, inf)")] = 1e-6,
) -> Iterator[tuple[str, Tensor]]:
    """Yield theta + sum(a_i * (theta_i - theta)), with the weights a that Weiszfeld finds."""
    moved = deltas(base, given)
    weights = weiszfeld(whole(base, moved), steps, eps)
    return fuse(base, moved, lambda _, block: total(block, weights))


def weiszfeld(products: Tensor, steps: int, eps: float) -> list[float]:
    """Return weights that sum to 1, from the inner products [n, n] of the vectors."""
    one = torch.eye(len(products), dtype=torch.float64)
    shares = one.mean(dim=0)
    for _ in range(steps):
        apart = shares - one  # [i]: the median less vector i, in terms of the vectors
        squares = ((apart @ products) * apart).sum(dim=1).clamp(min=0)
        shares = 1 / squares.sqrt().clamp(min=eps)
        shares /= shares.sum()
    found: list[float] = shares.tolist()
    return found
