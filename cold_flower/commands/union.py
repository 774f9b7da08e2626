"""``--vocabulary union``: models that added tokens, fused token by token.

The base's tokens keep their ids; behind them come those that the models added, in their order.
The rule fuses the rows of tokens that the base has. A model that lacks one is given the mean of
those that have it, so that the mean does not move. A token that the base lacks becomes the mean of
the models that have it, whatever the rule.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cold_flower.errors import ModelError
from cold_flower.models.vocabularies import (
    ADDED,
    FULL,
    MERGES,
    PLAIN,
    SETTINGS,
    Vocabulary,
    parsed,
)
from strategies.fusion import Template, Weights

Form = tuple[torch.dtype, tuple[int, ...]]
_STALE = (*PLAIN, *MERGES, ADDED)  # tokenizer.json says it all
_MATCHED = {
    "single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False,
}  # fmt: skip
_LISTS = ("WordLevel", "WordPiece")  # a word more does not change how the others are cut


class Union:
    """Bodies whose embeddings have a row for each token that any model has.

    Args:
        base: the base's body.
        models: the models' bodies.
        keys: the tensors that have a row for each token.
        vocabularies: of the base; then of each model.

    Raises:
        ModelError: a model has no vocabulary, or ids beyond its embedding.
    """

    def __init__(
        self,
        base: Weights,
        models: Sequence[Weights],
        keys: Sequence[str],
        vocabularies: Sequence[Vocabulary],
    ) -> None:
        bodies = [base, *models]
        if not keys:
            raise ModelError(
                f"model {base.name}: no input embedding, which --vocabulary union needs"
            )
        if missing := {m.name for m in bodies} - {v.name for v in vocabularies}:
            raise ModelError(f"model {min(missing)}: no vocabulary, which --vocabulary union needs")
        sizes = [body.template()[keys[0]][1][0] for body in bodies]
        for vocabulary, size in zip(vocabularies, sizes, strict=True):
            if (last := max(vocabulary.tokens)) >= size:
                raise ModelError(
                    f"model {vocabulary.name}: token {vocabulary.tokens[last]!r} has id {last}, "
                    f"the embedding has {size} rows"
                )
        self._base = vocabularies[0]
        self._new: dict[str, Vocabulary] = {}  # each with the first model that has it
        for vocabulary in vocabularies[1:]:
            for _, token in sorted(vocabulary.tokens.items()):
                if token not in self._base.ids:
                    self._new.setdefault(token, vocabulary)
        first = max(self._base.tokens) + 1
        self._ids = {**self._base.ids, **{token: first + i for i, token in enumerate(self._new)}}
        self._size, self._old_size = max(sizes[0], first + len(self._new)), sizes[0]
        rows = [self._rows(v, size) for v, size in zip(vocabularies, sizes, strict=True)]
        means = {key: _means([body.get(key) for body in bodies], rows) for key in keys}
        self.theta: Weights = _United(base, rows[0], rows[0], means)
        self.given: list[Weights] = [
            _United(model, own, rows[0], means) for model, own in zip(models, rows[1:], strict=True)
        ]

    def _rows(self, vocabulary: Vocabulary, size: int) -> Tensor:
        """Return, for each row of the union, the row of a model's own embedding, or -1."""
        rows = torch.arange(self._size)
        rows[rows >= size] = -1
        rows[[i for i in vocabulary.tokens if i < self._size]] = -1  # padding is left
        for token, i in self._ids.items():
            rows[i] = vocabulary.ids.get(token, -1)
        return rows

    def widened(self, form: Form) -> Form:
        """Return dtype and shape of a head's tensor that had a row for each of the base's."""
        dtype, shape = form
        return dtype, (self._size, *shape[1:]) if shape[:1] == (self._old_size,) else shape

    def padded(self, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Return a head's tensor in that shape: rows of new tokens are zero, as a new bias is."""
        if tuple(tensor.shape) == shape:
            return tensor
        return torch.cat([tensor, tensor.new_zeros(shape[0] - len(tensor), *shape[1:])])

    def write(self, folder: Path) -> None:
        """Add the new tokens to a copy of the base's tokenizer, and their number to config.json.

        Raises:
            ModelError: a token cannot be added to a tokenizer of this kind.
        """
        _edit(folder / "config.json", {"vocab_size": self._size})
        if not self._new:
            return
        whole = json.loads(self._base.backend or "{}")
        kind = whole.get("model", {}).get("type") or "of an unknown kind"
        added = {}
        for token, model in self._new.items():
            if "added_tokens" not in whole or (token not in model.added and kind not in _LISTS):
                raise ModelError(
                    f"model {model.name}: token {token!r} cannot be added to the base's tokenizer "
                    f"({kind}): --vocabulary union takes tokens that came by add_tokens, and words "
                    f"of a vocabulary of kind {' or '.join(_LISTS)}"
                )
            if token in model.added:
                flags = {key: model.added[token].get(key, no) for key, no in _MATCHED.items()}
                added[self._ids[token]] = {"content": token, **flags}
            else:
                whole["model"]["vocab"][token] = self._ids[token]
        whole["added_tokens"] += [{"id": i, **flags} for i, flags in added.items()]
        text = json.dumps(whole, ensure_ascii=False)
        united = parsed(text, self._base.name)
        for token, i in self._ids.items():  # the library counts for itself
            if (found := united.token_to_id(token)) != i:
                raise ModelError(
                    f"model {self._base.name}: with the models' tokens its {FULL} gives token "
                    f"{token!r} the id {found} instead of {i}: are there gaps between its ids?"
                )
        (folder / FULL).write_text(text, "utf-8")
        listed = self._base.settings.get("added_tokens_decoder")
        if listed:  # where there is this list, transformers takes added tokens from it alone
            entries = {str(i): flags for i, flags in added.items()}
            _edit(folder / SETTINGS, {"added_tokens_decoder": {**listed, **entries}})
        for name in _STALE:
            (folder / name).unlink(missing_ok=True)


class _United(Weights):
    """A body whose embeddings have the union's rows.

    Args:
        whole: the body.
        rows: for each row of the union its own, or -1.
        of_base: the same of the base.
        means: by key, what stands for rows that it lacks.
    """

    def __init__(
        self, whole: Weights, rows: Tensor, of_base: Tensor, means: Mapping[str, Tensor]
    ) -> None:
        self.name, self.examples, self.steps = whole.name, whole.examples, whole.steps
        self._whole, self._means, self._rows = whole, means, rows
        self._is_base = rows is of_base
        # A token that the base lacks has one row everywhere, so that no rule moves it.
        self._own = (rows >= 0) & (of_base >= 0)

    def keys(self) -> list[str]:
        """Return the tensors' names."""
        return self._whole.keys()

    def get(self, key: str) -> Tensor:
        """Return a tensor; an embedding of a model is float32, for it may hold means."""
        tensor = self._whole.get(key)
        if key not in self._means:
            return tensor
        means = self._means[key]
        dtype = tensor.dtype if self._is_base else torch.promote_types(tensor.dtype, means.dtype)
        united = means.to(dtype, copy=True)
        united[self._own] = tensor[self._rows[self._own]].to(united.dtype)
        return united

    def template(self) -> Template:
        """Return dtypes and shapes by name."""
        template = self._whole.template()
        size = (len(self._rows),)
        return template | {
            key: (template[key][0], size + template[key][1][1:]) for key in self._means
        }


def _means(tensors: Sequence[Tensor], rows: Sequence[Tensor]) -> Tensor:
    """Return the mean of the models that have a row, for rows that base or a model lacks.

    It is float32 [rows, width], where the base lacks a row as its dtype has it; zero for rows that
    all have.
    """
    base, *models = tensors
    lacked = torch.stack(list(rows)).lt(0).any(0)
    total = torch.zeros(len(lacked), base.shape[1])
    count = torch.zeros(len(lacked), 1)
    for own, tensor in zip(rows[1:], models, strict=True):
        there = lacked & (own >= 0)
        total[there] += tensor[own[there]].float()
        count[there] += 1
    alone = lacked & (count[:, 0] == 0)  # in no model: it stays the base's
    total[alone] = base[rows[0][alone]].float()
    means, absent = total.div_(count.clamp_(min=1)), rows[0] < 0
    means[absent] = means[absent].to(base.dtype).float()
    return means


def _edit(path: Path, changes: Mapping[str, Any]) -> None:
    """Change keys of a JSON file."""
    table = {**json.loads(path.read_text("utf-8")), **changes}
    path.write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n", "utf-8")
