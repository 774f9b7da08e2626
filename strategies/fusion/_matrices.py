"""Matrices of differences, taken apart without being held: what `iso_c` and `tsv` are made of.

The singular values of D [long, short], and its vectors along the short side, are those of D^T D,
[short, short]. In float64 that is as exact as a float32 decomposition of D: it loses what is 1e-8
of the largest singular value. D itself is read a piece at a time along its longer side, so a word
embedding of 250,000 x 768 takes a few matrices of 768 x 768 and no other memory.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import reduce

import torch
from torch import Tensor

from strategies.fusion._deltas import Delta, Map, add, cores, fuse, total
from strategies.fusion._weights import Weights

PIECE = 1 << 20  # numbers; part of the result, for sums of products are rounded piece by piece
LEAST = 1e-6  # of the largest singular value: what is smaller is rounding, and has no direction

Read = Callable[[slice], Tensor]
"""Takes a piece's place in the flat tensor, returns it as float64 [long, some columns]."""


class Matrix:
    """A tensor [rows, columns] that is read along its longer side.

    Args:
        key: its name.
        shape: rows and columns, both above 0.
    """

    def __init__(self, key: str, shape: tuple[int, ...]) -> None:
        self._key = key
        self._rows, self._columns = shape
        self._wide = self._rows < self._columns
        self.short = min(shape)
        """How many singular values it has."""

    def pieces(self) -> Iterator[slice]:
        """Cut it; one with more columns than rows is one piece, for its columns lie apart."""
        count = self._rows * self._columns
        step = count if self._wide else max(1, PIECE // self._columns) * self._columns
        return (slice(start, min(start + step, count)) for start in range(0, count, step))

    def read(self, delta: Delta, span: slice) -> Tensor:
        """Return a piece of a difference: float64 [long, short]."""
        piece = delta.read(self._key, span).view(-1, self._columns)
        return (piece.T if self._wide else piece).double()

    def flat(self, piece: Tensor) -> Tensor:
        """Return a piece [long, short] as the tensor has it: float32, flat."""
        return (piece.T if self._wide else piece).float().reshape(-1)

    def gram(self, read: Read) -> Tensor:
        """Return X^T X, where X are the pieces that ``read`` returns, one below the other."""
        return reduce(torch.add, (piece.T @ piece for piece in map(read, self.pieces())))


def roots(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return from X^T X the singular values of X, the largest first, and its right vectors.

    The vectors are the columns [short, short].
    """
    squares, vectors = torch.linalg.eigh(gram)
    return squares.flip(0).clamp(min=0).sqrt(), vectors.flip(1)


def inverse(lengths: Tensor) -> Tensor:
    """Return 1 / s of singular values, the largest first; 0 of those that are rounding."""
    return torch.where(lengths > LEAST * lengths[0], 1 / lengths, 0.0)


def polar(gram: Tensor) -> Tensor:
    """Return from X^T X the R with which X R = P Q^T, where X = P S Q^T."""
    lengths, vectors = roots(gram)
    return (vectors * inverse(lengths)) @ vectors.T


def fuse_matrices(
    base: Weights, given: Sequence[Delta], step: Callable[[Matrix, Map], Read], scale: float
) -> Iterator[tuple[str, Tensor]]:
    """Yield the base plus ``scale`` times a step: of other tensors than matrices, the mean.

    Args:
        base: theta.
        given: the contributions' differences.
        step: returns what reads the step of a matrix, [long, short]; it may share its work among
            the cores with the ``map`` that it gets.
        scale: of all tensors.
    """
    for key, (dtype, shape) in base.template().items():
        theta = base.get(key)
        if len(shape) != 2 or 0 in shape or not dtype.is_floating_point:
            alone = Weights({key: theta})
            yield from fuse(alone, given, lambda _, block: total(block).mul_(scale / len(given)))
            continue
        matrix, start = Matrix(key, shape), theta.ravel()
        fused = torch.empty(shape, dtype=dtype)
        with cores() as each:
            moved = step(matrix, each)
            for span in matrix.pieces():
                update = matrix.flat(moved(span)).mul_(scale)
                fused.view(-1)[span] = add(start[span], update)
        yield key, fused
