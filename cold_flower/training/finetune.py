"""The training loop: finetune body and head on one contributor's data.

The recipe is the paper's where it states one (App. B: rate, linear decay, batch), and its authors'
where they do (IBM/model-recycling: early stopping that counts examples, weight decay); whose each
value is: docs/experiments.md. Weights and optimizer stay in float32, also where
the matrix products run in bfloat16 (`cold_flower.training.scoring.autocast`).
"""

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cold_flower.config import Finetune
from cold_flower.data.encode import Encoded, training_batches
from cold_flower.seeds import derive, seeded
from cold_flower.training.optimizer import Optimizer
from cold_flower.training.proximal import Proximal
from cold_flower.training.scoring import DivergedError, autocast, knowing_nothing, score
from cold_flower.training.vocabulary import trimmed_embedding

ROUNDING = 1e-9  # of the difference of two scores


@dataclass(frozen=True)
class Outcome:
    """What a finetuning did."""

    train_loss: float
    """Mean over the examples of the last epoch, or of the part of it that was run; the task's
    loss alone, without the proximal term."""
    dev_score: float
    """The best score on dev; the model now holds the weights that reached it. NaN without dev."""
    dev_start: float
    """The score on dev before the first step: with a probed head, the frozen probe's."""
    dev_majority: float
    """What knowing nothing scores on dev: the share of its largest class; of a correlation, 0."""
    stopped: str
    """``early`` (no more improvement), ``epochs`` (all were run) or ``time`` (its time was up)."""
    improving: bool
    """The last validation was the best: more training may be better still."""
    steps: int
    examples: int
    """Training examples seen; an example counts once per epoch."""

    def facts(self) -> dict[str, float | str]:
        """Return what tells whether it trained, as it is sent and recorded."""
        return {
            "dev-start": self.dev_start,
            "dev-accuracy": self.dev_score,
            "dev-majority": self.dev_majority,
            "improving": int(self.improving),
            "stopped": self.stopped,
        }


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
        train: the training examples.
        dev: for early stopping and the choice of weights; None keeps the last weights.
        options: learning rate, batch size, epochs, early stopping, precision; with
            ``proximal_mu`` the body is pulled towards what it is now (`Proximal`).
        metric: ``accuracy`` or ``pearson``, measured on dev.
        seed: of the order of the examples and of dropout.

    Raises:
        DivergedError: the loss, or an output on dev, is not finite.
    """
    started = time.perf_counter()
    train, dev = train.to(model.device), dev and dev.to(model.device)
    with trimmed_embedding(model, train, dev, options=options) as embedding:
        steps_per_epoch = math.ceil(len(train) / options.batch_size)
        optimizer = Optimizer(model.parameters(), options, steps_per_epoch, embedding)
        proximal = Proximal(model, options.proximal_mu)
        stopping = EarlyStopping(model, options)
        start = majority = math.nan
        precision, size = options.precision, options.micro_batch_size
        if dev is not None:
            start = stopping.start_score = score(model, dev, metric, precision, size)
            majority = knowing_nothing(metric, dev.labels)
        order = torch.Generator().manual_seed(derive(seed, "order"))
        steps = seen = validated_at = 0  # the last two count examples
        out_of_time = False
        model.train()
        with seeded(derive(seed, "dropout")):
            for _ in range(options.max_epochs):
                losses: list[tuple[Tensor, int]] = []  # of each step: mean loss, examples
                for indices in training_batches(train.lengths(), options.batch_size, order):
                    loss = accumulate_gradients(model, train, indices, options)
                    proximal.add_to_gradients()
                    optimizer.step()
                    losses.append((loss, len(indices)))
                    steps, seen = steps + 1, seen + len(indices)
                    if dev is not None and seen - validated_at >= options.validate_every_examples:
                        validated_at = seen
                        check_finite(float(loss), steps, options)
                        if stopping.update(score(model, dev, metric, precision, size), seen):
                            break
                    out_of_time = 0 < options.max_seconds <= time.perf_counter() - started
                    if out_of_time:
                        break
                mean_loss = sum(float(loss) * n for loss, n in losses) / sum(n for _, n in losses)
                check_finite(mean_loss, steps, options)
                if dev is not None and validated_at != seen and not stopping.stopped:
                    validated_at = seen
                    stopping.update(score(model, dev, metric, precision, size), seen)
                if stopping.stopped or out_of_time:
                    break
        stopping.restore_best()
    return Outcome(
        train_loss=mean_loss,
        dev_score=stopping.best_score,
        dev_start=start,
        dev_majority=majority,
        stopped="early" if stopping.stopped else "time" if out_of_time else "epochs",
        improving=stopping.improving,
        steps=steps,
        examples=seen,
    )


def accumulate_gradients(
    model: Any, data: Encoded, indices: list[int], options: Finetune
) -> Tensor:
    """Add up a batch's gradients, one micro-batch at a time; return the batch's mean loss.

    The data are on the model's device. If that is a GPU, nothing here waits for it.
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


def check_finite(loss: float, steps: int, options: Finetune) -> None:
    """Refuse to go on with a loss that is NaN or infinite.

    Raises:
        DivergedError: the loss is not finite.
    """
    if not math.isfinite(loss):
        raise DivergedError(
            f"the training loss is {loss} after {steps} steps: lower "
            f"finetune.learning-rate (now {options.learning_rate:g})"
        )


class EarlyStopping:
    """Remember the weights with the best dev score, and say when to stop.

    Two scores are kept, because they differ. The weights are those of the highest score. The
    patience starts anew only at a score that beats the last such score by ``early-stop-delta``.
    """

    def __init__(self, model: nn.Module, options: Finetune) -> None:
        self._model = model
        self._options = options
        self._best_state: dict[str, Tensor] | None = None
        self._improved_score = -math.inf
        self._improved_at = 0  # in examples
        self.start_score = -math.inf  # before the first step; its weights are never the best
        self.best_score = math.nan
        self.improving = False
        self.stopped = False

    def update(self, score: float, seen: int) -> bool:
        """Take the score after ``seen`` examples; return whether to stop."""
        best = self.start_score if self._best_state is None else self.best_score
        self.improving = score > max(best, self.start_score)
        if self._best_state is None or score > self.best_score:
            self.best_score = score
            self._best_state = {k: v.detach().clone() for k, v in self._model.state_dict().items()}
        if score >= self._improved_score + self._options.early_stop_delta - ROUNDING:
            self._improved_score, self._improved_at = score, seen
        self.stopped = seen - self._improved_at >= self._options.early_stop_examples
        return self.stopped

    def restore_best(self) -> None:
        """Put the best weights back into the model; without a score it keeps its own."""
        if self._best_state is not None:
            self._model.load_state_dict(self._best_state)
