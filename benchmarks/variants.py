"""What the loop might gain and does not do: measured, not used.

`torch.compile` on the encoder, and packed sequences: a batch's tokens in one row without padding,
whose attention keeps the examples apart (`torch.nn.attention.varlen`, FlashAttention's, where torch
and the GPU have it, else torch's nested tensors). Packed attention has no dropout, and all of the
last layer is computed.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.modeling_outputs import SequenceClassifierOutput

from benchmarks.finetune import RATE
from benchmarks.machine import seconds
from benchmarks.work import random
from benchmarks.workers import Answer
from cold_flower.config import Finetune
from cold_flower.data.encode import Encoded
from cold_flower.training.finetune import finetune

PACKED = "packed"


class Packed(Encoded):
    """Examples whose batches are one row, [1, tokens], without padding."""

    def batch(self, indices: Sequence[int]) -> dict[str, Any]:
        """Return these examples as `forward` takes them; nothing here waits for a GPU."""
        rows = torch.tensor(indices)
        begins, lengths = self.starts[rows], self.starts[rows + 1] - self.starts[rows]
        ends = lengths.cumsum(0)
        total = int(ends[-1])
        within = torch.arange(total) - (ends - lengths).repeat_interleave(lengths)
        places = within + begins.repeat_interleave(lengths)
        bounds = torch.cat([torch.zeros(1, dtype=torch.long), ends]).int()
        on = self.ids.device
        places, within, bounds = (t.to(on, non_blocking=True) for t in (places, within, bounds))
        return {
            "input_ids": self.ids[places].long()[None],
            "position_ids": within[None] + self.padding + 1,  # as RoBERTa counts them
            "bounds": bounds,
            "longest": int(lengths.max()),
        }


def pack(model: Any, train: Encoded) -> tuple[Any, Packed]:
    """Have a RoBERTa of the library classify packed examples; return it and them."""
    model.set_attn_implementation(PACKED)
    body, head = model.base_model, model.classifier

    def forward(
        input_ids: Tensor, position_ids: Tensor, bounds: Tensor, longest: int, labels: Tensor
    ) -> SequenceClassifierOutput:
        states = body(
            input_ids=input_ids, position_ids=position_ids, bounds=bounds, longest=longest
        ).last_hidden_state
        logits = head(states[0, bounds[:-1].long(), None])  # of each example's first token
        return SequenceClassifierOutput(
            loss=functional.cross_entropy(logits.float(), labels), logits=logits
        )

    model.forward = forward
    return model, Packed(**{key: getattr(train, key) for key in train.__dataclass_fields__})


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    bounds: Tensor,
    longest: int,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend within each example; query, key, value are [1, heads, tokens, size]."""
    rows = [part[0].transpose(0, 1).contiguous() for part in (query, key, value)]
    return _within(query.dtype, query.device)(rows, bounds, longest)[None], None


def _varlen(rows: list[Tensor], bounds: Tensor, longest: int) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    query, key, value = rows
    mixed = varlen_attn(query, key, value, bounds, bounds, longest, longest)
    assert isinstance(mixed, Tensor)
    return mixed


def _nested(rows: list[Tensor], bounds: Tensor, longest: int) -> Tensor:
    query, key, value = (
        torch.nested.nested_tensor_from_jagged(
            part, bounds.long(), min_seqlen=1, max_seqlen=longest
        ).transpose(1, 2)
        for part in rows
    )
    mixed: Tensor = functional.scaled_dot_product_attention(query, key, value)
    return mixed.transpose(1, 2).values()


def _within(dtype: torch.dtype, device: torch.device) -> Callable[..., Tensor]:
    """Return the attention that is there: FlashAttention's is for 16 bit on GPUs of 2020 on."""
    try:
        import torch.nn.attention.varlen  # torch 2.10
    except ImportError:
        return _nested
    narrow = dtype in (torch.bfloat16, torch.float16)
    modern = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return _varlen if narrow and modern else _nested


AttentionInterface.register(PACKED, attention)
AttentionMaskInterface.register(PACKED, lambda *_, **__: None)


def prepare(
    variant: str, *, examples: int, tokens: int, batch: int, shape: str, seed: int
) -> Callable[[], Answer]:
    """Load the work, warm up (and compile); return what is measured: our loop with the variant."""
    work = random(examples, tokens, shape)
    train, note = work.train, ""
    if variant == "packed":
        model, train = pack(work.model(plain=True), train)
        note = {_varlen: "torch.nn.attention.varlen", _nested: "torch's nested tensors"}[
            _within(torch.bfloat16, model.device)
        ]
    else:
        model = work.model()
        model.base_model.encoder.compile(dynamic=not tokens)
    options = Finetune(learning_rate=RATE, batch_size=batch, max_epochs=1)

    def run(data: Encoded) -> Answer:
        def loop() -> None:
            finetune(model, data, None, options=options, metric="accuracy", seed=seed)

        return {"seconds": seconds(loop), "examples": len(data), "with": note}

    run(train.take(range(min(4 * batch, len(train)))))
    return lambda: run(train)
