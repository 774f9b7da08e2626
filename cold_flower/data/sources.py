"""Where a task's rows come from: the hub, files, or the embedded demo."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cold_flower.data import demo
from cold_flower.data.task import Task, columns_of
from cold_flower.errors import TaskError

SUFFIXES = (".parquet", ".jsonl", ".csv")
Columns = Mapping[str, list[Any]]
_LARGEST_BLOCK = 2**31 - 1  # bytes; pyarrow counts them in 32 bits


def read(task: Task, split: str) -> tuple[Columns, tuple[str, ...]]:
    """Read the columns that a task needs.

    Args:
        task: the entry.
        split: as the source calls it.

    Returns:
        The columns, and the class names that the source itself carries (often none).
    """
    if task.source == "demo":
        return demo.columns(task.name, split, task.seed), ()
    if task.source == "files":
        return _read_file(task, split), ()
    return _read_hub(task, split)


def texts(task: Task, columns: Columns) -> list[tuple[str, ...]]:
    """Make each row's one or two texts from its columns."""
    size = len(columns[task.label])
    sides: list[list[str]] = []
    for text in task.text:
        if "{" in text:
            names = columns_of(text)
            rows = ({name: _plain(columns[name][i]) for name in names} for i in range(size))
            sides.append([text.format_map(row) for row in rows])
        else:
            sides.append([_plain(value) for value in columns[text]])
    return list(zip(*sides, strict=True))


def _plain(value: Any) -> str:
    return "" if value is None else str(value)


def stamp(task: Task) -> list[str]:
    """Return the names, sizes and times of a task's files: it changes when one of them does."""
    if task.source != "files":
        return []
    files = [_file(task, split) for split in task.splits.values() if split]
    return [f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files]


def _read_file(task: Task, split: str) -> Columns:
    import pyarrow

    path = _file(task, split)
    try:
        table = _table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise TaskError(f"{task.where}: {path} cannot be read: {error}") from error
    return {name: table[name].to_pylist() for name in _needed(task, table, str(path))}


def _table(path: Path) -> Any:
    """Read a file as a pyarrow table."""
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet

    if path.suffix == ".parquet":
        return pyarrow.parquet.read_table(path)
    # One block: a record that is longer than one is an error of pyarrow's. And none is empty.
    block = min(path.stat().st_size + 1, _LARGEST_BLOCK)
    if path.suffix == ".jsonl":
        options = pyarrow.json.ReadOptions(block_size=block)
        return pyarrow.json.read_json(path, read_options=options)
    return pyarrow.csv.read_csv(
        path,
        read_options=pyarrow.csv.ReadOptions(block_size=block),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
    )


def _file(task: Task, split: str) -> Path:
    """Find a split's file; relative paths start beside the suite's file.

    Raises:
        TaskError: there is none, or it is of a kind that is not read.
    """
    beside = Path(task.suite).parent if task.suite.endswith(".toml") else Path()
    if "{split}" in task.path:
        path = beside / task.path.replace("{split}", split)
        if path.suffix not in SUFFIXES:
            raise TaskError(f"{task.where}: {path} is none of {', '.join(SUFFIXES)}")
        candidates = [path]
    else:
        candidates = [beside / task.path / f"{split}{suffix}" for suffix in SUFFIXES]
    for path in candidates:
        if path.is_file():
            return path
    looked = " or ".join(map(str, candidates))
    raise TaskError(f"{task.where}: no file for split {split!r}; looked for {looked}")


def _read_hub(task: Task, split: str) -> tuple[Columns, tuple[str, ...]]:
    import datasets

    try:
        table = datasets.load_dataset(task.path, task.subset or None, split=split)
        if task.kind == "classification" and task.label in table.column_names:
            # -1 is the hub's mark of "no label" (SNLI)
            table = table.filter(lambda label: label != -1, input_columns=task.label)
    except Exception as error:  # datasets raises what its many back ends raise
        raise TaskError(
            f"{task.where}: hub dataset {task.path!r} (subset {task.subset!r}, split {split!r}) "
            f"cannot be loaded: {str(error).splitlines()[0] if str(error) else error!r}. "
            "Without a network, or where it is gone, name a local copy in a suite file of your "
            'own (source = "files"): docs/datasets.md says how'
        ) from error
    columns = {name: list(table[name]) for name in _needed(task, table, task.path)}
    feature = table.features[task.label]
    labels = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else ()
    return columns, labels


def _needed(task: Task, table: Any, source: str) -> list[str]:
    """Return the columns that a task's texts and label name.

    Raises:
        TaskError: the table lacks one of them, or has it twice.
    """
    names = [*(column for text in task.text for column in columns_of(text)), task.label]
    for name in names:
        if name not in table.column_names:
            raise TaskError(
                f"{task.where}: no column {name!r} in {source}; the columns there are "
                f"{', '.join(table.column_names)}"
            )
        if (times := table.column_names.count(name)) > 1:
            raise TaskError(
                f"{task.where}: {times} columns of {source} are called {name!r}; rename all but one"
            )
    return list(dict.fromkeys(names))
