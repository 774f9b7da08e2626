"""The Repository (paper, section 3): every base on disk, with its lineage.

::

    <run-dir>/iterations/0000/  0001/ ...   a transformers folder + manifest.json each
    <run-dir>/iterations/latest             symbolic link to the head of the lineage

Iteration 0 is the starting model. A published folder holds all tensors of the starting
model, those of the body replaced, so it loads as the starting model did. A folder is
written under a temporary name, fsynced and renamed: nothing is ever half visible.

A number is used once: after a rollback the next iteration is the largest number there is
plus one, and its parent tells the lineage.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from cold_flower.errors import RunError
from cold_flower.identity import timestamp
from cold_flower.models.folder import WEIGHTS
from cold_flower.repository.journal import Journal
from strategies.fusion import Fingerprint, Template, Weights, fingerprint, write_safetensors

MANIFEST = "manifest.json"
STATE = "fusion-state.safetensors"  # the memory of the fusion's optimizer, where it has one
ROLLBACKS = "rollbacks.jsonl"


class Repository:
    """The iterations of one run."""

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / "iterations"

    def latest(self) -> int | None:
        """Return the head of the lineage; None before the start is published."""
        link = self.folder / "latest"
        return int(os.readlink(link)) if link.is_symlink() else None

    def numbers(self) -> list[int]:
        """Return every iteration there is, also those that a rollback left behind."""
        return sorted(int(path.name) for path in self.folder.glob("[0-9]*"))

    def lineage(self) -> list[int]:
        """Return the iterations from the start to the head."""
        found, at = [], self.latest()
        while at is not None:
            found.append(at)
            at = self.manifest(at)["parent"]
        return found[::-1]

    def abandoned(self) -> list[int]:
        """Return the iterations that rollbacks left behind."""
        return sorted({*self.numbers()} - {*self.lineage()})

    def recover(self) -> int | None:
        """Finish a publish that was cut off between its last two steps; return the head."""
        latest, numbers = self.latest(), self.numbers()
        left_behind = max((row["newest"] for row in self.rollbacks()), default=-1)
        for newest in numbers[-1:]:
            if newest > left_behind and self.manifest(newest)["parent"] == latest:
                self._point(newest)
        return self.latest()

    def rollback(self, iteration: int) -> None:
        """Make an earlier iteration the head; nothing is deleted.

        Raises:
            RunError: there is no such iteration, or only its manifest was kept.
        """
        self.with_weights(iteration)
        about = {"from": self.latest(), "to": iteration, "newest": self.numbers()[-1]}
        Journal(self.folder).append(ROLLBACKS, [{**about, "time": timestamp()}])
        self._point(iteration)

    def rollbacks(self) -> list[dict[str, Any]]:
        """Return what was rolled back: from, to, the newest number then, time."""
        return Journal(self.folder).rows(ROLLBACKS)

    def prune(self, keep: int) -> None:
        """Leave of all but the newest ``keep`` iterations, the start and the head the manifest."""
        spared = {0, self.latest(), *self.numbers()[-keep:]}
        for number in set(self.numbers()) - spared:
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
            found: dict[str, Any] = json.loads(path.read_text())
            if not _is_manifest(found, iteration):
                raise ValueError("not as it was written")
        except FileNotFoundError as error:
            there = ", ".join(map(str, self.numbers())) or "none"
            raise RunError(f"no iteration {iteration} in {self.folder}; there: {there}") from error
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"{path} is damaged: {error}") from error
        return found

    def state(self) -> Path | None:
        """Return where the fusion's memory of the latest base lies.

        None at the start, and while the gate has rejected every iteration since.
        """
        at = latest = self.latest()
        while at and rejected(self.manifest(at)):
            at = self.manifest(at)["parent"]
        there = latest and (at or (self.path(latest) / STATE).exists())
        return self.path(latest) / STATE if latest and there else None

    def body(self, iteration: int) -> Weights:
        """Open an iteration's body, lazily."""
        start = self.manifest(0)
        stored = {name: start["prefix"] + name for name in start["body"]}
        return Weights(self.path(iteration) / WEIGHTS, stored_as=stored)

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

        def fill(folder: Path) -> str:
            save(folder)
            kept = Weights(folder / WEIGHTS)
            tensors = {prefix + name: tensor for name, tensor in body.items()}
            tensors |= {n: kept.get(n) for n in kept.keys() if n not in tensors}  # noqa: SIM118 - no dict
            form = Weights(tensors).template()
            write_safetensors(folder / WEIGHTS, form, tensors.items(), {"format": "pt"})
            return fingerprint(body.items())  # once a run: not beside the writing

        about = {"iteration": 0, "parent": None, "prefix": prefix, "body": list(body)}
        self._publish(0, fill, {**about, **manifest})

    def publish(
        self,
        iteration: int,
        parent: int,
        body: Weights,
        manifest: Mapping[str, Any],
        *,
        state: Path | None = None,
    ) -> None:
        """Publish a new base and make it the head of the lineage.

        Args:
            iteration: its number, never used before.
            parent: the iteration it was made from.
            body: the new body, matched by name.
            manifest: what to record beside the lineage and the body's sha256.
            state: the fusion's memory after this iteration, to be kept with it.
        """
        start = self.manifest(0)
        prefix, names = start["prefix"], start["body"]
        known = Weights(self.path(parent) / WEIGHTS)

        def fill(folder: Path) -> str:
            for file in self.path(parent).iterdir():
                if file.name not in (WEIGHTS, MANIFEST, STATE):
                    shutil.copy2(file, folder)
            if state:
                shutil.copy2(state, folder / STATE)
            template = known.template()
            fused = {prefix + name for name in names}
            rest = [name for name in template if name not in fused]
            ordered: Template = {prefix + n: template[prefix + n] for n in names}
            ordered |= {name: template[name] for name in rest}
            seen = Fingerprint()

            def tensors() -> Iterator[tuple[str, Tensor]]:
                passing = seen.passing((name, body.get(name)) for name in names)
                yield from ((prefix + name, tensor) for name, tensor in passing)
                yield from ((name, known.get(name)) for name in rest)

            write_safetensors(folder / WEIGHTS, ordered, tensors(), {"format": "pt"})
            return seen.hexdigest()

        self._publish(iteration, fill, {"iteration": iteration, "parent": parent, **manifest})

    def _publish(
        self, iteration: int, fill: Callable[[Path], str], manifest: Mapping[str, Any]
    ) -> None:
        target = self.path(iteration)
        if target.exists():
            raise RunError(f"iteration {iteration} exists in {self.folder}: numbers are used once")
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{target.name}"
        shutil.rmtree(temporary, ignore_errors=True)  # what an interrupted attempt left
        temporary.mkdir()
        try:
            whole = {**manifest, "time": timestamp(), "sha256": fill(temporary)}
            (temporary / MANIFEST).write_text(json.dumps(whole, indent=2) + "\n")
            for file in temporary.iterdir():
                _fsync(file)
            _fsync(temporary)
            temporary.rename(target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _fsync(self.folder)
        self._point(iteration)

    def _point(self, iteration: int) -> None:
        link = self.folder / ".latest"
        link.unlink(missing_ok=True)
        link.symlink_to(self.path(iteration).name)
        link.replace(self.folder / "latest")
        _fsync(self.folder)


def _is_manifest(found: Any, iteration: int) -> bool:
    """Return whether the lineage can be followed through this; a parent comes before its child."""
    if not isinstance(found, dict) or found.get("iteration") != iteration:
        return False
    contributors, parent = found.get("contributors", []), found.get("parent")
    if not isinstance(contributors, list) or not all(
        isinstance(row, dict) and {"name", "verdict"} <= row.keys() for row in contributors
    ):
        return False
    if iteration == 0:
        names = found.get("body")
        return (
            parent is None
            and isinstance(found.get("prefix"), str)
            and isinstance(names, list)
            and all(isinstance(name, str) for name in names)
        )
    return isinstance(parent, int) and 0 <= parent < iteration


def rejected(manifest: Mapping[str, Any]) -> bool:
    """Return whether the gate rejected an iteration: its base is its parent's."""
    return manifest.get("gate", {}).get("accepted") is False


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
