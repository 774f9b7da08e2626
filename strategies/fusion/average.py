"""The paper's fusion: the uniform mean of the contributors' bodies (section 3).

Don-Yehiya et al., ColD Fusion, arXiv 2212.01378. Flower's FedAvg weighs by
``num-examples``; the paper does not, and with MNLI (392k examples) beside WNLI (0.6k)
that is another algorithm.
"""

from collections.abc import Iterator, Sequence

from torch import Tensor

from strategies.fusion._weights import Weights


def average(base: Weights, given: Sequence[Weights], *, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Yield theta + (1/n) * sum(theta_i - theta), in float32.

    The form with differences returns the base to the last bit when every contribution
    equals it; a plain float32 mean of n equal models does not.
    """
    for key in base.keys():  # noqa: SIM118 - Weights is not a dict
        theta = base.get(key)
        if not theta.is_floating_point():  # integer buffers are not learned
            yield key, theta
            continue
        start = theta.float()
        total = given[0].get(key).float() - start
        for weights in given[1:]:
            total += weights.get(key).float() - start
        yield key, (start + total.mul_(1 / len(given))).to(theta.dtype)
