"""What a label column holds, as class indices or numbers."""

import decimal
import math
import re
from collections.abc import Sequence
from typing import Any

from cold_flower.data.files import INTEGER
from cold_flower.data.sources import plain
from cold_flower.data.task import Task
from cold_flower.errors import TaskError

NONE = -1  # "no label", as the hub marks it (SNLI)
DECIMAL = re.compile(r"-?\d+[.,]\d+")
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?")  # as a list of labels writes one: no 01
NUMBERS = "kind = 'regression' reads numbers, with a point before the decimals: 0.5, not 0,5"
SHOWN = 20  # classes of a list, in a message
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
            comma = isinstance(value, str) and "," in value
            hint = f"; {NUMBERS}" if comma else ""
            raise TaskError(
                f"{where}, row {row}: column {task.label!r} is no number: {error}{hint}"
            ) from error
        if not math.isfinite(found[-1]):
            raise TaskError(
                f"{where}, row {row}: {task.label!r} is {value!r}; expected a finite number: "
                "remove the row or repair it"
            )
    return found


def keys_of(
    task: Task, values: Sequence[Any], listed: Sequence[str], where: str, *, sure: bool = True
) -> list[Key]:
    """Return each row's label as an integer, as text, or as None where it has none.

    An integral float is that integer: a table with a gap makes floats of integers. Missing are
    null, NaN, blank text, and -1, which the hub uses; among integers also as a text.

    Args:
        task: the entry.
        values: the column.
        listed: the class names that the suite or the source lists.
        where: the task and split, for messages.
        sure: whether -1 means no label wherever the list leaves it out: but for train, with a
            list of the suite's own, it does.

    Raises:
        TaskError: a value is neither number nor text; -1 occurs where no list says whether
            it is a class; or, unless it is sure, where it seems to be one.
    """
    found = [_key(task, value, f"{where}, row {row}") for row, value in enumerate(values)]
    whole = all(key is None or INTEGER.fullmatch(str(key)) for key in found)
    if whole and str(NONE) not in listed:
        found = [NONE if key == str(NONE) else key for key in found]
    if NONE not in found or any(_number(name) == NONE for name in listed):
        return found
    if not listed:
        names = sorted({str(key) for key in found if key is not None})
        raise TaskError(
            f"{where}: {found.count(NONE)} rows have the label -1, which means 'no label' where "
            f"classes are listed: list them all, labels = {names}, or all but -1 to leave those "
            "rows out"
        )
    if not sure:
        _check_none(found, listed, where)
    return [None if key == NONE else key for key in found]


def _check_none(found: Sequence[Key], listed: Sequence[str], where: str) -> None:
    """Refuse -1 as "no label" if integers count from it: with three names, -1, 0 and 1.

    Raises:
        TaskError: integers are places in the list, and none is that of its last class.
    """
    places = {key for key in found if isinstance(key, int)}
    words = all(_number(name) is None for name in listed)  # else numbers are looked up as names
    if any(isinstance(key, str) for key in found) or not words:
        return
    if places == {*range(NONE, len(listed) - 1)}:
        raise TaskError(
            f"{where}: {found.count(NONE)} rows have the label -1, which means 'no label' where "
            f"classes are listed without it, and no row is of the last class, {listed[-1]!r}. If "
            f"-1 is a class, list the numbers, labels = {[str(key) for key in sorted(places)]}, or "
            "write the names into the column; if it is none, take those rows out"
        )


def _key(task: Task, value: Any, where: str) -> Key:
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, bytes | list | dict):
        raise TaskError(
            f"{where}: column {task.label!r} holds {type(value).__name__}, expected a class: an "
            "integer or a name"
        )
    if isinstance(value, float | decimal.Decimal) and not math.isfinite(value):
        raise TaskError(f"{where}: column {task.label!r} holds {value}, expected a class")
    if isinstance(value, int | float | decimal.Decimal) and not isinstance(value, bool):
        return int(value) if value == int(value) else str(value)
    return plain(value)


def _number(name: str) -> decimal.Decimal | None:
    """Return what a label is as a number; None if it is a word."""
    return decimal.Decimal(name) if _NUMBER.fullmatch(name) else None


class Classes:
    """The classes of a task: which of them a label means.

    Of a list with decimals, such as 0.5 and 1.0, a number is looked up as a number: tables and
    JSON write 1.0 as 1.

    Args:
        names: the class names.
        listed: whether somebody wrote that list; else it is what train holds.
        numbered: whether the list is the source's own, so that its integers are indices.
    """

    def __init__(self, names: Sequence[str], *, listed: bool, numbered: bool) -> None:
        self._names, self._numbered = names, numbered
        self._decimals = not numbered and any("." in n and _number(n) is not None for n in names)
        self._index_of = {name: i for i, name in enumerate(names)}
        self._folded = {name.casefold(): i for i, name in enumerate(names)}
        digits = all(INTEGER.fullmatch(name) for name in names)
        # Whether an integer is looked up as a text is; else it is an index.
        self._by_name = not listed or self._decimals or (digits and not numbered)
        self._listed = listed

    def index(self, key: int | str) -> int | None:
        """Return the index of a label's class; None if it has none."""
        by_name = self._index_of.get(str(key))
        if by_name is None and self._decimals and _number(str(key)) is not None:  # 1.0 came as 1
            same = [i for i, n in enumerate(self._names) if _number(n) == _number(str(key))]
            return same[0] if len(same) == 1 else None
        if isinstance(key, str):
            is_boolean = by_name is None and key.casefold() in ("true", "false")
            return self._folded.get(key.casefold()) if is_boolean else by_name
        if self._by_name:
            return by_name
        in_list = 0 <= key < len(self._names)
        return key if in_list and (self._numbered or by_name in (None, key)) else None

    def outside(self, key: int | str) -> str:
        """Say why a label is in no class, and what would be."""
        names = f"{list(self._names[:SHOWN])}"
        if len(self._names) > SHOWN:
            names += f" and {len(self._names) - SHOWN} more"
        if isinstance(key, str) or not self._listed:
            hint = f"; {NUMBERS}" if DECIMAL.fullmatch(str(key)) else ""
            return f"outside the list {names}{hint}"
        if self._by_name:
            return f"outside the list {names}, which is of numbers and so taken as they are"
        if str(key) in self._names and not self._numbered:
            return f"ambiguous: a name in the list {names}, or a place in it"
        return f"outside the list {names} (or 0 to {len(self._names) - 1})"


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
            f"{task.where}, split {split}: labels are {list(task.labels)} in its entry, but "
            f"{list(source_labels)} in the data; list them in the order of the data"
        )
