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

from strategies.fusion._deltas import Flat, Stack, add, deltas, spans, total
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
    stack, flat = Stack(deltas(base, given)), [Flat(own) for own in known]
    for key, (dtype, shape) in base.template().items():
        theta = base.get(key)
        if not dtype.is_floating_point:
            yield key, theta
            continue
        fused, start = torch.empty(shape, dtype=dtype), theta.ravel()
        for span in spans(start.numel(), 2 * len(given)):
            weights = [
                own.get(key)[span].float().mul(scale).add_(eps)
                for own, scale in zip(flat, scales, strict=True)
            ]
            block = stack.read(key, span)
            for row, weight in zip(block, weights, strict=True):
                row.mul_(weight)
            step = total(block).div_(total(weights))
            fused.view(-1)[span] = add(start[span], step)
        yield key, fused


fisher.statistic = "fisher"  # type: ignore[attr-defined]  # a function has any


def size(statistic: Weights) -> float:
    """Return the root mean square of a statistic, all tensors together."""
    squares = count = 0.0
    for _, tensor in statistic.items():
        squares += float(tensor.double().square().sum())
        count += tensor.numel()
    return math.sqrt(squares / max(count, 1))
