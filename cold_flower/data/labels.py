"""What a label column holds, as class indices or numbers."""

import decimal
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from cold_flower.data.sources import plain
from cold_flower.data.task import Task
from cold_flower.errors import TaskError

_INTEGER = re.compile(r"0|-?[1-9]\d*")
NONE = -1  # "no label", as the hub marks it (SNLI)
Key = int | str | None


def numbers(task: Task, values: Sequence[Any], where: str) -> list[float]:
    """Return a regression's labels.

    Raises:
        TaskError: one is missing or no number, or NaN or infinite, by row.
    """
    found = []
    for row, value in enumerate(values):
        try:
            if isinstance(value, str) and "_" in value:  # Python reads 1_000
                raise ValueError(f"could not convert string to float: {value!r}")
            found.append(float(value))
        except (TypeError, ValueError) as error:
            raise TaskError(
                f"{where}, row {row}: column {task.label!r} is no number: {error}"
            ) from error
        if not math.isfinite(found[-1]):
            raise TaskError(
                f"{where}, row {row}: {task.label!r} is {value!r}; expected a finite number: "
                "remove the row or repair it"
            )
    return found


def keys_of(task: Task, values: Sequence[Any], listed: Sequence[str], where: str) -> list[Key]:
    """Return each row's label as an integer, as text, or as None where it has none.

    An integral float is that integer: a table with a gap makes floats of integers. Missing are
    null, NaN, blank text, and -1, which the hub uses.

    Args:
        task: the entry.
        values: the column.
        listed: the class names that the suite or the source lists.
        where: the task and split, for messages.

    Raises:
        TaskError: a value is neither number nor text; or -1 occurs where no list says whether
            it is a class.
    """
    found = [_key(task, value, f"{where}, row {row}") for row, value in enumerate(values)]
    if NONE not in found or str(NONE) in listed:
        return found
    if not listed:
        names = sorted({str(key) for key in found if key is not None})
        raise TaskError(
            f"{where}: {found.count(NONE)} rows have the label -1, which means 'no label' where "
            f"classes are listed: list them all, labels = {names}, or all but -1 to leave those "
            "rows out"
        )
    return [None if key == NONE else key for key in found]


def _key(task: Task, value: Any, where: str) -> Key:
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, bytes | list | dict):
        raise TaskError(
            f"{where}: column {task.label!r} holds {type(value).__name__}, expected a class: an "
            "integer or a name"
        )
    if isinstance(value, int | float | decimal.Decimal) and not isinstance(value, bool):
        return int(value) if value == int(value) else str(value)
    return plain(value)


def lookup(
    labels: Sequence[str], *, listed: bool, numbered: bool
) -> Callable[[int | str], int | None]:
    """Return how a label becomes the index of its class; None is for one that has none.

    Args:
        labels: the class names.
        listed: whether somebody wrote that list; else it is what train holds.
        numbered: whether the list is the source's own, so that its integers are indices.
    """
    index_of = {name: i for i, name in enumerate(labels)}
    folded = {name.casefold(): i for i, name in enumerate(labels)}
    digits = all(_INTEGER.fullmatch(name) for name in labels)

    def index(key: int | str) -> int | None:
        by_name = index_of.get(str(key))
        if isinstance(key, str):
            is_boolean = by_name is None and key.casefold() in ("true", "false")
            return folded.get(key.casefold()) if is_boolean else by_name
        if not listed or (digits and not numbered):
            return by_name
        return key if 0 <= key < len(labels) and (numbered or by_name in (None, key)) else None

    return index


def outside(key: int | str, labels: Sequence[str], *, listed: bool) -> str:
    """Say why a label is in no class, and what would be."""
    if isinstance(key, str) or not listed:
        return f"outside the list {list(labels)}"
    if all(_INTEGER.fullmatch(name) for name in labels):
        return f"outside the list {list(labels)}, which is of numbers and so taken as they are"
    if str(key) in labels:
        return f"ambiguous: a name in the list {list(labels)}, or a place in it"
    return f"outside the list {list(labels)} (or 0 to {len(labels) - 1})"


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
