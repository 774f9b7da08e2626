"""A task's rows, read whole: the same in every run, before anything is drawn from them.

Where the bytes come from is `cold_flower.data.sources`; what a run draws, `splits`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cold_flower.data import sources
from cold_flower.data.task import Task
from cold_flower.errors import TaskError
from cold_flower.seeds import shuffled


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
class TaskRows:
    """All rows of a task, and its class names."""

    train: Rows
    validation: Rows | None
    test: Rows
    labels: tuple[str, ...]
    sizes: Mapping[str, int]
    """By split that was read: how many rows it has."""


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
    check_labels(task, split, named)
    labels = task.labels or named or known or tuple(sorted({str(value) for value in raw}))
    index_of = {name: i for i, name in enumerate(labels)}
    indices = []
    for row, value in enumerate(raw):
        integral = isinstance(value, int) and not isinstance(value, bool)
        number = value if integral and (task.labels or named) else index_of.get(str(value))
        if number is None or not 0 <= number < len(labels):
            raise TaskError(
                f"{where}, row {row}: label {value!r} in column {task.label!r} is outside the "
                f"list {list(labels)} (or 0 to {len(labels) - 1})"
            )
        indices.append(number)
    return Rows(texts, indices), labels


def read_task(task: Task) -> TaskRows:
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
        held, left = _draw_test(task, len(train))
        train, test = train.take(left), train.take(held)
    elif task.test_sample:
        test = test.take(_draw_test(task, len(test))[0])
    return TaskRows(train, rows.get("validation"), test, labels, sizes)


def _draw_test(task: Task, size: int) -> tuple[list[int], list[int]]:
    """Draw ``test-sample`` of so many rows; return them and the others, in their order.

    The draw knows the task's name and the size alone: every run, whatever its seed, is
    tested on the same rows.

    Raises:
        TaskError: there are not so many, or nothing would be left to train on.
    """
    least = task.test_sample if task.splits["test"] else task.test_sample + 1
    if size < least:
        split = "test" if task.splits["test"] else "train"
        raise TaskError(
            f"{task.where}: test-sample is {task.test_sample}, but split {split} has {size} rows"
        )
    order = shuffled(size, 0, "published test", task.name)
    return sorted(order[: task.test_sample]), sorted(order[task.test_sample :])


def check_labels(task: Task, split: str, named: tuple[str, ...]) -> None:
    """Check the entry's labels against the class names that the data carry.

    An entry may call the classes otherwise (T5 answers in these words), but there are as
    many, and a name that both have stands for the same class.

    Raises:
        TaskError: with both lists.
    """
    if not (task.labels and named):
        return
    ours, theirs = ([name.casefold() for name in names] for names in (task.labels, named))
    moved = [name for name in ours if name in theirs and ours.index(name) != theirs.index(name)]
    if len(ours) != len(theirs) or moved:
        raise TaskError(
            f"{task.where}, split {split}: labels are {list(task.labels)} in the suite, but "
            f"{list(named)} in the data; list them in the order of the data"
        )
