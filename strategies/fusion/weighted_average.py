"""A mean in which some contributors count more: by their examples, by name, up to a share.

McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data
(FedAvg), arXiv 1602.05629; ColD Fusion, arXiv 2212.01378, names it as an open question
(section 8).

w_i = weights[name] * examples_i ** power: ``power`` 0 is the plain mean to the last bit, 1 is
FedAvg, 0.5 lies between. A contributor that ``weights`` does not name counts once; a name that
was not drawn this iteration is ignored. ``cap`` is the largest share of one contributor; what
is above it goes to the others in proportion.

Use it when small datasets are noisy, or to trust some contributors less. Do not use power 1
without a cap beside datasets of very different size: the largest task then is the fused model.

Differs from FedAvg: the weights are applied to differences from the base, so that equal models
return themselves, and no share exceeds the cap.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal

from torch import Tensor

from strategies.errors import FusionError
from strategies.fusion._deltas import deltas, fuse, total
from strategies.fusion._options import Range, needs
from strategies.fusion._weights import Weights

Weight = Annotated[float, Range("[0, inf)")]


@needs(lambda power, weights, cap: math.ceil(1 / cap - 1e-9))
def weighted_average(
    base: Weights,
    given: Sequence[Weights],
    *,
    seed: int,
    power: Annotated[float, Range("[0, 10]")] = 1.0,
    weights: Mapping[str, Weight] | Literal[""] = "",
    cap: Annotated[float, Range("(0, 1]")] = 1.0,
) -> Iterator[tuple[str, Tensor]]:
    """Yield theta + sum(w_i * (theta_i - theta)) / sum(w_i), in float32."""
    table = weights or {}
    counts = [table.get(own.name, 1.0) * own.examples**power for own in given]
    if max(counts) == 0:
        raise FusionError(
            f"fusion rule weighted_average: all {len(given)} weights are 0: "
            f"{', '.join(f'{own.name} ({own.examples} examples)' for own in given)}"
        )
    factors = capped([count / max(counts) for count in counts], cap)
    scale = 1 / sum(factors)
    return fuse(base, deltas(base, given), lambda _, block: total(block, factors).mul_(scale))


# Of a model in a drop box nobody else says them: it would count nothing.
weighted_average.metrics = lambda power, **_: ("num-examples",) if power else ()  # type: ignore[attr-defined]


def capped(weights: Sequence[float], cap: float) -> list[float]:
    """Return weights of which none is more than ``cap`` of the sum; as they are if none is."""
    some = sum(weight > 0 for weight in weights)
    if cap * some < 1 - 1e-9:
        raise FusionError(
            f"fusion rule weighted_average: {some} contributions of at most {cap} each make "
            f"{cap * some:.3g}, not 1; cap is to be at least {1 / some:.3g}, or 1 for none"
        )
    shares = list(weights)
    full: set[int] = set()
    while over := {i for i, s in enumerate(shares) if s > cap * sum(shares) * (1 + 1e-9)} - full:
        full |= over
        rest = sum(weight for i, weight in enumerate(weights) if i not in full) or 1.0
        left = 1 - cap * len(full)
        shares = [cap if i in full else w * left / rest for i, w in enumerate(weights)]
    return shares
