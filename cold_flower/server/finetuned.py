"""A model that was finetuned elsewhere, as a contribution to a run: does it fit, and to what base?

Checked is what `cold-flower fuse` checks of the folders that it fuses: family and configuration,
names and shapes, the tokenizer. Which base it was finetuned from is what its owner states, or the
base nearest to it.

A finetuning adds something to a model: what it had, is still in it. So how much of a base b a model
m holds is <m, b> / <b, b>, which is near 1 however far it went, and near 0 for a model that began
elsewhere. Counted are matrices: what has one dimension, such as a layer norm's weights near 1, is
alike in all models.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cold_flower.errors import ModelError, RunError
from cold_flower.models import configurations, vocabularies
from cold_flower.models.bodies import match
from cold_flower.models.folder import WEIGHTS, Folder
from cold_flower.repository.bases import Repository
from cold_flower.repository.provenance import CARD
from strategies.fusion import Weights, is_finite

LEAST = 0.5  # of a base, that a model finetuned from it holds


@dataclass(frozen=True)
class Finetuned:
    """A model that fits a run."""

    folder: Folder
    stored_as: Mapping[str, str]
    """Of the body's tensors that it has: the name in its file, by the name in the body."""
    lacks: Sequence[str]
    """The body's others, such as a pooler that it was saved without: they are its base's."""
    iteration: int
    """Whose base it was finetuned from."""
    base: str
    """Fingerprint of that base."""
    age: int
    """How many bases were published since."""
    holds: float
    """How much of that base is in it; 1 is all."""
    stated: bool
    """Its owner says so; else it is the nearest base."""

    @property
    def recognised(self) -> str:
        """Say what it was finetuned from, and how that is known."""
        how = "as stated" if self.stated else "the nearest"
        return f"base {self.iteration}, {how} ({self.holds:.0%} of it is in the model)"

    @property
    def licence(self) -> str:
        """Return the licence that its model card names, or ""."""
        from huggingface_hub import ModelCard

        try:
            named = ModelCard.load(self.folder.path / CARD).data.license
        except Exception:  # no card, or any fault that somebody's YAML may have
            return ""
        return str(named or "")

    def items(self, base: Weights) -> Iterator[tuple[str, Tensor]]:
        """Yield the body in float32, in its base's order."""
        for key in base.keys():  # noqa: SIM118 - no dict
            yield key, (base.get(key) if key in self.lacks else _tensor(self, key))


def _tensor(model: Finetuned, key: str) -> Tensor:
    return model.folder[model.stored_as[key]].float()


def examine(
    model: str, repository: Repository, staleness: int, *, name: str = "", stated: str = ""
) -> Finetuned:
    """Check that a run can fuse a model.

    Args:
        model: a transformers folder, or a model of the hub.
        repository: of the run.
        staleness: how many bases older than the last one it may have been finetuned from.
        name: to call it by in messages.
        stated: fingerprint of its base; empty looks for the nearest one.

    Raises:
        ModelError: it does not fit, or is no finetuned model of a base of this run.
        RunError: its base has no weights any more.
    """
    start, folder = Folder(str(repository.with_weights(0))), Folder(model)
    start.name, folder.name = "the run's base", name or model
    configurations.check(start, folder)
    ours = vocabularies.read(start)
    theirs = vocabularies.read(folder, like=ours) if ours else None
    if ours and theirs:
        vocabularies.check(ours, theirs)
    (body, names), _ = match(start, [folder], by_token=False)
    whole = repository.body(0).keys()
    if foreign := [key for key in whole if key not in start.body]:
        raise ModelError(f"{folder.name}: the run's bodies hold {foreign[0]}, as no folder does")
    lacks = [key for key in whole if key not in body]
    stored_as = {key: names[key] for key in whole if key in body}
    lineage = repository.recent(len(repository.numbers()))
    age, near = _origin(folder, stored_as, repository, lineage, stated)
    iteration, sha256 = lineage[age]
    if not near.square:
        raise ModelError(f"{folder.name} is base {iteration} itself, not finetuned")
    if age > staleness:
        raise ModelError(
            f"{folder.name} was finetuned from base {iteration}, which is {age} bases older than "
            f"the last one; at most {staleness} count (staleness)"
        )
    return Finetuned(folder, stored_as, lacks, iteration, sha256, age, near.holds, bool(stated))


def _origin(
    folder: Folder,
    stored_as: Mapping[str, str],
    repository: Repository,
    lineage: Sequence[tuple[int, str]],
    stated: str,
) -> tuple[int, "_Near"]:
    """Return which of the lineage a model was finetuned from, and how near it is."""
    known = [sha256 for _, sha256 in lineage]
    if stated and stated not in known:
        raise ModelError(
            f"{folder.name} states a base with sha256 {stated[:12]}..., which is none of this "
            f"run's: {', '.join(f'{i} has {sha256[:12]}' for i, sha256 in lineage)}"
        )
    candidates = [known.index(stated)] if stated else range(len(known))
    bodies = {
        at: repository.body(lineage[at][0])
        for at in candidates
        if (repository.path(lineage[at][0]) / WEIGHTS).exists()
    }
    if not bodies:
        raise RunError(f"base {lineage[candidates[0]][0]} has no weights any more: keep-iterations")
    found = _compare(folder, stored_as, bodies)
    age = min(found, key=lambda at: (found[at].square, at))
    if not found[age].holds >= LEAST:
        what = "the base that it states" if stated else "any base of this run"
        raise ModelError(
            f"{folder.name} holds {found[age].holds:.0%} of {what}, at least {LEAST:.0%} is "
            "expected: it was finetuned from another model"
        )
    return age, found[age]


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


def files(folder: Folder) -> dict[str, Path]:
    """Return what of a folder's files makes a contribution, by name: no pickle, and no code."""
    beside = [path for path in folder.path.iterdir() if path.suffix in (".json", ".md", *_TOKENS)]
    weights = [folder.path / name for name in folder.files]
    return {path.name: path for path in (*beside, *weights) if path.is_file()}


_TOKENS = (".txt", ".model", ".spm", ".codes", ".bpe", ".vocab", ".tokenizer", ".tiktoken")
