"""Whom an iteration asks when, and when it has what it waits for."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from strategies.contributions import Contribution, Start

Here = Mapping[str, Contribution]
AtWork = Mapping[str, Start]


class Turns(Protocol):
    """How an inbox collects the contributions of an iteration."""

    def begin(self, names: Sequence[str], here: Here, at_work: AtWork) -> int:
        """Begin an iteration; return how many contributions it waits for.

        Args:
            names: who may be asked, in the order of the cohort.
            here: what has arrived for it.
            at_work: who is at work already, with what.
        """

    def said(self, iteration: int, asked: int) -> str:
        """Say what begins."""

    def next(self, here: Here, at_work: AtWork) -> str | None:
        """Return who is to be asked now, if anybody."""

    def complete(self, here: Here, waiting: bool) -> bool:
        """Return whether the iteration has what it waits for.

        Args:
            here: what has arrived for it.
            waiting: somebody whom it asked is at work.
        """

    def good(self, here: Here) -> int:
        """Return how many of what it asked for would have to be good, were there no quorum."""

    def left(self) -> Iterable[str]:
        """Return who was to be asked and was not."""


class Together:
    """Asks the whole cohort and waits for all of it (paper, section 3).

    Args:
        window: how many may be at work at once; 0 is all.
    """

    def __init__(self, window: int = 0) -> None:
        self._window = window
        self._todo: deque[str] = deque()

    def begin(self, names: Sequence[str], here: Here, at_work: AtWork) -> int:
        """Ask those who have not answered and are not at work on an earlier iteration's."""
        self._todo = deque(name for name in names if name not in here and name not in at_work)
        return len(here) + len(self._todo)

    def said(self, iteration: int, asked: int) -> str:
        """Say how many are asked."""
        return f"iteration {iteration}: asking {asked} contributors"

    def next(self, here: Here, at_work: AtWork) -> str | None:
        """Return the next of the cohort, where there is room."""
        if not self._todo or (self._window and len(at_work) >= self._window):
            return None
        return self._todo.popleft()

    def complete(self, here: Here, waiting: bool) -> bool:
        """Return whether all have answered whom this iteration asked."""
        return not (self._todo or waiting)

    def good(self, here: Here) -> int:
        """Return all of them."""
        return len(here)

    def left(self) -> Iterable[str]:
        """Return who was to be asked and was not."""
        return self._todo


class Buffered:
    """Ends an iteration when so many have arrived; the others stay at work.

    FedBuff (Nguyen et al., arXiv 2106.06639): nobody waits for the slowest. Whoever is free begins
    from the newest base, the one that began longest ago first. Who has given to an iteration is
    free again when it is over: so each counts once in it, and nobody finetunes twice from one base.

    Args:
        size: how many contributions an iteration takes (K).
        at_once: how many may be at work at once.
    """

    def __init__(self, size: int, at_once: int) -> None:
        self._size, self._at_once = size, at_once
        self._names: Sequence[str] = ()
        self._last: dict[str, int] = {}  # of all starts, each one's last
        self._begun = 0

    def begin(self, names: Sequence[str], here: Here, at_work: AtWork) -> int:
        """Begin to wait for ``size`` contributions."""
        self._names = names
        return self._size

    def said(self, iteration: int, asked: int) -> str:
        """Say how many are waited for."""
        if not asked:
            return f"iteration {iteration}: waiting for {self._size} that nobody is asked for"
        return f"iteration {iteration}: the first {self._size} of {asked} contributors"

    def next(self, here: Here, at_work: AtWork) -> str | None:
        """Return who is free and began longest ago, where there is room."""
        if len(at_work) >= self._at_once:
            return None
        free = [name for name in self._names if name not in here and name not in at_work]
        name = min(free, key=lambda name: self._last.get(name, 0), default=None)
        if name is not None:
            self._begun += 1
            self._last[name] = self._begun
        return name

    def complete(self, here: Here, waiting: bool) -> bool:
        """Return whether so many have arrived."""
        return sum(one.verdict == "accepted" for one in here.values()) >= self._size

    def good(self, here: Here) -> int:
        """Return the size."""
        return self._size

    def left(self) -> Iterable[str]:
        """Return nobody: who is not asked now is asked later."""
        return ()
