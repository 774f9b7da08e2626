"""The mean of the contributions that lie closest to the others.

Blanchard, El Mhamdi, Guerraoui, Stainer, Machine Learning with Adversaries: Byzantine
Tolerant Gradient Descent, NeurIPS 2017, arXiv 1703.02757.

Scores as in ``krum``; the ``keep`` lowest are averaged, and 0 stands for n - f - 2, as many
as each score looks at. It needs n >= 2f + 3 contributions, and at least ``keep``.

Use it as a defence that wastes less than ``krum``: contributors that look unlike the others
are left out, the rest is the paper's mean. Between different tasks the odd one out is often
an honest task, and always the same one.

Differs from Flower's MultiKrum: the mean is not weighed by examples, ``keep`` has a default,
n is checked, and ties go to the first name instead of the first to arrive.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated

from torch import Tensor

from strategies.fusion._options import Range, needs
from strategies.fusion._weights import Weights
from strategies.fusion.average import average
from strategies.fusion.krum import ranked


@needs(lambda byzantine, keep: max(2 * byzantine + 3, keep))
def multi_krum(
    base: Weights,
    given: Sequence[Weights],
    *,
    seed: int,
    byzantine: Annotated[int, Range("[0, inf)")] = 1,
    keep: Annotated[int, Range("[0, inf)")] = 0,
) -> Iterator[tuple[str, Tensor]]:
    """Yield the average of the contributions with the lowest scores."""
    best = ranked(base, given, byzantine)[: keep or len(given) - byzantine - 2]
    return average(base, [given[i] for i in sorted(best)], seed=seed)
