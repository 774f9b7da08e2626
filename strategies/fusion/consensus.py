"""Consensus: add up the changes where enough contributors hold their own against all others.

Wang, Dimitriadis, Ortiz-Jiménez, Fleuret, Frossard, Localizing Task Information for Improved Model
Merging and Compression, arXiv 2405.07813.

A coordinate is a contributor's own where |d_i| > ``threshold`` * |the sum of the others' d|. Those
that belong to at least ``agree`` contributors stay, all others are the base's; then as in task
arithmetic: theta + ``scale`` * the sum.

Step length: that of ``scale`` times the sum, less what is dropped.

Use it to drop what a single contributor, or none, stands for. Do not use it for many contributors
of one task: where all agree, the others' sum outgrows each, and from 1 + 1 / ``threshold`` equal
contributions on (4 with the default) nothing stays.

Differs from the paper, which tunes ``threshold`` for each task, and ``scale``, on validation data:
one threshold holds for all, and the defaults are not tuned on yours.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated

import torch
from torch import Tensor

from strategies.fusion._deltas import deltas, fuse, total
from strategies.fusion._options import Range, needs
from strategies.fusion._weights import Weights


@needs(lambda threshold, agree, scale: agree)
def consensus(
    base: Weights,
    given: Sequence[Weights],
    *,
    seed: int,
    threshold: Annotated[float, Range("(0, inf)")] = 0.4,
    agree: Annotated[int, Range("[1, inf)")] = 2,
    scale: Annotated[float, Range("(0, inf)")] = 0.3,
) -> Iterator[tuple[str, Tensor]]:
    """Yield theta + scale * the sum of the differences, where enough contributors own it."""

    def shared(_: str, block: Tensor) -> Tensor:
        together = total([block[0].clone(), *block[1:]])
        owners = torch.zeros_like(together)
        for row in block:
            owners += row.abs() > (together - row).abs_().mul_(threshold)
        return together.mul_(owners >= agree).mul_(scale)

    return fuse(base, deltas(base, given), shared)
