"""AdamW with a linear schedule and clipped gradients (PAPER, App. B)."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from cold_flower.config import Finetune
from cold_flower.training.vocabulary import TrimmedEmbedding


class Optimizer:
    """What one training step does once the gradients are there.

    Args:
        parameters: of the model; frozen ones are left out.
        options: learning rate and its schedule, weight decay, number of epochs.
        steps_per_epoch: sets the length of the schedule.
        embedding: the model's word embedding, where only part of it is trained.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        options: Finetune,
        steps_per_epoch: int,
        embedding: TrimmedEmbedding | None,
    ) -> None:
        self._parameters = [p for p in parameters if p.requires_grad]
        self._embedding, self._weight_decay = embedding, options.weight_decay
        # Biases and layer norms are one-dimensional and are not decayed (Liu et al. 2019).
        groups = [
            {
                "params": [p for p in self._parameters if p.ndim > 1],
                "weight_decay": options.weight_decay,
            },
            {"params": [p for p in self._parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self._adamw = torch.optim.AdamW(
            groups, lr=options.learning_rate, betas=(0.9, 0.98), eps=1e-6, fused=True
        )
        self._schedule = linear_decay(
            self._adamw,
            steps_per_epoch * options.max_epochs,
            options.warmup_ratio,
            options.final_learning_rate_ratio,
        )

    def step(self) -> None:
        """Clip the gradients to a norm of 1, make one step with them, and clear them."""
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._adamw.step()
        if self._embedding is not None:
            self._embedding.count_step(self._adamw.param_groups[0]["lr"], self._weight_decay)
        self._schedule.step()
        self._adamw.zero_grad(set_to_none=True)


def linear_decay(
    optimizer: torch.optim.Optimizer, total: int, warmup_ratio: float, final: float
) -> LambdaLR:
    """Warm up linearly, then fall linearly to ``final`` of the peak at step ``total``."""
    warmup = int(total * warmup_ratio)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 1 - (1 - final) * min(1.0, (step - warmup) / max(1, total - 1 - warmup))

    return LambdaLR(optimizer, factor)
