"""The one training loop: finetune body and head on one contributor's data.

PAPER, App. B: AdamW, linear decay from a peak, early stopping counted in examples. The
weights stay float32; with ``precision`` bf16 the matrix products run in bfloat16. Needs
torch and transformers alone, neither flwr nor datasets.
"""

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cold_flower.config import Finetune
from cold_flower.data.encode import Encoded, sorted_batches, training_batches
from cold_flower.errors import ColdFlowerError
from cold_flower.seeds import derive, seeded
from cold_flower.training.vocabulary import Occurring, occurring

EVALUATION_BATCH = 64


class DivergedError(ColdFlowerError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class Outcome:
    """What a finetuning did."""

    train_loss: float
    """Mean over the examples of the last epoch (or part of one)."""
    dev_score: float
    """Best score on dev, whose weights the model now holds; NaN without dev."""
    steps: int
    examples: int
    """Training examples seen, repeats counted."""
    seconds: float


def finetune(
    model: Any,
    train: Encoded,
    dev: Encoded | None,
    *,
    options: Finetune,
    metric: str,
    seed: int,
) -> Outcome:
    """Finetune ``model`` in place; it ends with the weights that did best on dev.

    Args:
        model: a sequence-classification model on its device; it computes its own loss.
        train: what to learn.
        dev: for early stopping and the choice of weights; None keeps the last weights.
        options: learning rate, batch size, epochs, early stopping, precision.
        metric: ``accuracy`` or ``pearson``, measured on dev.
        seed: of the order of the examples and of dropout.

    Raises:
        DivergedError: the loss is not finite.
    """
    started = time.perf_counter()
    train, dev = train.to(model.device), dev and dev.to(model.device)
    with occurring(model, train, dev) as rows:
        descent = Descent(
            model.parameters(), options, math.ceil(len(train) / options.batch_size), rows
        )
        generator = torch.Generator().manual_seed(derive(seed, "order"))
        best = Best(model, options)
        seen = steps = 0
        losses: list[tuple[Tensor, int]] = []
        validated = 0
        out_of_time = False
        model.train()
        with seeded(derive(seed, "dropout")):
            for _ in range(options.max_epochs):
                losses.clear()
                for indices in training_batches(train.lengths(), options.batch_size, generator):
                    loss = accumulate(model, train, indices, options)
                    descent.step()
                    losses.append((loss, len(indices)))
                    steps, seen = steps + 1, seen + len(indices)
                    if dev is not None and seen - validated >= options.validate_every_examples:
                        validated = seen
                        if best.judge(score(model, dev, metric, options.precision), seen):
                            break
                    if out_of_time := _out_of_time(started, options):
                        break
                mean = sum(float(loss) * n for loss, n in losses) / sum(n for _, n in losses)
                check_finite(mean, steps, options)
                if dev is not None and validated != seen and not best.stopped:
                    validated = seen
                    best.judge(score(model, dev, metric, options.precision), seen)
                if best.stopped or out_of_time:
                    break
        best.restore()
    return Outcome(mean, best.score, steps, seen, time.perf_counter() - started)


def _out_of_time(started: float, options: Finetune) -> bool:
    return 0 < options.max_seconds <= time.perf_counter() - started


def check_finite(loss: float, steps: int, options: Finetune) -> None:
    """Check that training goes on.

    Raises:
        DivergedError: the loss is not finite.
    """
    if not math.isfinite(loss):
        raise DivergedError(
            f"the training loss is {loss} after {steps} steps: lower "
            f"finetune.learning-rate (now {options.learning_rate:g})"
        )


class Descent:
    """AdamW over a number of epochs, with its schedule and clipping (PAPER, App. B).

    Args:
        parameters: of all that is trained.
        options: learning rate, its schedule, batch size, weight decay.
        batches: steps of an epoch.
        rows: the part of the word embedding that is trained, if it is a part.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        options: Finetune,
        batches: int,
        rows: Occurring | None,
    ) -> None:
        self._parameters = [p for p in parameters if p.requires_grad]
        self._rows, self._weight_decay = rows, options.weight_decay
        # Biases and layer norms are one-dimensional and are not decayed (Liu et al. 2019).
        groups = [
            {
                "params": [p for p in self._parameters if p.ndim > 1],
                "weight_decay": options.weight_decay,
            },
            {"params": [p for p in self._parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(
            groups, lr=options.learning_rate, betas=(0.9, 0.98), eps=1e-6, fused=True
        )
        self._schedule = linear_decay(
            self._optimizer,
            batches * options.max_epochs,
            options.warmup_ratio,
            options.final_learning_rate_ratio,
        )

    def step(self) -> None:
        """Go one step down the gradients, whose norm is cut to 1, and forget them."""
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        if self._rows is not None:
            self._rows.step(self._optimizer.param_groups[0]["lr"], self._weight_decay)
        self._schedule.step()
        self._optimizer.zero_grad(set_to_none=True)


def linear_decay(
    optimizer: torch.optim.Optimizer, total: int, warmup_ratio: float, final: float
) -> torch.optim.lr_scheduler.LRScheduler:
    """Warm up linearly, then fall linearly to ``final`` of the peak at step ``total``."""
    warmup = int(total * warmup_ratio)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 1 - (1 - final) * min(1.0, (step - warmup) / max(1, total - 1 - warmup))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def accumulate(model: Any, data: Encoded, indices: list[int], options: Finetune) -> Tensor:
    """Accumulate the batch's gradients in micro-batches; return its mean loss.

    The data are on the model's device; if that is a GPU, nothing here waits for it.
    """
    size = options.micro_batch_size or len(indices)
    total = torch.zeros((), device=model.device)
    for start in range(0, len(indices), size):
        part = indices[start : start + size]
        with autocast(model.device, options.precision):
            loss = model(**data.batch(part), labels=data.labels_of(part)).loss
        loss = loss * (len(part) / len(indices))
        loss.backward()
        total += loss.detach()
    return total


class Best:
    """Early stopping, and the weights of the best validation so far."""

    def __init__(self, model: nn.Module, options: Finetune) -> None:
        self._model = model
        self._options = options
        self._state: dict[str, Tensor] | None = None
        self._bar = -math.inf  # the score that the next improvement must beat by delta
        self._bar_at = 0
        self.score = math.nan
        self.stopped = False

    def judge(self, score: float, seen: int) -> bool:
        """Take a validation's score; return whether to stop."""
        if self._state is None or score > self.score:
            self.score = score
            self._state = {k: v.detach().clone() for k, v in self._model.state_dict().items()}
        if score >= self._bar + self._options.early_stop_delta:
            self._bar, self._bar_at = score, seen
        self.stopped = seen - self._bar_at >= self._options.early_stop_examples
        return self.stopped

    def restore(self) -> None:
        """Put the best weights back."""
        if self._state is not None:
            self._model.load_state_dict(self._state)


def bf16_here(device: torch.device) -> bool:
    """Return whether bfloat16 matrix products are fast on this device."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Return the context in which forward passes run."""
    enabled = precision == "bf16" or (precision == "auto" and bf16_here(device))
    return torch.autocast(device.type, dtype=torch.bfloat16) if enabled else nullcontext()


def logits_of(model: Any, data: Encoded, precision: str) -> Tensor:
    """Return the model's outputs, float32 [examples, labels], in the data's order."""
    order = data.lengths().argsort(stable=True).argsort()
    batches = evaluation_batches(model, data, precision)
    return torch.cat([model(**batch).logits for batch, _ in batches])[order].float()


def evaluation_batches(
    model: Any, data: Encoded, precision: str
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """Yield batches by length, and the rows they are of, to run without gradients or dropout."""
    trains, data = model.training, data.to(model.device)
    model.eval()
    try:
        with torch.inference_mode(), autocast(model.device, precision):
            for indices in sorted_batches(data.lengths(), EVALUATION_BATCH):
                yield data.batch(indices), data.rows(indices)
    finally:
        model.train(trains)


def score(model: Any, data: Encoded, metric: str, precision: str) -> float:
    """Return the metric of the model on the data."""
    return measure(metric, logits_of(model, data, precision).cpu(), data.labels.cpu())


def measure(metric: str, logits: Tensor, labels: Tensor) -> float:
    """Return accuracy in [0, 1], or Pearson's correlation in [-1, 1] (0 if constant)."""
    if metric == "accuracy":
        return float((logits.argmax(-1) == labels).double().mean())
    pair = torch.stack([logits.squeeze(-1).double(), labels.double()])
    value = float(torch.corrcoef(pair)[0, 1])
    return value if math.isfinite(value) else 0.0
