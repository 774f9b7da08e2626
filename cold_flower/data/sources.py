"""Where rows come from: the hub, files, or the embedded demo."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cold_flower.data import demo
from cold_flower.data.task import Task, columns_of
from cold_flower.errors import TaskError

SUFFIXES = (".parquet", ".jsonl", ".csv")
Columns = Mapping[str, list[Any]]


def read(task: Task, split: str) -> tuple[Columns, tuple[str, ...]]:
    """Read the columns a task needs; return them and the class names the data holds."""
    if task.source == "demo":
        return demo.columns(task.name, split, task.seed), ()
    return _files(task, split) if task.source == "files" else _hub(task, split)


def needed(task: Task) -> list[str]:
    """Return the columns a task's texts and label name."""
    found = [column for text in task.text for column in columns_of(text)]
    return [*dict.fromkeys(found), task.label]


def texts(task: Task, columns: Columns) -> list[tuple[str, ...]]:
    """Make each row's one or two texts from its columns."""
    size = len(columns[task.label])
    sides: list[list[str]] = []
    for text in task.text:
        if "{" in text:
            names = columns_of(text)
            rows = ({n: _plain(columns[n][i]) for n in names} for i in range(size))
            sides.append([text.format_map(row) for row in rows])
        else:
            sides.append([_plain(value) for value in columns[text]])
    return list(zip(*sides, strict=True))


def _plain(value: Any) -> str:
    return "" if value is None else str(value)


def stamp(task: Task) -> list[str]:
    """Return what changes when a task's files change: their names, sizes and times."""
    if task.source != "files":
        return []
    found = [_find(task, split) for split in task.splits.values() if split]
    return [f"{p} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in found]


def _files(task: Task, split: str) -> tuple[Columns, tuple[str, ...]]:
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet

    path = _find(task, split)
    readers = {
        ".parquet": pyarrow.parquet.read_table,
        ".jsonl": pyarrow.json.read_json,
        ".csv": pyarrow.csv.read_csv,
    }
    try:
        table = readers[path.suffix](path)
    except (pyarrow.ArrowException, OSError) as error:
        raise TaskError(f"{task.where}: {path} cannot be read: {error}") from error
    _check_columns(task, table.column_names, str(path))
    return {name: table[name].to_pylist() for name in needed(task)}, ()


def _find(task: Task, split: str) -> Path:
    beside = Path(task.suite).parent if task.suite.endswith(".toml") else Path()
    if "{split}" in task.path:
        found = beside / task.path.replace("{split}", split)
        candidates = [found]
        if found.suffix not in SUFFIXES:
            raise TaskError(f"{task.where}: {found} is none of {', '.join(SUFFIXES)}")
    else:
        folder = beside / task.path
        candidates = [folder / f"{split}{suffix}" for suffix in SUFFIXES]
    for path in candidates:
        if path.is_file():
            return path
    looked = " or ".join(map(str, candidates))
    raise TaskError(f"{task.where}: no file for split {split!r}; looked for {looked}")


def _hub(task: Task, split: str) -> tuple[Columns, tuple[str, ...]]:
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
    _check_columns(task, table.column_names, task.path)
    feature = table.features[task.label]
    named = tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else ()
    return {name: list(table[name]) for name in needed(task)}, named


def _check_columns(task: Task, there: list[str], source: str) -> None:
    for name in needed(task):
        if name not in there:
            raise TaskError(
                f"{task.where}: no column {name!r} in {source}; the columns there are "
                f"{', '.join(there)}"
            )
