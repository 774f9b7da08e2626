"""``suites --prepare``: a suite's data as a folder, for machines without a network.

``<task>/<split>.parquet`` are the rows, ``suite.toml`` has the entries of the tasks that are whole,
``SOURCES.toml`` says where their rows are from. A file gets its name when it is whole; so what is
there need not be read again.
"""

import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import tomli_w
import typer

from cold_flower import toml
from cold_flower.data import prepared, published
from cold_flower.data.rows import read_task
from cold_flower.data.suite import load_suite, read_suite
from cold_flower.data.task import PLACE, SPLITS, Task
from cold_flower.errors import ConfigError, TaskError
from strategies.names import unknown

SUITE, RECORDS = "suite.toml", "SOURCES.toml"


def prepare(name: str, out: Path, chosen: Sequence[str] = ()) -> bool:
    """Write a suite's data and entries into a folder; return whether that worked for every task.

    Args:
        name: a built-in suite, or the path of a suite file.
        out: the folder; what an earlier call wrote is kept.
        chosen: tasks; all, if empty.

    Raises:
        TaskError: no such suite.
        ConfigError: no such task; the folder holds something else, or cannot be written.
    """
    tasks = load_suite(name).tasks
    for task in chosen:
        if task not in tasks:
            raise ConfigError(f"suite {name}: {unknown('task', task, list(tasks))}")
    folder, failed = Folder(out, read_suite(name), tasks), []
    for task in chosen or tasks:
        try:
            typer.echo(f"{task}: {folder.add(tasks[task])}")
        except ConfigError:
            raise  # of the folder; every other task would fail, too
        except Exception as error:  # of a library, for one task; the others are read all the same
            known = isinstance(error, TaskError | OSError)
            cause = str(error) if known else f"{type(error).__name__}: {error}"
            typer.echo(f"{task}: FAILED: {cause.removeprefix(tasks[task].where).lstrip(':, ')}")
            failed.append(task)
    if any(tasks[task].source == "demo" for task in chosen or tasks):
        typer.echo("note: the demo's rows are of seed 0 here; a run on demo draws those of its own")
    size = sum(record["bytes"] for record in folder.records.values())
    typer.echo(f"{len(folder.records)} of {len(tasks)} tasks are in {out}: {_size(size)}")
    if failed:
        typer.echo(
            f"{len(failed)} failed: {', '.join(failed)}. Mend that and repeat the command: what "
            "is there is not read again"
        )
    if folder.records:
        typer.echo(f"next: cold-flower suites --verify {shlex.quote(str(out / SUITE))}")
        typer.echo(f"runs: --set suite={shlex.quote(str(out.absolute() / SUITE))}")
    return not failed


class Folder:
    """A prepared folder: the entries of the tasks that are whole, and where their rows are from.

    Args:
        out: the folder.
        table: the suite's file.
        tasks: the suite's.

    Raises:
        ConfigError: the folder holds something else, or cannot be written.
    """

    def __init__(self, out: Path, table: Mapping[str, Any], tasks: Mapping[str, Task]) -> None:
        self._out, self._table = out, table
        try:
            if out.exists() and any(out.iterdir()) and not (out / RECORDS).exists():
                raise ConfigError(
                    f"--out {out} holds files, but no {RECORDS} of an earlier --prepare; name a "
                    "new or empty folder"
                )
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _cannot_write(out, error) from error
        self.records = _read(out / RECORDS)
        for name, record in self.records.items():
            here = prepared.source(tasks[name]) if name in tasks else "no such task"
            there = record.get("source") if isinstance(record, dict) else record
            if there != here:
                raise ConfigError(
                    f"--out {out} holds another suite: there {name} is from {there}, in this suite "
                    f"from {here}; name another folder, or remove that one"
                )
        self._entries = _read(out / SUITE).get("tasks", {})
        self._save()

    def add(self, task: Task) -> str:
        """Bring a task's files and entry into the folder; return what to say of it.

        Raises:
            TaskError: the source cannot be read, or its rows are not as the entry says.
            ConfigError: the folder cannot be written.
        """
        entry = self._entry(task)
        paths = {s: self._out / task.name / f"{s}.parquet" for s in SPLITS if task.splits.get(s)}
        origins = {split: prepared.origin(task, split) for split in paths}
        there = [s for s, path in paths.items() if prepared.read_origin(path)[0] == origins[s]]
        if len(there) == len(paths) and self._entries.get(task.name) == entry:
            return f"already there: {_said(self.records[task.name])}"
        self.records.pop(task.name, None)
        self._save()  # until the task is whole again
        card = None
        for split in (split for split in paths if split not in there):
            table = prepared.table(task, split)
            card = card or prepared.read_card(task)
            with self._whole(paths[split]) as file:
                prepared.write(file, table, origins[split], card)
            del table  # before the next one is read
        sizes = self._check(task, entry, paths.values())
        cards = [prepared.read_origin(path)[1] for path in paths.values()]
        self.records[task.name] = {
            "source": prepared.source(task),
            **{key: _distinct(card[key] for card in cards) for key in cards[0] if cards[0][key]},
            "rows": sizes,
            "bytes": sum(path.stat().st_size for path in paths.values()),
        }
        self._entries[task.name] = entry
        self._save()
        tail = f" ({', '.join(there)}: already there)" if there else ""
        return _said(self.records[task.name]) + tail

    def _entry(self, task: Task) -> dict[str, Any]:
        """Return the suite's entry, but for where the rows are: in this folder."""
        entry = self._table["tasks"][task.name]
        splits = {split: split if name else "" for split, name in task.splits.items()}
        place = {"source": "files", "path": task.name, "splits": splits}
        return place | {key: value for key, value in entry.items() if key not in PLACE}

    def _check(self, task: Task, entry: Any, paths: Iterable[Path]) -> dict[str, int]:
        """Read the files as a run does; return the sizes. If they are wrong, none is left."""
        here = Task.from_table(task.name, entry, str(self._out / SUITE), task.seed)
        try:
            rows = read_task(here)
            for difference in published.differences(task, rows):
                raise TaskError(difference)
        except TaskError as error:
            for path in paths:
                path.unlink()
            raise TaskError(str(error).replace(here.where, task.where)) from error
        return dict(rows.sizes)

    def _save(self) -> None:
        """Write what is whole: the tasks in the suite's order, which a run's draws depend on."""
        whole = [n for n in self._table["tasks"] if n in self._entries and n in self.records]
        self._entries = {name: self._entries[name] for name in whole}
        self.records = {name: self.records[name] for name in whole}
        if whole:
            suite = {**self._table, "tasks": self._entries}
            self._write_toml(SUITE, f"{RECORDS} says where the rows are from", suite)
        else:
            (self._out / SUITE).unlink(missing_ok=True)  # a suite without tasks is none
        self._write_toml(RECORDS, "where the rows are from", self.records)

    def _write_toml(self, name: str, what: str, table: Mapping[str, Any]) -> None:
        text = f"# Written by `cold-flower suites --prepare`: {what}.\n\n{tomli_w.dumps(table)}"
        with self._whole(self._out / name) as file:
            file.write(text.encode())

    @contextmanager
    def _whole(self, path: Path) -> Iterator[BinaryIO]:
        """Yield a file to fill; it gets its name when it is whole and on the disk."""
        temporary = path.with_name(f".{path.name}")
        try:
            path.parent.mkdir(exist_ok=True)
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            raise _cannot_write(self._out, error) from error
        finally:
            temporary.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    return toml.read(path, "prepared file", ConfigError) if path.exists() else {}


def _cannot_write(out: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"--out {out} cannot be written: {error.strerror or error}. What is there is whole: mend "
        "that and repeat the command, and it goes on"
    )


def _distinct(values: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(values))  # splits may have been read on different days


def _said(record: Mapping[str, Any]) -> str:
    rows = ", ".join(f"{split} {count}" for split, count in record["rows"].items())
    return f"{rows} rows; {_size(record['bytes'])}; licence: {record['licence']}"


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
