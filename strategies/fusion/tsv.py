"""TSV-Merge: the strongest directions of each contributor, turned so that they do not collide.

Gargiulo, Crisostomi, Bucarelli, Scardapane, Silvestri, Rodolà, Task Singular Vectors: Reducing
Task Interference in Model Merging, arXiv 2412.00081.

Of each contributor's difference in a matrix, U S V^T, the floor(r / n) strongest of its r
directions stay, at least one. Those of all n side by side, U and V are replaced by the nearest
matrices with orthonormal columns (U = P D Q^T becomes P Q^T), and theta + ``scale`` * U S V^T is
fused. Of tensors that are no matrices it is ``scale`` * the mean. A contributor alone stays whole.

Step length: that of a sum, about sqrt(n) times the length of one contribution's strongest part.

Use it for one fuse of different tasks. Over many iterations lower ``scale``, or give the update a
length with ``fusion.norm``. It takes minutes: two decompositions and one of each contributor for
each matrix.

Differs from the paper's code: directions below 1e-6 of the strongest get nothing, so that equal
contributors are fused into one (its strongest part), and one that did not move changes nothing but
n. The word embedding is a matrix as any other; none is held, each is read three times instead.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated

import torch
from torch import Tensor

from strategies.fusion._deltas import Delta, Map, deltas
from strategies.fusion._matrices import Matrix, Read, fuse_matrices, inverse, polar, roots
from strategies.fusion._options import Range
from strategies.fusion._weights import Weights


def tsv(
    base: Weights,
    given: Sequence[Weights],
    *,
    seed: int,
    scale: Annotated[float, Range("(0, inf)")] = 1.0,
) -> Iterator[tuple[str, Tensor]]:
    """Yield theta + scale * U S V^T, of all contributors' strongest directions, made orthogonal."""
    moved = deltas(base, given)

    def apart(matrix: Matrix, each: Map) -> Read:
        kept = max(1, matrix.short // len(moved))

        def strongest(delta: Delta) -> tuple[Tensor, Tensor, Tensor]:
            lengths, vectors = roots(matrix.gram(partial(matrix.read, delta)))
            inverses = inverse(lengths)[:kept]
            right = vectors[:, :kept] * inverses.sign()  # 0 where it has no direction
            return lengths[:kept].clone(), right, vectors[:, :kept] * inverses  # D V / S = U

        strengths, right, onto = zip(*each(strongest, moved), strict=True)

        def left(span: slice) -> Tensor:
            """Return U of all contributors side by side: [long, n * kept]."""
            pairs = zip(moved, onto, strict=True)
            return torch.cat([matrix.read(delta, span) @ own for delta, own in pairs], dim=1)

        v = torch.cat(right, dim=1)  # [short, n * kept]
        turned = polar(matrix.gram(left)) * torch.cat(strengths) @ polar(v.T @ v) @ v.T
        return lambda span: left(span) @ turned

    return fuse_matrices(base, moved, apart, scale)
