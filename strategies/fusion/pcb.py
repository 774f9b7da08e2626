"""PCB-Merging: keep where a change is large and goes with the others', weigh by how much so.

Du, Lee, Li, Jiang, Guo, Yu, Liu, Goh, Tang, He, Zhang, Parameter Competition Balancing for Model
Merging, arXiv 2410.02396.

A contributor's balance at a coordinate is exp(n * m^2) * tanh(d_i * sum(d)), where m is |d_i| as a
share of its largest, over the whole body (from 0 for its smallest to 1). The share ``ratio`` of the
coordinates at which this is largest stays, if it is above 0; theta + ``scale`` * the mean of those
that stay, weighed by their balance, is fused.

Step length: where something stays, about that of one contribution, longer than a mean; elsewhere 0.

Use it to fuse different tasks once, or rarely. Over many iterations it loses most of each
contributor's step, as TIES does: raise ``ratio`` then.

Differs from the paper's code: that one first cuts each contributor's largest 0.01 %, and takes from
each balance what the smallest that stays has; the paper, and this file, do neither.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import Annotated, TypeVar

import torch
from torch import Tensor

from strategies.fusion._deltas import Stack, cores, deltas, fuse, learned, spans, total
from strategies.fusion._options import Range, share
from strategies.fusion._order import find
from strategies.fusion._weights import Weights

T = TypeVar("T")
Pass = Callable[[Callable[[Iterator[Iterator[Tensor]]], Tensor]], list[Tensor]]
MANY = 40  # contributors, of whom exp(-n) times a small agreement is a number of float32


def pcb(
    base: Weights,
    given: Sequence[Weights],
    *,
    seed: int,
    ratio: Annotated[float, Range("(0, 1]")] = 0.1,
    scale: Annotated[float, Range("(0, inf)")] = 1.0,
) -> Iterator[tuple[str, Tensor]]:
    """Yield theta + scale * the mean of what stays, weighed by its balance."""
    moved, counts, n = deltas(base, given), learned(base), len(given)

    def all_blocks(begin: Callable[[Iterator[Tensor]], T]) -> list[T]:
        """Begin once in each core's thread with a share of all blocks; return what came out."""
        places = [(key, span) for key, count in counts.items() for span in spans(count, n)]
        ways = torch.get_num_threads()

        def part(first: int) -> T:
            stack = Stack(moved)
            return begin(stack.read(*place) for place in places[first::ways])

        with cores() as each:
            return list(each(part, range(ways)))

    found = all_blocks(lambda blocks: extremes(blocks, n))
    smallest = [min(low) for low in zip(*(low for low, _ in found), strict=True)]
    largest = [max(high) for high in zip(*(high for _, high in found), strict=True)]

    # The k-th root of a balance has the same order, and in float32 it is not 0 where n is large.
    k = max(1.0, n / MANY)

    def roots(block: Tensor) -> Iterator[Tensor]:
        """Yield the k-th root of each contributor's balance / exp(n); 0 for below 0."""
        together = total([block[0].clone(), *block[1:]])
        for row, low, high in zip(block, smallest, largest, strict=True):
            size = row.abs().sub_(low).div_(high - low if high > low else 1.0)
            agreed = (row * together).tanh_().clamp_(min=0)
            root = size.square_().sub_(1).mul_(n / k).exp_()
            yield root.mul_(agreed if k == 1 else agreed.pow_(1 / k)).abs_()  # -0 has other bits

    numbers = sum(counts.values())
    least = [0.0] * n
    if numbers:
        stays = max(1, share(ratio, numbers))
        least = kth_largest(
            lambda count: all_blocks(lambda blocks: count(map(roots, blocks))), n, stays
        )

    def balanced(_: str, block: Tensor) -> Tensor:
        weights = [
            weight.mul_(weight >= bound) for weight, bound in zip(roots(block), least, strict=True)
        ]
        most = reduce(torch.maximum, weights)
        most = most.where(most > 0, 1.0)
        for row, weight in zip(block, weights, strict=True):
            weight.div_(most)  # the largest is 1: no sum is divided by less
            row.mul_(weight if k == 1 else weight.pow_(k))
        return total(block).div_(total(weights).clamp_(min=1)).mul_(scale)

    return fuse(base, moved, balanced)


def extremes(blocks: Iterator[Tensor], n: int) -> tuple[list[float], list[float]]:
    """Return each row's smallest and largest magnitude over all blocks."""
    smallest, largest = [math.inf] * n, [0.0] * n
    for block in blocks:
        for i, row in enumerate(block):
            low, high = row.abs_().aminmax()
            smallest[i], largest[i] = min(smallest[i], low.item()), max(largest[i], high.item())
    return smallest, largest


def kth_largest(passing: Pass, n: int, k: int) -> list[float]:
    """Return the k-th largest of each row of all blocks together, exactly.

    Numbers from 0 on are ordered as their bits are; each pass finds eight more of them.

    Args:
        passing: makes a pass over all blocks, each of n rows: hands shares of them to what counts,
            and returns the counts.
        n: rows.
        k: from 1 to as many as there are numbers in a row.
    """
    known, places = [0] * n, [k] * n
    for shift in (24, 16, 8, 0):

        def count(blocks: Iterator[Iterator[Tensor]], shift: int = shift) -> Tensor:
            counts = torch.zeros(n, 256, dtype=torch.int64)
            for block in blocks:
                for i, row in enumerate(block):
                    bits = row.view(torch.int32).numpy()  # its masks are faster
                    beside = torch.from_numpy(bits[bits >> shift >> 8 == known[i]])
                    counts[i] += torch.bincount(beside >> shift & 255, minlength=256)
            return counts

        counts = reduce(torch.add, passing(count))
        for i in range(n):
            value, places[i] = find(counts[i], places[i])
            known[i] = known[i] << 8 | value
    return torch.tensor(known, dtype=torch.int32).view(torch.float32).tolist()
