"""The paper's fusion: the uniform mean of the contributors' bodies (section 3).

Don-Yehiya et al., ColD Fusion, arXiv 2212.01378. Flower's FedAvg weighs by
``num-examples``; the paper does not, and with MNLI (392k examples) beside WNLI (0.6k)
that is another algorithm.
"""

from collections.abc import Iterator, Sequence

from torch import Tensor

from strategies.fusion._deltas import deltas, fuse, total
from strategies.fusion._weights import Weights


def average(base: Weights, given: Sequence[Weights], *, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Yield theta + (1/n) * sum(theta_i - theta), in float32.

    The form with differences returns the base to the last bit when every contribution
    equals it; a plain float32 mean of n equal models does not.
    """

    def mean(key: str, block: Tensor) -> Tensor:
        return total(block).mul_(1 / len(given))

    return fuse(base, deltas(base, given), mean)


average.plain_mean = True  # type: ignore[attr-defined]  # `diagnose` makes it, too
