"""The paper's two goals and its few-shot test, measured at a contributor (section 4.3).

- **frozen** (ColD-Frozen): freeze the body, train the head: linear probing.
- **finetuned** (ColD): finetune everything, as a contributor does.
- **few-shot**: finetune everything on a few labelled examples.

Needs torch and transformers alone, neither flwr nor datasets.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from cold_flower import finetune as loop
from cold_flower.config import Config, Probe
from cold_flower.encode import Encoded
from cold_flower.model import Base, State, classifier, head_parameters
from cold_flower.seeds import derive, seeded


@dataclass(frozen=True)
class Splits:
    """One task's tokenised data."""

    train: Encoded
    dev: Encoded
    test: Encoded
    labels: int
    """Classes; 1 for regression."""
    kind: str
    metric: str


def evaluate(
    base: Base, body: State, data: Splits, protocols: Sequence[str], config: Config, seed: int
) -> dict[str, float]:
    """Return the test score of each protocol.

    Args:
        base: shape and tokenizer.
        body: the weights to judge.
        data: the task.
        protocols: of `cold_flower.config.PROTOCOLS`.
        config: the finetuning, probing and few-shot recipes.
        seed: of the evaluation; each protocol derives its own.
    """
    known = {"frozen": frozen, "finetuned": finetuned, "few-shot": few_shot}
    return {name: known[name](base, body, data, config, derive(seed, name)) for name in protocols}


def finetuned(base: Base, body: State, data: Splits, config: Config, seed: int) -> float:
    """Finetune everything from this body, with a contributor's recipe; score on test."""
    model = _model(base, body, data, seed)
    options = config.finetune
    loop.finetune(
        model, data.train, data.dev, options=options, metric=data.metric, seed=derive(seed, "run")
    )
    return loop.score(model, data.test, data.metric, options.precision)


def few_shot(base: Base, body: State, data: Splits, config: Config, seed: int) -> float:
    """Finetune on few labelled examples without a dev split; mean over several draws."""
    few = config.few_shot
    options = replace(config.finetune, max_epochs=few.epochs, batch_size=few.batch_size)
    scores = []
    for draw in range(few.draws):
        chosen = stratified(data.train.labels, few.examples, derive(seed, "draw", draw))
        model = _model(base, body, data, derive(seed, "head", draw))
        loop.finetune(
            model,
            data.train.take(chosen),
            None,
            options=options,
            metric=data.metric,
            seed=derive(seed, "run", draw),
        )
        scores.append(loop.score(model, data.test, data.metric, options.precision))
    return sum(scores) / len(scores)


def stratified(labels: Tensor, size: int, seed: int) -> list[int]:
    """Draw ``size`` indices with the classes' shares (all of them if there are fewer).

    Classes take turns in proportion: sorted by (rank in class + 1/2) / size of class,
    after a shuffle. Float labels are drawn at random.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    if labels.is_floating_point():
        return order[:size].tolist()
    position = torch.zeros(len(labels), dtype=torch.double)
    for value in labels.unique():
        members = order[labels[order] == value]
        position[members] = (torch.arange(len(members), dtype=torch.double) + 0.5) / len(members)
    return order[position[order].argsort(stable=True)][:size].tolist()


def frozen(base: Base, body: State, data: Splits, config: Config, seed: int) -> float:
    """Train the head alone on the body's features, each computed once; score on test."""
    model = _model(base, body, data, seed)
    precision = config.finetune.precision
    train = features(model, data.train, precision)
    test = features(model, data.test, precision)
    train_head(
        model,
        train,
        data.train.labels,
        options=config.probe,
        batch=config.finetune.batch_size,
        seed=derive(seed, "probe"),
    )
    return loop.measure(data.metric, head_logits(model, test).cpu(), data.test.labels)


@dataclass(frozen=True)
class Features:
    """All that the supported heads read of a body's output, float32 [examples, hidden]."""

    first: Tensor
    """The first token's last hidden state."""
    pooled: Tensor | None
    """The pooler's output, of bodies that have one (BERT)."""


def features(model: Any, data: Encoded, precision: str) -> Features:
    """Run the frozen body once over the data."""
    size, hidden = len(data), model.config.hidden_size
    first = torch.empty(size, hidden, device=model.device)
    pooled: Tensor | None = None
    for out, indices in loop.outputs(model, model.base_model, data, precision):
        first[indices] = out.last_hidden_state[:, 0].float()
        if out.get("pooler_output") is not None:
            pooled = torch.empty_like(first) if pooled is None else pooled
            pooled[indices] = out.pooler_output.float()
    return Features(first, pooled)


class _Cached(nn.Module):
    """Stands where the body stood: "input_ids" are rows of the features."""

    def __init__(self, known: Features) -> None:
        super().__init__()
        self._known = known

    def forward(self, input_ids: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        pooled = self._known.pooled
        return BaseModelOutputWithPooling(
            last_hidden_state=self._known.first[input_ids][:, None],  # [batch, 1, hidden]
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
    """Train the model's own head (its dropout included) on cached features, by AdamW."""
    parameters = head_parameters(model)
    total = options.epochs * math.ceil(len(labels) / batch)
    optimizer = torch.optim.AdamW(parameters, lr=options.learning_rate, fused=True)
    schedule = loop.linear_decay(optimizer, total, 0.0, 0.0)
    generator = torch.Generator().manual_seed(derive(seed, "order"))
    targets = labels.to(model.device)
    model.train()
    with _swapped(model, known), seeded(derive(seed, "dropout")):
        for _ in range(options.epochs):
            order = torch.randperm(len(labels), generator=generator).to(model.device)
            for rows in order.split(batch):
                loss_rows = model(input_ids=rows).logits
                loop.loss_of(loss_rows, targets[rows]).backward()
                optimizer.step()
                schedule.step()
                optimizer.zero_grad(set_to_none=True)


def head_logits(model: Any, known: Features) -> Tensor:
    """Return the head's outputs on cached features, float32 [examples, labels]."""
    model.eval()
    with torch.inference_mode(), _swapped(model, known):
        rows = torch.arange(len(known.first), device=model.device)
        logits: Tensor = model(input_ids=rows).logits
    return logits.float()


def _model(base: Base, body: State, data: Splits, seed: int) -> Any:
    return classifier(
        base, body, labels=data.labels, kind=data.kind, seed=derive(seed, "initial-head")
    )
