"""What a run draws from a task: a contributor's train, dev and test rows."""

from dataclasses import dataclass

from cold_flower.config import Config, Partition
from cold_flower.data import published
from cold_flower.data.rows import Rows, read_task
from cold_flower.data.task import Task
from cold_flower.errors import TaskError
from cold_flower.seeds import shuffled


@dataclass(frozen=True)
class Splits:
    """A contributor's rows."""

    train: Rows
    dev: Rows
    test: Rows
    labels: tuple[str, ...]
    """Class names; one empty name for regression."""


def load_splits(task: Task, config: Config, shard: int | None = None, iteration: int = 0) -> Splits:
    """Load a contributor's data: train, dev and test, drawn from the run's seed.

    Dev is the task's validation split. Where there is none, it is 10 % of train and at most
    ``finetune.dev-examples``. A shard has nothing but its own rows, so its dev is carved out of
    those in the same way. ``finetune.max-dev-examples`` draws fewer of either.

    Args:
        task: the entry.
        config: sizes and seed.
        shard: which shard of the task's train split; None is the whole task. With
            ``partition.fresh`` there is one more than contributors, to evaluate with.
        iteration: with ``partition.fresh`` it draws the shards anew (section 6: disjoint
            within an iteration, independent across them); otherwise it has no effect.

    Raises:
        TaskError: see `read_task`; the data are not as the suite states; or fewer rows
            than the shards need.
    """
    rows = read_task(task)
    for difference in published.differences(task, rows):
        raise TaskError(f"{task.where}: {difference}")
    purpose = ("train", iteration) if config.partition.fresh else ("train",)
    order = shuffled(len(rows.train), config.seed, task.name, *purpose)
    if shard is not None:
        order = _shard(task, config.partition, order, shard)
    options = config.finetune
    if shard is None and rows.validation is not None:
        drawn = shuffled(len(rows.validation), config.seed, task.name, "dev")
        dev = rows.validation.take(drawn[: options.max_dev_examples or None])
    else:
        carved = min(max(1, len(order) // 10), options.dev_examples)
        held_out, order = order[:carved], order[carved:]
        dev = rows.train.take(held_out[: options.max_dev_examples or None])
    if not order:
        raise TaskError(f"{task.where}: no training example is left beside the dev split")
    train = rows.train.take(order[: options.max_examples or None])
    drawn = shuffled(len(rows.test), config.seed, task.name, "test")
    test = rows.test.take(sorted(drawn[: config.evaluate.max_test_examples or None]))
    return Splits(train, dev, test, rows.labels)


def _shard(task: Task, partition: Partition, order: list[int], shard: int) -> list[int]:
    """Return a shard's part of all indices.

    Raises:
        TaskError: a shard would be empty, or there are too few rows for all shards.
    """
    size, shards = partition.size, partition.shards
    if not size:
        raise TaskError(f"{task.where}: partition.total is {partition.total} for {shards} shards")
    needed = size * (shards + 1 if partition.fresh else shards)
    if needed > len(order):
        more = " and one to evaluate with" if partition.fresh else ""
        raise TaskError(
            f"{task.where}: {shards} shards of {size}{more} need {needed} training "
            f"examples, there are {len(order)}"
        )
    return order[shard * size : (shard + 1) * size]


def check_few_shot(task: Task, config: Config, train: int) -> None:
    """Check that a task has the examples of one few-shot draw.

    Args:
        task: the entry.
        config: the run's.
        train: the number of its training examples.

    Raises:
        TaskError: with both numbers.
    """
    if config.few_shot.examples > train:
        raise TaskError(
            f"{task.where}: few-shot.examples is {config.few_shot.examples}, but it has {train} "
            "training examples"
        )
