"""Linear probing: train a model's own head on what a frozen body gives it, computed once.

A sequence-classification head reads one vector an example. Text to text has the LM head,
which reads a vector for every token of the true class's label.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from cold_flower.config import Probe
from cold_flower.data.encode import Encoded
from cold_flower.models.body import head_parameters
from cold_flower.models.text_to_text import log_likelihood
from cold_flower.seeds import derive, seeded
from cold_flower.training import finetune as loop


@dataclass(frozen=True)
class Features:
    """All that the supported heads read of a body's output, float32 [examples, hidden]."""

    state: Tensor
    """The first token's last hidden state; all tokens' mean, if the head takes the mean."""
    pooled: Tensor | None
    """The pooler's output, of bodies that have one (BERT)."""


def features(model: Any, data: Encoded, precision: str) -> Features:
    """Run the frozen body once over the data."""
    state = torch.empty(len(data), model.config.hidden_size, device=model.device)
    pooled: Tensor | None = None
    mean = getattr(model.config, "classifier_pooling", "cls") == "mean"  # ModernBERT's key
    for batch, rows in loop.evaluation_batches(model, data, precision):
        out = model.base_model(**batch)
        hidden = out.last_hidden_state.float()  # [batch, tokens, hidden]
        mask = batch["attention_mask"][:, :, None]
        state[rows] = (hidden * mask).sum(1) / mask.sum(1) if mean else hidden[:, 0]
        if out.get("pooler_output") is not None:
            pooled = torch.empty_like(state) if pooled is None else pooled
            pooled[rows] = out.pooler_output.float()
    return Features(state, pooled)


class _Cached(nn.Module):
    """Stands where the body stood: "input_ids" are rows of the features."""

    def __init__(self, known: Features) -> None:
        super().__init__()
        self._known = known

    def forward(self, input_ids: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        pooled = self._known.pooled
        return BaseModelOutputWithPooling(
            last_hidden_state=self._known.state[input_ids][:, None],  # [batch, 1, hidden]
            pooler_output=None if pooled is None else pooled[input_ids],
        )


class _swapped:
    """Put cached features in the place of a model's body for a while."""

    def __init__(self, model: Any, known: Features) -> None:
        self._model, self._name = model, model.base_model_prefix
        self._body, self._known = model.base_model, known

    def __enter__(self) -> None:
        setattr(self._model, self._name, _Cached(self._known))

    def __exit__(self, *_: object) -> None:
        setattr(self._model, self._name, self._body)


def train_head(
    model: Any, known: Features, labels: Tensor, *, options: Probe, batch: int, seed: int
) -> None:
    """Train a sequence-classification model's head, its dropout included, on features."""
    targets = labels.to(model.device)

    def loss(rows: Tensor) -> Tensor:
        value: Tensor = model(
            input_ids=rows, attention_mask=torch.ones_like(rows)[:, None], labels=targets[rows]
        ).loss
        return value

    parameters = head_parameters(model)
    model.train()
    with _swapped(model, known):
        _train(parameters, loss, len(labels), options=options, batch=batch, seed=seed)


def head_logits(model: Any, known: Features) -> Tensor:
    """Return the head's outputs on cached features, float32 [examples, labels]."""
    model.eval()
    with torch.inference_mode(), _swapped(model, known):
        rows = torch.arange(len(known.state), device=model.device)
        mask = torch.ones_like(rows)[:, None]  # of the one token that stands for all
        logits: Tensor = model(input_ids=rows, attention_mask=mask).logits
    return logits.float()


def train_lm_head(
    model: Any, data: Encoded, precision: str, *, options: Probe, batch: int, seed: int
) -> None:
    """Untie a text-to-text model's LM head and train it alone on the true labels' tokens."""
    head = model.untie_head()
    labels = data.labels.to(model.device)
    targets = model.words[labels]  # [examples, longest label]
    states = torch.empty(*targets.shape, model.config.hidden_size, device=model.device)
    for inputs, rows in loop.evaluation_batches(model, data, precision):
        states[rows] = model.states(**inputs, labels=labels[rows]).float()

    def loss(rows: Tensor) -> Tensor:
        return -log_likelihood(head(states[rows]), targets[rows]).mean()

    parameters = list(head.parameters())
    _train(parameters, loss, len(data), options=options, batch=batch, seed=seed)


def _train(
    parameters: list[nn.Parameter],
    loss: Callable[[Tensor], Tensor],
    size: int,
    *,
    options: Probe,
    batch: int,
    seed: int,
) -> None:
    """Minimise the loss of rows by AdamW, its rate falling linearly to nothing."""
    total = options.epochs * math.ceil(size / batch)
    optimizer = torch.optim.AdamW(parameters, lr=options.learning_rate, fused=True)
    schedule = loop.linear_decay(optimizer, total, 0.0, 0.0)
    generator = torch.Generator().manual_seed(derive(seed, "order"))
    with seeded(derive(seed, "dropout")):
        for _ in range(options.epochs):
            order = torch.randperm(size, generator=generator).to(parameters[0].device)
            for rows in order.split(batch):
                loss(rows).backward()
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)
