"""An iteration's contributions on disk: ``<folder>/<iteration>/<name>.safetensors``."""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from strategies import records
from strategies.fusion import (
    Fingerprint,
    Template,
    Weights,
    fingerprint,
    read_metadata,
    write_safetensors,
)
from strategies.names import NAME
from strategies.screening import finite


@dataclass(frozen=True)
class Arrival:
    """What became of one contributor's answer in this iteration."""

    name: str
    verdict: str
    """``accepted``, ``refused`` or ``missing``."""
    reason: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    sha256: str = ""
    path: Path | None = None
    where: Mapping[str, str] = field(default_factory=dict)
    """What it was computed on: see `records.WHEREABOUTS`."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """What screening measured."""

    def weights(self) -> Weights:
        """Open the body; a refused one, too, if it had the right form."""
        if self.path is None:
            raise ValueError(f"{self.name} is {self.verdict}: no body to read")
        examples = int(self.metrics[records.EXAMPLES])
        return Weights(self.path, name=self.name, examples=examples)


class Shelf:
    """Holds the bodies of one iteration until they are fused.

    Args:
        folder: of all iterations; ``quarantine`` lies beside it.
        iteration: which.
    """

    def __init__(self, folder: Path, iteration: int) -> None:
        self._folder = folder / f"{iteration:04d}"
        self._quarantine = folder.parent / "quarantine" / f"{iteration:04d}"

    @property
    def state(self) -> Path:
        """Where a rule's stages leave their memory; no contributor can have that name."""
        return self._folder / "_state.safetensors"

    def put(
        self,
        name: str,
        body: Iterable[tuple[str, Tensor]],
        template: Template,
        base: str,
        metrics: Mapping[str, float],
        where: Mapping[str, str],
    ) -> Arrival:
        """Write a contribution, tensor by tensor.

        Args:
            name: the contributor's.
            body: its tensors, in the order of the template.
            template: the base's form.
            base: the base's fingerprint.
            metrics: with ``num-examples``.
            where: it was computed.

        Raises:
            Refused: a tensor holds NaN or infinity.
        """
        about = {
            "base": base,
            "metrics": json.dumps(dict(metrics)),
            "where": json.dumps(dict(where)),
        }
        seen = Fingerprint()
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_safetensors(path, template, seen.passing(finite(body)), about)
        return Arrival(name, "accepted", "", metrics, seen.hexdigest(), path, where)

    def find(self, name: str, base: str) -> Arrival | None:
        """Return what was put there for this base, before a run was stopped."""
        path = self._path(name)
        about = read_metadata(path) if path.exists() else {}
        if about.get("base") != base:
            return None
        metrics, where = json.loads(about["metrics"]), json.loads(about["where"])
        sha256 = fingerprint(Weights(path).items())
        return Arrival(name, "accepted", "", metrics, sha256, path, where)

    def names(self) -> list[str]:
        """Return whose bodies are there."""
        there = (path.stem for path in self._folder.glob("*.safetensors"))
        return sorted(name for name in there if NAME.fullmatch(name))

    def quarantine(self, name: str) -> None:
        """Put a refused body aside, if it was written at all."""
        path = self._path(name)
        if path.exists():
            self._quarantine.mkdir(parents=True, exist_ok=True)
            path.replace(self._quarantine / path.name)

    def clear(self) -> None:
        """Delete what is there."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, name: str) -> Path:
        if not NAME.fullmatch(name):  # it may come from the wire
            raise ValueError(f"not a contributor name: {name!r} (expected {NAME.pattern})")
        return self._folder / f"{name}.safetensors"
