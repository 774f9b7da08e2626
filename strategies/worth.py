"""What each contribution is worth, of a value that any set of them has.

- **Leave-one-out**: v(all) - v(all without i).
- **Shapley value** (Shapley 1953; for data: Ghorbani and Zou, arXiv 1904.02868, eq. 1): the mean of
  v(S + i) - v(S) over all orders in which contributions may be added. It shares v(all) - v(none)
  out, and gives two that are alike the same, where leaving either out alone costs nothing.
  Where all sets can be valued it is computed; otherwise orders are drawn, and an order ends once it
  is within a tolerance of v(all): what is added later counts as 0 (their algorithm 1, TMC-Shapley).
  Here an order ends at the first such set that is not empty, and so many orders are drawn as a
  budget of sets allows.
"""

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Value = Callable[[frozenset[str]], float]
MOST = 1000  # orders drawn: all sets that they come by may be known long before


class SpentError(Exception):
    """The budget of sets is spent."""


class Counted:
    """A value that is asked for each set once, and of so many sets at most.

    Args:
        value: of a set of names.
        budget: of sets.
    """

    def __init__(self, value: Value, budget: int) -> None:
        self._value, self.budget = value, budget
        self._known: dict[frozenset[str], float] = {}

    def __call__(self, names: frozenset[str]) -> float:
        """Return a set's value.

        Raises:
            SpentError: it would be one set too many.
        """
        if names not in self._known:
            if len(self._known) >= self.budget:
                raise SpentError
            self._known[names] = self._value(names)
        return self._known[names]

    def __len__(self) -> int:
        return len(self._known)


@dataclass(frozen=True)
class Shapley:
    """Shapley values, in the value's own unit."""

    mean: Mapping[str, float]
    error: Mapping[str, float]
    """Standard error that comes from drawing orders: 0 if none was drawn, NaN for one order."""
    orders: int
    """Drawn; 0 where all sets were valued."""
    truncated: float = 0.0
    """Share of what was added in these orders that counted as 0 without being valued."""


def leave_one_out(value: Value, names: Sequence[str]) -> dict[str, float]:
    """Return by how much the value of all is above that without each."""
    whole = frozenset(names)
    return {name: value(whole) - value(whole - {name}) for name in names}


def shapley(value: Counted, names: Sequence[str], *, tolerance: float, seed: int) -> Shapley:
    """Return the Shapley values, exact if the budget allows all sets.

    Args:
        value: with what is left of its budget.
        names: at least one.
        tolerance: how near to the value of all an order ends; 0 adds all of each order.
        seed: of the orders.

    Raises:
        SpentError: not one order could be valued.
    """
    if 2 ** len(names) <= value.budget:
        return Shapley(_exact(value, names), dict.fromkeys(names, 0.0), 0)
    drawn: list[dict[str, float]] = []
    left_out, random_ = 0, random.Random(seed)
    while len(drawn) < MOST:
        try:
            gains, cut = _along(value, random_.sample(names, len(names)), tolerance)
        except SpentError:  # an order that is not finished would favour who comes early
            if not drawn:
                raise
            break
        drawn.append(gains)
        left_out += cut
    n = len(drawn)
    mean = {name: sum(gains[name] for gains in drawn) / n for name in names}
    error = {
        name: math.sqrt(sum((gains[name] - mean[name]) ** 2 for gains in drawn) / (n - 1) / n)
        if n > 1
        else math.nan
        for name in names
    }
    return Shapley(mean, error, n, left_out / (n * len(names)))


def _exact(value: Value, names: Sequence[str]) -> dict[str, float]:
    n, found = len(names), dict.fromkeys(names, 0.0)
    for size in range(n):
        share = 1 / (n * math.comb(n - 1, size))
        for chosen in itertools.combinations(names, size):
            before = frozenset(chosen)
            for name in names:
                if name not in before:
                    found[name] += share * (value(before | {name}) - value(before))
    return found


def _along(value: Value, order: Sequence[str], tolerance: float) -> tuple[dict[str, float], int]:
    """Return what each adds in an order, and how many were not valued."""
    whole, gains = value(frozenset(order)), dict.fromkeys(order, 0.0)
    before, last = frozenset[str](), value(frozenset())
    for i, name in enumerate(order):
        if i and abs(whole - last) < tolerance:  # a whole that is worth 0 is still of many parts
            return gains, len(order) - i
        before |= {name}
        now = value(before)
        gains[name], last = now - last, now
    return gains, 0
