"""An iteration's contributions, on disk: ``<folder>/<iteration>/<name>.safetensors``.

They are read back soon and deleted then, so nobody waits until a disk has them: beside each lies
its sha256, and one that a power cut left in pieces is asked for again. That what a contributor
leaves here is what the server reads, its XXH3 tells: in a fraction of the time, and the server
takes the sha256 itself.
"""

import json
import shutil
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor
from xxhash import xxh3_128

from strategies import records
from strategies.errors import Refused
from strategies.form import check_form
from strategies.fusion import (
    Fingerprint,
    Template,
    Weights,
    is_finite,
    read_metadata,
    write_safetensors,
)
from strategies.fusion._statistics import check_values, prefix
from strategies.names import NAME

INCOMING = "incoming"  # the folder, in a run directory
FROM = "from"  # in the facts of a contribution that nobody was asked for: where it came from


@dataclass(frozen=True)
class Start:
    """What a contributor begins from."""

    iteration: int
    """For which it is asked: its draws are this iteration's."""
    base: str
    """Fingerprint of the base."""


@dataclass(frozen=True)
class Contribution:
    """What became of one contributor's answer in this iteration."""

    name: str
    verdict: str = "accepted"
    """``accepted``, ``refused`` or ``missing``."""
    reason: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    sha256: str = ""
    path: Path | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    """How its finetuning ended, and what it was computed on: see `records.FACTS`."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """What screening measured."""
    statistic: str = ""
    """Which one of its data lies beside the body (`strategies.fusion._statistics`)."""
    start: Start = Start(0, "")
    staleness: int = 0
    """How many bases were published since then."""

    def weights(self) -> Weights:
        """Open the body, with its statistic; a refused one, too, if it had the right form."""
        if self.path is None:
            raise ValueError(f"{self.name} is {self.verdict}: no body to read")
        examples, steps = (int(self.metrics.get(key, 0)) for key in (records.EXAMPLES, "steps"))
        names = {key: key for key in Weights(self.path).keys()}  # noqa: SIM118 - no dict
        before, statistic = prefix(self.statistic), None
        if before:
            beside = {k.removeprefix(before): k for k in names if k.startswith(before)}
            names = {key: key for key in names if key not in beside.values()}
            statistic = Weights(self.path, name=self.name, stored_as=beside)
        return Weights(
            self.path,
            name=self.name,
            examples=examples,
            steps=steps,
            statistic=statistic,
            stored_as=names,
        )


class Store:
    """Holds the contributions of one iteration until they are fused.

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

    def open(self) -> None:
        """Make the folder: from now on contributors may `offer`."""
        self._folder.mkdir(parents=True, exist_ok=True)

    @staticmethod
    def clear_before(folder: Path, iteration: int, awaited: Container[int]) -> None:
        """Delete what earlier iterations left, but where a contributor may still `offer`."""
        there = (int(path.name) for path in folder.glob("[0-9]*") if path.name.isdigit())
        for number in there:
            if number < iteration and number not in awaited:
                Store(folder, number).clear()

    def put(
        self, stated: Contribution, body: Iterable[tuple[str, Tensor]], template: Template
    ) -> Contribution:
        """Write a body that came in a message, tensor by tensor; return what is here now.

        Args:
            stated: what its message says, without sha256.
            body: its tensors, in the order of the template, with those of a statistic.
            template: their form (`check_form`).

        Raises:
            Refused: a tensor holds NaN or infinity, a statistic a negative square; the body is in
                quarantine then.
        """
        path, metadata, hashed = self._path(stated.name), _metadata(stated), Fingerprint()
        faulty: list[str] = []
        items = hashed.passing(_noting(body, faulty, stated.statistic, template))
        write_safetensors(path, template, items, metadata, durable=False)
        self._check_sound(stated.name, faulty)
        sha256 = hashed.hexdigest(without=prefix(stated.statistic))
        return self._sealed(replace(stated, sha256=sha256), hashed.hexdigest())

    def offer(self, stated: Contribution, body: Mapping[str, Tensor]) -> str:
        """Leave a body for the server to `take`; called by a contributor. Return its XXH3.

        With ``stated.statistic`` the tensors of one lie beside it, under its prefix.

        Raises:
            Refused: the server waits for no body of this iteration any more.
        """
        if not self._folder.is_dir():
            raise Refused(f"{self._folder} is gone: the iteration is over")
        path, metadata, summed = (
            self._offered(stated.name),
            _metadata(stated),
            Fingerprint(xxh3_128),
        )
        template = Weights(body).template()
        write_safetensors(path, template, summed.passing(body.items()), metadata, durable=False)
        return summed.hexdigest()

    def take(
        self, stated: Contribution, template: Template, left: "Store", xxh3: str
    ) -> Contribution:
        """Check a body that was left here, or for an earlier iteration, and keep it here.

        Args:
            stated: what its message says, without sha256.
            template: the base's form.
            left: where it was left.
            xxh3: what its message says of the file's tensors: see `offer`.

        Raises:
            Refused: there is none, it has another form or other values than was said, or it
                holds NaN or infinity: then it is in quarantine.
        """
        offered = left._offered(stated.name)
        if offered.is_symlink() or not offered.is_file():
            raise Refused(f"it left no body in {offered.parent}")
        try:
            weights, metadata = Weights(offered), read_metadata(offered)
            given = {
                key: (str(dtype).removeprefix("torch."), shape)
                for key, (dtype, shape) in weights.template().items()
            }
        except (SafetensorError, KeyError, ValueError) as error:
            raise Refused(f"its file cannot be read: {error}") from error
        form = check_form(given, template, stated.statistic)
        faulty: list[str] = []
        items = ((key, weights.get(key)) for key in form)
        summed = Fingerprint(xxh3_128)
        hashed = Fingerprint.of(summed.passing(_noting(items, faulty, stated.statistic, form)))
        if faulty:
            offered.replace(self._path(stated.name))
        self._check_sound(stated.name, faulty)
        if (summed.hexdigest(), metadata) != (xxh3, _metadata(stated)):
            raise Refused("its file is not what its message says")
        offered.replace(self._path(stated.name))
        sha256 = hashed.hexdigest(without=prefix(stated.statistic))
        return self._sealed(replace(stated, sha256=sha256), hashed.hexdigest())

    def find(self, name: str, bases: Container[str]) -> Contribution | None:
        """Return what was put there, whole, before a run was stopped, if it began from these."""
        path = self._path(name)
        try:
            metadata, sha256 = read_metadata(path), self._sha256_of(name).read_text()
            if metadata.get("base") not in bases:
                return None
            hashed = Fingerprint.of(Weights(path).items())
            if hashed.hexdigest() != sha256:
                return None
            return Contribution(
                name,
                metrics=json.loads(metadata["metrics"]),
                sha256=hashed.hexdigest(without=prefix(metadata["statistic"])),
                path=path,
                facts=json.loads(metadata["facts"]),
                statistic=metadata["statistic"],
                start=Start(int(metadata["asked"]), metadata["base"]),
            )
        except (OSError, SafetensorError, ValueError, KeyError):  # in pieces: asked for again
            return None

    def names(self) -> list[str]:
        """Return whose bodies are there, whole: the sha256 is written last."""
        stems = (path.stem for path in self._folder.glob("*.safetensors"))
        names = (stem for stem in stems if NAME.fullmatch(stem))
        return sorted(name for name in names if self._sha256_of(name).exists())

    def quarantine(self, name: str) -> None:
        """Put a refused body aside, if it was written at all."""
        path = self._path(name)
        if path.exists():
            self._quarantine.mkdir(parents=True, exist_ok=True)
            path.replace(self._quarantine / path.name)

    def hand_over(self, names: Iterable[str], folder: Path) -> None:
        """Move bodies to ``<folder>/<iteration>/``; what a crash had moved before is left there."""
        there = folder / self._folder.name
        for path in map(self._path, names):
            if path.exists():
                there.mkdir(parents=True, exist_ok=True)
                path.replace(there / path.name)
            if (beside := self._sha256_of(path.stem)).exists() and there.exists():
                beside.replace(there / beside.name)

    def clear(self, *, open: bool = False) -> None:
        """Delete what is there; ``open``: but what contributors leave here, now or later."""
        if not open:
            shutil.rmtree(self._folder, ignore_errors=True)
            return
        for path in self._folder.glob("[!.]*"):
            path.unlink()

    def _check_sound(self, name: str, faulty: list[str]) -> None:
        """Put a body aside of which a tensor is ``faulty``."""
        if faulty:
            self.quarantine(name)
            raise Refused(faulty[0])

    def _sealed(self, contribution: Contribution, sha256: str) -> Contribution:
        """Write the sha256 of all its tensors beside a body that is here: now it counts."""
        self._sha256_of(contribution.name).write_text(sha256)
        return replace(contribution, path=self._path(contribution.name))

    def _sha256_of(self, name: str) -> Path:
        return self._path(name).with_suffix(".sha256")

    def _offered(self, name: str) -> Path:
        path = self._path(name)
        return path.with_name(f".{path.name}.offered")

    def _path(self, name: str) -> Path:
        if not NAME.fullmatch(name):  # it may come from the wire
            raise ValueError(f"not a contributor name: {name!r} (expected {NAME.pattern})")
        return self._folder / f"{name}.safetensors"


def _noting(
    body: Iterable[tuple[str, Tensor]], faulty: list[str], statistic: str, form: Template
) -> Iterator[tuple[str, Tensor]]:
    """Pass tensors through; append what is wrong with one, such as NaN or infinity."""
    before = prefix(statistic)
    for name, tensor in body:
        if before and name.startswith(before):
            try:
                check_values(statistic, name.removeprefix(before), tensor, form)
            except Refused as reason:
                faulty.append(str(reason))
        elif not is_finite(tensor):
            faulty.append(f"{name} holds NaN or infinity")
        yield name, tensor


def _metadata(stated: Contribution) -> dict[str, str]:
    """Return what a body's file says of it, so that a resumed run need not ask again."""
    return {
        "asked": str(stated.start.iteration),
        "base": stated.start.base,
        "metrics": json.dumps(dict(stated.metrics), sort_keys=True),
        "facts": json.dumps(dict(stated.facts), sort_keys=True),
        "statistic": stated.statistic,
    }
