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
from typing import Annotated

import torch
from torch import Tensor

from strategies.fusion._deltas import Stack, deltas, find, fuse, learned, one_thread, spans, total
from strategies.fusion._options import Range, share
from strategies.fusion._weights import Weights


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
    stack = Stack(moved)

    def blocks() -> Iterator[Tensor]:
        for key, count in counts.items():
            for span in spans(count, n):
                yield stack.read(key, span)

    with one_thread():
        smallest, largest = extremes(blocks(), n)
    width = torch.where(largest > smallest, largest - smallest, math.inf)

    def balances(block: Tensor) -> Tensor:
        """Return each contributor's balance / exp(n), of which n may be large; 0 for below 0."""
        together = total([block[0].clone(), *block[1:]])
        size = ((block.abs() - smallest) / width).square_()
        return (
            (size - 1).mul_(n).exp_().mul_(torch.tanh(block * together)).clamp_(min=0).abs_()
        )  # no -0

    numbers = sum(counts.values())
    least = torch.zeros(n, 1)
    if numbers:
        with one_thread():
            stays = max(1, share(ratio, numbers))
            least = kth_largest(lambda: map(balances, blocks()), n, stays)

    def balanced(_: str, block: Tensor) -> Tensor:
        weights = balances(block)
        weights.mul_(weights >= least)
        most = weights.amax(dim=0)
        weights /= most.where(most > 0, 1.0)  # the largest is 1: nothing is divided by less
        whole = total([weights[0].clone(), *weights[1:]]).clamp_(min=1)
        return total(weights.mul_(block)).div_(whole).mul_(scale)

    return fuse(base, moved, balanced)


def extremes(blocks: Iterator[Tensor], n: int) -> tuple[Tensor, Tensor]:
    """Return each row's smallest and largest magnitude over all blocks: [n, 1] each."""
    smallest, largest = torch.full((n, 1), math.inf), torch.zeros(n, 1)
    for block in blocks:
        low, high = block.abs_().aminmax(dim=1, keepdim=True)
        smallest, largest = torch.minimum(smallest, low), torch.maximum(largest, high)
    return smallest, largest


def kth_largest(blocks: Callable[[], Iterator[Tensor]], n: int, k: int) -> Tensor:
    """Return the k-th largest of each row of all blocks together, exactly: [n, 1].

    Numbers from 0 on are ordered as their bits are; each pass finds eight more of them.

    Args:
        blocks: begins a pass over all blocks [n, numbers].
        n: rows.
        k: from 1 to as many as there are numbers in a row.
    """
    known, places = [0] * n, [k] * n
    for shift in (24, 16, 8, 0):
        counts = torch.zeros(n, 256, dtype=torch.int64)
        for block in blocks():
            for i, bits in enumerate(block.view(torch.int32)):
                beside = bits[bits >> shift + 8 == known[i]] if shift < 24 else bits
                counts[i] += torch.bincount(beside >> shift & 255, minlength=256)
        for i in range(n):
            value, places[i] = find(counts[i], places[i])
            known[i] = known[i] << 8 | value
    return torch.tensor(known, dtype=torch.int32).view(torch.float32).unsqueeze(1)
