"""Tasks and suites: what a contributor trains and is tested on.

A suite is a TOML file of tasks (README, "A suite file"); the built-in ones lie in
``suites/``. This file turns an entry into train, dev and test rows; where the rows come
from is `cold_flower.sources`.
"""

import random
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cold_flower import sources
from cold_flower.config import Config, Partition, Scalar, flatten
from cold_flower.errors import TaskError
from cold_flower.seeds import derive
from strategies.names import NAME, unknown

SUITES = Path(__file__).parent / "suites"
METRIC_OF = {"classification": "accuracy", "regression": "pearson"}
_KEYS = ("source", "path", "subset", "text", "label", "labels", "kind", "metric", "splits")


@dataclass(frozen=True)
class Task:
    """A dataset with its label space: one entry of a suite."""

    name: str
    suite: str
    """The suite's name or file, for messages; relative paths start beside that file."""
    source: str
    text: tuple[str, ...]
    """One or two columns, or templates over columns: ``"{premise} {question}"``."""
    label: str
    path: str = ""
    subset: str = ""
    labels: tuple[str, ...] = ()
    kind: str = "classification"
    metric: str = "accuracy"
    splits: Mapping[str, str] = field(default_factory=dict)
    paper_name: str = ""
    seed: int = 0
    """Of the run; the embedded demo is generated from it."""

    @property
    def where(self) -> str:
        """Say which entry this is, for messages."""
        return f"task {self.name} (suite {self.suite})"


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
    try:
        table = tomllib.loads(path.read_text())
    except OSError as error:
        raise TaskError(f"suite file {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TaskError(f"suite file {path} is not TOML: {error}") from error
    if extra := set(table) - {"tasks", "recipe"}:
        raise TaskError(f"suite {name}: {unknown('table', min(extra), ['recipe', 'tasks'])}")
    tasks = {
        key: parse_task(key, entry, name, seed) for key, entry in table.get("tasks", {}).items()
    }
    if not tasks:
        raise TaskError(f"suite {name} has no [tasks.<name>] table")
    return Suite(name, tasks, flatten(table.get("recipe", {})))


def parse_task(name: str, entry: Any, suite: str, seed: int = 0) -> Task:
    """Check an entry of a suite, or of a site's own file, and make a task of it.

    Raises:
        TaskError: naming the key that is wrong.
    """
    where = f"task {name} (suite {suite})"
    if not NAME.fullmatch(name):
        raise TaskError(f"{where}: not a valid name (expected {NAME.pattern})")
    if not isinstance(entry, dict):
        raise TaskError(f"{where}: expected a table, got {entry!r}")
    for key in entry:
        if key not in (*_KEYS, "paper-name"):
            raise TaskError(f"{where}: {unknown('key', key, (*_KEYS, 'paper-name'))}")
    for key in ("source", "text", "label", "splits"):
        if key not in entry:
            raise TaskError(f"{where}: {key} is missing")
    kind = _choice(where, "kind", entry.get("kind", "classification"), tuple(METRIC_OF))
    for key in ("path", "subset", "label", "paper-name"):
        if not isinstance(entry.get(key, ""), str):
            raise TaskError(f"{where}: {key} is a string, got {entry[key]!r}")
    text = entry["text"]
    sides = text if isinstance(text, list) else []
    if len(sides) not in (1, 2) or not all(isinstance(side, str) for side in sides):
        raise TaskError(f"{where}: text is a list of one or two columns, got {text!r}")
    for side in sides:
        try:
            sources.columns_of(side)
        except ValueError as error:
            raise TaskError(f"{where}: text {side!r} is no template: {error}") from error
    labels = entry.get("labels", [])
    if not isinstance(labels, list) or len(set(map(str, labels))) != len(labels):
        raise TaskError(f"{where}: labels is a list of different names, got {labels!r}")
    splits = entry["splits"]
    if (
        not isinstance(splits, dict)
        or not {"train", "test"} <= splits.keys() <= {"train", "validation", "test"}
        or not all(isinstance(name, str) for name in splits.values())
    ):
        raise TaskError(f"{where}: splits names train, test and perhaps validation, got {splits!r}")
    return Task(
        name=name,
        suite=suite,
        source=_choice(where, "source", entry["source"], sources.SOURCES),
        text=tuple(text),
        label=entry["label"],
        path=entry.get("path", ""),
        subset=entry.get("subset", ""),
        labels=tuple(map(str, labels)),
        kind=kind,
        metric=_choice(where, "metric", entry.get("metric", METRIC_OF[kind]), (METRIC_OF[kind],)),
        splits=splits,
        paper_name=entry.get("paper-name", name),
        seed=seed,
    )


def _choice(where: str, key: str, value: Any, valid: tuple[str, ...]) -> str:
    if value not in valid:
        raise TaskError(f"{where}: {unknown(key, str(value), valid)}")
    return str(value)


def read_split(task: Task, split: str, known: tuple[str, ...] = ()) -> tuple[Rows, tuple[str, ...]]:
    """Read one split; return its rows and the class names.

    Args:
        task: the entry.
        split: ``train``, ``validation`` or ``test``, as the suite's ``splits`` names it.
        known: the class names that train was found to hold, where neither the suite nor
            the data lists them; then every label is looked up by its text.

    Raises:
        TaskError: the source cannot be read, a column is missing, the split is empty,
            or a label lies outside the task's list.
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
        TaskError: see `read_split`; or fewer rows than the shards need.
    """
    train, labels = read_split(task, "train")
    test, _ = read_split(task, "test", labels)
    own = shard is None and bool(task.splits.get("validation"))
    drawn = ("train", iteration) if config.partition.fresh else ("train",)
    order = _order(len(train), config.seed, task.name, *drawn)
    if shard is not None:
        order = _shard(task, config.partition, order, shard)
    most = config.finetune.dev_examples
    if own:
        dev, _ = read_split(task, "validation", labels)
        dev = dev.take(_order(len(dev), config.seed, task.name, "dev")[:most])
    else:
        carved = min(max(1, len(order) // 10), most)
        dev, order = train.take(order[:carved]), order[carved:]
    if not order:
        raise TaskError(f"{task.where}: no training example is left beside the dev split")
    kept = order[: config.finetune.max_examples or None]
    tested = _order(len(test), config.seed, task.name, "test")
    tested = sorted(tested[: config.evaluate.max_test_examples or None])
    return Data(train.take(kept), dev, test.take(tested), labels)


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


def _order(size: int, seed: int, task: str, *purpose: str | int) -> list[int]:
    order = list(range(size))
    random.Random(derive(seed, task, *purpose)).shuffle(order)
    return order
