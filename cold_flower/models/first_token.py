"""Of the last layer, compute only what the head reads: the first token.

The head of a BERT, RoBERTa or ELECTRA classifier, and BERT's pooler, read the first token's last
hidden state and nothing else. Of the other tokens not even keys and values are made: a query times
the keys is the query, times the keys' weights, times the states, and products in that order have
one row for each head instead of one for each token. So the last layer costs next to nothing.
Outputs and gradients are the whole layer's, up to rounding.
"""

from typing import Any

import torch
from torch import Tensor, nn

from cold_flower.models import cores, gpus
from cold_flower.models.families import FIRST_TOKEN


class FirstToken(nn.Module):
    """Stands where a model's last layer stood, with its parts under their names.

    Args:
        layer: a BERT, RoBERTa or ELECTRA layer.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.attention = layer.attention
        self.intermediate = layer.intermediate
        self.output = layer.output

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, *_: Any, **__: Any
    ) -> Tensor:
        """Return the first token's state, [batch, 1, hidden], of all tokens'.

        Args:
            hidden_states: [batch, tokens, hidden].
            attention_mask: [batch, 1, tokens, tokens], of queries and keys: True where a token
                counts, or what is added to the scores.
        """
        own, first = self.attention.self, hidden_states[:, :1]
        split = (-1, own.attention_head_size)
        # b: example, h: head, s: its units, t: token, n: hidden unit
        query = own.query(first).squeeze(1).unflatten(-1, split)
        asked = torch.einsum("bhs,hsn->bhn", query, own.key.weight.unflatten(0, split))
        scores = torch.einsum("bhn,btn->bht", asked, hidden_states)
        scores = scores + (query * own.key.bias.unflatten(0, split)).sum(-1, keepdim=True)
        scores = scores * own.scaling
        if attention_mask is not None:
            row = attention_mask[:, :, 0]
            if row.dtype == torch.bool:
                scores = scores.masked_fill(~row, torch.finfo(scores.dtype).min)
            else:
                scores = scores + row
        weights = own.dropout(scores.softmax(-1))
        mixed = torch.einsum("bht,btn->bhn", weights, hidden_states)
        values = torch.einsum("bhn,hsn->bhs", mixed, own.value.weight.unflatten(0, split))
        # The weights sum to 1 only where none is dropped.
        values = values + weights.sum(-1, keepdim=True) * own.value.bias.unflatten(0, split)
        attended = self.attention.output(values.flatten(1).unsqueeze(1), first)
        made: Tensor = self.output(self.intermediate(attended), attended)
        return made


def adapt(model: Any) -> None:
    """Have a classifier whose head reads the first token compute no other in its last layer."""
    shape = model.config
    if (
        shape.model_type in FIRST_TOKEN
        and shape.num_hidden_layers
        and not shape.is_decoder
        and shape._attn_implementation in (cores.ATTENTION, gpus.ATTENTION)
    ):
        layers = model.base_model.encoder.layer
        layers[-1] = FirstToken(layers[-1])
