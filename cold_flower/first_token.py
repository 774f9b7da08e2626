"""Of the last layer, compute only what the head reads: the first token.

The head of a BERT, RoBERTa or ELECTRA classifier, and BERT's pooler, read the first token's last
hidden state and nothing else. The last layer's keys and values need all tokens; its queries and
all that follows the attention do not: ten twelfths of its products with weights, where the
feed-forward is four times as wide. Outputs and gradients are the whole layer's, up to rounding.
"""

from typing import Any

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cold_flower import cores, gpus
from cold_flower.families import FIRST_TOKEN


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
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, *_: Any, **more: Any
    ) -> Tensor:
        """Return the first token's state, [batch, 1, hidden], of all tokens'.

        Args:
            hidden_states: [batch, tokens, hidden].
            attention_mask: [batch, 1, tokens, tokens], of queries and keys.
            more: for the attention.
        """
        own = self.attention.self
        first = hidden_states[:, :1]

        def heads(states: Tensor) -> Tensor:
            split: Tensor = states.unflatten(-1, (-1, own.attention_head_size))
            return split.transpose(1, 2)

        attend = ALL_ATTENTION_FUNCTIONS[own.config._attn_implementation]
        mixed, _ = attend(
            own,
            heads(own.query(first)),
            heads(own.key(hidden_states)),
            heads(own.value(hidden_states)),
            None if attention_mask is None else attention_mask[:, :, :1],
            dropout=own.dropout.p if own.training else 0.0,
            scaling=own.scaling,
            **more,
        )
        attended = self.attention.output(mixed.flatten(2), first)
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
