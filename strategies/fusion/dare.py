"""DARE: drop a random share of each contributor's changes, scale the others up, then fuse.

Le Yu, Bowen Yu, Haiyang Yu, Fei Huang, Yongbin Li, Language Models are Super Mario: Absorbing
Abilities from Homologous Models as a Free Lunch, arXiv 2311.03099.

Each difference from the base is dropped with probability ``drop``, and divided by 1 - ``drop``
if it stays, which keeps its expected value. ``then`` says what follows: the average, or TIES
with this ``density`` (1: no trimming); ``scale`` multiplies the step.

Use it with ``ties`` to make contributors collide less. Before an average it only adds noise,
more with fewer contributors; over many iterations that noise adds up. Do not use a large
``drop`` after long finetuning: large changes scaled up by 10 destroy a model.

Differs from the paper's code: the mask follows from seed, contributor's name and tensor alone,
so that it does not depend on who else contributes. ``density`` counts all numbers, those that
were dropped too, and is ignored before an average.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor

from strategies.fusion._deltas import Delta, deltas, fuse, total
from strategies.fusion._options import Range
from strategies.fusion._weights import Weights
from strategies.fusion.ties import merge

CHUNK = 1 << 13  # numbers of a tensor whose draws have a seed of their own; part of the result
DRAWS = 2**31


def dare(
    base: Weights,
    given: Sequence[Weights],
    *,
    seed: int,
    drop: Annotated[float, Range("[0, 1)")] = 0.5,
    then: Literal["average", "ties"] = "average",
    density: Annotated[float, Range("(0, 1]")] = 1.0,
    scale: Annotated[float, Range("(0, inf)")] = 1.0,
) -> Iterator[tuple[str, Tensor]]:
    """Yield the average, or what TIES makes, of thinned differences."""
    thinned = [Thinned(delta, drop, seed) for delta in deltas(base, given)]
    if then == "ties":
        return merge(base, thinned, density, scale)
    return fuse(base, thinned, lambda _, block: total(block).mul_(scale / len(given)))


class Thinned:
    """A difference of which a random share is dropped."""

    def __init__(self, delta: Delta, drop: float, seed: int) -> None:
        self.name = delta.name
        self._delta, self._seed = delta, seed
        self._drop = drop

    def read(self, key: str, span: slice, out: Tensor | None = None) -> Tensor:
        """Return what is left of d there."""
        block = self._delta.read(key, span, out)
        stays = draws(self._seed, self.name, key, span) >= int(self._drop * DRAWS)
        return block.mul_(stays).div_(1 - self._drop)


def draws(seed: int, name: str, key: str, span: slice) -> Tensor:
    """Return an int32 from 0 to `DRAWS` - 1 for each number of a contributor's tensor there.

    They do not depend on where the span begins or ends.
    """
    drawn = torch.empty(span.stop - span.start, dtype=torch.int32)
    for number in range(span.start // CHUNK, -(-span.stop // CHUNK)):
        place = f"{seed}\n{name}\n{key}\n{number}".encode()
        own = int.from_bytes(hashlib.sha256(place).digest()[:7])
        generator = torch.Generator().manual_seed(own)
        chunk = torch.empty(CHUNK, dtype=torch.int32).random_(generator=generator)  # 31 bits
        first = number * CHUNK
        start, stop = max(span.start, first), min(span.stop, first + CHUNK)
        drawn[start - span.start : stop - span.start] = chunk[start - first : stop - first]
    return drawn
