"""Finetuning on cores: dropout and attention, where torch is slow there.

Torch's dropout on a core takes four times as long as this one (4.1 ms against 0.9 ms for a batch of
32 x 54 x 384), and its ``scaled_dot_product_attention``, as soon as it drops something, a path of
many small steps. The mathematics is the same here, the random numbers are others. Without
dropout, and on GPUs, torch's own ways are used.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask

ATTENTION = "cold-flower"
_LANES = 4  # numbers of 16 bits in one draw of 64
_LEVELS = 1 << 16


def multiplier(like: Tensor, p: float) -> Tensor:
    """Draw what dropout multiplies with: 0 with probability ``p``, else the scale.

    ``p`` is rounded to a multiple of 2^-16, the scale is the inverse of what is kept exactly.
    """
    dropped = round(p * _LEVELS)
    if not 0 < dropped < _LEVELS:
        return torch.full_like(like, float(dropped == 0))
    size = like.numel()
    words = torch.empty(-(-size // _LANES), dtype=torch.int64).random_(-(2**63), None)
    lanes = words.view(torch.int16)[:size].view(like.shape)
    least = dropped - _LEVELS // 2  # that is kept; signed: the lanes begin at -2^15
    # Whole numbers made 0 and 1: a comparison and torch.where would take three times as long.
    kept = lanes.clamp_(least - 1, least).sub_(least - 1)
    return kept.to(like.dtype).mul_(_LEVELS / (_LEVELS - dropped))


class Dropout(nn.Dropout):
    """`torch.nn.Dropout` with masks that are drawn sixteen bits a number."""

    def forward(self, input: Tensor) -> Tensor:
        """Drop elements while training."""
        if not self.training or self.p == 0 or input.device.type != "cpu":
            return super().forward(input)
        return input * multiplier(input, self.p)


class Attention(torch.autograd.Function):
    """Attention with dropout, which keeps of each weight itself and its multiplier, no more.

    The softmax is of 32 bits: of 16 it takes torch twice as long, unless rows are multiples of 32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        scale: float,
        dropout: float,
    ) -> Tensor:
        """Mix the values: [batch, heads, tokens, size].

        The mask is added to the scores; it has no gradient.
        """
        wide = torch.promote_types(query.dtype, torch.float32)
        scores = (query @ key.transpose(-1, -2)).to(wide).mul_(scale)
        if mask is not None:
            scores += mask
        weights = scores.softmax(-1).to(query.dtype)
        kept = multiplier(weights, dropout)
        ctx.save_for_backward(query, key, value, weights, kept)
        ctx.scale = scale
        return (weights * kept) @ value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, along: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of query, key and value."""
        query, key, value, weights, kept = ctx.saved_tensors
        of_value = (weights * kept).transpose(-1, -2) @ along
        of_weights = (along @ value.transpose(-1, -2)).mul_(kept)
        of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        of_scores.mul_(ctx.scale)
        return of_scores @ key, of_scores.transpose(-1, -2) @ query, of_value, None, None, None


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **more: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend, as transformers calls it: heads [batch, heads, tokens, size] in, their mix out.

    Returns:
        [batch, tokens, heads, size], and no weights.
    """
    if dropout == 0 or query.device.type != "cpu":
        stock: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **more
        )
        return stock
    scale = scaling or query.shape[-1] ** -0.5
    given = (query, key, value, attention_mask, scale, dropout)
    with torch.autocast("cpu", enabled=False):  # each step has the precision that query has
        mixed: Tensor = Attention.apply(*given)  # type: ignore[no-untyped-call]
    return mixed.transpose(1, 2), None


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, eager_mask)


def adapt(model: Any) -> None:
    """Give a model that computes on cores this dropout and, if it asks for SDPA, this attention."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, Dropout(child.p))
    # T5, in its wrapper, keeps torch's: its attention has a bias, which this one does not know.
    if isinstance(model, PreTrainedModel) and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(ATTENTION)
