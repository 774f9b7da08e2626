"""In the last layer, compute the first token only: the head reads no other.

The head of a BERT, ELECTRA or RoBERTa classifier (XLM-RoBERTa and CamemBERT are RoBERTas), and
BERT's pooler, read the first token's last hidden state and nothing else. So the last layer needs
one query, and no keys and values at all:

- A score is query . (W_k x) = (W_k^T query) . x. On the right the weights are multiplied with one
  vector per head, on the left with one per token.
- The output is a sum over tokens, sum(a W_v x) = W_v sum(a x). Again the right side multiplies
  the weights once per head.

The last layer then costs next to nothing. Outputs and gradients are the whole layer's, up to
rounding.
"""

from typing import Any

import torch
from torch import Tensor, nn

from cold_flower.models import cores, gpus
from cold_flower.models.families import FIRST_TOKEN


class FirstToken(nn.Module):
    """Replaces a model's last layer; its parts keep their names.

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
        """Return the first token's state, [batch, 1, hidden].

        Args:
            hidden_states: of all tokens, [batch, tokens, hidden].
            attention_mask: [batch, 1, tokens, tokens], of queries and keys. Either True where a
                token counts, or what is added to the scores.
        """
        own, first = self.attention.self, hidden_states[:, :1]
        heads = (-1, own.attention_head_size)
        # b: example, h: head, s: unit of a head, t: token, n: hidden unit
        query = own.query(first).squeeze(1).unflatten(-1, heads)
        over_states = torch.einsum("bhs,hsn->bhn", query, own.key.weight.unflatten(0, heads))
        scores = torch.einsum("bhn,btn->bht", over_states, hidden_states)
        scores = scores + (query * own.key.bias.unflatten(0, heads)).sum(-1, keepdim=True)
        scores = scores * own.scaling
        if attention_mask is not None:
            mask = attention_mask[:, :, 0]
            if mask.dtype == torch.bool:
                scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
            else:
                scores = scores + mask
        weights = own.dropout(scores.softmax(-1))
        mixed = torch.einsum("bht,btn->bhn", weights, hidden_states)
        values = torch.einsum("bhn,hsn->bhs", mixed, own.value.weight.unflatten(0, heads))
        # Every token adds the bias, times its weight; after dropout these do not sum to 1.
        values = values + weights.sum(-1, keepdim=True) * own.value.bias.unflatten(0, heads)
        attended = self.attention.output(values.flatten(1).unsqueeze(1), first)
        state: Tensor = self.output(self.intermediate(attended), attended)
        return state


def adapt(model: Any) -> None:
    """Replace a classifier's last layer, where its head reads the first token."""
    config = model.config
    if (
        config.model_type in FIRST_TOKEN
        and config.num_hidden_layers
        and not config.is_decoder
        and config._attn_implementation in (cores.ATTENTION, gpus.ATTENTION)
    ):
        layers = model.base_model.encoder.layer
        layers[-1] = FirstToken(layers[-1])
