"""Who takes part, as the `Inbox` asks it: once before each iteration, and as answers arrive.

Contributions may also come from elsewhere without having been asked for: `Drops`.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from strategies.contributions import Contribution, Store
from strategies.fusion import Template
from strategies.names import NAME


@dataclass(frozen=True)
class Member:
    """A contributor that is there, as it describes itself (docs/messages.md, ``query``).

    Raises:
        ValueError: its name is none; it would become a file name.
    """

    name: str
    node: int
    examples: int = 0
    """For training; 0 if it did not say."""
    tokens: int = 0
    """Of its training examples: how long its work takes, relative to the others'."""
    device: str = "cpu"
    """What it computes on."""
    metric: str = "accuracy"
    """Of its task."""
    unknown: float = 0.0
    """Share of its tokens that its tokenizer does not know."""
    cut: float = 0.0
    """Share of its texts that are longer than the model gets to see."""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"not a contributor name: {self.name!r} (expected {NAME.pattern})")


class Participants:
    """Everybody who is there takes part in every iteration; override what differs.

    Args:
        members: who is there.
    """

    simulated = True
    """Whether they are Ray actors of a simulation. There a death is the run's end, for it would
    fail every later message, too; of sites, none can stop the others."""

    def __init__(self, members: Iterable[Member]) -> None:
        self.members: Mapping[str, Member] = {member.name: member for member in members}
        """Who is there now, by name."""
        self.norms: Mapping[str, Sequence[float]] = {}
        """By name, of the contributions that were fused: what `strategies.screening` compares."""

    def cohort(self, iteration: int) -> list[str]:
        """Return whom an iteration asks, in that order; the same for the same iteration."""
        return sorted(self.members)

    def allowed(self, name: str) -> bool:
        """Return whether a contributor may take part, also where it is away now."""
        return True


class Drops:
    """Contributions that nobody asked for: none; override to take them from somewhere."""

    def names(self, iteration: int) -> Collection[str]:
        """Return whose were taken for an iteration so far, also before the run was stopped."""
        return ()

    def next(
        self, iteration: int, here: Mapping[str, Contribution], form: Template, store: Store
    ) -> Contribution | None:
        """Return the next one, if there is any; its body lies in the store.

        Args:
            iteration: that takes it.
            here: what the iteration has, by name.
            form: of a body.
            store: of the iteration.
        """
        return None

    def refuse(self, name: str, iteration: int, reason: str) -> None:
        """Put aside what was taken for an iteration, which did not fuse it after all."""
