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
    whole = {"train": train} | others
    test = others.get("test")
    if test is None:
        held_out, left = _draw_test(task, len(train))
        train, test = train.take(left), train.take(held_out)
    elif task.test_sample:
        test = test.take(_draw_test(task, len(test))[0])
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
            a label, a label is not in the task's list, or that list is not the source's.
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
    keys = keys_of(task, values, listed, where)
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
