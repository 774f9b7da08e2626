"""Contributions that are kept once they are fused: ``<run-dir>/contributions/<iteration>/``.

They are the inbox's own files, moved there (`Store.hand_over`), so keeping costs no copy. An
iteration that replays another (`cold_flower.commands.leave`) is made of that one's.
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cold_flower.errors import RunError
from cold_flower.repository.bases import Repository
from cold_flower.repository.journal import load_config
from cold_flower.repository.publish import link
from strategies.contributions import FROM, INCOMING, Contribution, Store
from strategies.fusion import Weights
from strategies.fusion._deltas import Scaled
from strategies.staleness import discount

KEPT = "contributions"  # the folder, in a run directory


class Kept:
    """The kept contributions of one run."""

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / KEPT
        self._run_dir = run_dir
        self._repository = Repository(run_dir)

    def take(self, iteration: int, keep: int) -> None:
        """Move what an iteration was fused of out of the inbox.

        What the newest ``keep`` iterations were fused of stays, and the newest of the lineage. It
        may be called again, for what a crash cut off.
        """
        names = accepted(self._repository, iteration)
        Store(self._run_dir / INCOMING, iteration).hand_over(names, self.folder)
        there = self.numbers()
        stay = {*there[-keep:], *map(self.origin, self._repository.newest(keep))}
        for old in (number for number in there if number not in stay):
            shutil.rmtree(self.folder / f"{old:04d}")

    def lend(self, inbox: Path) -> list[str]:
        """Put what iteration 1 was fused of into the inbox of another run with the same start.

        Not what came from this run's drop box.

        Returns:
            The contributors' names; none where nothing of it is kept.
        """
        if not (names := Store(self.folder, 1).names()):
            return []
        rows = self._repository.manifest(1)["contributors"]
        dropped = {row["name"] for row in rows if FROM in row}
        names = [name for name in names if name not in dropped]
        here, there = (folder / "0001" for folder in (self.folder, inbox))
        there.mkdir(parents=True, exist_ok=True)
        for name in names:
            link(here / f"{name}.safetensors", there)
            shutil.copy2(here / f"{name}.sha256", there)  # last: now it counts
        return names

    def numbers(self) -> list[int]:
        """Return the iterations whose contributions are here."""
        return sorted(int(path.name) for path in self.folder.glob("[0-9]*"))

    def origin(self, iteration: int) -> int:
        """Return the iteration whose contributions this one was fused of: itself, or another."""
        while replay := self._repository.manifest(iteration).get("replay"):
            iteration = replay["of"]
        return iteration

    def contributions(self, iteration: int) -> list[Contribution]:
        """Return what an iteration was fused of, by name; each file has its sha256.

        Raises:
            RunError: it is not here, or not whole.
        """
        origin = self.origin(iteration)
        if origin not in self.numbers():
            here = ", ".join(map(str, self.numbers())) or "none"
            raise RunError(
                f"the contributions of iteration {origin} are not kept (keep-contributions is "
                f"{load_config(self._run_dir).get('keep-contributions', 0)}; kept: {here})"
            )
        store, bases = Store(self.folder, origin), self._bases()
        rows = self._repository.manifest(origin)["contributors"]
        ages = {row["name"]: row.get("staleness", 0) for row in rows}
        names = accepted(self._repository, iteration)
        found = {name: store.find(name, bases) for name in names}
        if gone := [name for name, one in found.items() if not one]:
            raise RunError(
                f"the contributions of iteration {origin} are not whole, or were made from no "
                f"base of this run: {', '.join(gone)}"
            )
        return [replace(one, staleness=ages[name]) for name, one in found.items() if one]

    def made_from(self, iteration: int) -> int:
        """Return the iteration whose base these contributions were added to."""
        return int(self._repository.manifest(self.origin(iteration))["parent"])

    def onto(self, base: int, contributions: Sequence[Contribution]) -> list[Weights]:
        """Open contributions as ones to a base of this run.

        Where that is the one they were made from they are read as they are. Otherwise each one's
        difference from its own is added to it, weighed by its age as it was.

        Raises:
            RunError: a base that one was made from has no weights any more.
        """
        theta, sha256, bases = self._repository.body(base), self._repository.sha256(base), {}
        numbers, given = self._bases(), []
        for one in contributions:
            whole, began = one.weights(), one.start.base
            if began != sha256:
                if began not in bases:
                    self._repository.with_weights(numbers[began])
                    bases[began] = self._repository.body(numbers[began])
                whole = Scaled(theta, whole, discount(one.staleness), bases[began])
            given.append(whole)
        return given

    def _bases(self) -> dict[str, int]:
        """Return all bases, by fingerprint: the newest iteration that has each."""
        return {self._repository.sha256(i): i for i in self._repository.numbers()}


def accepted(repository: Repository, iteration: int) -> list[str]:
    """Return whose contributions an iteration was fused of, by name."""
    rows = repository.manifest(iteration).get("contributors", [])
    return sorted(row["name"] for row in rows if row["verdict"] == "accepted")
