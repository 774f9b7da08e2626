"""A task's rows, checked: the same in every run. What a run draws from them is `splits`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cold_flower.data import sources
from cold_flower.data.labels import Classes, check_labels, keys_of, numbers
from cold_flower.data.task import Task
from cold_flower.errors import TaskError
from cold_flower.seeds import shuffled


@dataclass(frozen=True)
class Rows:
    """Examples: of each, one or two texts, and a class index (or a number)."""

    texts: list[tuple[str, ...]]
    labels: list[int] | list[float]
    without_label: int = 0
    """How many more the source has; they are left out."""

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
    """By split that the source has: its number of rows with a label, before any was drawn."""
    without_label: Mapping[str, int]
    """By split that the source has: how many rows were left out for that."""


def read_task(task: Task) -> TaskRows:
    """Read all splits of a task; draw the rows of ``test-sample`` and ``train-sample``.

    Raises:
        TaskError: see `read_split`; train has a single class; a regression's train or test has
            a single number; or there are fewer rows than a sample wants.
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
    whole = {"train": train} | others
    test = others.get("test")
    if test is None:
        held_out, left = _draw(task, "train", len(train), "test", least=1)
        train, test = train.take(left), train.take(held_out)
    elif task.test_sample:
        test = test.take(_draw(task, "test", len(test), "test")[0])
    if task.train_sample:
        train = train.take(_draw(task, "train", len(train), "train")[0])
    if task.kind == "regression":
        _check_numbers(task, train, test)
    return TaskRows(
        train,
        others.get("validation"),
        test,
        labels,
        sizes={split: len(rows) for split, rows in whole.items()},
        without_label={split: rows.without_label for split, rows in whole.items()},
    )


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
        TaskError: the source cannot be read, a column is missing, the split is empty, no row has
            a label, a label is not in the task's list, that list is not the source's, or -1 is
            where it may mean a class or none.
    """
    columns, source_labels = sources.read(task, task.splits[split])
    where = f"{task.where}, split {split}"
    texts, values = sources.texts(task, columns, where), columns[task.label]
    if not values:
        raise TaskError(f"{where} is empty")
    if task.kind == "regression":
        return Rows(texts, numbers(task, values, where)), ("",)
    check_labels(task, split, source_labels)
    listed = task.labels or source_labels
    sure = split != "train" or bool(source_labels)
    keys = keys_of(task, values, listed, where, sure=sure)
    names = listed or train_labels or tuple(sorted({str(key) for key in keys if key is not None}))
    classes = Classes(names, listed=bool(listed), numbered=bool(source_labels))
    rows, indices = [], []
    for row, key in enumerate(keys):
        if key is None:
            continue
        index = classes.index(key)
        if index is None:
            raise TaskError(
                f"{where}, row {row}: label {key!r} in column {task.label!r} is "
                f"{classes.outside(key)}"
            )
        rows.append(texts[row])
        indices.append(index)
    if not rows:
        raise TaskError(f"{where}: none of {len(keys)} rows has a label in column {task.label!r}")
    return Rows(rows, indices, without_label=len(keys) - len(rows)), names


def _check_numbers(task: Task, train: Rows, test: Rows) -> None:
    """Check that there is something to correlate with.

    Raises:
        TaskError: all numbers are the same: every base would score 0.
    """
    hidden = "be tested on: are they hidden? GLUE's are, and its validation split serves as test"
    for split, rows, to in (("train", train, "train on"), ("test", test, hidden)):
        if len(set(rows.labels)) == 1:
            raise TaskError(
                f"{task.where}, split {split}: every row is {rows.labels[0]:g}; a regression needs "
                f"two numbers or more to {to}"
            )


def _draw(
    task: Task, split: str, size: int, sample: str, least: int = 0
) -> tuple[list[int], list[int]]:
    """Draw the rows of ``test-sample`` or ``train-sample``; return their indices and the others'.

    The draw depends on the task's name and the size alone. So all runs have the same rows,
    whatever their seeds.

    Args:
        task: the entry.
        split: from which to draw.
        size: its number of rows.
        sample: ``test`` or ``train``.
        least: so many must be left.

    Raises:
        TaskError: there are too few.
    """
    count = task.test_sample if sample == "test" else task.train_sample
    if size < count + least:
        raise TaskError(
            f"{task.where}: {sample}-sample is {count}, but split {split} has {size} rows"
        )
    order = shuffled(size, 0, f"published {sample}", task.name)
    return sorted(order[:count]), sorted(order[count:])
