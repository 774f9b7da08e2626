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

Step length: many times the mean's where inputs differ much in size (16 times with MiniLM), for
weights that inputs hardly reach may move far: `fusion.norm` would undo it.

Use it where the layers' inputs differ between tasks. A Gram matrix tells more of the data than
weights do: a site has to allow that it leaves.

Differs from the paper: each G_i is divided by the mean of its diagonal, so that nobody's inputs
count for more because they are larger (``normalise = false`` leaves them); differences from the
base, so that equal models return themselves; padding is left out; solved in float64 with a small
ridge, so that inputs nobody has seen take no step.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Annotated, Literal

import torch
from torch import Tensor

from strategies.errors import FusionError
from strategies.fusion._deltas import Delta, add, deltas, fuse, one_thread, total
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
    normalise: bool = True,
) -> Iterator[tuple[str, Tensor]]:
    """Yield theta + D of the linear layers that all know, and theta + the mean of the rest."""
    known = [_grams(own) for own in given]
    sets = [frozenset(one) for one in known]
    layers = max(sets, key=sets.count)  # most know these
    for own, one in zip(given, known, strict=True):
        if odd := layers ^ set(one):
            raise FusionError(
                f"fusion rule regmean: {own.name} does not know of the same layers as the others, "
                f"such as {min(odd)}"
            )
    steps, scale = deltas(base, given), 1 / len(given)
    mean = fuse(base, steps, lambda _, block: total(block).mul_(scale))
    for key, tensor in mean:
        if key not in layers:
            yield key, tensor
            continue
        theta = base.get(key)
        grams = [one[key] for one in known]
        try:
            step = solved(steps, key, theta.shape, grams, alpha, normalise)
        except RuntimeError as error:
            raise FusionError(f"fusion rule regmean: {key} cannot be solved: {error}") from error
        yield key, add(theta, step)


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
    steps: Sequence[Delta],
    key: str,
    shape: torch.Size,
    grams: Sequence[Callable[[], Tensor]],
    alpha: float,
    normalise: bool,
) -> Tensor:
    """Return D [out, in] of one layer; ``grams`` read what is known of its inputs."""
    size = shape[1]
    whole = all(len(read()) != size for read in grams) and alpha > 0
    left = torch.zeros(size, size if whole else 1, dtype=torch.float64)
    right = torch.zeros(size, shape[0], dtype=torch.float64)
    with one_thread():
        for step, read in zip(steps, grams, strict=True):
            own = step.read(key, slice(0, shape.numel())).view(shape).double().T
            gram = read()
            squares = diagonal(gram, size).double()
            scale = 1 / (float(squares.mean()) or 1.0) if normalise else 1.0
            if whole:
                matrix = unpack(gram.double(), size).mul_(alpha * scale)
                matrix.diagonal().copy_(squares * scale)
                left += matrix
                right += matrix @ own
            else:
                weights = squares[:, None] * scale
                left += weights
                right += weights * own
        if not whole:
            ridge = RIDGE * left.mean() or 1.0
            return (right / (left + ridge)).T.float()
        # Eigenvalues of a float32 gram are wrong by as much: below 0 where its rank is low.
        noise = torch.finfo(torch.float32).eps * size
        left.diagonal().add_(float(max(RIDGE, noise) * left.diagonal().mean()) or 1.0)
        found: Tensor = torch.linalg.solve(left, right)
        return found.T.float()
