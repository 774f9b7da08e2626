"""The one contribution that lies closest to the others, exactly as it came.

Blanchard, El Mhamdi, Guerraoui, Stainer, Machine Learning with Adversaries: Byzantine
Tolerant Gradient Descent, NeurIPS 2017, arXiv 1703.02757.

Each contribution's score is the sum of its n - f - 2 smallest squared distances to others,
where f = ``byzantine`` is how many may be hostile; the lowest score wins, equal scores go to
the first name. It needs n >= 2f + 3 contributions.

Use it as a defence between contributors of one task. Do not use it to fuse tasks: it returns
one contributor's model and throws the others away, and prefers the task that moves least.

Differs from Flower's Krum: that one accepts any n, and breaks ties by arrival.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated

import torch
from torch import Tensor

from strategies.fusion._deltas import deltas, distances, narrow, whole
from strategies.fusion._options import Range, needs
from strategies.fusion._weights import Weights


@needs(lambda byzantine: 2 * byzantine + 3)
def krum(
    base: Weights,
    given: Sequence[Weights],
    *,
    seed: int,
    byzantine: Annotated[int, Range("[0, inf)")] = 1,
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of the contribution with the lowest score."""
    best = given[ranked(base, given, byzantine)[0]]
    for key, (dtype, _) in base.template().items():
        yield key, narrow(best.get(key), dtype) if dtype.is_floating_point else base.get(key)


def ranked(base: Weights, given: Sequence[Weights], byzantine: int) -> list[int]:
    """Return the contributions' places in ``given``, the lowest score first."""
    products = whole(base, deltas(base, given))
    others = distances(products).fill_diagonal_(torch.inf).sort(dim=1).values  # itself comes last
    scores = others[:, : len(given) - byzantine - 2].sum(dim=1)
    return scores.sort(stable=True).indices.tolist()
