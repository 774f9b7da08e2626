"""Finetuning on a GPU: no step waits for it.

Before each forward pass transformers asks the GPU whether a batch is without padding, to leave the
attention's mask out. The answer takes until all that was sent there before is done, and the GPU
then stands idle until the next kernels come. Here an encoder always gets its mask. (DeBERTa and
MPNet do not use SDPA; they go on asking.)
"""

from typing import Any

from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "cold-flower-gpu"


def mask(*given: Any, **more: Any) -> Tensor | None:
    """Make the mask, True where a token counts: [batch, 1, tokens, tokens]."""
    made: Tensor | None = sdpa_mask(*given, **{**more, "allow_is_bidirectional_skip": False})
    return made


AttentionInterface.register(ATTENTION, sdpa_attention_forward)
AttentionMaskInterface.register(ATTENTION, mask)


def adapt(model: Any) -> None:
    """Have a model that asks for SDPA make its masks here."""
    library = model if isinstance(model, PreTrainedModel) else model.base_model  # T5 is wrapped
    if library.config._attn_implementation == "sdpa":
        library.set_attn_implementation(ATTENTION)
