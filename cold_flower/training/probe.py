"""Linear probing: train a model's own head on the outputs of its frozen body.

The body runs once over the data; the head then trains on what it gave. A sequence-classification
head reads one vector an example. Text to text has the LM head instead, which reads a vector for
every token of the true class's label.

This module does not know the families' heads. It puts the cached features where the body was and
calls the model's own forward, so head, dropout and loss are those of the library.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from cold_flower.training.optimizer import linear_decay
from cold_flower.training.scoring import evaluation_batches


@dataclass(frozen=True)
class Features:
    """All that the supported heads read of a body's output, float32 [examples, hidden]."""

    state: Tensor
    """The first token's last hidden state; the mean of all tokens', if the head reads that."""
    pooled: Tensor | None
    """The pooler's output, of bodies that have one (BERT)."""


def extract_features(
    model: Any, data: Encoded, precision: str, micro_batch_size: int = 0
) -> Features:
    """Run the frozen body once over the data, in batches as `evaluation_batches` makes them."""
    state = torch.empty(len(data), model.config.hidden_size, device=model.device)
    pooled: Tensor | None = None
    mean = getattr(model.config, "classifier_pooling", "cls") == "mean"  # ModernBERT's key
    for batch, rows in evaluation_batches(model, data, precision, micro_batch_size):
        output = model.base_model(**batch)
        hidden = output.last_hidden_state.float()  # [batch, tokens, hidden]
        mask = batch["attention_mask"][:, :, None]
        state[rows] = (hidden * mask).sum(1) / mask.sum(1) if mean else hidden[:, 0]
        if output.get("pooler_output") is not None:
            pooled = torch.empty_like(state) if pooled is None else pooled
            pooled[rows] = output.pooler_output.float()
    return Features(state, pooled)


def probe_head(
    model: Any,
    data: Encoded,
    precision: str,
    *,
    options: Probe,
    batch_size: int,
    seed: int,
    micro_batch_size: int = 0,
    until: float = math.inf,
) -> None:
    """Train a sequence-classification model's head on its frozen body's features of the data.

    At ``until``, a time of ``time.perf_counter``, it ends with the head so far.
    """
    features = extract_features(model, data, precision, micro_batch_size)
    train_head(
        model,
        features,
        data.labels,
        options=options,
        batch_size=batch_size,
        seed=seed,
        until=until,
    )


def train_head(
    model: Any,
    features: Features,
    labels: Tensor,
    *,
    options: Probe,
    batch_size: int,
    seed: int,
    until: float = math.inf,
) -> None:
    """Train a sequence-classification model's head, its dropout included, on features."""
    targets = labels.to(model.device)

    def loss(rows: Tensor) -> Tensor:
        loss: Tensor = model(**_inputs(rows), labels=targets[rows]).loss
        return loss

    parameters = head_parameters(model)
    model.train()
    with _body_replaced(model, features):
        _train(
            parameters,
            loss,
            len(labels),
            options=options,
            batch_size=batch_size,
            seed=seed,
            until=until,
        )


def head_logits(model: Any, features: Features) -> Tensor:
    """Return the head's outputs on features, float32 [examples, labels]."""
    model.eval()
    with torch.inference_mode(), _body_replaced(model, features):
        rows = torch.arange(len(features.state), device=model.device)
        logits: Tensor = model(**_inputs(rows)).logits
    return logits.float()


def train_lm_head(
    model: Any,
    data: Encoded,
    precision: str,
    *,
    options: Probe,
    batch_size: int,
    seed: int,
    micro_batch_size: int = 0,
    until: float = math.inf,
) -> None:
    """Untie a text-to-text model's LM head and train it alone on the true labels' tokens.

    At ``until``, a time of ``time.perf_counter``, it ends with the head so far.
    """
    head = model.untie_head()
    labels = data.labels.to(model.device)
    targets = model.words[labels]  # [examples, longest label]
    states = torch.empty(*targets.shape, model.config.hidden_size, device=model.device)
    for batch, rows in evaluation_batches(model, data, precision, micro_batch_size):
        states[rows] = model.states(**batch, labels=labels[rows]).float()

    def loss(rows: Tensor) -> Tensor:
        return -log_likelihood(head(states[rows]), targets[rows]).mean()

    _train(
        list(head.parameters()),
        loss,
        len(data),
        options=options,
        batch_size=batch_size,
        seed=seed,
        until=until,
    )


def _train(
    parameters: list[nn.Parameter],
    loss: Callable[[Tensor], Tensor],
    size: int,
    *,
    options: Probe,
    batch_size: int,
    seed: int,
    until: float = math.inf,
) -> None:
    """Minimise the loss of rows 0 to ``size - 1`` with AdamW and a rate that falls to 0."""
    steps = options.epochs * math.ceil(size / batch_size)
    optimizer = torch.optim.AdamW(parameters, lr=options.learning_rate, fused=True)
    schedule = linear_decay(optimizer, steps, 0.0, 0.0)
    generator = torch.Generator().manual_seed(derive(seed, "order"))
    with seeded(derive(seed, "dropout")):
        for _ in range(options.epochs):
            order = torch.randperm(size, generator=generator).to(parameters[0].device)
            for rows in order.split(batch_size):
                if time.perf_counter() >= until:
                    return
                loss(rows).backward()
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)


class _CachedBody(nn.Module):
    """Returns features instead of computing them; its ``input_ids`` are rows of them."""

    def __init__(self, features: Features) -> None:
        super().__init__()
        self._features = features

    def forward(self, input_ids: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        pooled = self._features.pooled
        return BaseModelOutputWithPooling(
            last_hidden_state=self._features.state[input_ids][:, None],  # [batch, 1, hidden]
            pooler_output=None if pooled is None else pooled[input_ids],
        )


def _inputs(rows: Tensor) -> dict[str, Tensor]:
    """Return what a model with a `_CachedBody` is called with: a text of one token for each row."""
    return {"input_ids": rows, "attention_mask": torch.ones_like(rows)[:, None]}


@contextmanager
def _body_replaced(model: Any, features: Features) -> Iterator[None]:
    """Have cached features take the place of the model's body while the context lasts."""
    name, body = model.base_model_prefix, model.base_model
    setattr(model, name, _CachedBody(features))
    try:
        yield
    finally:
        setattr(model, name, body)
