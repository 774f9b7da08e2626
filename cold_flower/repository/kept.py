"""Contributions that are kept once they are fused: ``<run-dir>/contributions/<iteration>/``.

They are the inbox's own files, moved there (`Store.hand_over`), so keeping costs no copy. An
iteration that replays another (`cold_flower.commands.leave`) is made of that one's.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from cold_flower.errors import RunError
from cold_flower.repository.bases import Repository
from cold_flower.repository.journal import load_config
from strategies.contributions import INCOMING, Contribution, Store
from strategies.fusion import Template, Weights

KEPT = "contributions"  # the folder, in a run directory


class Kept:
    """The kept contributions of one run."""

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / KEPT
        self._run_dir = run_dir
        self._repository = Repository(run_dir)

    def take(self, iteration: int, keep: int) -> None:
        """Move what an iteration was fused of out of the inbox; keep the newest ``keep`` of all.

        It may be called again, for what a crash cut off.
        """
        names = accepted(self._repository, iteration)
        Store(self._run_dir / INCOMING, iteration).hand_over(names, self.folder)
        for old in self.numbers()[:-keep]:
            shutil.rmtree(self.folder / f"{old:04d}")

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
        origin, start = self.origin(iteration), self.made_from(iteration)
        if origin not in self.numbers():
            here = ", ".join(map(str, self.numbers())) or "none"
            raise RunError(
                f"the contributions of iteration {origin} are not kept (keep-contributions is "
                f"{load_config(self._run_dir).get('keep-contributions', 0)}; kept: {here})"
            )
        store, base = Store(self.folder, origin), self._repository.manifest(start)["sha256"]
        names = accepted(self._repository, iteration)
        found = {name: store.find(name, base) for name in names}
        if gone := [name for name, one in found.items() if not one]:
            raise RunError(
                f"the contributions of iteration {origin} are not whole, or were not made from "
                f"base {start}: {', '.join(gone)}"
            )
        return [one for one in found.values() if one]

    def made_from(self, iteration: int) -> int:
        """Return the iteration whose base these contributions were finetuned from."""
        return int(self._repository.manifest(self.origin(iteration))["parent"])

    def onto(
        self, base: int, iteration: int, contributions: Sequence[Contribution]
    ) -> list[Weights]:
        """Open contributions to an iteration as if they had been made from another base.

        Where that has the weights of the base they were made from they are read as they are.
        Otherwise each one's difference is added to it.

        Raises:
            RunError: the base they were made from has no weights any more.
        """
        before, given = self.made_from(iteration), [one.weights() for one in contributions]
        sha256 = [self._repository.manifest(number)["sha256"] for number in (before, base)]
        if sha256[0] == sha256[1]:
            return given
        self._repository.with_weights(before)
        bases = self._repository.body(before), self._repository.body(base)
        return [Transplanted(*bases, weights) for weights in given]


class Transplanted(Weights):
    """A contribution whose difference from one base stands on another.

    Args:
        before: the base that it was made from.
        base: the other.
        whole: the contribution.
    """

    def __init__(self, before: Weights, base: Weights, whole: Weights) -> None:
        self.name, self.examples, self.steps = whole.name, whole.examples, whole.steps
        self.statistic = whole.statistic
        self._before, self._base, self._whole = before, base, whole

    def keys(self) -> list[str]:
        """Return the tensors' names."""
        return self._whole.keys()

    def get(self, key: str) -> Tensor:
        """Return base + (whole - before)."""
        theta = self._base.get(key)
        if not theta.is_floating_point():
            return self._whole.get(key)
        return theta + (self._whole.get(key) - self._before.get(key))

    def template(self) -> Template:
        """Return dtypes and shapes by name."""
        return self._whole.template()


def accepted(repository: Repository, iteration: int) -> list[str]:
    """Return whose contributions an iteration was fused of, by name."""
    rows = repository.manifest(iteration).get("contributors", [])
    return sorted(row["name"] for row in rows if row["verdict"] == "accepted")
