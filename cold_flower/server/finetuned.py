"""A model that was finetuned elsewhere, as a contribution to a run: does it fit, and to what base?

Checked is what `cold-flower fuse` checks of the folders that it fuses: family and configuration,
names and shapes, the tokenizer. Which base it was finetuned from is what its owner states, or the
base nearest to it.

A finetuning adds something to a model: what it had, is still in it. So how much of a base b a model
m holds is <m, b> / <b, b>, which is near 1 however far it went, and near 0 for a model that began
elsewhere. Counted are matrices: what has one dimension, such as a layer norm's weights near 1, is
alike in all models.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from cold_flower.errors import ModelError
from cold_flower.models import configurations, vocabularies
from cold_flower.models.adapter import Adapter, is_adapter
from cold_flower.models.bodies import match
from cold_flower.models.folder import ADAPTER, BESIDE, WEIGHTS, Folder
from cold_flower.repository.bases import STATE, Repository
from cold_flower.repository.dropbox import STATED
from cold_flower.repository.manifests import fused
from cold_flower.repository.provenance import MANIFEST, licence_of
from strategies.fusion import Weights, fingerprint, is_finite

LEAST = 0.5  # of a base, that a model finetuned from it holds
CLEAR = 2.0  # times as far as the nearest base is the next one, where there is no doubt


@dataclass(frozen=True)
class Finetuned:
    """A model that fits a run."""

    path: Path
    changed: Mapping[str, Callable[[Tensor], Tensor]]
    """What it makes of a tensor of its base's body, by name. The others, such as a pooler that it
    was saved without, are its base's."""
    iteration: int
    """Whose base it was finetuned from."""
    base: str
    """Fingerprint of that base."""
    how: str
    """How that base is known."""

    @property
    def recognised(self) -> str:
        """Say what it was finetuned from, and how that is known."""
        return f"base {self.iteration}, {self.how}"

    @property
    def licence(self) -> str:
        """Return the licence that its model card names, or ""."""
        return licence_of(self.path)

    def items(self, base: Weights) -> Iterator[tuple[str, Tensor]]:
        """Yield the body in float32, in its base's order."""
        for key, tensor in base.items():
            yield key, self.changed[key](tensor) if key in self.changed else tensor


def examine(
    model: str, repository: Repository, staleness: int, *, name: str = "", stated: str = ""
) -> Finetuned:
    """Check that a run can fuse a model.

    Args:
        model: a transformers folder, or a model of the hub; or the folder of a LoRA adapter.
        repository: of the run.
        staleness: how many bases older than the last one it may have been finetuned from.
        name: to call it by in messages.
        stated: fingerprint of its base; empty looks for the nearest one.

    Raises:
        ModelError: it does not fit, or is no finetuned model of a base of this run.
        RunError: its base has no weights any more.
    """
    start = Folder(str(repository.with_weights(0)))
    start.name, name = "the run's base", name or model
    bases = _Bases(repository, name, stated)
    if is_adapter(Path(model)):
        adapter = Adapter(Path(model), start)
        adapter.name = name
        _check_tokenizer(start, adapter)
        path, changed = adapter.path, {key: partial(_add, adapter, key) for key in adapter.keys}
        age, how = bases.of_adapter(adapter)
        unchanged = not any(adapter.difference(key).any() for key in adapter.keys)
    else:
        folder = Folder(model)
        folder.name = name
        configurations.check(start, folder)
        _check_tokenizer(start, folder)
        stored_as = _matched(start, folder, repository.body(0).keys())
        path = folder.path
        changed = {key: partial(_replace, folder, at) for key, at in stored_as.items()}
        age, how, unchanged = bases.of_model(folder, stored_as)
    iteration, sha256 = bases.lineage[age]
    if unchanged:
        raise ModelError(f"{name} is base {iteration} itself, not finetuned")
    if age > staleness:
        raise ModelError(
            f"{name} was finetuned from base {iteration}, which is {age} bases older than the last "
            f"one; at most {staleness} count (staleness)"
        )
    found = Finetuned(path, changed, iteration, sha256, how)
    _check_new(name, found, repository)
    return found


def _replace(folder: Folder, stored: str, base: Tensor) -> Tensor:
    return folder[stored].float()


def _add(adapter: Adapter, key: str, base: Tensor) -> Tensor:
    return base + adapter.difference(key)


def _check_tokenizer(start: Folder, model: Folder | Adapter) -> None:
    ours = vocabularies.read(start)
    theirs = vocabularies.read(model, like=ours) if ours else None
    if ours and theirs:
        vocabularies.check(ours, theirs)


def _matched(start: Folder, folder: Folder, whole: Sequence[str]) -> dict[str, str]:
    """Return which of a body's tensors a folder has, and their names in its file."""
    (body, names), _ = match(start, [folder], by_token=False)
    if foreign := [key for key in whole if key not in start.body]:
        raise ModelError(f"{folder.name}: the run's bodies hold {foreign[0]}, as no folder does")
    return {key: names[key] for key in whole if key in body}


def _check_new(name: str, model: Finetuned, repository: Repository) -> None:
    """Check that no base of the lineage is made of these weights already."""
    there = {
        row["sha256"]: f"iteration {one['iteration']} as {row['name']}"
        for one in repository.line()
        for row in fused(one)
    }
    sha256 = fingerprint(model.items(repository.body(model.iteration)))
    if sha256 in there:
        raise ModelError(f"{name}: the same weights went into {there[sha256]}: once is enough")


@dataclass
class _Near:
    """How near a model is to a base."""

    square: float = 0.0
    """Of the distance."""
    inner: float = 0.0
    """Of the two, over matrices."""
    own: float = 0.0
    """Of the base with itself, over matrices."""

    @property
    def holds(self) -> float:
        return self.inner / self.own if self.own else 1.0


class _Bases:
    """The bases of a run's lineage, one of which a model was finetuned from."""

    def __init__(self, repository: Repository, name: str, stated: str) -> None:
        self._repository, self._name, self._stated = repository, name, stated
        self.lineage = repository.recent(len(repository.numbers()))
        """Iteration and fingerprint, the newest first."""
        self._known = [sha256 for _, sha256 in self.lineage]
        if stated and stated not in self._known:
            ours = ", ".join(f"{i} has {sha256[:12]}" for i, sha256 in self.lineage)
            raise ModelError(
                f"{name} states a base with sha256 {stated[:12]}..., which is none of this run's: "
                f"{ours}"
            )

    def of_adapter(self, adapter: Adapter) -> tuple[int, str]:
        """Return how many bases ago an adapter began, and how that is known."""
        if self._stated:
            return self._known.index(self._stated), "as stated"
        path = Path(str(adapter.config.get("base_model_name_or_path") or ""))
        number = int(path.name) if path.name.isdecimal() else -1  # `latest` was another one then
        for age, (iteration, _) in enumerate(self.lineage):
            if iteration == number and path.parent.resolve() == self._repository.folder.resolve():
                return age, "as its configuration says"
        raise ModelError(
            f"{self._name} is an adapter, and only what it adds to its base: state that base "
            f"(--base, or base in {STATED}); its {ADAPTER} names {str(path)!r}"
        )

    def of_model(self, folder: Folder, stored_as: Mapping[str, str]) -> tuple[int, str, bool]:
        """Return how many bases ago a model began, how that is known, and whether it is the base.

        Raises:
            ModelError: it did not begin from one of these.
            RunError: the base that it states has no weights any more.
        """
        ages = [self._known.index(self._stated)] if self._stated else range(len(self._known))
        bodies = {}
        for age in ages:
            iteration, _ = self.lineage[age]
            if self._stated or (self._repository.path(iteration) / WEIGHTS).exists():
                self._repository.with_weights(iteration)
                bodies[age] = self._repository.body(iteration)
        found = _compare(folder, stored_as, bodies)
        age = min(found, key=lambda at: (found[at].square, at))
        near = found[age]
        if not near.holds >= LEAST:
            what = "the base that it states" if self._stated else "any base of this run"
            raise ModelError(
                f"{self._name} holds {near.holds:.0%} of {what}, at least {LEAST:.0%} is expected: "
                "it was finetuned from another model"
            )
        how = "as stated" if self._stated else "the nearest"
        next_one = self._nearly_as_near(found, age)
        return age, f"{how} ({near.holds:.0%} of it is in the model{next_one})", not near.square

    def _nearly_as_near(self, found: Mapping[int, _Near], age: int) -> str:
        """Say which other base a model may have begun from; a newer one holds what others added."""
        others = {at: near.square for at, near in found.items() if at != age}
        if not others or not found[age].square:
            return ""
        at = min(others, key=lambda at: (others[at], at))
        further = math.sqrt(others[at] / found[age].square)
        iteration, _ = self.lineage[at]
        if further >= CLEAR:
            return ""
        return (
            f"; base {iteration} is {further:.2f} times as far: state which it was, by --base or "
            f"in {STATED}"
        )


def _compare(
    folder: Folder, stored_as: Mapping[str, str], bodies: Mapping[int, Weights]
) -> dict[int, _Near]:
    """Compare a model with some bases.

    Raises:
        ModelError: NaN or infinity, by tensor.
    """
    found = {at: _Near() for at in bodies}
    for key, stored in stored_as.items():
        ours = folder[stored].float()
        if not is_finite(ours):
            raise ModelError(f"{folder.name}: tensor {stored} holds NaN or infinity")
        for at, body in bodies.items():
            base, near = body.get(key), found[at]
            near.square += float(torch.linalg.vector_norm(ours - base)) ** 2
            if base.dim() > 1:
                near.inner += float(torch.dot(ours.flatten(), base.flatten()))
                near.own += float(torch.linalg.vector_norm(base)) ** 2
    return found


def files(path: Path) -> dict[str, Path]:
    """Return what of a model's files makes a contribution, by name: no pickle, and no code."""
    kinds = {".safetensors", ".md", *BESIDE} - {".py", ".jinja"}
    own = (MANIFEST, STATED, STATE)
    there = [file for file in path.iterdir() if file.suffix in kinds and file.name not in own]
    return {file.name: file for file in sorted(there) if file.is_file()}
