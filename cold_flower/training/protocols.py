"""The paper's two goals and its few-shot test, measured at a contributor (section 4.3).

- **frozen** (ColD-Frozen): freeze the body and train the head, by linear probing (of T5: the LM
  head).
- **finetuned** (ColD): finetune everything, as a contributor does.
- **few-shot**: finetune everything on a few labelled examples.

What is judged is the base, so no proximal term holds a finetuning back here.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cold_flower.config import Config, Finetune
from cold_flower.data.encode import EncodedSplits
from cold_flower.models.base import Base
from cold_flower.models.body import State
from cold_flower.models.classifier import classifier
from cold_flower.seeds import derive
from cold_flower.training import probe
from cold_flower.training.clock import deadline, is_up, left
from cold_flower.training.finetune import Outcome, finetune
from cold_flower.training.scoring import DivergedError, measure, score


def evaluate(
    base: Base,
    body: State,
    data: EncodedSplits,
    protocols: Sequence[str],
    config: Config,
    seeds: Mapping[str, int],
) -> tuple[dict[str, float], dict[str, float | str]]:
    """Return the test score of each protocol, and of ``finetuned`` what tells whether it trained.

    Together they have the recipe's ``max_seconds``. What is at work then ends with what it has, and
    what comes after takes a step and no more.

    Args:
        base: shape and tokenizer.
        body: the weights to judge.
        data: the task.
        protocols: of `cold_flower.config.PROTOCOLS`.
        config: the finetuning, probing and few-shot recipes.
        seeds: of each protocol's draws.

    Raises:
        DivergedError: a model's loss or outputs are not finite, by protocol.
    """
    scores: dict[str, float] = {}
    facts: dict[str, float | str] = {}
    until = deadline(config.finetune)
    for name in protocols:
        seed = seeds[name]
        try:
            if name == "finetuned":
                options = left(replace(config.finetune, proximal_mu=0.0), until)
                model, outcome = finetuned(base, body, data, options, seed)
                scores[name] = on_test(model, data, options)
                facts = outcome.facts()
            else:
                measured = {"frozen": frozen, "few-shot": few_shot}[name]
                scores[name] = measured(base, body, data, config, seed, until)
        except DivergedError as error:
            raise DivergedError(f"{name}: {error}") from error
    return scores, facts


def on_test(model: Any, data: EncodedSplits, options: Finetune) -> float:
    """Return a model's score on test, in the recipe's precision and pieces."""
    return score(model, data.test, data.metric, options.precision, options.micro_batch_size)


def frozen(
    base: Base,
    body: State,
    data: EncodedSplits,
    config: Config,
    seed: int,
    until: float = math.inf,
) -> float:
    """Train the head alone on a frozen body (`cold_flower.training.probe`); score on test.

    At ``until``, a time of ``time.perf_counter``, the head is scored as it is.
    """
    model, options = _model(base, body, data, seed), config.finetune
    train_head = probe.train_lm_head if base.text_to_text else probe.probe_head
    train_head(
        model,
        data.train,
        options.precision,
        options=config.probe,
        batch_size=options.batch_size,
        seed=derive(seed, "probe"),
        micro_batch_size=options.micro_batch_size,
        until=until,
    )
    if base.text_to_text:
        # Not from cached states: on test there is one for every class, too many to keep.
        return on_test(model, data, options)
    test = probe.extract_features(model, data.test, options.precision, options.micro_batch_size)
    return measure(data.metric, probe.head_logits(model, test).cpu(), data.test.labels)


def finetuned(
    base: Base,
    body: State,
    data: EncodedSplits,
    options: Finetune,
    seed: int,
    begin: Callable[[Any, Finetune], Finetune] = lambda model, options: options,
) -> tuple[Any, Outcome]:
    """Finetune everything from this body with a fresh head; return the model.

    Contributions and evaluations both are this: with the same ``options`` and ``seed`` the same.

    Args:
        base: shape and tokenizer.
        body: the weights to begin from.
        data: the task.
        options: the recipe.
        seed: of the draws.
        begin: what is done to the fresh head before all is finetuned; returns the recipe for it.
    """
    labels, head = data.labels, derive(seed, "head")
    model = classifier(base, body, labels=labels, kind=data.kind, seed=head)
    options, run = begin(model, options), derive(seed, "run")
    outcome = finetune(model, data.train, data.dev, options=options, metric=data.metric, seed=run)
    return model, outcome


def few_shot(
    base: Base,
    body: State,
    data: EncodedSplits,
    config: Config,
    seed: int,
    until: float = math.inf,
) -> float:
    """Finetune on few labelled examples without a dev split; mean over several draws.

    After ``until``, a time of ``time.perf_counter``, no draw begins but the first.
    """
    few = config.few_shot
    options = replace(
        config.finetune,
        learning_rate=few.learning_rate or config.finetune.learning_rate,
        max_epochs=few.epochs,
        proximal_mu=0.0,
        batch_size=few.batch_size,
    )
    scores: list[float] = []
    for draw in range(few.draws):
        if scores and is_up(until):
            break
        chosen = stratified(data.train.labels, few.examples, derive(seed, "draw", draw))
        model = _model(base, body, data, derive(seed, "head", draw))
        finetune(
            model,
            data.train.take(chosen),
            None,
            options=left(options, until),
            metric=data.metric,
            seed=derive(seed, "run", draw),
        )
        scores.append(on_test(model, data, options))
    return sum(scores) / len(scores)


def stratified(labels: Tensor, size: int, seed: int) -> list[int]:
    """Draw ``size`` examples, each class with its share; all of them if there are fewer.

    The k-th example of a shuffled class of n stands at (k + 1/2) / n, from k = 0. The draw takes
    the examples that stand first. Numbers instead of classes are drawn at random.
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


def _model(base: Base, body: State, data: EncodedSplits, seed: int) -> Any:
    return classifier(
        base, body, labels=data.labels, kind=data.kind, seed=derive(seed, "initial-head")
    )
