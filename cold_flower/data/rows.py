"""A task's rows, checked: the same in every run. What a run draws from them is `splits`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cold_flower.data import sources
from cold_flower.data.task import Task
from cold_flower.errors import TaskError
from cold_flower.seeds import shuffled


@dataclass(frozen=True)
class Rows:
    """Examples: of each, one or two texts, and a class index (or a number)."""

    texts: list[tuple[str, ...]]
    labels: list[int] | list[float]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: list[int]) -> "Rows":
        """Return these rows in this order."""
        labels: Any = [self.labels[i] for i in indices]
        return Rows([self.texts[i] for i in indices], labels)


@dataclass(frozen=True)
class TaskRows:
    """All rows of a task, and its class names."""

    train: Rows
    validation: Rows | None
    test: Rows
    labels: tuple[str, ...]
    """Class names; one empty name for regression."""
    sizes: Mapping[str, int]
    """By split that the source has: its number of rows, before any was drawn."""


def read_task(task: Task) -> TaskRows:
    """Read all splits of a task. Where ``test-sample`` is set, draw the test rows.

    Raises:
        TaskError: see `read_split`; train has a single class; or there are fewer rows than
            ``test-sample`` wants.
    """
    train, labels = read_split(task, "train")
    if task.kind == "classification" and len(set(train.labels)) == 1:
        raise TaskError(
            f"{task.where}, split train: every row is {labels[int(train.labels[0])]!r}; "
            "a classification needs two classes or more to train on"
        )
    others = {
        split: read_split(task, split, labels)[0]
        for split in ("validation", "test")
        if task.splits.get(split)
    }
    sizes = {"train": len(train)} | {split: len(rows) for split, rows in others.items()}
    test = others.get("test")
    if test is None:
        held_out, left = _draw_test(task, len(train))
        train, test = train.take(left), train.take(held_out)
    elif task.test_sample:
        test = test.take(_draw_test(task, len(test))[0])
    return TaskRows(train, others.get("validation"), test, labels, sizes)


def read_split(
    task: Task, split: str, train_labels: tuple[str, ...] = ()
) -> tuple[Rows, tuple[str, ...]]:
    """Read one split; return its rows and the class names.

    Args:
        task: the entry.
        split: ``train``, ``validation`` or ``test``.
        train_labels: the class names that train has. They count where neither the suite nor
            the source lists any, so that a class has one number in all splits.

    Raises:
        TaskError: the source cannot be read, a column is missing, the split is empty, a label
            is not in the task's list, or that list is not the source's.
    """
    columns, source_labels = sources.read(task, task.splits[split])
    texts = sources.texts(task, columns)
    values = columns[task.label]
    where = f"{task.where}, split {split}"
    if not values:
        raise TaskError(f"{where} is empty")
    if task.kind == "regression":
        return Rows(texts, _numbers(task, values, where)), ("",)
    check_labels(task, split, source_labels)
    listed = task.labels or source_labels
    labels = listed or train_labels or tuple(sorted({str(value) for value in values}))
    index_of = {name: i for i, name in enumerate(labels)}
    indices = []
    for row, value in enumerate(values):
        # A number is an index into a list that somebody wrote; otherwise it is a name.
        is_index = listed and isinstance(value, int) and not isinstance(value, bool)
        index = value if is_index else index_of.get(str(value))
        if index is None or not 0 <= index < len(labels):
            raise TaskError(
                f"{where}, row {row}: label {value!r} in column {task.label!r} is outside the "
                f"list {list(labels)} (or 0 to {len(labels) - 1})"
            )
        indices.append(index)
    return Rows(texts, indices), labels


def _numbers(task: Task, values: list[Any], where: str) -> list[float]:
    """Return a regression's labels.

    Raises:
        TaskError: one is no number, or NaN or infinite.
    """
    numbers = []
    for row, value in enumerate(values):
        try:
            numbers.append(float(value))
        except (TypeError, ValueError) as error:
            raise TaskError(f"{where}: column {task.label!r} is no number: {error}") from error
        if not math.isfinite(numbers[-1]):
            raise TaskError(
                f"{where}, row {row}: {task.label!r} is {value!r}; expected a finite number: "
                "remove the row or repair it"
            )
    return numbers


def check_labels(task: Task, split: str, source_labels: tuple[str, ...]) -> None:
    """Check the suite's labels against the class names that the source carries.

    The suite may use other words (T5 answers in these words). But there have to be as many, and
    a word that both use has to stand for the same class.

    Raises:
        TaskError: with both lists.
    """
    if not (task.labels and source_labels):
        return
    ours, theirs = ([name.casefold() for name in names] for names in (task.labels, source_labels))
    moved = [name for name in ours if name in theirs and ours.index(name) != theirs.index(name)]
    if len(ours) != len(theirs) or moved:
        raise TaskError(
            f"{task.where}, split {split}: labels are {list(task.labels)} in the suite, but "
            f"{list(source_labels)} in the data; list them in the order of the data"
        )


def _draw_test(task: Task, size: int) -> tuple[list[int], list[int]]:
    """Draw ``test-sample`` of ``size`` rows; return their indices and the others', both sorted.

    The draw depends on the task's name and the size alone. So every run is tested on the same
    rows, whatever its seed.

    Raises:
        TaskError: there are too few, or none would be left to train on.
    """
    least = task.test_sample if task.splits["test"] else task.test_sample + 1
    if size < least:
        split = "test" if task.splits["test"] else "train"
        raise TaskError(
            f"{task.where}: test-sample is {task.test_sample}, but split {split} has {size} rows"
        )
    order = shuffled(size, 0, "published test", task.name)
    return sorted(order[: task.test_sample]), sorted(order[task.test_sample :])
