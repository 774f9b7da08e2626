"""Fisher merging: each weight as its contributors' data say how much it matters to them.

Matena, Raffel, Merging Models with Fisher-Weighted Averaging, arXiv 2111.09832.

theta + sum_i (F_i + eps) d_i / sum_i (F_i + eps), weight by weight. F_i is the diagonal of the
Fisher information of contributor i's finetuned model, which it computes on its own training data
and sends beside its body (`strategies/fusion/_statistics.py`): the mean over examples of the
squared gradient of log p(y | x), with y drawn from the model's own p. Each F_i is divided by its
root mean square (by its L2 norm, but for a factor that all share), else the task with the largest
gradients rules; ``normalise = false`` leaves them.

Where all F_i are equal, or far below eps, it is the plain mean; where one alone is above, that one.

Step length: longer than the mean's, up to a single contribution's where each weight matters to one.

Use it where contributions contradict each other. What leaves a contributor is more than a body: how
its data pull at each weight.

Differs from the paper: eps is added above the line, too (the authors' code raises each F to a
floor), so that weights of which nobody knows anything take the mean and not the base; differences
from the base, so that equal models return themselves.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Annotated

import torch
from torch import Tensor

from strategies.fusion._deltas import Flat, deltas, fuse, total
from strategies.fusion._options import Range
from strategies.fusion._weights import Weights


def fisher(
    base: Weights,
    given: Sequence[Weights],
    *,
    seed: int,
    eps: Annotated[float, Range("(0, 1]")] = 1e-6,
    normalise: bool = True,
) -> Iterator[tuple[str, Tensor]]:
    """Yield theta + sum((F_i + eps) * (theta_i - theta)) / sum(F_i + eps), in float32."""
    known = [own.statistic for own in given if own.statistic]  # `load` has checked that all do
    scales = [1 / (size(own) or 1.0) if normalise else 1.0 for own in known]
    n = len(given)

    def weighed(_: str, block: Tensor) -> Tensor:
        steps, weights = block[:n], block[n:]
        for step, weight in zip(steps, weights, strict=True):
            step.mul_(weight.add_(eps))
        return total(steps).div_(total(weights))

    return fuse(base, [*deltas(base, given), *map(Known, known, scales)], weighed)


fisher.statistic = "fisher"  # type: ignore[attr-defined]  # a function has any


class Known:
    """A statistic times ``scale``, read as a difference is."""

    def __init__(self, statistic: Weights, scale: float) -> None:
        self.name = statistic.name
        self._flat, self._scale = Flat(statistic), scale

    def read(self, key: str, span: slice, out: Tensor | None = None) -> Tensor:
        """Return what it says there, scaled."""
        part = self._flat.get(key)[span].double() * self._scale  # which float32 may not hold
        return (torch.empty(len(part)) if out is None else out).copy_(part)


def size(statistic: Weights) -> float:
    """Return the root mean square of a statistic, all tensors together."""
    squares = count = 0.0
    for _, tensor in statistic.items():
        squares += float(tensor.double().square().sum())
        count += tensor.numel()
    return math.sqrt(squares / max(count, 1))
