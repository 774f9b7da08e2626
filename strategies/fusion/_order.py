"""The k-th largest of a difference's magnitudes, exactly, and values sorted by contribution."""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from strategies.fusion import _deltas
from strategies.fusion._deltas import Delta


def magnitude(delta: Delta, counts: Mapping[str, int], k: int) -> float:
    """Return the k-th largest magnitude of some tensors together, exactly, never held whole.

    Floats of one sign are ordered as their bits are, read as an integer. One pass counts the
    upper halves and finds that of the answer; another counts the lower halves beside it. Torch's
    own threads would only disturb: see `one_thread`.

    Args:
        delta: the difference to read.
        counts: the tensors, with how many numbers each has.
        k: from 1; more than there are numbers gives 0, none gives infinity.
    """
    if k < 1:
        return math.inf
    if k > sum(counts.values()):
        return 0.0

    step = _deltas.BLOCK

    def bits() -> Iterator[Tensor]:
        for key, count in counts.items():
            for start in range(0, count, step):
                part = delta.read(key, slice(start, min(start + step, count)))
                yield part.abs_().view(torch.int32)

    uppers, lowers = (torch.zeros(1 << size, dtype=torch.int64) for size in (15, 16))  # no sign
    for part in bits():
        uppers += torch.bincount(part >> 16, minlength=len(uppers))
    upper, k = find(uppers, k)
    for part in bits():
        own = part.numpy()  # its masks are three times as fast
        beside = torch.from_numpy(own[own >> 16 == upper] & 0xFFFF)
        lowers += torch.bincount(beside, minlength=len(lowers))
    lower, _ = find(lowers, k)
    return torch.tensor(upper << 16 | lower, dtype=torch.int32).view(torch.float32).item()


def find(counts: Tensor, k: int) -> tuple[int, int]:
    """Return from counts by value the k-th largest, and its place among those of this value."""
    at_least = counts.flip(0).cumsum(0)  # of the largest value first
    place = int(torch.searchsorted(at_least, k))
    value = len(counts) - 1 - place
    return value, k - int(at_least[place] - counts[value])


def just_below(value: float) -> float:
    """Return the neighbouring float32 number towards 0.

    ``torch.hardshrink(d, just_below(least))`` keeps magnitudes of ``least`` or more.
    """
    return float(torch.nextafter(torch.tensor(value), torch.tensor(0.0)))


def sort(block: Tensor) -> list[Tensor]:
    """Sort a block [n, numbers] by contribution, in its place: n rows, the smallest first.

    Batcher's odd-even merge sort (1968): a fixed series of pairwise minima and maxima, each
    of whole rows, which is many times faster than sorting n numbers a coordinate at a time.
    """
    rows, spare = list(block), torch.empty_like(block[0])
    n = len(rows)
    p = 1
    while p < n:
        k = p
        while k >= 1:
            for j in range(k % p, n - k, 2 * k):
                for a in range(j, j + min(k, n - j - k)):
                    if a // (2 * p) == (a + k) // (2 * p):
                        low, high = rows[a], rows[a + k]
                        torch.minimum(low, high, out=spare)
                        torch.maximum(low, high, out=high)
                        rows[a], spare = spare, low
            k //= 2
        p *= 2
    return rows
