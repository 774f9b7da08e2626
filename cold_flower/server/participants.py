"""Who takes part in a run, and in which role.

In a simulation a suite says who there is, and nobody comes or leaves
(`cold_flower.server.simulation`). Sites of their own do (`cold_flower.server.sites`).
"""

from collections.abc import Collection, Iterable
from pathlib import Path

from cold_flower.config import Config, split
from cold_flower.data import schedule
from cold_flower.data.plan import Plan, plan
from cold_flower.repository.arrivals import Replayed
from cold_flower.repository.journal import SITES, Journal
from strategies.participants import Member, Participants


def longest_first(members: Iterable[Member]) -> list[Member]:
    """Order members so that workers which share them end at about the same time."""
    return sorted(members, key=lambda member: (-member.tokens, member.name))


def names_of(config: Config, journal: Journal) -> set[str]:
    """Return who may contribute to a run: as planned, or as sites.allow has it and who joined."""
    if not config.sites.allow:
        return {*plan(config).names}
    came = {row["site"] for row in journal.rows(SITES) if row["event"] == "joined"}
    return ({*split(config.sites.allow)} - {"*"}) | came


class Contributors(Participants):
    """The contributors that are there.

    Args:
        config: the run's.
        plan: the role of each.
        members: who is there; fewer than planned, where the federation has fewer nodes.
        left: who left the run for good (`cold_flower.commands.leave`): it is asked nothing.
    """

    def __init__(
        self, config: Config, plan: Plan, members: Iterable[Member], left: Collection[str] = ()
    ) -> None:
        super().__init__(members)
        self._left = left
        self._config = config
        self.replayed = Replayed(Path(config.replay), config.iterations) if config.replay else None
        self.plan = plan

    @property
    def there(self) -> Collection[str]:
        """Return the names of those who are there, also where they are not `members` yet."""
        return self.members

    @property
    def known(self) -> Collection[str]:
        """Return whose name nobody else may contribute under, also of those who are away."""
        return {*self.there, *self.plan.names}

    @property
    def training(self) -> list[str]:
        """Return who contributes, of those who are there."""
        there = self.there
        return [name for name in self.plan.seen if name in there]

    def asked(self, names: Iterable[str]) -> list[Member]:
        """Return those of these names who are there; who they are has been asked then."""
        return [self.members[name] for name in names if name in self.members]

    def refresh(self) -> None:
        """Look again who is there: in a simulation nobody comes or leaves."""

    def allowed(self, name: str) -> bool:
        """Return whether the plan has it contribute."""
        return name in self.plan.seen

    def cohort(self, iteration: int) -> list[str]:
        """Draw whom an iteration asks; it depends on the seed and the iteration alone.

        Raises:
            ConfigError: more asked than planned.
        """
        return self._in_order(self._drawn(iteration))

    def expected(self, iteration: int) -> list[str]:
        """Return whom an iteration would ask if it began now."""
        return self._drawn(iteration)

    def _drawn(self, iteration: int) -> list[str]:
        if self.replayed:
            return sorted(self.replayed.of(iteration))
        size = self._config.contributors_per_iteration
        if self._left or len(self.there) < len(self.plan.names):  # `Simulation` has said so
            size = min(size, len(self.training))
        return self._draw(iteration, size)

    def _draw(self, iteration: int, size: int) -> list[str]:
        config = self._config
        return schedule.cohort(
            self.training, iteration, size=size, schedule=config.schedule, seed=config.seed
        )

    def _in_order(self, names: Iterable[str]) -> list[str]:
        """Return names in the order in which their work is handed out."""
        return [member.name for member in longest_first(self.asked(names))]
