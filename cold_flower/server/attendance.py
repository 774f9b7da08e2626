"""Who is there, as the ServerApp asks it: before each iteration, and before each evaluation.

`Planned` is a simulation's: the suite says who there is, and nobody comes or leaves. Sites of
their own come and leave: `cold_flower.server.sites`.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

from flwr.serverapp import Grid

from cold_flower.config import Config
from cold_flower.data.plan import Plan, plan
from cold_flower.data.schedule import cohort
from cold_flower.identity import code_sha256
from cold_flower.server.roster import Member, gather


class Attendance(Protocol):
    """Who takes part."""

    @property
    def roster(self) -> Mapping[str, int]:
        """Return the node id of each who is there now, by name."""

    @property
    def members(self) -> Mapping[str, Member]:
        """Return who is there now, by name."""

    @property
    def plan(self) -> Plan:
        """Return the role of each who is there now."""

    def allowed(self, name: str) -> bool:
        """Return whether a contributor may take part, also where it is away now."""

    def refresh(self) -> None:
        """Look again who is there."""

    def cohort(self, iteration: int) -> list[str]:
        """Return whom an iteration asks; the same for the same iteration."""


class Planned:
    """The contributors of a simulation.

    Args:
        grid: Flower's.
        config: the run's.
        model: sha256 of the base model's shape and tokenizer.
        say: called with each line of progress.
    """

    def __init__(
        self, grid: Grid, config: Config, model: str, say: Callable[[str], object]
    ) -> None:
        self._config = config
        self.plan = plan(config)
        planned = len(self.plan.names)
        self.members = gather(
            grid, planned, wait=config.wait, code=code_sha256(), model=model, say=say
        )
        self.roster = {name: member.node for name, member in self.members.items()}
        self._size = config.contributors_per_iteration
        if len(self.members) < planned:  # `gather` has said so
            self._size = min(self._size, len(self._seen))

    @property
    def _seen(self) -> list[str]:
        return [name for name in self.members if name in self.plan.seen]

    def allowed(self, name: str) -> bool:
        """Return whether the suite has it contribute."""
        return name in self.plan.seen

    def refresh(self) -> None:
        """Do nothing: in a simulation nobody comes or leaves."""

    def cohort(self, iteration: int) -> list[str]:
        """Draw an iteration's cohort; it depends on the seed and the iteration alone."""
        config = self._config
        return cohort(
            self._seen, iteration, size=self._size, schedule=config.schedule, seed=config.seed
        )
