"""Multitask and centralised training: the union of the contributors' data in one place.

Paper, section 4.2: "Multitask", one body with a dedicated head per dataset, trained on the
union; section 6: "Centralised", full finetuning on the union of all contributors' data, which
is the same with one task. The body becomes iteration 1 of a run, so that it is scored by the
same contributors in the same way as a fused one. (The other baselines need no training of
their own: the start is iteration 0, "fused" is a run of one iteration with all contributors.)
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cold_flower.config import Config
from cold_flower.contributors.contributor import Contributor
from cold_flower.data.encode import Encoded, EncodedSplits, concatenate, training_batches
from cold_flower.data.plan import plan
from cold_flower.models.body import State, body_of
from cold_flower.models.classifier import classifier
from cold_flower.repository.bases import Repository
from cold_flower.seeds import derive, seeded
from cold_flower.training import clock
from cold_flower.training.finetune import EarlyStopping, accumulate_gradients, check_finite
from cold_flower.training.optimizer import Optimizer
from cold_flower.training.scoring import score
from cold_flower.training.vocabulary import trimmed_embedding
from strategies.fusion import Weights


@dataclass
class _Task:
    """One dataset of the union: its data, and a model that shares its body with the others."""

    model: Any
    train: Encoded
    dev: Encoded
    metric: str
    weight: float
    """What its loss is multiplied by."""


def train(config: Config, say: Callable[[str], None]) -> None:
    """Train on the union of what the seen contributors hold; publish it as iteration 1.

    Args:
        config: a run's, with ``baseline``; iteration 0 is published.
        say: takes lines of progress.
    """
    repository = Repository(Path(config.run_dir))
    tasks = _tasks(config, dict(repository.body(0).items()))
    examples = sum(len(task.train) for task in tasks.values())
    say(f"{config.baseline}: {len(tasks)} tasks, {examples} training examples")
    dev_score = _finetune(tasks, config, say)
    body = body_of(next(iter(tasks.values())).model)
    del tasks
    torch.cuda.empty_cache()  # the contributors that evaluate need the room
    manifest = {
        "rule": config.baseline,
        "options": {"sampling": config.sampling, "loss-scaling": config.loss_scaling},
        "contributors": [],
        "datasets": len(plan(config).seen),
        "dev-score": dev_score,
    }
    repository.publish(1, 0, Weights(body), manifest)


def _tasks(config: Config, body: State) -> dict[str, _Task]:
    """Collect the data by task, and give every task a head on one shared body."""
    participants = plan(config)
    parts: dict[str, list[EncodedSplits]] = {}  # of each task, from the contributors that hold it
    for index, name in enumerate(participants.names):
        if name in participants.seen:
            contributor = Contributor(config, index, Path(config.run_dir) / "contributors")
            parts.setdefault(contributor.task.name, []).append(contributor.splits(1))
            base = contributor.base
    tasks: dict[str, _Task] = {}
    shared: Any = None
    for name, splits in sorted(parts.items()):
        labels, kind, metric = splits[0].labels, splits[0].kind, splits[0].metric
        seed = derive(config.seed, config.baseline, name, "head")
        model = classifier(base, body, labels=labels, kind=kind, seed=seed)
        if shared is not None:
            setattr(model, model.base_model_prefix, shared)
        shared = model.base_model
        train = concatenate([part.train for part in splits]).to(model.device)
        dev = concatenate([part.dev for part in splits]).to(model.device)
        size = base.config.vocab_size if base.text_to_text else len(labels)
        weight = loss_weight(config.loss_scaling, kind, size)
        tasks[name] = _Task(model, train, dev, metric, weight)
    return tasks


def loss_weight(scaling: str, kind: str, size: int) -> float:
    """Return what a task's loss is multiplied by; ``log-classes`` is MUPPET's.

    Aghajanyan et al. (2021) divide by log n, where n is the size of the prediction space: then a
    model that guesses has a loss of 1 on each task. Regression has no such size and keeps its
    loss (our reading), as does a single class, whose logarithm is 0.

    Args:
        scaling: a value of the key loss-scaling.
        kind: ``classification`` or ``regression``.
        size: classes; of text to text, whose loss is over tokens, the vocabulary.
    """
    if scaling == "log-classes" and kind != "regression" and size > 1:
        return 1 / math.log(size)
    return 1.0


def _finetune(tasks: Mapping[str, _Task], config: Config, say: Callable[[str], None]) -> float:
    """Train with a contributor's recipe; early stopping is on the mean of the dev scores.

    A batch is of one task. An epoch has as many batches as all tasks together, each task
    with its own (proportional) or as many as any other (balanced).
    """
    options, every_task = config.finetune, list(tasks.values())
    until = clock.deadline(options)
    model = every_task[0].model  # all have the same body
    data = [encoded for task in every_task for encoded in (task.train, task.dev)]
    per_epoch = sum(math.ceil(len(task.train) / options.batch_size) for task in every_task)
    order = torch.Generator().manual_seed(derive(config.seed, config.baseline, "order"))
    batches = _batches(tasks, config, per_epoch, order)
    dropout = derive(config.seed, config.baseline, "dropout")
    trimmed = trimmed_embedding(model, *data, options=options)
    with trimmed as embedding, seeded(dropout):
        parameters = {id(p): p for task in every_task for p in task.model.parameters()}
        optimizer = Optimizer(parameters.values(), options, per_epoch, embedding)
        stopping = EarlyStopping(model.base_model, options)
        for task in every_task:
            task.model.train()
        seen = validated = 0
        for step in range(1, per_epoch * options.max_epochs + 1):
            task, indices = next(batches)
            loss = accumulate_gradients(task.model, task.train, indices, options)
            if task.weight != 1:  # before they are clipped, as if the loss had been multiplied
                for parameter in task.model.parameters():
                    if parameter.grad is not None:
                        parameter.grad *= task.weight
            optimizer.step()
            seen += len(indices)
            due = seen - validated >= options.validate_every_examples
            time_is_up = clock.is_up(until)
            if due or time_is_up or step % per_epoch == 0:
                check_finite(float(loss), step, options)
                validated = seen
                stop = stopping.update(_dev_score(every_task, options.precision), seen)
                say(f"{config.baseline}: {seen} examples, mean dev score {stopping.best_score:.3f}")
                if time_is_up:
                    say(
                        f"{config.baseline}: its time is up (finetune.max-seconds = "
                        f"{options.max_seconds:g})"
                    )
                if stop or time_is_up:
                    break
        stopping.restore_best()
    return stopping.best_score


def _dev_score(tasks: Sequence[_Task], precision: str) -> float:
    scores = [score(task.model, task.dev, task.metric, precision) for task in tasks]
    return sum(scores) / len(scores)


def _batches(
    tasks: Mapping[str, _Task], config: Config, per_epoch: int, generator: torch.Generator
) -> Iterator[tuple[_Task, list[int]]]:
    """Yield (task, indices) without end; every epoch is another order."""
    size = config.finetune.batch_size
    every_task = list(tasks.values())

    def endless(task: _Task) -> Iterator[list[int]]:
        while True:
            yield from training_batches(task.train.lengths(), size, generator)

    sources = [endless(task) for task in every_task]
    own = torch.tensor([math.ceil(len(task.train) / size) for task in every_task])
    while True:
        if config.sampling == "balanced":
            turns = torch.randint(len(every_task), (per_epoch,), generator=generator)
        else:
            repeated = torch.repeat_interleave(torch.arange(len(every_task)), own)
            turns = repeated[torch.randperm(per_epoch, generator=generator)]
        for turn in turns.tolist():
            yield every_task[turn], next(sources[turn])
