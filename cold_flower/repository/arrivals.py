"""Which contribution came when, from which base: what an asynchronous run depends on."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cold_flower.errors import RunError
from cold_flower.repository.bases import Repository
from cold_flower.repository.journal import Journal
from strategies.contributions import FROM, Contribution, Start

ARRIVALS = "arrivals.jsonl"


class Arrivals:
    """The arrivals of one run: a line each, in their order.

    Args:
        journal: of the run.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._count = len(journal.rows(ARRIVALS))

    def record(self, iteration: int, one: Contribution, number: int) -> None:
        """Write down a contribution of the right form; once, also where a run goes on.

        Args:
            iteration: that takes it.
            one: the contribution.
            number: the iteration whose base it began from.
        """
        there = self._journal.where(ARRIVALS, "iteration", iteration)
        if any((r["contributor"], r["sha256"]) == (one.name, one.sha256) for r in there):
            return
        self._count += 1
        row = {
            "arrival": self._count,
            "contributor": one.name,
            "iteration": iteration,
            "base": number,
            "asked": one.start.iteration,
            "sha256": one.sha256,
        }
        self._journal.append(ARRIVALS, [row])


class Replayed:
    """What each iteration of a run took, to be repeated.

    Args:
        run_dir: of that run.
        iterations: how many are to be repeated.

    Raises:
        RunError: no such run, one that was rolled back, one with fewer iterations, or one that
            took something from a drop box.
    """

    def __init__(self, run_dir: Path, iterations: int) -> None:
        self._journal, self._repository = Journal(run_dir), Repository(run_dir)
        if not (run_dir / ARRIVALS).exists():
            raise RunError(f"replay: {run_dir} holds no run with {ARRIVALS}")
        if self._repository.rollbacks():
            raise RunError(f"replay: {run_dir} was rolled back: its iterations are not one line")
        there = self._repository.latest() or 0
        if iterations > there:
            raise RunError(
                f"replay: {run_dir} has {there} iterations, but iterations = {iterations}"
            )
        for iteration in range(1, iterations + 1):
            for row in self._repository.manifest(iteration).get("contributors", []):
                if FROM in row:
                    raise RunError(
                        f"replay: iteration {iteration} of {run_dir} took {row['name']} from a "
                        f"{row[FROM]}: nobody can be asked for it again"
                    )

    def of(self, iteration: int) -> dict[str, Mapping[str, Any]]:
        """Return the arrivals that an iteration took, by contributor."""
        taken = {
            row["name"]: row["sha256"]
            for row in self._repository.manifest(iteration).get("contributors", [])
        }
        rows = self._journal.where(ARRIVALS, "iteration", iteration)
        return {
            row["contributor"]: row
            for row in rows
            if row["sha256"] and taken.get(row["contributor"]) == row["sha256"]
        }

    def starts(self, iteration: int, sha256_of: Callable[[int], str]) -> dict[str, Start]:
        """Return what an iteration's contributors began from.

        Args:
            iteration: to be repeated.
            sha256_of: returns the fingerprint of an iteration's base in the run that repeats it.
        """
        return {
            name: Start(row["asked"], sha256_of(row["base"]))
            for name, row in self.of(iteration).items()
        }

    def sha256(self, iteration: int) -> str:
        """Return the fingerprint that an iteration's base had."""
        return self._repository.sha256(iteration)
