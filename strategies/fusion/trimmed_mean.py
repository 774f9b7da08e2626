"""The mean of each coordinate without its extremes: a milder defence than the median.

Yin, Chen, Ramchandran, Bartlett, Byzantine-Robust Distributed Learning: Towards Optimal
Statistical Rates, arXiv 1803.01498.

Of n values of a coordinate, the floor(beta * n) smallest and as many of the largest are left
out. With beta = 0.2 and fewer than 5 contributors nothing is left out.

Use it when up to a share ``beta`` of the contributors may be wrong. Like the median, it takes
from different tasks what only few of them need: their large changes are the extremes.

Differs from Flower's FedTrimmedAvg in rounding only: it takes the mean of differences from the
base.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated

from torch import Tensor

from strategies.fusion._deltas import deltas, fuse, total
from strategies.fusion._options import Range, share
from strategies.fusion._order import sort
from strategies.fusion._weights import Weights


def trimmed_mean(
    base: Weights,
    given: Sequence[Weights],
    *,
    seed: int,
    beta: Annotated[float, Range("[0, 0.5)")] = 0.2,
) -> Iterator[tuple[str, Tensor]]:
    """Yield theta + the mean of the middle values of theta_i - theta."""
    n = len(given)
    cut = min(share(beta, n), (n - 1) // 2)
    scale = 1 / (n - 2 * cut)
    return fuse(
        base,
        deltas(base, given),
        lambda _, block: total(sort(block)[cut : n - cut]).mul_(scale),
    )
