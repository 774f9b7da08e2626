"""How the contributions of an iteration lie to each other (paper, section 9): one pass."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from strategies.fusion import Weights
from strategies.fusion._deltas import Stack, add, cores, deltas, learned, spans, square, total

MATRIX = 1024  # numbers: of what is smaller, such as a layer norm, the cosine says little


@dataclass(frozen=True)
class Diagnosis:
    """Figures about the differences d_i = theta_i - theta; lists are in the order given."""

    norms: list[float]
    """L2 norm of each."""
    mean: float
    """L2 norm of their mean."""
    cosines: list[float]
    """Cosine of each with their mean; 0 where either is zero."""
    without: list[float]
    """Leave-one-out distance: how far their mean moves without it; 0 for one alone."""
    pairwise: list[list[float]]
    """Cosine of each with each."""
    conflicts: float
    """Share of the coordinates on which two of them have opposite signs."""
    layers: dict[str, list[float]]
    """L2 norm of each in each layer, by the layer's name."""
    growth: list[float]
    """By how much the squared norm of the weights grew, in units of |d_i|^2: noise has 1, and what
    has g, turned around, has 2 - g; 1 where nothing moved."""
    least: list[tuple[float, str]]
    """Of each: the least cosine of one of its matrices with the base's, and which (`MATRIX`)."""


def drift(start: Weights, body: Weights) -> dict[str, float]:
    """Return how far a body is from another, in its L2 norm, by layer."""
    squares: dict[str, float] = {}
    keys = [*learned(start)]
    with cores() as each:
        moves = list(each(lambda key: square(start.get(key), body.get(key)), keys))
    for key, moved in zip(keys, moves, strict=True):
        layer = layer_of(key)
        squares[layer] = squares.get(layer, 0.0) + moved
    return {layer: math.sqrt(moved) for layer, moved in squares.items()}


def diagnose(
    base: Weights, given: Sequence[Weights], mean: dict[str, Tensor] | None = None
) -> Diagnosis:
    """Measure an iteration's contributions, at least one.

    Args:
        base: theta.
        given: the contributions.
        mean: to take what the rule ``average`` makes of them, to the bit: while the bodies are
            read, that costs little, and a whole model's memory.
    """
    n, counts = len(given), learned(base)
    layers: dict[str, Tensor] = {}
    products = torch.zeros(n, n, dtype=torch.float64)
    least = [(1.0, "")] * n
    outward = torch.zeros(n, dtype=torch.float64)
    conflicts = 0
    with cores() as each:
        longest_first = sorted(counts, key=lambda key: -counts[key])
        measures = each(lambda key: _Measures(base, given, key, mean is not None), longest_first)
        measured = dict(zip(longest_first, measures, strict=True))
    for key in counts:  # in the base's order: sums then do not depend on the threads
        tensor = measured[key]
        squares = tensor.products.diagonal()
        products += tensor.products
        outward += tensor.along
        conflicts += tensor.conflicts
        layer = layer_of(key)
        layers[layer] = layers.get(layer, 0) + squares
        if tensor.matrix and tensor.square:
            own = (squares + 2 * tensor.along + tensor.square).clamp(min=0).sqrt()  # |theta_i|
            cosines = _ratio(tensor.square + tensor.along, own * math.sqrt(tensor.square)).tolist()
            least = [min(old, (new, key)) for old, new in zip(least, cosines, strict=True)]
    if mean is not None:
        for key in base.template():
            mean[key] = measured[key].mean if key in counts else base.get(key)
    size = sum(counts.values())
    norms = products.diagonal().sqrt()
    length = products.sum().clamp(min=0).sqrt() / n  # those that cancel may sum to -1e-17
    to_mean = products.sum(1) / n  # <d_i, mean>
    # ||mean - mean without i|| = ||mean - d_i|| / (n - 1)
    apart = (length**2 - 2 * to_mean + products.diagonal()).clamp(min=0).sqrt() / max(1, n - 1)
    return Diagnosis(
        norms=norms.tolist(),
        mean=float(length),
        cosines=_ratio(to_mean, norms * length).tolist(),
        without=(apart if n > 1 else torch.zeros(1)).tolist(),
        pairwise=_ratio(products, norms[:, None] * norms[None, :]).tolist(),
        conflicts=conflicts / size if size else 0.0,
        layers={name: squares.sqrt().tolist() for name, squares in layers.items()},
        growth=(1 + 2 * _ratio(outward, products.diagonal())).tolist(),
        least=least,
    )


class _Measures:
    """What one tensor's differences measure."""

    def __init__(self, base: Weights, given: Sequence[Weights], key: str, mean: bool) -> None:
        theta, n = base.get(key), len(given)
        flat = theta.ravel()
        stack = Stack(deltas(Weights({key: theta}), given))
        self.matrix = theta.dim() > 1 and len(flat) >= MATRIX
        self.products = torch.zeros(n, n, dtype=torch.float64)
        self.along = torch.zeros(n, dtype=torch.float64)  # <d_i, theta>
        self.square = 0.0  # |theta|^2
        self.conflicts = 0
        self.mean = torch.empty(theta.shape if mean else 0, dtype=theta.dtype)
        for span in spans(len(flat), n):
            block = stack.read(key, span)
            opposed = (block.amax(0) > 0) & (block.amin(0) < 0)
            self.conflicts += int(opposed.sum())
            wide, start = block.double(), flat[span].double()
            self.products += wide @ wide.T
            self.along += wide @ start
            self.square += float(start @ start)
            if mean:
                self.mean.view(-1)[span] = add(flat[span], total(block).mul_(1 / n))


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    return torch.where(below > 0, above / below, 0.0)


def layer_of(key: str) -> str:
    """Return which layer a tensor belongs to: its name up to the first number, or part."""
    numbered = re.match(r"(.*?\.\d+)\.", key)
    return numbered.group(1) if numbered else key.split(".")[0]
