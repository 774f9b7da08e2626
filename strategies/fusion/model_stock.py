"""The mean, pulled back to the base where the contributors disagree: no parameter to set.

Jang, Yun, Han, Model Stock: All we need is just a few fine-tuned models, arXiv 2403.19522.

Per tensor t = n*c / (1 + (n-1)*c), where c is the mean cosine between two contributors'
differences from the base; the fused tensor is theta + t * mean(d_i). Contributors that agree
move the base all the way (t = 1), orthogonal ones not at all (t = 0).

Use it for slow, safe steps without a learning rate to tune. Expect small steps between
different tasks, whose differences are nearly orthogonal: it may need more iterations.

Differs from the paper: its models are finetuned on one task, ours on different ones; c below
0 counts as 0, so that t stays in [0, 1]; a difference of zero has cosine 0 with the others;
a single contribution is taken as it is. Per tensor, not per filter.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from strategies.fusion._deltas import deltas, fuse, gram, total
from strategies.fusion._weights import Weights


def model_stock(
    base: Weights, given: Sequence[Weights], *, seed: int
) -> Iterator[tuple[str, Tensor]]:
    """Yield theta + t * mean(theta_i - theta), with one t per tensor."""
    moved, n = deltas(base, given), len(given)
    scale = {key: step(products) / n for key, products in gram(base, moved).items()}
    return fuse(base, moved, lambda key, block: total(block).mul_(scale[key]))


def step(products: Tensor) -> float:
    """Return t from the inner products [n, n] of the differences."""
    n = len(products)
    if n == 1:
        return 1.0
    norms = products.diagonal().sqrt()
    lengths = norms[:, None] * norms[None, :]
    cosines = torch.where(lengths > 0, products / lengths, 0.0)
    cosine = (cosines.sum() - cosines.diagonal().sum()).item() / (n * (n - 1))
    cosine = min(max(cosine, 0.0), 1.0)
    return n * cosine / (1 + (n - 1) * cosine)
