"""The median of each coordinate: a defence against a few broken or hostile contributors.

Yin, Chen, Ramchandran, Bartlett, Byzantine-Robust Distributed Learning: Towards Optimal
Statistical Rates, arXiv 1803.01498.

For an even number of contributors, the mean of the two middle ones.

Use it when contributors do the same task and some of them may be wrong: no minority can move
a coordinate outside the range of the others. Do not use it to fuse different tasks: what only
a minority of them needs to change, most coordinates of most tasks, does not change at all.

Differs from Flower's FedMedian in rounding only: it takes the median of differences from the
base.
"""

from collections.abc import Iterator, Sequence

from torch import Tensor

from strategies.fusion._deltas import deltas, fuse
from strategies.fusion._order import sort
from strategies.fusion._weights import Weights


def median(base: Weights, given: Sequence[Weights], *, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Yield theta + the median of theta_i - theta."""
    n = len(given)

    def middle(_: str, block: Tensor) -> Tensor:
        rows = sort(block)
        return rows[n // 2] if n % 2 else rows[n // 2].add_(rows[n // 2 - 1]).mul_(0.5)

    return fuse(base, deltas(base, given), middle)
