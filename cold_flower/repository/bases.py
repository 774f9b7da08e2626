"""The Repository (paper, section 3): every base on disk, with its lineage.

::

    <run-dir>/iterations/0000/  0001/ ...   a transformers folder + manifest.json each
    <run-dir>/iterations/latest             symbolic link to the head of the lineage
    <run-dir>/iterations/0001/ema/          with fusion.ema: the bases' moving average, a model

Iteration 0 is the starting model. A published folder holds all tensors of the starting model,
with those of the body replaced, so it loads as the starting model did.

A number is used once. After a rollback the next iteration is the largest number there is plus
one, and the parent in its manifest tells the lineage.
"""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import filterfalse, groupby, islice
from pathlib import Path
from typing import Any

from torch import Tensor

from cold_flower.errors import RunError
from cold_flower.identity import timestamp
from cold_flower.models.folder import WEIGHTS
from cold_flower.repository import ema, manifests
from cold_flower.repository.journal import Journal
from cold_flower.repository.manifests import rejected
from cold_flower.repository.provenance import CARD, MANIFEST
from cold_flower.repository.publish import add_body, fsync, link, new_folder, replace_body
from strategies.fusion import Weights

STATE = "fusion-state.safetensors"  # momentum or Adam's moments, where the fusion has them
ROLLBACKS = "rollbacks.jsonl"


class Repository:
    """The iterations of one run."""

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / "iterations"

    def latest(self) -> int | None:
        """Return the head of the lineage; None before iteration 0 is published."""
        link = self.folder / "latest"
        return int(os.readlink(link)) if link.is_symlink() else None

    def numbers(self) -> list[int]:
        """Return all iterations, also those that a rollback left behind."""
        return sorted(int(path.name) for path in self.folder.glob("[0-9]*"))

    def lineage(self) -> list[int]:
        """Return the iterations from the start to the head."""
        return [manifest["iteration"] for manifest in self.line()]

    def line(self, head: int | None = None) -> list[dict[str, Any]]:
        """Return the manifests from the start to the head, or to another iteration."""
        return [*self._backwards(head)][::-1]

    def _backwards(self, head: int | None = None) -> Iterator[dict[str, Any]]:
        iteration = self.latest() if head is None else head
        while iteration is not None:
            manifest = self.manifest(iteration)
            yield manifest
            iteration = manifest["parent"]

    def recent(self, most: int) -> list[tuple[int, str]]:
        """Return the newest bases of the lineage that differ (`strategies.staleness.Bases`)."""
        alike = groupby(self._backwards(), lambda manifest: str(manifest["sha256"]))
        return [(next(same)["iteration"], sha256) for sha256, same in islice(alike, most)]

    def newest(self, count: int) -> list[int]:
        """Return the newest iterations of the lineage that made a base, at most so many."""
        made = filterfalse(rejected, self._backwards())
        return [manifest["iteration"] for manifest in islice(made, count)]

    def abandoned(self) -> list[int]:
        """Return the iterations that rollbacks left behind."""
        return sorted({*self.numbers()} - {*self.lineage()})

    def recover(self) -> int | None:
        """Finish a publish that was cut off before it moved ``latest``; return the head."""
        left_behind = max((row["newest"] for row in self.rollbacks()), default=-1)
        for newest in self.numbers()[-1:]:
            if newest > left_behind and self.manifest(newest)["parent"] == self.latest():
                self._point_latest_to(newest)
        return self.latest()

    def rollback(self, iteration: int) -> None:
        """Make an earlier iteration the head; nothing is deleted.

        Raises:
            RunError: there is no such iteration, or only its manifest was kept.
        """
        self.with_weights(iteration)
        row = {"from": self.latest(), "to": iteration, "newest": self.numbers()[-1]}
        Journal(self.folder).append(ROLLBACKS, [{**row, "time": timestamp()}])
        self._point_latest_to(iteration)

    def rollbacks(self) -> list[dict[str, Any]]:
        """Return each rollback: from, to, the newest number then, time."""
        return Journal(self.folder).rows(ROLLBACKS)

    def prune(self, keep: int, also: Iterable[int] = ()) -> None:
        """Delete all but the manifest of old iterations.

        The newest ``keep`` iterations stay whole, and so do the start, the head, the newest of the
        lineage, as many, and ``also``.
        """
        kept = {0, self.latest(), *also, *self.numbers()[-keep:], *self.newest(keep)}
        for number in set(self.numbers()) - kept:
            # First: without weights nobody takes it for whole, should this be cut off.
            (self.path(number) / WEIGHTS).unlink(missing_ok=True)
            shutil.rmtree(self.path(number) / ema.FOLDER, ignore_errors=True)
            for file in self.path(number).iterdir():
                if file.name != MANIFEST:
                    file.unlink()

    def path(self, iteration: int) -> Path:
        """Return an iteration's folder."""
        return self.folder / f"{iteration:04d}"

    def with_weights(self, iteration: int) -> Path:
        """Return the folder of an iteration whose weights are still there.

        Raises:
            RunError: there is no such iteration, or only its manifest was kept.
        """
        self.manifest(iteration)
        if not (self.path(iteration) / WEIGHTS).exists():
            raise RunError(f"iteration {iteration} has no weights any more (keep-iterations)")
        return self.path(iteration)

    def manifest(self, iteration: int) -> dict[str, Any]:
        """Read an iteration's manifest.

        Raises:
            RunError: there is no such iteration, or what is there is not ours.
        """
        path = self.path(iteration) / MANIFEST
        try:
            return manifests.read(path, iteration)
        except FileNotFoundError as error:
            numbers = ", ".join(map(str, self.numbers())) or "none"
            raise RunError(
                f"no iteration {iteration} in {self.folder}; there: {numbers}"
            ) from error
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"{path} is damaged: {error}") from error

    def state(self, iteration: int | None = None) -> Path | None:
        """Return the file of the fusion's optimizer state that goes with a base, or the latest.

        None if no base was accepted yet and no file came with this one: then there is nothing
        to go on from. Otherwise the file should be there; if it is not, whoever reads it says so.
        """
        latest = self.latest() if iteration is None else iteration
        if not latest:
            return None
        path = self.path(latest) / STATE
        accepted = latest  # the newest of the lineage that the gate let through, or 0
        while accepted and rejected(self.manifest(accepted)):
            accepted = self.manifest(accepted)["parent"]
        return path if accepted or path.exists() else None

    def sha256(self, iteration: int) -> str:
        """Return the fingerprint of an iteration's body."""
        return str(self.manifest(iteration)["sha256"])

    def body(self, iteration: int) -> Weights:
        """Open an iteration's body, lazily."""
        return self._body_in(self.path(iteration))

    def average(self, iteration: int) -> Weights:
        """Open the moving average that lies beside an iteration, lazily; the start is its own."""
        return self._body_in(self.path(iteration) / ema.FOLDER if iteration else self.path(0))

    def _body_in(self, folder: Path) -> Weights:
        start = self.manifest(0)
        stored = {name: start["prefix"] + name for name in start["body"]}
        return Weights(folder / WEIGHTS, stored_as=stored)

    def create(
        self,
        save: Callable[[Path], None],
        body: Mapping[str, Tensor],
        prefix: str,
        manifest: Mapping[str, Any],
    ) -> None:
        """Publish iteration 0.

        Args:
            save: writes the starting model and its tokenizer into a folder.
            body: the body that contributors start from.
            prefix: what stands before the body's names in the model's file.
            manifest: what to record beside the lineage and the body's sha256.
        """
        lineage = {"iteration": 0, "parent": None, "prefix": prefix, "body": list(body)}
        with self._new_iteration(0) as folder:
            save(folder)
            sha256 = add_body(folder / WEIGHTS, body, prefix)
            manifests.write(folder, {**lineage, **manifest}, sha256)

    def take_over_start(self, other: "Repository") -> None:
        """Publish another run's iteration 0 as this one's; its files are links if the disk can.

        Raises:
            RunError: it is not there; or there is an iteration 0 here.
        """
        source = other.with_weights(0)
        with self._new_iteration(0) as folder:
            for file in source.iterdir():
                link(file, folder)

    def publish(
        self,
        iteration: int,
        parent: int,
        body: Weights,
        manifest: Mapping[str, Any],
        *,
        further: Callable[[], Mapping[str, Any]] = dict,
        state: Path | None = None,
        decay: float = 0.0,
    ) -> None:
        """Publish a new base and make it the head of the lineage.

        Args:
            iteration: its number, never used before.
            parent: the iteration it was made from.
            body: the new body, matched by name.
            manifest: what to record beside the lineage and the body's sha256.
            further: returns what else to record; a thread calls it while the disk has its turn.
            state: the file of the fusion's optimizer state after this iteration, kept with it.
            decay: of the moving average beside it; 0 is none. What the gate rejected leaves it.
        """
        start, source = self.manifest(0), self.path(parent)
        names, prefix, beside = start["body"], start["prefix"], _beside(source)
        with self._new_iteration(iteration) as folder:
            for file in beside:
                shutil.copy2(file, folder)
            if state:
                shutil.copy2(state, folder / STATE)
            before = Weights(source / WEIGHTS)
            with ThreadPoolExecutor(1) as meanwhile:
                measured = meanwhile.submit(further)
                sha256 = replace_body(before, folder / WEIGHTS, body, names, prefix)
            full = {"iteration": iteration, "parent": parent, **manifest, **measured.result()}
            if decay:
                kept = 1.0 if rejected(manifest) else decay
                average = ema.Average(self.average(parent), self._body_in(folder), kept)
                of = ema.write(folder, beside, before, average, names, prefix)
                full["ema"] = {"decay": decay, "sha256": of}
                said = {"iteration": iteration, "parent": parent, "ema": decay}
                manifests.write(folder / ema.FOLDER, said, of)
            manifests.write(folder, full, sha256)

    @contextmanager
    def _new_iteration(self, iteration: int) -> Iterator[Path]:
        """Yield a folder to fill; publish it as this iteration, and make it the head."""
        target = self.path(iteration)
        if target.exists():
            raise RunError(f"iteration {iteration} exists in {self.folder}: numbers are used once")
        with new_folder(target) as folder:
            yield folder
        self._point_latest_to(iteration)

    def _point_latest_to(self, iteration: int) -> None:
        link = self.folder / ".latest"
        link.unlink(missing_ok=True)
        link.symlink_to(self.path(iteration).name)
        link.replace(self.folder / "latest")
        fsync(self.folder)


def _beside(folder: Path) -> list[Path]:
    """Return the files of a base that the next one has, too: configuration and tokenizer."""
    own = (WEIGHTS, MANIFEST, STATE, CARD)
    return [file for file in folder.iterdir() if file.is_file() and file.name not in own]
