"""Which tensors of several folders are fused with one another: their bodies, name by name."""

from collections.abc import Sequence

from cold_flower.errors import ModelError, TokensError
from cold_flower.models.folder import QUANTISED, Folder, is_tied_name

Names = dict[str, str]
"""A body: each tensor's name in it, and its name in the file."""


def match(base: Folder, models: Sequence[Folder], by_token: bool) -> tuple[list[Names], list[str]]:
    """Return the bodies of base and models, and what of the base's some model lacks (a pooler).

    All have the same names. A tied tensor is in it once, whichever of its names a file holds.

    Args:
        base: what the models were finetuned from.
        models: the contributions.
        by_token: embeddings may have other numbers of rows.

    Raises:
        ModelError: a tensor that is in one of them only, or that differs in shape or kind.
    """
    ours, left = dict(base.body), []
    bodies = []
    for model in models:
        theirs = dict(model.body)
        for alias in model.tied:  # its own tensor in the base, if equal to another in this model
            if (name := model.named(alias)) in base.body:
                theirs.setdefault(name, alias)
        for key in sorted(ours.keys() - theirs.keys()):
            if not _may_lack(model, base, key):
                raise ModelError(f"model {model.name} has no tensor {key}, which {base.name} has")
            left.append(key)
            del ours[key]
        for key in sorted(theirs.keys() - base.body.keys()):
            if is_tied_name(key) and base.embedding:
                raise ModelError(
                    f"model {model.name}: {key} is a tensor of its own, in the base {base.name} it "
                    "is tied to the embedding"
                )
            if "pooler." not in key and model.template[theirs[key]][0].is_floating_point:
                raise ModelError(f"model {base.name} has no tensor {key}, which {model.name} has")
        for key, stored in ours.items():
            _check(base, stored, model, theirs[key], key, by_token)
        bodies.append(theirs)
    return [{key: body[key] for key in ours} for body in (ours, *bodies)], left


def _may_lack(model: Folder, base: Folder, key: str) -> bool:
    """Return whether a model is whole without a tensor: a pooler, or a buffer.

    T5 is all body, but a T5 that was made a classifier has no LM head.
    """
    buffer = not base.template[base.body[key]][0].is_floating_point
    return "pooler." in key or buffer or (key == "lm_head.weight" and not model.bare)


def _check(base: Folder, ours: str, model: Folder, theirs: str, key: str, by_token: bool) -> None:
    """Check that two tensors, named as in their files, can be fused."""
    (kind, shape), (other, found) = base.template[ours], model.template[theirs]
    floating = [kind.is_floating_point, other.is_floating_point]
    if floating == [True, False]:
        raise ModelError(
            f"model {model.name}: {key} is {other}, in the base {base.name} it is {kind}: "
            f"{QUANTISED}"
        )
    if not floating[0] and (floating[1] or key.endswith("weight")):
        raise ModelError(f"model {base.name}: {key} is {kind}: {QUANTISED}")
    per_token = is_tied_name(key)
    first = 1 if per_token and by_token else 0  # of the dimensions that count
    if shape[first:] != found[first:]:
        text = f"model {model.name}: {key} has shape {found}, in the base {base.name} it has "
        if per_token:
            raise TokensError(f"{text}{shape} (another vocabulary or size?)", more=True)
        raise ModelError(f"{text}{shape} (another size?)")
