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

from cold_flower.commands.vocabularies import ADDED, FULL, MERGES, PLAIN, Vocabulary
from cold_flower.errors import ModelError
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
        bodies, self._keys = [base, *models], keys
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
        rows[list(vocabulary.tokens)] = -1  # what is left is padding, behind the last token
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
        whole = json.loads(self._base.backend or "{}")
        kind = whole.get("model", {}).get("type")
        flags = {token: model.added.get(token) for token, model in self._new.items()}
        for token, added in flags.items():
            if kind is None or (added is None and kind not in _LISTS):
                raise ModelError(
                    f"model {self._new[token].name}: token {token!r} cannot be added to the base's "
                    f"tokenizer ({kind or f'it has no {FULL}'}): --vocabulary union takes tokens "
                    "that were added with add_tokens, and words of a list of words"
                )
            if added is None:
                whole["model"]["vocab"][token] = self._ids[token]
            else:
                matched = {**_MATCHED, **added, "content": token, "id": self._ids[token]}
                whole["added_tokens"].append(matched)
        _check_ids(whole, self._ids)
        (folder / FULL).write_text(json.dumps(whole, ensure_ascii=False))
        for name in _STALE:
            (folder / name).unlink(missing_ok=True)
        _edit(folder / "config.json", {"vocab_size": self._size})


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
        self.name, self.examples = whole.name, whole.examples
        self._whole, self._means, self._rows = whole, means, rows
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
        united = means.to(torch.promote_types(tensor.dtype, means.dtype), copy=True)
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

    It is [rows, width] in the base's dtype; zero for rows that all have.
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
    return total.div_(count.clamp_(min=1)).to(base.dtype)


def _check_ids(whole: Mapping[str, Any], ids: Mapping[str, int]) -> None:
    """Check that the library reads a tokenizer.json as it is meant: it counts added tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(json.dumps(whole))
    for token, i in ids.items():
        if (found := tokenizer.token_to_id(token)) != i:
            raise ModelError(f"the united {FULL} gives token {token!r} the id {found}, due is {i}")


def _edit(path: Path, changes: Mapping[str, Any]) -> None:
    """Change keys of a JSON file."""
    table = {**json.loads(path.read_text("utf-8")), **changes}
    path.write_text(json.dumps(table, indent=2, ensure_ascii=False) + "\n")
