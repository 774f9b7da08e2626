"""RegMean: the linear layers that fit all contributors' outputs best, by least squares.

Jin, Ren, Preotiuc-Pietro, Cheng, Dataless Knowledge Fusion by Merging Weights of Language Models,
arXiv 2212.09849.

For each linear layer with weight W [out, in] the step D solves (sum_i G_i) D^T = sum_i G_i D_i^T
with D_i = W_i - W. G_i = X^T X / tokens is the Gram matrix of the layer's inputs on contributor i's
own training data, without padding; it comes beside the body (`strategies/fusion/_statistics.py`).
Its off-diagonals are multiplied by ``alpha``. All else (embeddings, norms, biases) is the plain
mean.

``gram = "diagonal-ffn"`` has the inputs that are wider than the layer's outputs (feed-forward) as a
diagonal alone: of a RoBERTa-base 43 MB leave a contributor instead of 269. ``"full"`` has all.

Step length: about the mean's.

Use it where the layers' inputs differ between tasks. A Gram matrix tells more of the data than
weights do: a site has to allow that it leaves.

Differs from the paper: differences from the base, so that equal models return themselves; padding
is left out; solved in float64 with a small ridge, so that inputs nobody has seen take no step.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor

from strategies.fusion._deltas import Delta, deltas, fuse, narrow, one_thread, total
from strategies.fusion._options import Range
from strategies.fusion._statistics import diagonal, unpack
from strategies.fusion._weights import Weights

RIDGE = 1e-6  # of the mean of the diagonal


def regmean(
    base: Weights,
    given: Sequence[Weights],
    *,
    seed: int,
    alpha: Annotated[float, Range("[0, 1]")] = 0.1,
    gram: Literal["diagonal-ffn", "full"] = "diagonal-ffn",
) -> Iterator[tuple[str, Tensor]]:
    """Yield theta + D of the linear layers that all know, and theta + the mean of the rest."""
    known = [_grams(own) for own in given]
    layers = set.intersection(*(set(one) for one in known))
    steps, scale = deltas(base, given), 1 / len(given)
    mean = fuse(base, steps, lambda _, block: total(block).mul_(scale))
    for key, tensor in mean:
        if key not in layers:
            yield key, tensor
            continue
        theta = base.get(key)
        step = solved(steps, key, theta.shape, [one[key]() for one in known], alpha)
        yield key, narrow(theta.float() + step, theta.dtype)


regmean.statistic = lambda gram, **_: "gram-full" if gram == "full" else "gram"  # type: ignore[attr-defined]


def _grams(own: Weights) -> dict[str, Callable[[], Tensor]]:
    """Return what reads the gram of each layer's inputs, by the layer's weight."""
    statistic = own.statistic
    assert statistic  # `load` has checked it
    return {
        name: partial(statistic.get, names)
        for names in statistic.keys()  # noqa: SIM118 - no dict
        for name in names.split(",")
    }


def solved(
    steps: Sequence[Delta], key: str, shape: torch.Size, grams: Sequence[Tensor], alpha: float
) -> Tensor:
    """Return D [out, in] of one layer."""
    size = shape[1]
    whole = all(len(gram) != size for gram in grams) and alpha > 0
    left = torch.zeros(size, size if whole else 1, dtype=torch.float64)
    right = torch.zeros(size, shape[0], dtype=torch.float64)
    with one_thread():
        for step, gram in zip(steps, grams, strict=True):
            own = step.read(key, slice(0, shape.numel())).view(shape).double().T
            if whole:
                matrix = unpack(gram.double(), size)
                matrix = alpha * matrix + (1 - alpha) * torch.diag(matrix.diagonal())
                left += matrix
                right += matrix @ own
            else:
                weights = diagonal(gram, size).double()[:, None]
                left += weights
                right += weights * own
        if not whole:
            ridge = RIDGE * left.mean() or 1.0
            return (right / (left + ridge)).T.float()
        ridge = float(RIDGE * left.diagonal().mean()) or 1.0
        left.diagonal().add_(ridge)
        found: Tensor = torch.linalg.solve(left, right)
        return found.T.float()
