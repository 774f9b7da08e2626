"""Run a model over data without training it, and score its outputs."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from cold_flower.data.encode import Encoded, sorted_batches
from cold_flower.errors import ColdFlowerError

EVALUATION_BATCH = 64


class DivergedError(ColdFlowerError):
    """A model computes NaN or infinity."""


def score(
    model: Any, data: Encoded, metric: str, precision: str, micro_batch_size: int = 0
) -> float:
    """Return the metric of the model on the data."""
    logits = logits_of(model, data, precision, micro_batch_size)
    return measure(metric, logits.cpu(), data.labels.cpu())


def measure(metric: str, logits: Tensor, labels: Tensor) -> float:
    """Return accuracy in [0, 1], or Pearson's correlation in [-1, 1] (0 if constant).

    Raises:
        DivergedError: an output is NaN or infinite; its argmax would be a class all the same.
    """
    if wrong := int((~logits.isfinite()).any(-1).sum()):
        raise DivergedError(
            f"the model's outputs are NaN or infinite on {wrong} of {len(logits)} examples: the "
            "base, or what was trained from it, has diverged (lower finetune.learning-rate or "
            "probe.learning-rate, or go back to an earlier base)"
        )
    if metric == "accuracy":
        return float((logits.argmax(-1) == labels).double().mean())
    pair = torch.stack([logits.squeeze(-1).double(), labels.double()])
    correlation = float(torch.corrcoef(pair)[0, 1])
    return correlation if math.isfinite(correlation) else 0.0


def knowing_nothing(metric: str, labels: Tensor) -> float:
    """Return what always the same answer scores: the largest class's share; of a correlation, 0."""
    if metric != "accuracy":
        return 0.0
    return float(labels.unique(return_counts=True)[1].max()) / len(labels)


def logits_of(model: Any, data: Encoded, precision: str, micro_batch_size: int = 0) -> Tensor:
    """Return the model's outputs, float32 [examples, labels], in the data's order."""
    batches = evaluation_batches(model, data, precision, micro_batch_size)
    by_length = torch.cat([model(**batch).logits for batch, _ in batches])
    place = data.lengths().argsort(stable=True).argsort()  # of each example in that order
    return by_length[place].float()


def evaluation_batches(
    model: Any, data: Encoded, precision: str, micro_batch_size: int = 0
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Yield batches of similar length, and which examples each holds.

    A batch has `EVALUATION_BATCH` examples, or ``micro_batch_size`` where that is less and not 0.
    Between the first batch and the last, gradients and dropout are off.
    """
    size = min(EVALUATION_BATCH, micro_batch_size or EVALUATION_BATCH)
    was_training, data = model.training, data.to(model.device)
    model.eval()
    try:
        with torch.inference_mode(), autocast(model.device, precision):
            for indices in sorted_batches(data.lengths(), size):
                yield data.batch(indices), data.index_tensor(indices)
    finally:
        model.train(was_training)


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Return the context of a forward pass: ``fp32``, ``bf16``, or the faster one (``auto``)."""
    enabled = precision == "bf16" or (precision == "auto" and bf16_is_fast(device))
    return torch.autocast(device.type, dtype=torch.bfloat16) if enabled else nullcontext()


def bf16_is_fast(device: torch.device) -> bool:
    """Return whether this device has instructions for bfloat16 matrix products."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
