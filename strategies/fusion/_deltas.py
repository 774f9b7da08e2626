"""What the rules are made of: differences from the base, a block at a time.

A server that fuses n contributions of P parameters never holds n models, nor one in a copy
it does not need: a block has about ``BLOCK`` numbers, all contributions together, and what
a rule keeps between blocks is n x n or a threshold. So peak memory does not grow with n.

A rule's result must not depend on where the blocks end, nor on how many cores share them.
Elementwise operations see to that; a sum over contributions is taken row by row (`total`), because
torch's own reductions and ``add(alpha=...)`` round the last few columns of a block differently from
the others.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from strategies.fusion._weights import Template, Weights

BLOCK = 1 << 18  # numbers, of all contributions together: 1 MiB stays in a core's cache
Map = Callable[..., Iterator[Any]]
ROW = 1 << 15  # numbers of one contribution: torch starts no threads, whose barrier costs more


class Delta(Protocol):
    """A contribution's difference from the base, float32, each tensor read as if flat.

    Several threads may read at once.
    """

    name: str

    def read(self, key: str, span: slice, out: Tensor | None = None) -> Tensor:
        """Return d = theta_i - theta there, in ``out`` if given; the caller may write to it."""


class Flat:
    """A model's tensors as if flat; the one read last is kept, for all who read this model.

    A view of a mapped file costs nothing to keep, but a base may be decoded from what came over
    the wire: one copy for each contribution would be as many copies.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._last = "", torch.empty(0)  # one thing, for threads that read at once

    def get(self, key: str) -> Tensor:
        """Return a tensor, flat; not to be written to."""
        last = self._last
        if key != last[0]:
            last = self._last = key, self._weights.get(key).ravel()
        return last[1]


class Difference:
    """The difference of two models, or what takes its place where the second one is `Scaled`."""

    def __init__(self, base: Weights | Flat, weights: Weights) -> None:
        self.name = weights.name
        own, start, self._factor = weights, base, 1.0
        while isinstance(own, Scaled):
            self._factor *= own.factor
            start = own.start or start
            own = own.whole
        self._base, self._own = start if isinstance(start, Flat) else Flat(start), Flat(own)

    def read(self, key: str, span: slice, out: Tensor | None = None) -> Tensor:
        """Return d there."""
        theta, own = self._base.get(key)[span], self._own.get(key)[span]
        if torch.float64 in (theta.dtype, own.dtype):  # a small step of float64 is not one there
            d = (own.double() - theta.double()).float()
            d = d if out is None else out.copy_(d)
        else:
            d = torch.sub(own.float(), theta.float(), out=out)
        return d if self._factor == 1 else d.mul_(self._factor)


class Scaled(Weights):
    """A contribution whose difference from the base is multiplied by a factor.

    `Difference` reads the whole one and applies the factor a block at a time, so that no tensor
    is held; a rule that asks for a tensor gets a scaled one.

    Args:
        base: the difference is added to.
        whole: the contribution.
        factor: of its difference.
        start: it began from, if that is another base: its difference is from there.
    """

    def __init__(
        self, base: Weights, whole: Weights, factor: float, start: Weights | None = None
    ) -> None:
        self.name, self.examples, self.steps = whole.name, whole.examples, whole.steps
        self.statistic = whole.statistic
        self.base, self.whole, self.factor, self.start = base, whole, factor, start

    def keys(self) -> list[str]:
        """Return the tensors' names."""
        return self.whole.keys()

    def get(self, key: str) -> Tensor:
        """Return theta + factor * (theta_i - start), in float32."""
        theta = self.base.get(key)
        if not theta.is_floating_point():
            return self.whole.get(key)
        return Difference(self.base, self).read(key, slice(None)).view_as(theta).add_(theta)

    def template(self) -> Template:
        """Return dtypes and shapes by name."""
        return self.whole.template()


def deltas(base: Weights, given: Sequence[Weights]) -> list[Delta]:
    """Return the difference of each contribution; they read one base."""
    shared = Flat(base)
    return [Difference(shared, weights) for weights in given]


def learned(base: Weights) -> dict[str, int]:
    """Return how many numbers each tensor has that is fused: those of floating point."""
    template = base.template().items()
    return {key: math.prod(shape) for key, (dtype, shape) in template if dtype.is_floating_point}


def spans(count: int, n: int) -> Iterator[slice]:
    """Cut ``count`` numbers into pieces of which n take at most about ``BLOCK`` numbers."""
    step = max(1, min(ROW, BLOCK // n))
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


class Stack:
    """The differences of all contributions, in one block of memory used again and again."""

    def __init__(self, given: Sequence[Delta]) -> None:
        self._given = given
        self._room = torch.empty(0)

    def read(self, key: str, span: slice) -> Tensor:
        """Return the differences there: [n, numbers], valid until the next read."""
        n, width = len(self._given), span.stop - span.start
        if len(self._room) < n * width:
            self._room = torch.empty(n * width)
        block = self._room[: n * width].view(n, width)
        for delta, row in zip(self._given, block, strict=True):
            delta.read(key, span, out=row)
        return block


def narrow(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return values as the base's type; what is too large for it, as its largest."""
    if dtype in (torch.float16, torch.bfloat16):
        limits = torch.finfo(dtype)
        values = values.float().clamp(limits.min, limits.max)
    return values.to(dtype)


def add(theta: Tensor, step: Tensor) -> Tensor:
    """Return theta + step, as a tensor of theta's type."""
    wide = theta if theta.dtype == torch.float64 else theta.float()
    return narrow(wide + step, theta.dtype)


def fuse(
    base: Weights,
    given: Sequence[Delta],
    combine: Callable[[str, Tensor], Tensor],
) -> Iterator[tuple[str, Tensor]]:
    """Yield the base plus what ``combine`` makes of the differences.

    Args:
        base: theta.
        given: the contributions' differences.
        combine: takes a tensor's name and a block [n, numbers], which it may write to, and
            returns the step [numbers]. Threads call it at once, each with a block of its own; a
            tensor's first block alone, so what it finds out of a tensor then, it knows after.
    """
    mine, *others = [Stack(given) for _ in range(torch.get_num_threads())]
    with ThreadPoolExecutor(len(others) or 1) as pool:
        for key, (dtype, shape) in base.template().items():
            theta = base.get(key)
            if not dtype.is_floating_point:  # integer buffers are not learned
                yield key, theta
                continue
            fused = torch.empty(shape, dtype=dtype)
            part = partial(_fuse, key, theta.ravel(), fused.view(-1), combine)
            todo = list(spans(fused.numel(), len(given)))
            with one_thread():
                part(mine, todo[:1])
                own, *shares = (todo[1 + i :: 1 + len(others)] for i in range(1 + len(others)))
                pairs = zip(others, shares, strict=True)
                at_work = [pool.submit(part, stack, share) for stack, share in pairs if share]
                part(mine, own)
                for other in at_work:
                    other.result()
            yield key, fused


def _fuse(
    key: str,
    start: Tensor,
    fused: Tensor,
    combine: Callable[[str, Tensor], Tensor],
    stack: Stack,
    parts: Sequence[slice],
) -> None:
    """Make some spans of a tensor; both are flat."""
    for span in parts:
        step = combine(key, stack.read(key, span))
        fused[span] = add(start[span], step)


def total(block: Tensor | list[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """Return the (weighted) sum of a block's rows, in their order; it takes the first's place."""
    rows: list[Tensor] = list(block)
    for row, weight in zip(rows, weights or (), strict=weights is not None):
        row.mul_(weight)
    for row in rows[1:]:
        rows[0].add_(row)
    first: Tensor = rows[0]
    return first


def gram(base: Weights, given: Sequence[Delta]) -> dict[str, Tensor]:
    """Return <d_i, d_j> of every tensor, in one pass: float64 [n, n] by name."""
    n, counts = len(given), learned(base)

    def products(key: str) -> Tensor:
        stack, summed = Stack(given), torch.zeros(n, n, dtype=torch.float64)
        for span in spans(counts[key], n):
            block = stack.read(key, span).double()
            summed += block @ block.T
        return summed

    with cores() as each:
        return dict(zip(counts, each(products, counts), strict=True))


def square(theta: Tensor, other: Tensor) -> float:
    """Return how far two tensors are apart: |other - theta|^2, summed in float64."""
    one, two, summed = theta.ravel(), other.ravel(), 0.0
    with one_thread():
        for span in spans(len(one), 1):
            d = (two[span].float() - one[span].float()).double()
            summed += float(d @ d)
    return summed


@contextmanager
def one_thread() -> Iterator[None]:
    """Work on blocks without threads.

    Sums of products then do not depend on how many there are; and where another process needs
    a core, threads that wait for each other after every block take 20 times as long.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def cores() -> Iterator[Map]:
    """Yield a ``map`` that works on all cores, with a thread for each: see `one_thread`."""
    if (number := torch.get_num_threads()) == 1:
        yield map
        return
    with one_thread(), ThreadPoolExecutor(number) as pool:
        yield pool.map


def whole(base: Weights, given: Sequence[Delta]) -> Tensor:
    """Return <d_i, d_j> of whole models: float64 [n, n]."""
    summed = torch.zeros(len(given), len(given), dtype=torch.float64)
    for products in gram(base, given).values():
        summed += products
    return summed


def distances(products: Tensor) -> Tensor:
    """Return squared distances [n, n] from inner products [n, n]."""
    squares = products.diagonal()
    return (squares[:, None] + squares[None, :] - 2 * products).clamp(min=0)
