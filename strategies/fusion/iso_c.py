"""Iso-C: the sum of all changes, in each matrix equally long in all its directions.

Marczak, Magistri, Cygert, Twardowski, Bagdanov, van de Weijer, No Task Left Behind: Isotropic
Model Merging with Common and Task-Specific Subspaces, arXiv 2502.04959.

A matrix's sum of differences is U S V^T; theta + ``scale`` * mean(S) * U V^T is fused. So what
only one task learned, in a direction that is weak in the sum, moves the base as far as what all
learned. Of tensors that are no matrices it is ``scale`` * the mean.

Step length: that of a sum, up to n times the mean's; shorter than the sum's, the more uneven S is.

Use it for one fuse of different tasks. Over many iterations lower ``scale``, or give the update a
length with ``fusion.norm``. Do not use it where contributions are of low rank (LoRA): directions
that hold little but rounding become as long as the others.

Differs from the paper's code: directions below 1e-6 of the strongest get nothing, where a
decomposition makes some up; S and V come from D^T D in float64. The word embedding is a matrix as
any other, read a piece at a time; a row that no contributor moved stays.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated

from torch import Tensor

from strategies.fusion._deltas import Delta, Map, deltas
from strategies.fusion._matrices import Matrix, Read, fuse_matrices, inverse, roots
from strategies.fusion._options import Range
from strategies.fusion._weights import Weights


def iso_c(
    base: Weights,
    given: Sequence[Weights],
    *,
    seed: int,
    scale: Annotated[float, Range("(0, inf)")] = 1.0,
) -> Iterator[tuple[str, Tensor]]:
    """Yield theta + scale * mean(S) * U V^T, where U S V^T = sum(theta_i - theta)."""
    moved = deltas(base, given)
    together = Together(moved)

    def even(matrix: Matrix, _: Map) -> Read:
        def read(span: slice) -> Tensor:
            return matrix.read(together, span)

        lengths, vectors = roots(matrix.gram(read))
        evened = (vectors * (lengths.mean() * inverse(lengths))) @ vectors.T  # V mean(S)/S V^T
        return lambda span: read(span) @ evened

    return fuse_matrices(base, moved, even, scale)


class Together:
    """The sum of the differences, in their order."""

    def __init__(self, given: Sequence[Delta]) -> None:
        self.name = "+".join(delta.name for delta in given)
        self._given = given

    def read(self, key: str, span: slice, out: Tensor | None = None) -> Tensor:
        """Return the sum there."""
        first, *others = self._given
        summed = first.read(key, span, out)
        for delta in others:
            summed.add_(delta.read(key, span))
        return summed
