"""What the rules are made of: differences from the base, a block of rows at a time.

A server that fuses n contributions of P parameters never holds n models, nor one in a copy
it does not need: a block has about ``BLOCK`` numbers, all contributions together, and what
a rule keeps between blocks is n x n or a threshold. So peak memory does not grow with n.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from strategies.fusion._weights import Weights

BLOCK = 1 << 20  # numbers, of all contributions together: fits a core's cache
STRIDE = 64  # the threshold's first guess looks at every 64th number


class Delta(Protocol):
    """A contribution's difference from the base, float32, read in rows."""

    name: str

    def get(self, key: str, rows: slice) -> Tensor:
        """Return d = theta_i - theta of these rows; the caller may write to it."""


class Difference:
    """The plain difference of two models."""

    def __init__(self, base: Weights, weights: Weights) -> None:
        self.name = weights.name
        self._base, self._weights = base, weights

    def get(self, key: str, rows: slice) -> Tensor:
        """Return d of these rows."""
        return self._weights.get(key, rows).float() - self._base.get(key, rows).float()


def deltas(base: Weights, given: Sequence[Weights]) -> list[Delta]:
    """Return the difference of each contribution."""
    return [Difference(base, weights) for weights in given]


def learned(base: Weights) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of every tensor that is fused: those of floating point."""
    for key, (dtype, shape) in base.template().items():
        if dtype.is_floating_point:
            yield key, shape


def blocks(shape: tuple[int, ...], n: int) -> Iterator[slice]:
    """Cut a tensor's rows into slices of which n take about ``BLOCK`` numbers."""
    if not shape:
        yield slice(None)
        return
    width = max(1, math.prod(shape[1:]))
    step = max(1, BLOCK // (width * n))
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))


def stack(given: Sequence[Delta], key: str, rows: slice) -> Tensor:
    """Return the contributions' differences in these rows: float32 [n, numbers]."""
    return torch.stack([delta.get(key, rows).flatten() for delta in given])


def fuse(
    base: Weights,
    given: Sequence[Delta],
    combine: Callable[[str, Tensor], Tensor],
) -> Iterator[tuple[str, Tensor]]:
    """Yield the base plus what ``combine`` makes of the differences.

    Args:
        base: theta.
        given: the contributions' differences.
        combine: takes a tensor's name and a block [n, numbers], returns the step [numbers].
    """
    for key, (dtype, shape) in base.template().items():
        theta = base.get(key)
        if not dtype.is_floating_point:  # integer buffers are not learned
            yield key, theta
            continue
        fused = torch.empty(shape, dtype=dtype)
        for rows in blocks(shape, len(given)):
            start = theta[rows] if shape else theta
            step = combine(key, stack(given, key, rows)).view(start.shape)
            if shape:
                fused[rows] = (start.float() + step).to(dtype)
            else:
                fused = (start.float() + step).to(dtype)
        yield key, fused


def gram(base: Weights, given: Sequence[Delta]) -> dict[str, Tensor]:
    """Return <d_i, d_j> of every tensor, in one pass: float64 [n, n] by name."""
    found = {}
    for key, shape in learned(base):
        total = torch.zeros(len(given), len(given), dtype=torch.float64)
        for rows in blocks(shape, len(given)):
            block = stack(given, key, rows).double()
            total += block @ block.T
        found[key] = total
    return found


def distances(products: Tensor) -> Tensor:
    """Return squared distances [n, n] from inner products [n, n]."""
    squares = products.diagonal()
    return (squares[:, None] + squares[None, :] - 2 * products).clamp(min=0)


def magnitude(parts: Callable[[int], Iterator[Tensor]], k: int) -> float:
    """Return the k-th largest magnitude of a vector that is never held whole.

    Exact, in two passes: a sample brackets the answer, the second pass counts what lies
    above the bracket and keeps what lies in it.

    Args:
        parts: yields the vector in parts, every s-th number of each, for a stride s.
        k: from 1; more than there are numbers gives 0, none gives infinity.
    """
    if k < 1:
        return math.inf
    sample = torch.cat([part.abs() for part in parts(STRIDE)]).sort(descending=True).values
    place = k / STRIDE
    margin = 6 * math.sqrt(place) + 16  # six standard deviations of a random sample
    while True:
        high = sample[max(0, int(place - margin))].item() if place > margin else math.inf
        inside = int(place + margin) < len(sample)
        low = sample[int(place + margin)].item() if inside else 0.0
        above, equal, kept = 0, 0, []
        for part in parts(1):
            sizes = part.abs()
            above += int((sizes > high).sum())
            if low == high:
                equal += int((sizes == high).sum())
            else:
                kept.append(sizes[(sizes >= low) & (sizes <= high)])
        if low == high and above < k <= above + equal:
            return high
        between = torch.cat(kept) if kept else torch.empty(0)
        if above < k <= above + len(between):
            return between.kthvalue(len(between) - (k - above) + 1).values.item()
        if low == 0 and high == math.inf:
            return 0.0
        margin = math.inf if low == high else 8 * margin


def strided(base: Weights, delta: Delta, keys: Sequence[str]) -> Callable[[int], Iterator[Tensor]]:
    """Return what `magnitude` reads: these tensors of one difference, flat, as one vector."""
    shapes = dict(learned(base))

    def parts(stride: int) -> Iterator[Tensor]:
        for key in keys:
            for rows in blocks(shapes[key], 1):
                yield delta.get(key, rows).flatten()[::stride]

    return parts


def sort(block: Tensor) -> list[Tensor]:
    """Sort a block [n, numbers] by contribution: n rows, the smallest first.

    Batcher's odd-even merge sort (1968): a fixed series of pairwise minima and maxima, each
    of whole rows, which is many times faster than sorting n numbers a coordinate at a time.
    """
    rows = list(block)
    n = len(rows)
    p = 1
    while p < n:
        k = p
        while k >= 1:
            for j in range(k % p, n - k, 2 * k):
                for i in range(min(k, n - j - k)):
                    a, b = i + j, i + j + k
                    if a // (2 * p) == b // (2 * p):
                        low, high = rows[a], rows[b]
                        rows[a], rows[b] = torch.minimum(low, high), torch.maximum(low, high)
            k //= 2
        p *= 2
    return rows
