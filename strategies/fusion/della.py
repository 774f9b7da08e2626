"""DELLA: as DARE, but of each row the small changes are more likely to be dropped.

Deep, Bhardwaj, Poria, DELLA-Merging: Reducing Interference in Model Merging through
Magnitude-Based Sampling, arXiv 2406.11617.

Of each contributor's differences from the base, row by row, one stays with a probability p: from
``density`` - ``epsilon`` for the smallest of a row up to ``density`` + ``epsilon`` for its largest,
by rank. What stays is divided by its p, which keeps its expected value. ``then`` says what follows:
the average, or TIES without trimming (elect a sign, average those that have it); ``scale``
multiplies the step. A row is all that shares the first index; a vector is one row.

Step length: that of a mean, longer by the noise of drawing; after ``ties`` that of TIES.

Use it as DARE, before ``ties``: large changes stay more often, so it adds less noise. Before an
average, over many iterations, that noise adds up.

Differs from others: mergekit rescales each tensor to its old L1 norm, the paper and this file by
1 / p. The draws are those of `dare`: they follow from seed, contributor's name and tensor alone.
Of equal magnitudes the later one has the higher rank.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Annotated, Literal

import numpy
import torch
from torch import Tensor

from strategies.errors import FusionError
from strategies.fusion._deltas import Delta, deltas, fuse, total
from strategies.fusion._options import Range, needs
from strategies.fusion._weights import Weights
from strategies.fusion.dare import DRAWS, draws
from strategies.fusion.ties import merge


def together(density: float, epsilon: float, then: str, scale: float) -> int:
    """Refuse what is no probability; any number of contributions will do."""
    if not 0 < density - epsilon <= density + epsilon <= 1:
        raise FusionError(
            f"fusion rule della: density {density} -+ epsilon {epsilon} are probabilities above 0, "
            "at most 1: lower epsilon"
        )
    return 1


@needs(together)
def della(
    base: Weights,
    given: Sequence[Weights],
    *,
    seed: int,
    density: Annotated[float, Range("(0, 1]")] = 0.5,
    epsilon: Annotated[float, Range("[0, 0.5)")] = 0.15,
    then: Literal["average", "ties"] = "average",
    scale: Annotated[float, Range("(0, inf)")] = 1.0,
) -> Iterator[tuple[str, Tensor]]:
    """Yield the average, or what TIES makes, of differences thinned by their rank."""
    shapes = {key: shape for key, (_, shape) in base.template().items()}
    widths = {key: math.prod(s[1:] if len(s) > 1 else s) for key, s in shapes.items()}

    @cache
    def chances(width: int) -> Tensor:
        """Return the probability to stay by rank in a row, the smallest magnitude's first."""
        ranks = torch.arange(width, dtype=torch.float64) / max(1, width - 1)  # 0 to 1
        return density - epsilon + 2 * epsilon * ranks if width > 1 else ranks + density

    thinned = [Ranked(delta, widths, chances, seed) for delta in deltas(base, given)]
    if then == "ties":
        return merge(base, thinned, 1.0, scale)
    return fuse(base, thinned, lambda _, block: total(block).mul_(scale / len(given)))


class Ranked:
    """A difference of which each number stays with the probability of its rank in its row.

    Args:
        delta: the whole one.
        widths: how many numbers a row has, by tensor.
        chances: returns the probabilities of a row of so many numbers, by rank: float64.
        seed: of the draws.
    """

    def __init__(
        self,
        delta: Delta,
        widths: Mapping[str, int],
        chances: Callable[[int], Tensor],
        seed: int,
    ) -> None:
        self.name = delta.name
        self._delta, self._widths, self._chances, self._seed = delta, widths, chances, seed

    def read(self, key: str, span: slice, out: Tensor | None = None) -> Tensor:
        """Return what is left of d there; the rows that it cuts are read whole."""
        width = self._widths[key]
        first, stop = span.start // width * width, -(-span.stop // width) * width
        rows = self._delta.read(key, slice(first, stop)).view(-1, width)
        by_rank = self._chances(width).expand(rows.shape)
        chances = torch.empty(rows.shape, dtype=torch.float64).scatter_(1, order(rows), by_rank)
        cut = slice(span.start - first, span.stop - first)
        chance = chances.view(-1)[cut]
        stays = draws(self._seed, self.name, key, span) >= (1 - chance) * DRAWS
        return torch.div(rows.view(-1)[cut].mul_(stays), chance.float(), out=out)


def order(rows: Tensor) -> Tensor:
    """Return the places of each row's numbers, the smallest magnitude first; not beyond 2^31.

    Magnitudes are ordered as their bits are. With the place below them all differ, so that
    numpy's fastest sort is stable: a sixth of the time of torch's.
    """
    keys = rows.abs().view(torch.int32).numpy().astype(numpy.int64) << 32
    keys |= numpy.arange(rows.shape[1])
    keys.sort(axis=1)
    return torch.from_numpy(keys & 0xFFFFFFFF)
