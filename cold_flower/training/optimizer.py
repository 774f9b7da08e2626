"""AdamW with a linear schedule (PAPER, App. B), or T5's AdaFactor; clipped gradients.

AdaFactor (Shazeer and Stern 2018) is torch's, with the values of T5 (PAPER, App. D: "T5 default
hyperparameters"): a step has the RMS of the matrix that it moves (at least 1e-3) times the rate,
the second moment decays by 1 - t^-0.8, and updates are clipped to an RMS of d = 1. Torch takes
the rate as an upper bound, min(rate, 1 / sqrt(t)): with 4e-4 that is the rate itself for six
million steps, so a constant schedule is T5's. T5 has neither warm-up nor weight decay, which are
keys here, nor clipped gradients. They are clipped as for AdamW: a scale that the gradients of all
steps share changes nothing, but one clipped step weighs less in the second moment of later ones.
"""

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from cold_flower.config import Finetune
from cold_flower.training.vocabulary import TrimmedEmbedding

# T5's first is 1e-30, whose square is 0 in 32 bit, and torch divides by its root. Torch's own,
# 1.2e-7, lies above the mean square of gradients of norm 1 (5e-9 in t5-base): other steps.
ADAFACTOR_EPS = (1e-18, 1e-3)


class Optimizer:
    """What one training step does once the gradients are there.

    Args:
        parameters: of the model; frozen ones are left out.
        options: optimizer, learning rate and its schedule, weight decay, number of epochs.
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
        self._optimizer: torch.optim.Optimizer
        if options.optimizer == "adafactor":
            self._optimizer = torch.optim.Adafactor(
                groups, lr=options.learning_rate, beta2_decay=-0.8, eps=ADAFACTOR_EPS, d=1.0
            )
        else:
            self._optimizer = torch.optim.AdamW(
                groups, lr=options.learning_rate, betas=(0.9, 0.98), eps=1e-6, fused=True
            )
        constant = options.schedule == "constant"
        self._schedule = linear_decay(
            self._optimizer,
            steps_per_epoch * options.max_epochs,
            options.warmup_ratio,
            1.0 if constant else options.final_learning_rate_ratio,
        )

    def step(self) -> None:
        """Clip the gradients to a norm of 1, make one step with them, and clear them."""
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        if self._embedding is not None:
            self._embedding.count_step(self._optimizer.param_groups[0]["lr"], self._weight_decay)
        self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)


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
