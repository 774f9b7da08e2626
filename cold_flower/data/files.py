"""A split in files: which they are, and what they hold, as they say it.

Values are text in a file that knows no types (CSV, TSV), and what JSON or Parquet says elsewhere.
"""

import csv
import io
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cold_flower.data.task import COMMAS, Task, needed
from cold_flower.errors import TaskError

SUFFIXES = (".parquet", ".jsonl", ".json", ".csv", ".tsv")
TEXT_ONLY = (".csv", ".tsv")  # know no types
COMPRESSED = {"": None, ".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
UTF8 = "utf-8-sig"  # with a byte order mark or without
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})")  # as the hub and datasets call the files of a split
INTEGER = re.compile(r"0|-?[1-9]\d*")  # as a file or a list of labels writes one
_WHOLE = re.compile(rf"({INTEGER.pattern})(\.0+)?")
Columns = dict[str, list[Any]]


def read(task: Task, split: str) -> tuple[Columns, tuple[str, ...]]:
    """Read a split's columns that the task needs, and the class names in Parquet's metadata.

    Raises:
        TaskError: a file or a column is missing, of no kind that is read, or broken; by file
            and line.
    """
    columns: Columns = {}
    names: tuple[str, ...] = ()
    typed = True
    for number, path in enumerate(paths(task, split)):
        found, names_there = _read(task, path)
        if number and names_there != names:
            raise TaskError(f"{task.where}: {path} names other classes than the first part")
        for name, values in found.items():
            columns.setdefault(name, []).extend(values)
        names = names_there
        typed = _kind(path)[0] not in TEXT_ONLY
    if not typed:  # of all parts: each may hold other values
        columns[task.label] = _whole_numbers(columns[task.label])
    return columns, names


def paths(task: Task, split: str) -> list[Path]:
    """Find a split's file, or its parts; relative paths start beside the suite's file.

    Raises:
        TaskError: there is none, there are two, it is of a kind that is not read, or a part of
            it is missing.
    """
    whole = None
    folder, stem = beside(task) / task.path, split
    if "{split}" in task.path:
        whole = beside(task) / task.path.replace("{split}", split)
        if not _kind(whole)[0]:
            raise TaskError(f"{task.where}: {whole} is none of {', '.join(SUFFIXES)}")
        folder, stem = whole.parent, _part(whole)[0]
    there = sorted(os.listdir(folder)) if folder.is_dir() else []
    found: dict[tuple[str, str], list[Path]] = {}  # by kind: parts belong together
    # By its begin first: thousands of tasks may lie in one folder.
    for path in (folder / name for name in there if name.startswith(stem)):
        kind = _kind(path)
        wanted = kind == _kind(whole) if whole else kind[0]
        if wanted and _part(path)[0] == stem and path.is_file():
            found.setdefault(kind, []).append(path)
    if len(found) != 1:
        tried = whole or f"{folder / split} with {', '.join(SUFFIXES)}"
        raise TaskError(f"{task.where}: {_not_one(split, tried, [*found.values()], there)}")
    (files,) = found.values()
    _check_whole(task, files)
    return files


def beside(task: Task) -> Path:
    """Return the folder of the suite's file, where a task's relative path starts."""
    return Path(task.suite).parent if task.suite.endswith(".toml") else Path()


def _not_one(
    split: str, tried: Path | str, found: Sequence[list[Path]], there: Sequence[str]
) -> str:
    if found:
        names = " and ".join(str(files[0]) for files in found)
        return f"{names} could both be split {split!r}: remove one, or name it by a pattern in path"
    shown = ", ".join(there[:20]) or "nothing"
    more = f" and {len(there) - 20} more" if len(there) > 20 else ""
    return f"no file for split {split!r}; looked for {tried}; there lies {shown}{more}"


def _kind(path: Path) -> tuple[str, str]:
    """Return a file's suffix (empty if it is of no kind that is read) and its compression's."""
    name, packed = path.name.lower(), ""
    for suffix in COMPRESSED:
        if suffix and name.endswith(suffix):
            name, packed = name.removesuffix(suffix), suffix
    suffix = Path(name).suffix
    is_read = suffix in SUFFIXES and not (packed and suffix == ".parquet")
    return (suffix, packed) if is_read else ("", "")


def _part(path: Path) -> tuple[str, int, int]:
    """Return a file's name without suffixes, its number as a part, and of how many."""
    stem = path.name[: len(path.name) - len("".join(_kind(path)))]
    if match := _PART.fullmatch(stem):
        return match[1], int(match[2]), int(match[3])
    return stem, 0, 1


def _check_whole(task: Task, files: Sequence[Path]) -> None:
    parts = [_part(path)[1:] for path in files]
    of = max(count for _, count in parts)
    if parts != [(number, of) for number in range(of)]:
        shown = ", ".join(path.name for path in files)
        raise TaskError(
            f"{task.where}: {files[0].parent} has {shown}; expected one file, or parts 0 to "
            f"{of - 1} of {of}, each once"
        )


def _read(task: Task, path: Path) -> tuple[Columns, tuple[str, ...]]:
    import pyarrow

    suffix, packed = _kind(path)
    try:
        if suffix == ".parquet":
            return _parquet(task, path)
        with pyarrow.input_stream(str(path), compression=COMPRESSED[packed]) as stream:
            text = _decode(stream.read(), task.encoding)
        if suffix in (".json", ".jsonl"):
            return _objects(task, path, text), ()
        rows = _rows(text) if suffix == ".csv" else _tabbed(text)
        return _table(task, path, rows), ()
    except (pyarrow.ArrowException, OSError, ValueError, RecursionError) as error:
        raise TaskError(f"{task.where}: {path} cannot be read: {error}") from error


def _decode(data: bytes, encoding: str) -> str:
    """Return a file's text: UTF-8, with or without a byte order mark, or as the suite says."""
    try:
        return data.decode(encoding or UTF8)
    except UnicodeError as error:
        at = error.start if isinstance(error, UnicodeDecodeError) else 0
        line, byte = data.count(b"\n", 0, at) + 1, f"0x{data[at]:02x}"
        if encoding:
            raise ValueError(f"line {line}: {byte} is not {encoding}, as its entry says") from error
        raise ValueError(
            f"line {line}: byte {byte} is not UTF-8: save it as UTF-8, or say in its entry what "
            'it is, such as encoding = "cp1252" (spreadsheets in the West) or "utf-16"'
        ) from error


def _table(task: Task, path: Path, rows: Iterator[tuple[int, list[str]]]) -> Columns:
    """Return the columns needed of numbered lines; the first one names all columns."""
    _, header = next(rows, (0, []))
    names = needed(task, header, str(path))
    places = [header.index(name) for name in names]
    columns: Columns = {name: [] for name in names}
    for line, row in rows:
        if len(row) != len(header):
            hint = "; a value that holds a comma stands in quotes" if len(row) > len(header) else ""
            raise ValueError(f"line {line}: {len(row)} values, the header has {len(header)}{hint}")
        for name, place in zip(names, places, strict=True):
            columns[name].append(row[place])
    return columns


def _rows(text: str, separator: str = ",") -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(sys.maxsize)  # a text may have any length
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        yield from ((reader.line_num, row) for row in reader if row)
    except csv.Error as error:
        hint = f"; {COMMAS}" if separator == "," and "expected after" in str(error) else ""
        raise ValueError(f"line {reader.line_num}: {error}{hint}") from error


def _tabbed(text: str) -> Iterator[tuple[int, list[str]]]:
    """Read TSV. Where every line has all columns, a quote is text, but around a whole value.

    So files are read whose quotes never close (GLUE's), and those with line breaks in quotes.
    """
    lines = text.replace("\r\n", "\n").split("\n")
    if len({line.count("\t") for line in lines if line}) > 1:
        yield from _rows(text, "\t")
        return
    for number, line in enumerate(lines, 1):
        if line:
            yield number, [_unquoted(value) for value in line.split("\t")]


def _unquoted(value: str) -> str:
    inside = value[1:-1].replace('""', "")
    is_quoted = len(value) > 1 and value[0] == value[-1] == '"' and '"' not in inside
    return value[1:-1].replace('""', '"') if is_quoted else value


def _whole_numbers(values: list[str]) -> list[Any]:
    """Return labels as integers where all of them are integers, or missing.

    So is 1.0, of a table that once had a gap; but 01 and 1.10 are text.
    """
    matches = [_WHOLE.fullmatch(value) for value in values]
    if not all(match or not value.strip() for match, value in zip(matches, values, strict=True)):
        return list(values)
    return [int(match[1]) if match else None for match in matches]


def _objects(task: Task, path: Path, text: str) -> Columns:
    """Read JSON: one object a line, or a list of objects."""
    if text.lstrip().startswith("["):
        objects = list(enumerate(_json(text, 1), 1))
    else:
        lines = enumerate(text.split("\n"), 1)  # not splitlines: a text may hold U+2028
        objects = [(number, _json(line, number)) for number, line in lines if line.strip()]
    for number, row in objects:
        if not isinstance(row, dict):
            raise ValueError(f"object {number}: expected {{...}}, got {type(row).__name__}")
    there = dict.fromkeys(name for _, row in objects for name in row)
    names = needed(task, list(there), str(path))
    return {name: [row.get(name) for _, row in objects] for name in names}


def _json(text: str, line: int) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"line {line + error.lineno - 1}: {error.msg}; expected one object a line, or a list "
            "of objects"
        ) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError(f"an object has one key twice: {', '.join(key for key, _ in pairs)}")
    return row


def _parquet(task: Task, path: Path) -> tuple[Columns, tuple[str, ...]]:
    import pyarrow.parquet

    if task.encoding:
        raise ValueError("its entry names an encoding, but Parquet's text is always UTF-8")
    file = pyarrow.parquet.ParquetFile(path)
    schema = file.schema_arrow
    names = needed(task, schema.names, str(path))
    table = file.read(columns=names)
    columns = {name: table[name].to_pylist() for name in names}
    if b"huggingface" not in (schema.metadata or {}):
        return columns, ()
    import datasets

    feature = datasets.Features.from_arrow_schema(schema)[task.label]
    return columns, tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else ()
