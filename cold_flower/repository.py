"""The Repository (paper, section 3): every base on disk, with its lineage.

::

    <run-dir>/iterations/0000/  0001/ ...   a transformers folder + manifest.json each
    <run-dir>/iterations/latest             symbolic link to the head of the lineage

Iteration 0 is the starting model. A published folder holds all tensors of the starting
model, those of the body replaced, so it loads as the starting model did. A folder is
written under a temporary name, fsynced and renamed: nothing is ever half visible.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from cold_flower.errors import RunError
from strategies.fusion import Template, Weights, write_safetensors

WEIGHTS = "model.safetensors"
MANIFEST = "manifest.json"
STATE = "fusion-state.safetensors"  # the memory of the fusion's optimizer, where it has one


class Repository:
    """The iterations of one run."""

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / "iterations"

    def latest(self) -> int | None:
        """Return the head of the lineage; None before the start is published."""
        link = self.folder / "latest"
        return int(os.readlink(link)) if link.is_symlink() else None

    def recover(self) -> int | None:
        """Finish a publish that was cut off between its last two steps; return the head."""
        latest = self.latest()
        complete = [int(p.name) for p in self.folder.glob("[0-9]*")]
        if complete and max(complete) != latest:
            newest = max(complete)
            if self.manifest(newest)["parent"] == latest:
                self._point(newest)
        return self.latest()

    def path(self, iteration: int) -> Path:
        """Return an iteration's folder."""
        return self.folder / f"{iteration:04d}"

    def manifest(self, iteration: int) -> dict[str, Any]:
        """Read an iteration's manifest.

        Raises:
            RunError: there is no such iteration.
        """
        try:
            found: dict[str, Any] = json.loads((self.path(iteration) / MANIFEST).read_text())
        except FileNotFoundError as error:
            there = sorted(p.name for p in self.folder.glob("[0-9]*"))
            raise RunError(f"no iteration {iteration} in {self.folder}; there: {there}") from error
        return found

    def state(self) -> Path | None:
        """Return where the fusion's memory of the latest base lies; none at the start."""
        latest = self.latest()
        return self.path(latest) / STATE if latest else None

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
            manifest: what to record beside the lineage.
        """

        def fill(folder: Path) -> None:
            save(folder)
            kept = Weights(folder / WEIGHTS)
            tensors = {prefix + name: tensor for name, tensor in body.items()}
            tensors |= {n: kept.get(n) for n in kept.keys() if n not in tensors}  # noqa: SIM118 - no dict
            template = {n: (t.dtype, tuple(t.shape)) for n, t in tensors.items()}
            write_safetensors(folder / WEIGHTS, template, tensors.items(), {"format": "pt"})

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
            manifest: what to record beside the lineage.
            state: the fusion's memory after this iteration, to be kept with it.
        """
        start = self.manifest(0)
        prefix, names = start["prefix"], start["body"]
        known = Weights(self.path(parent) / WEIGHTS)

        def fill(folder: Path) -> None:
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

            def tensors() -> Iterator[tuple[str, Tensor]]:
                yield from ((prefix + name, body.get(name)) for name in names)
                yield from ((name, known.get(name)) for name in rest)

            write_safetensors(folder / WEIGHTS, ordered, tensors(), {"format": "pt"})

        self._publish(iteration, fill, {"iteration": iteration, "parent": parent, **manifest})

    def _publish(
        self, iteration: int, fill: Callable[[Path], None], manifest: Mapping[str, Any]
    ) -> None:
        target = self.path(iteration)
        if target.exists():
            raise RunError(f"iteration {iteration} exists in {self.folder}: numbers are used once")
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{target.name}"
        shutil.rmtree(temporary, ignore_errors=True)  # what an interrupted attempt left
        temporary.mkdir()
        try:
            fill(temporary)
            (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
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


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
