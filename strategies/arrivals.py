"""An iteration's contributions on disk: ``<folder>/<iteration>/<name>.safetensors``.

They are read back soon and deleted then, so nobody waits until a disk has them: beside each lies
its sha256, and one that a power cut left in pieces is asked for again.
"""

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from strategies import records
from strategies.errors import Refused
from strategies.fusion import (
    Fingerprint,
    Template,
    Weights,
    fingerprint,
    read_metadata,
    write_safetensors,
)
from strategies.names import NAME
from strategies.screening import check_template, finite

INCOMING = "incoming"  # the folder, in a run directory


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
        about = _about(base, metrics, where)
        seen = Fingerprint()
        path = self._path(name)
        self.open()
        write_safetensors(path, template, seen.passing(finite(body)), about, durable=False)
        self._seal(name).write_text(seen.hexdigest())
        return Arrival(name, "accepted", "", metrics, seen.hexdigest(), path, where)

    def offer(
        self,
        name: str,
        body: Mapping[str, Tensor],
        base: str,
        metrics: Mapping[str, float],
        where: Mapping[str, str],
    ) -> str:
        """Leave a body for the server to `take`; called by a contributor. Return its sha256.

        Raises:
            Refused: the server waits for no body of this iteration any more.
        """
        if not self._folder.is_dir():
            raise Refused(f"{self._folder} is gone: the iteration is over")
        form, seen = Weights(body).template(), Fingerprint()
        about = _about(base, metrics, where)
        passing = seen.passing(body.items())
        write_safetensors(self._offered(name), form, passing, about, durable=False)
        return seen.hexdigest()

    def take(
        self,
        name: str,
        template: Template,
        base: str,
        metrics: Mapping[str, float],
        where: Mapping[str, str],
        sha256: str,
    ) -> Arrival:
        """Check a body that was left here, and keep it.

        Raises:
            Refused: there is none, it has another form or other values than was said, or it
                holds NaN or infinity.
        """
        offered = self._offered(name)
        if offered.is_symlink() or not offered.is_file():
            raise Refused(f"it left no body in {offered.parent}")
        try:
            weights, about = Weights(offered), read_metadata(offered)
            form = {
                key: (str(dtype).removeprefix("torch."), shape)
                for key, (dtype, shape) in weights.template().items()
            }
        except (SafetensorError, KeyError, ValueError) as error:
            raise Refused(f"its file cannot be read: {error}") from error
        check_template(form, template)
        seen = Fingerprint()
        for _ in seen.passing(finite((key, weights.get(key)) for key in template)):
            pass
        if (seen.hexdigest(), about) != (sha256, _about(base, metrics, where)):
            raise Refused("its file is not what its message says")
        offered.replace(self._path(name))
        self._seal(name).write_text(sha256)
        return Arrival(name, "accepted", "", metrics, sha256, self._path(name), where)

    def open(self) -> None:
        """Make the folder."""
        self._folder.mkdir(parents=True, exist_ok=True)

    def find(self, name: str, base: str) -> Arrival | None:
        """Return what was put there for this base, whole, before a run was stopped."""
        path = self._path(name)
        try:
            about, sha256 = read_metadata(path), self._seal(name).read_text()
            if about.get("base") != base or fingerprint(Weights(path).items()) != sha256:
                return None
        except (OSError, SafetensorError):
            return None
        metrics, where = json.loads(about["metrics"]), json.loads(about["where"])
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

    def _seal(self, name: str) -> Path:
        return self._path(name).with_suffix(".sha256")

    def _offered(self, name: str) -> Path:
        path = self._path(name)
        return path.with_name(f".{path.name}.offered")

    def _path(self, name: str) -> Path:
        if not NAME.fullmatch(name):  # it may come from the wire
            raise ValueError(f"not a contributor name: {name!r} (expected {NAME.pattern})")
        return self._folder / f"{name}.safetensors"


def _about(base: str, metrics: Mapping[str, float], where: Mapping[str, str]) -> dict[str, str]:
    """Return what a body's file says of it, so that a resumed run need not ask again."""
    return {
        "base": base,
        "metrics": json.dumps(dict(metrics), sort_keys=True),
        "where": json.dumps(dict(where), sort_keys=True),
    }
