"""Train only those word embeddings whose tokens occur in the data.

Most of a vocabulary never occurs in one contributor's data. Those rows get no gradient: all that
AdamW does to them is weight decay, which is one factor for all of them. So they are left out of
training and multiplied by that factor at the end. The result is that of training the whole
matrix, up to rounding. It saves much of a step's time, because half of a small encoder is its
embedding.

AdaFactor does not move those rows either. But the RMS of the whole matrix, and that of its whole
update, set the length of its step, so with AdaFactor the embedding stays whole. So it does with a
proximal term, which pulls back what weight decay moved (`cold_flower.training.proximal`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from cold_flower.config import Finetune
from cold_flower.data.encode import Encoded


class TrimmedEmbedding(nn.Module):
    """Stands in for a word embedding, with the rows of some tokens only.

    Args:
        full: the embedding that it replaces, [vocabulary, hidden].
        tokens: whose rows to hold, int64 [kept], sorted and distinct.
    """

    decay: Tensor

    def __init__(self, full: nn.Embedding, tokens: Tensor) -> None:
        super().__init__()
        tokens = tokens.to(full.weight.device)
        self._full = [full]  # in a list: as a submodule its parameters would be trained, too
        self._tokens = tokens
        self._row = torch.full((full.num_embeddings,), -1, device=tokens.device)  # by token
        self._row[tokens] = torch.arange(len(tokens), device=tokens.device)
        padding = full.padding_idx
        self._padding = None if padding is None else int(self._row[padding])
        self.weight = nn.Parameter(full.weight.detach()[tokens])
        # The factor of all other rows. As a buffer it is kept and restored with the best weights.
        self.register_buffer("decay", torch.ones((), dtype=torch.float64))

    def forward(self, ids: Tensor) -> Tensor:
        """Look tokens up, as the full embedding would."""
        return functional.embedding(self._row[ids], self.weight, self._padding)

    def count_step(self, learning_rate: float, weight_decay: float) -> None:
        """Count a step of AdamW, which decays the rows that are not here."""
        self.decay *= 1 - learning_rate * weight_decay

    def restore(self) -> nn.Embedding:
        """Return the full embedding: its rows here as trained, all others decayed."""
        (full,) = self._full
        with torch.no_grad():
            full.weight *= self.decay.to(full.weight.dtype)
            full.weight[self._tokens] = self.weight
        return full


@contextmanager
def trimmed_embedding(
    model: Any, *data: Encoded | None, options: Finetune
) -> Iterator[TrimmedEmbedding | None]:
    """Trim a model's word embedding to the tokens of these data while the context lasts.

    Yields None, and changes nothing, where the embedding is frozen, where it is used for more
    than to look up these tokens (T5 shares it with its decoder and output layer), or where
    other rows move by more than AdamW's weight decay: with AdaFactor, or a proximal term.
    """
    full = model.get_input_embeddings() if isinstance(model, PreTrainedModel) else None
    whole = options.optimizer != "adamw" or options.proximal_mu > 0
    if whole or type(full) is not nn.Embedding or not full.weight.requires_grad:
        yield None
        return
    occurs = torch.zeros(full.num_embeddings, dtype=torch.bool, device=full.weight.device)
    if full.padding_idx is not None:
        occurs[full.padding_idx] = True
    for part in data:
        if part is not None:
            occurs[part.padding] = True
            occurs[part.ids.to(occurs.device)] = True
    trimmed = TrimmedEmbedding(full, occurs.nonzero().squeeze(1))
    model.set_input_embeddings(trimmed)
    try:
        yield trimmed
    finally:
        model.set_input_embeddings(trimmed.restore())
