"""Model Breadcrumbs: drop each tensor's largest and smallest changes, add up the rest.

Davari, Belilovsky, Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks,
arXiv 2312.06795.

Of each contributor's differences from the base, tensor by tensor, the share ``gamma`` that is
largest in magnitude and the smallest ones are set to zero, so that the share ``density``
stays; then as in task arithmetic: theta + ``scale`` * the sum.

Use it where a few outlying weights spoil the sum. With the default density it is close to
task arithmetic, whose warning about many iterations holds here too.

Differs from others: magnitudes equal to the smallest or the largest kept one are all kept, so
that a tensor of equal changes stays whole; at least one number of a tensor stays.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Annotated

import torch
from torch import Tensor

from strategies.errors import FusionError
from strategies.fusion._deltas import deltas, fuse, learned, total
from strategies.fusion._options import Range, needs, share
from strategies.fusion._order import just_below, magnitude
from strategies.fusion._weights import Weights


def together(density: float, gamma: float, scale: float) -> int:
    """Refuse shares that add up to more than the whole; any number of contributions will do."""
    if density + gamma > 1:
        raise FusionError(
            f"fusion rule breadcrumbs: density {density} + gamma {gamma} is more than 1"
        )
    return 1


@needs(together)
def breadcrumbs(
    base: Weights,
    given: Sequence[Weights],
    *,
    seed: int,
    density: Annotated[float, Range("(0, 1]")] = 0.9,
    gamma: Annotated[float, Range("[0, 1)")] = 0.01,
    scale: Annotated[float, Range("(0, inf)")] = 0.3,
) -> Iterator[tuple[str, Tensor]]:
    """Yield theta + scale * the sum of the differences of middling size."""
    moved, counts = deltas(base, given), learned(base)

    @cache
    def bounds(key: str) -> list[tuple[float, float]]:
        """Return just below the least and the most of each contributor's kept magnitudes."""
        count = counts[key]
        kept, cut = max(1, share(density, count)), share(gamma, count)
        return [
            (
                just_below(magnitude(delta, {key: count}, min(count, cut + kept))),
                magnitude(delta, {key: count}, cut + 1),
            )
            for delta in moved
        ]

    def middling(key: str, block: Tensor) -> Tensor:
        for row, (below, most) in zip(block, bounds(key), strict=True):
            kept = torch.hardshrink(row, below)
            torch.sub(kept, torch.hardshrink(kept, most), out=row)
        return total(block).mul_(scale)

    return fuse(base, moved, middling)
