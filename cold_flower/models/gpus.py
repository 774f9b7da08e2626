"""Keep a GPU from waiting for the CPU during finetuning.

Before each forward pass transformers asks the GPU whether a batch has no padding, so that the
attention mask can be left out. The answer comes only when the GPU has done all its work so far;
until then no new work is sent, and it runs dry. Here an encoder always gets its mask, so nobody
asks. (DeBERTa and MPNet do not use SDPA, and still ask.)
"""

from typing import Any

from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "cold-flower-gpu"


def always_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """Make the mask, True where a token counts: [batch, 1, tokens, tokens]."""
    mask: Tensor | None = sdpa_mask(*args, **{**kwargs, "allow_is_bidirectional_skip": False})
    return mask


AttentionInterface.register(ATTENTION, sdpa_attention_forward)
AttentionMaskInterface.register(ATTENTION, always_mask)


def adapt(model: Any) -> None:
    """Have a model that asks for SDPA always make its masks."""
    library = model if isinstance(model, PreTrainedModel) else model.base_model  # T5 is wrapped
    if library.config._attn_implementation == "sdpa":
        library.set_attn_implementation(ATTENTION)
