"""Contributions that began from an older base than the one they are added to.

FedBuff (Nguyen et al., arXiv 2106.06639): theta + s(tau) * d_i, where d_i is against the base that
a contribution began from, and tau counts the bases that were published since.
"""

from collections.abc import Sequence
from typing import Protocol

from strategies.fusion import Weights


class Bases(Protocol):
    """The bases of a run, as far as a contribution may have begun from one."""

    def recent(self, most: int) -> Sequence[tuple[int, str]]:
        """Return the newest bases of the lineage that differ, newest first, at most so many.

        Each is the newest iteration that has it, and its fingerprint: what the gate rejected
        brought no new base.
        """

    def body(self, iteration: int) -> Weights:
        """Open the base of an iteration, lazily."""


def discount(staleness: int) -> float:
    """Return s(tau) = (1 + tau)^(-1/2), by which a stale contribution counts (FedBuff, App. E).

    >>> discount(0), discount(3)
    (1.0, 0.5)
    """
    return float((1 + staleness) ** -0.5)
