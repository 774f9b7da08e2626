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
    """A contributor's own data."""

    train: Rows
    dev: Rows
    test: Rows
    labels: tuple[str, ...]
    """Class names; one empty name for regression."""


def load_splits(task: Task, config: Config, shard: int | None = None, iteration: int = 0) -> Splits:
    """Load a contributor's data: train, dev and test, drawn from the run's seed.

    Dev is the task's validation split; where it has none, dev is carved out of train:
    10 % of it. Either way at most ``finetune.dev-examples``. A shard carves its dev
    out of its own rows: they are all it has.

    Args:
        task: the entry.
        config: sizes and seed.
        shard: which shard of the task's train split; None is the whole task. With
            ``partition.fresh`` there is one more than contributors, to evaluate with.
        iteration: draws the shards anew where ``partition.fresh`` is set (section 6:
            disjoint within an iteration, independent across them); else without effect.

    Raises:
        TaskError: see `read_split`; the data are not as the suite states; or fewer rows
            than the shards need.
    """
    rows = read_task(task)
    for difference in published.differences(task, rows):
        raise TaskError(f"{task.where}: {difference}")
    train, test, dev = rows.train, rows.test, rows.validation
    drawn = ("train", iteration) if config.partition.fresh else ("train",)
    order = shuffled(len(train), config.seed, task.name, *drawn)
    if shard is not None:
        order = _shard(task, config.partition, order, shard)
    most = config.finetune.dev_examples
    if shard is None and dev is not None:
        dev = dev.take(shuffled(len(dev), config.seed, task.name, "dev")[:most])
    else:
        carved = min(max(1, len(order) // 10), most)
        dev, order = train.take(order[:carved]), order[carved:]
    if not order:
        raise TaskError(f"{task.where}: no training example is left beside the dev split")
    kept = order[: config.finetune.max_examples or None]
    tested = shuffled(len(test), config.seed, task.name, "test")
    tested = sorted(tested[: config.evaluate.max_test_examples or None])
    return Splits(train.take(kept), dev, test.take(tested), rows.labels)


def _shard(task: Task, partition: Partition, order: list[int], shard: int) -> list[int]:
    size, shards = partition.size, partition.shards
    if not size:
        raise TaskError(f"{task.where}: partition.total is {partition.total} for {shards} shards")
    wanted = shards + 1 if partition.fresh else shards
    if size * wanted > len(order):
        more = " and one to evaluate with" if partition.fresh else ""
        raise TaskError(
            f"{task.where}: {shards} shards of {size}{more} need {size * wanted} training "
            f"examples, there are {len(order)}"
        )
    return order[shard * size : (shard + 1) * size]


def check_few_shot(task: Task, config: Config, train: int) -> None:
    """Check that a task has the examples of one few-shot draw.

    Raises:
        TaskError: with both numbers.
    """
    if config.few_shot.examples > train:
        raise TaskError(
            f"{task.where}: few-shot.examples is {config.few_shot.examples}, but it has {train} "
            "training examples"
        )
