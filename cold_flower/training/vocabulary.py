"""Train only the word embeddings of tokens that occur.

Most of a vocabulary never occurs in one contributor's data: those rows have no gradient, and all
that AdamW does to them is weight decay, a product that is known without touching them. The
result is that of training the whole matrix, up to rounding; a step costs a fraction of it,
because half of a small encoder is its embedding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from cold_flower.data.encode import Encoded


class Occurring(nn.Module):
    """The rows of an embedding whose tokens occur, in its place.

    Args:
        whole: [vocabulary, hidden].
        tokens: those that occur, int64 [kept], sorted and distinct.
    """

    decay: Tensor

    def __init__(self, whole: nn.Embedding, tokens: Tensor) -> None:
        super().__init__()
        tokens = tokens.to(whole.weight.device)
        self._whole = [whole]  # in a list: not a submodule, whose parameters would be trained
        self._tokens = tokens
        self._row = torch.full((whole.num_embeddings,), -1, device=tokens.device)
        self._row[tokens] = torch.arange(len(tokens), device=tokens.device)
        padding = whole.padding_idx
        self._padding = None if padding is None else int(self._row[padding])
        self.weight = nn.Parameter(whole.weight.detach()[tokens])
        # A buffer, so that it is kept and put back with the best weights.
        self.register_buffer("decay", torch.ones((), dtype=torch.float64))

    def forward(self, ids: Tensor) -> Tensor:
        """Look tokens up, as the whole would."""
        return functional.embedding(self._row[ids], self.weight, self._padding)

    def step(self, learning_rate: float, weight_decay: float) -> None:
        """Note a step of AdamW."""
        self.decay *= 1 - learning_rate * weight_decay

    def restore(self) -> nn.Embedding:
        """Return the whole, with what was learnt and what decayed."""
        (whole,) = self._whole
        with torch.no_grad():
            whole.weight *= self.decay.to(whole.weight.dtype)
            whole.weight[self._tokens] = self.weight
        return whole


@contextmanager
def occurring(model: Any, *data: Encoded | None) -> Iterator[Occurring | None]:
    """Keep only these data's tokens in a model's word embedding for a while.

    Yields nothing, and changes nothing, where the embedding is frozen or more than a look-up
    of these tokens (T5, whose output layer and decoder share it).
    """
    known = isinstance(model, PreTrainedModel)
    whole = model.get_input_embeddings() if known else None
    if type(whole) is not nn.Embedding or not whole.weight.requires_grad:
        yield None
        return
    there = torch.zeros(whole.num_embeddings, dtype=torch.bool, device=whole.weight.device)
    if whole.padding_idx is not None:
        there[whole.padding_idx] = True
    for part in (part for part in data if part is not None):
        there[part.padding] = True
        there[part.ids.to(there.device)] = True
    rows = Occurring(whole, there.nonzero().squeeze(1))
    model.set_input_embeddings(rows)
    try:
        yield rows
    finally:
        model.set_input_embeddings(rows.restore())
