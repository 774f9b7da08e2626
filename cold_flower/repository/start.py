"""Whether the base model of a run that goes on is still the one that it began with."""

import hashlib
from pathlib import Path

import torch

from cold_flower.errors import RunError
from cold_flower.identity import versions
from cold_flower.models.base import Base, load_base
from cold_flower.models.folder import Folder
from cold_flower.repository.bases import Repository
from cold_flower.repository.journal import facts_of

MODEL = "model"  # in the manifest of iteration 0: see `described`


def described(base: Base) -> str:
    """Return a sha256 of a base model's shape and tokenizer, and of where that cuts texts."""
    cut = f"{base.tokenizer.model_max_length} {base.tokenizer.truncation_side}"
    return hashlib.sha256(f"{base.sha256} {cut}".encode()).hexdigest()


def check_start(repository: Repository, base_model: str) -> None:
    """Check that a run which goes on began with what its base model's folder holds now.

    The weights are compared with iteration 0, tensor by tensor; what that drew in place of a
    missing pooler is left out. Shape and tokenizer are compared as far as the same versions of the
    libraries describe them: no base was trained with other tokens. A name of the hub stands for
    what it named at the beginning.

    Args:
        repository: of the run.
        base_model: a folder, or the name of a model.

    Raises:
        RunError: the weights, the shape or the tokenizer in the folder are others.
        ModelError: the folder cannot be read.
    """
    if repository.latest() is None or not Path(base_model).is_dir():
        return
    now, start = Folder(base_model), repository.body(0)
    shared = now.body.keys() & set(start.keys())
    same = (torch.equal(now[now.body[name]].float(), start.get(name)) for name in shared)
    alike = facts_of(repository.folder.parent).get("versions", [""])[0] == versions()
    model = described(load_base(base_model))
    if not shared or not all(same):
        holds = "other weights"
    elif alike and repository.manifest(0).get(MODEL, model) != model:
        holds = "another shape or tokenizer"
    else:
        return
    raise RunError(
        f"cannot resume {repository.folder.parent}: base-model {base_model} holds {holds} than "
        "when that run began, and its scores are of that. For this one give it a directory of its "
        "own (--run-dir)"
    )
