"""FedNova: the mean of what each contributor learned in a step, times the mean number of steps.

Wang, Liu, Liang, Joshi, Poor, Tackling the Objective Inconsistency Problem in Heterogeneous
Federated Optimization, arXiv 2007.07481.

theta + mean(steps) * mean(d_i / steps_i). In a plain mean who takes ten times the steps (a larger
dataset, a later early stop) pulls ten times as hard; here all pull as hard, step for step. With
equal steps it is the plain mean, to the last bit.

Step length: that of a mean; longer where those with few steps went far in each.

Use it where finetunings differ in length for reasons that are not the task's. It believes what
contributors say: who understates its steps is amplified by as much, and who overstates them
amplifies all the others, which no check sees. So where they are not trusted take `average`.

Differs from the paper: contributors count the same, not by examples; a step is a step, whatever
momentum or AdamW made of it; the steps are all that were taken, those after the best dev score too.
"""

from collections.abc import Iterator, Sequence

from torch import Tensor

from strategies.errors import FusionError
from strategies.fusion._deltas import deltas, fuse, total
from strategies.fusion._weights import Weights


def fednova(base: Weights, given: Sequence[Weights], *, seed: int) -> Iterator[tuple[str, Tensor]]:
    """Yield theta + mean(steps) * mean((theta_i - theta) / steps_i), in float32."""
    if silent := [own.name for own in given if own.steps < 1]:
        raise FusionError(
            f"fusion rule fednova divides by the number of steps, which {len(silent)} of "
            f"{len(given)} contributions do not say: {', '.join(silent)}. A contributor sends it "
            "as the metric steps, a model on a disk has none: take average, or weighted_average "
            "with weights of your own"
        )
    usual = sum(own.steps for own in given) / len(given)
    factors = [usual / own.steps for own in given]
    scale = 1 / len(given)
    return fuse(base, deltas(base, given), lambda _, block: total(block, factors).mul_(scale))


fednova.metrics = ("steps",)  # type: ignore[attr-defined]  # a function has any
