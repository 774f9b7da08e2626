"""TIES: keep each contributor's largest changes, and of those the ones that agree in sign.

Yadav, Tam, Choshen, Raffel, Bansal, TIES-Merging: Resolving Interference When Merging Models,
arXiv 2306.01708.

Trim: of each contributor's differences from the base the ``density`` largest stay, over all
tensors together. Elect: a coordinate's sign is that of the sum. Merge: the mean of those that
have this sign and are not zero, times ``scale``.

Use it to fuse different tasks once, or rarely: fewer changes cancel out than in a mean. Over
many iterations trimming loses most of each contributor's step, and loses it again every time:
raise ``density`` towards 1 then. A mean over those that agree is larger than one over all:
lower ``scale`` if the body drifts off.

Differs from others: peft and mergekit trim each tensor by itself, the paper and this file the
whole body. Magnitudes equal to the smallest kept one are all kept, as in the paper's code; a
sum of zero elects plus, as in peft.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated

import torch
from torch import Tensor

from strategies.fusion._deltas import Delta, cores, deltas, fuse, learned, total
from strategies.fusion._options import Range, share
from strategies.fusion._order import just_below, magnitude
from strategies.fusion._weights import Weights


def ties(
    base: Weights,
    given: Sequence[Weights],
    *,
    seed: int,
    density: Annotated[float, Range("(0, 1]")] = 0.2,
    scale: Annotated[float, Range("(0, inf)")] = 1.0,
) -> Iterator[tuple[str, Tensor]]:
    """Yield theta + scale * the mean of the large differences that agree."""
    return merge(base, deltas(base, given), density, scale)


def merge(
    base: Weights, given: Sequence[Delta], density: float, scale: float
) -> Iterator[tuple[str, Tensor]]:
    """Trim, elect and merge differences."""
    counts = learned(base)
    kept = max(1, share(density, sum(counts.values())))
    least = [0.0] * len(given)
    if density < 1:
        with cores() as each:
            least = list(each(lambda delta: magnitude(delta, counts, kept), given))
    below = [just_below(bound) for bound in least]

    def agreed(_: str, block: Tensor) -> Tensor:
        rows = [torch.hardshrink(row, bound) for row, bound in zip(block, below, strict=True)]
        block[0].copy_(rows[0])
        sign = total([block[0], *rows[1:]]).ge_(0).mul_(2).sub_(1)  # [numbers]: 1 or -1
        for row in rows:
            row.mul_(sign).clamp_(min=0)  # those that disagree become zero
        votes = total([row.sign() for row in rows]).clamp_(min=1)
        return total(rows).div_(votes).mul_(sign).mul_(scale)

    return fuse(base, given, agreed)
