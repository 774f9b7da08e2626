"""Tasks and suites: what a contributor trains and is tested on.

A suite is a TOML file of tasks (README, "A suite file"); the built-in ones lie in
``suites/``. This file turns an entry (`cold_flower.entries`) into train, dev and test rows;
where the rows come from is `cold_flower.sources`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cold_flower import published, sources, toml
from cold_flower.config import Config, Partition, Scalar, flatten
from cold_flower.entries import Task, parse
from cold_flower.errors import TaskError
from cold_flower.seeds import shuffled
from strategies.names import unknown

SUITES = Path(__file__).parent / "suites"


@dataclass(frozen=True)
class Suite:
    """A set of tasks, and the recipe that fits them."""

    name: str
    tasks: Mapping[str, Task]
    recipe: Mapping[str, Scalar]


@dataclass(frozen=True)
class Rows:
    """Examples: one or two texts each, and a class index (or a number) each."""

    texts: list[tuple[str, ...]]
    labels: list[int] | list[float]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: list[int]) -> "Rows":
        """Return these rows in this order."""
        chosen: Any = [self.labels[i] for i in indices]
        return Rows([self.texts[i] for i in indices], chosen)


@dataclass(frozen=True)
class Whole:
    """A task's rows before a run draws from them: the same in every run."""

    train: Rows
    validation: Rows | None
    test: Rows
    labels: tuple[str, ...]
    sizes: Mapping[str, int]
    """By split that was read: how many rows it has."""


@dataclass(frozen=True)
class Data:
    """A contributor's own data."""

    train: Rows
    dev: Rows
    test: Rows
    labels: tuple[str, ...]
    """Class names; one empty name for regression."""


def suite_names() -> list[str]:
    """List the built-in suites."""
    return sorted(path.stem for path in SUITES.glob("*.toml"))


def load_suite(name: str, seed: int = 0) -> Suite:
    """Load a built-in suite, or a user's by the path of its file.

    Raises:
        TaskError: no such suite, not TOML, or an entry that is not as documented.
    """
    path = Path(name) if name.endswith(".toml") else SUITES / f"{name}.toml"
    if not name.endswith(".toml") and name not in suite_names():
        raise TaskError(
            unknown("suite", name, suite_names()) + " A file is given as <absolute path>.toml."
        )
    table = toml.read(path, "suite file", TaskError)
    if extra := set(table) - {"tasks", "recipe"}:
        raise TaskError(f"suite {name}: {unknown('table', min(extra), ['recipe', 'tasks'])}")
    tasks = {key: parse(key, entry, name, seed) for key, entry in table.get("tasks", {}).items()}
    if not tasks:
        raise TaskError(f"suite {name} has no [tasks.<name>] table")
    return Suite(name, tasks, flatten(table.get("recipe", {})))


def read_split(task: Task, split: str, known: tuple[str, ...] = ()) -> tuple[Rows, tuple[str, ...]]:
    """Read one split; return its rows and the class names.

    Args:
        task: the entry.
        split: ``train``, ``validation`` or ``test``, as the suite's ``splits`` names it.
        known: the class names that train was found to hold, where neither the suite nor
            the data lists them; then every label is looked up by its text.

    Raises:
        TaskError: the source cannot be read, a column is missing, the split is empty,
            a label lies outside the task's list, or that list is not the data's.
    """
    columns, named = sources.read(task, task.splits[split])
    texts = sources.texts(task, columns)
    raw = columns[task.label]
    where = f"{task.where}, split {split}"
    if not raw:
        raise TaskError(f"{where} is empty")
    if task.kind == "regression":
        try:
            return Rows(texts, [float(value) for value in raw]), ("",)
        except (TypeError, ValueError) as error:
            raise TaskError(f"{where}: column {task.label!r} is no number: {error}") from error
    published.check_names(task, split, named)
    labels = task.labels or named or known or tuple(sorted({str(value) for value in raw}))
    index = {name: i for i, name in enumerate(labels)}
    numbers = []
    for row, value in enumerate(raw):
        integral = isinstance(value, int) and not isinstance(value, bool)
        number = value if integral and (task.labels or named) else index.get(str(value))
        if number is None or not 0 <= number < len(labels):
            raise TaskError(
                f"{where}, row {row}: label {value!r} in column {task.label!r} is outside the "
                f"list {list(labels)} (or 0 to {len(labels) - 1})"
            )
        numbers.append(number)
    return Rows(texts, numbers), labels


def read(task: Task) -> Whole:
    """Read all of a task's splits, and draw the test rows that every run uses.

    Raises:
        TaskError: see `read_split`.
    """
    train, labels = read_split(task, "train")
    rows = {
        split: read_split(task, split, labels)[0]
        for split in ("validation", "test")
        if task.splits.get(split)
    }
    sizes = {"train": len(train)} | {split: len(part) for split, part in rows.items()}
    test = rows.get("test")
    if test is None:
        held, left = published.sample(task, len(train))
        train, test = train.take(left), train.take(held)
    elif task.test_sample:
        test = test.take(published.sample(task, len(test))[0])
    return Whole(train, rows.get("validation"), test, labels, sizes)


def load(task: Task, config: Config, shard: int | None = None, iteration: int = 0) -> Data:
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
    whole = read(task)
    for fault in published.faults(task, whole):
        raise TaskError(f"{task.where}: {fault}")
    train, test, dev = whole.train, whole.test, whole.validation
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
    return Data(train.take(kept), dev, test.take(tested), whole.labels)


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
