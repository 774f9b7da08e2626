"""Where a task's rows come from: the hub, files, or the embedded demo."""

import datetime
import decimal
import re
from collections.abc import Mapping
from typing import Any

from cold_flower.data import demo, files
from cold_flower.data.task import Task, columns_of, filled, needed
from cold_flower.errors import TaskError, first_line
from strategies.names import unknown

Columns = Mapping[str, list[Any]]
_HALF = re.compile("[\ud800-\udfff]")  # of a character that JSON wrote as two
_PLAIN = (str, bool, int, float, decimal.Decimal, datetime.date, datetime.time)


def read(task: Task, split: str) -> tuple[Columns, tuple[str, ...]]:
    """Read the columns that a task needs.

    Args:
        task: the entry.
        split: as the source calls it.

    Returns:
        The columns, and the class names that the source itself carries (often none).
    """
    if task.source == "demo":
        if task.name not in demo.TASKS:
            whole = sorted(demo.TASKS)
            raise TaskError(f"{task.where}: {unknown('task of the demo', task.name, whole)}")
        return demo.columns(task.name, split, task.seed), ()
    if task.source == "files":
        return files.read(task, split)
    return _read_hub(task, split)


def texts(task: Task, columns: Columns, where: str) -> list[tuple[str, ...]]:
    """Make each row's one or two texts from its columns: as the source writes them; null is empty.

    Args:
        task: the entry.
        columns: those that `read` gives.
        where: the task and split, for messages.

    Raises:
        TaskError: a value is no text, such as a list, bytes or an image, or holds half a
            character, by row and column.
    """
    names = dict.fromkeys(name for side in task.text for name in columns_of(side))
    written = {name: as_text(name, columns[name], where) for name in names}
    size = len(columns[task.label])
    sides: list[list[str]] = []
    for text in task.text:
        if "{" in text:
            rows = ({name: written[name][i] for name in columns_of(text)} for i in range(size))
            sides.append([filled(text, row) for row in rows])
        else:
            sides.append(written[text])
    return list(zip(*sides, strict=True))


def as_text(name: str, values: list[Any], where: str) -> list[str]:
    """Return a column as the source writes it; null is empty.

    Raises:
        TaskError: see `texts`.
    """
    shown = []
    for row, value in enumerate(values):
        if value is not None and not isinstance(value, _PLAIN):
            raise TaskError(
                f"{where}, row {row}: column {name!r} holds {type(value).__name__}, expected text: "
                "make a column of text from it, or name another one in text"
            )
        shown.append("" if value is None else plain(value))
        if _HALF.search(shown[-1]):
            raise TaskError(
                f"{where}, row {row}: column {name!r} holds half a character, as of a text that "
                "was cut amid an emoji: no tokenizer reads it; repair the row, or take it out"
            )
    return shown


def plain(value: Any) -> str:
    """Write a value as its source does: true, not True."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def stamp(task: Task) -> list[str]:
    """Return the names, sizes and times of a task's files: it changes when one of them does."""
    if task.source != "files":
        return []
    there = [file for split in task.splits.values() if split for file in files.paths(task, split)]
    return [f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in there]


def _read_hub(task: Task, split: str) -> tuple[Columns, tuple[str, ...]]:
    import datasets

    try:
        table = datasets.load_dataset(task.path, task.subset or None, split=split)
    except Exception as error:  # datasets raises what its many back ends raise
        raise TaskError(
            f"{task.where}: hub dataset {task.path!r} (subset {task.subset!r}, split {split!r}) "
            f"cannot be loaded: {first_line(error)}. "
            "Without a network, use a folder that `cold-flower suites --prepare` wrote where there "
            "is one; where it is gone, name a local copy in a suite file of your own "
            '(source = "files"): docs/datasets.md says how'
        ) from error
    columns = {name: list(table[name]) for name in needed(task, table.column_names, task.path)}
    feature = table.features[task.label]
    labels = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else ()
    return columns, labels
