"""A task: one entry of a suite file, checked (docs/suites.md says what it may hold)."""

import codecs
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from cold_flower.errors import TaskError
from strategies.names import NAME, unknown

SOURCES = ("hub", "files", "demo")
COMPARABLE = ("", "yes", "nearly", "no")
METRIC_OF = {"classification": "accuracy", "regression": "pearson"}
SPLITS = ("train", "validation", "test")
COMMAS = (
    "are its columns separated by commas? Spreadsheets may write semicolons: save it with commas, "
    "or with tabs as .tsv"
)
"""Said of a CSV file that has none."""
PLACE = ("source", "path", "subset", "splits", "encoding")
"""The keys that say where the rows are; all others say what they mean."""
KEYS = (
    *(*PLACE, "text", "label", "labels", "kind", "metric"),
    *("rows", "test-sample", "train-sample", "paper-name", "comparable"),
)


@dataclass(frozen=True)
class Task:
    """A dataset with its label space: one entry of a suite."""

    name: str
    suite: str
    """The suite's name or file, for messages; relative paths start beside that file."""
    source: str
    text: tuple[str, ...]
    """One or two columns, or templates over columns: ``"{premise} {question}"``."""
    label: str
    path: str = ""
    subset: str = ""
    labels: tuple[str, ...] = ()
    kind: str = "classification"
    metric: str = "accuracy"
    splits: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    """By split, its size as published (`cold_flower.data.published` checks it)."""
    test_sample: int = 0
    """How many test rows to draw, the same ones in every run; 0 takes all."""
    train_sample: int = 0
    """How many rows to train on, drawn in the same way."""
    paper_name: str = ""
    comparable: str = ""
    """Can its scores be put beside the paper's: ``yes``, ``nearly`` or ``no``; empty: not said."""
    encoding: str = ""
    """Of text files, as Python names it; empty: UTF-8."""
    seed: int = 0
    """The run's; the embedded demo is generated from it."""

    @property
    def where(self) -> str:
        """Say which entry this is, for messages."""
        return _where(self.name, self.suite)

    @classmethod
    def from_table(cls, name: str, table: Any, suite: str, seed: int) -> Self:
        """Make a task of a table in a suite file.

        Raises:
            TaskError: it is not as documented (docs/suites.md).
        """
        where = _where(name, suite)
        if not NAME.fullmatch(name):
            raise TaskError(f"{where}: not a valid name (expected {NAME.pattern})")
        if not isinstance(table, dict):
            raise TaskError(f"{where}: expected a table, got {table!r}")
        for key in table:
            if key not in KEYS:
                raise TaskError(f"{where}: {unknown('key', key, KEYS)}")
        for key in ("source", "text", "label", "splits"):
            if key not in table:
                raise TaskError(f"{where}: {key} is missing")
        for key in ("path", "subset", "label", "paper-name", "encoding"):
            if not isinstance(table.get(key, ""), str):
                raise TaskError(f"{where}: {key} is a string, got {table[key]!r}")
        text = table["text"]
        sides = text if isinstance(text, list) else []
        if len(sides) not in (1, 2) or not all(isinstance(side, str) for side in sides):
            raise TaskError(f"{where}: text is a list of one or two columns, got {text!r}")
        for side in sides:
            try:
                columns_of(side)
            except ValueError as error:
                raise TaskError(f"{where}: text {side!r} is no template: {error}") from error
        if table["label"] in [column for side in sides for column in columns_of(side)]:
            raise TaskError(
                f"{where}: text has the label's own column, {table['label']!r}: it would be told "
                "what it is to learn. Leave it out"
            )
        labels = table.get("labels", [])
        if not isinstance(labels, list) or len(set(map(str, labels))) != len(labels):
            raise TaskError(f"{where}: labels is a list of different names, got {labels!r}")
        if labels and table.get("kind") == "regression":
            raise TaskError(f"{where}: labels are of a classification, kind is 'regression'")
        splits = table["splits"]
        if (
            not isinstance(splits, dict)
            or not {"train", "test"} <= splits.keys() <= set(SPLITS)
            or not all(isinstance(name, str) for name in splits.values())
            or not splits["train"]
        ):
            raise TaskError(
                f"{where}: splits names train, test and perhaps validation, got {splits!r}"
            )
        named = [name for name in splits.values() if name]
        if len(set(named)) < len(named):
            raise TaskError(f"{where}: splits names the same data twice, got {splits!r}")
        rows = _published_sizes(where, table)
        kind = _choice(where, "kind", table.get("kind", "classification"), tuple(METRIC_OF))
        metric = METRIC_OF[kind]
        return cls(
            name=name,
            suite=suite,
            source=_choice(where, "source", table["source"], SOURCES),
            text=tuple(text),
            label=table["label"],
            path=table.get("path", ""),
            subset=table.get("subset", ""),
            labels=tuple(map(str, labels)),
            kind=kind,
            metric=_choice(where, "metric", table.get("metric", metric), (metric,)),
            splits=splits,
            rows=rows,
            test_sample=table.get("test-sample", 0),
            train_sample=table.get("train-sample", 0),
            paper_name=table.get("paper-name", name),
            comparable=_choice(where, "comparable", table.get("comparable", ""), COMPARABLE),
            encoding=_encoding(where, table),
            seed=seed,
        )


def columns_of(text: str) -> list[str]:
    """Return the columns that a template such as ``"{premise} {question}"`` names.

    A text without braces is a column's name itself.

    Raises:
        ValueError: a brace that is not closed, one that names no column, or a form that no text
            has.
    """
    if "{" not in text:
        return [text]
    parts = [part for part in string.Formatter().parse(text) if part[1] is not None]
    names = [str(name) for _, name, _, _ in parts]
    if not all(names):
        raise ValueError("every {} names a column")
    for part in parts:
        _shown("", part)  # a form that no text has, such as :d
    return names


def filled(text: str, row: Mapping[str, str]) -> str:
    """Return a template with a row's values; a name counts as a whole, ``{meta.text}``, too."""
    parts = string.Formatter().parse(text)
    return "".join(part[0] + (_shown(row[part[1]], part) if part[1] else "") for part in parts)


def _shown(value: str, part: tuple[str, str | None, str | None, str | None]) -> str:
    _, _, form, conversion = part
    converted = string.Formatter().convert_field(value, conversion)
    return format(converted, form or "")


def needed(task: Task, there: Sequence[str], source: str) -> list[str]:
    """Return the columns that a task's texts and label name.

    Args:
        task: the entry.
        there: the columns of a table.
        source: the table's name, for messages.

    Raises:
        TaskError: the table lacks one of them, or has it twice.
    """
    if not there:
        raise TaskError(f"{task.where}: {source} is empty")
    names = [*(column for text in task.text for column in columns_of(text)), task.label]
    for name in names:
        if name not in there:
            joined = any(";" in column or "\t" in column for column in there)
            split = f"; {COMMAS}" if joined and source.endswith(".csv") else ""
            raise TaskError(
                f"{task.where}: no column {name!r} in {source}; the columns there are "
                f"{', '.join(there)}{split}"
            )
        if (times := list(there).count(name)) > 1:
            raise TaskError(
                f"{task.where}: {times} columns of {source} are called {name!r}; rename all but one"
            )
    return list(dict.fromkeys(names))


def _encoding(where: str, table: Mapping[str, Any]) -> str:
    """Return an entry's ``encoding``, checked; UTF-8, the default, as an empty text."""
    encoding = table.get("encoding", "")
    if not encoding:
        return ""
    if table["source"] != "files":
        raise TaskError(f'{where}: encoding is for source = "files", got {table["source"]!r}')
    try:
        "".encode(encoding)
        name = codecs.lookup(encoding).name
    except LookupError as error:
        raise TaskError(
            f'{where}: encoding {encoding!r} is unknown; expected a name such as "cp1252", '
            '"latin-1" or "utf-16"'
        ) from error
    return "" if name == "utf-8" else name


def _where(name: str, suite: str) -> str:
    return f"task {name} ({suite if suite.endswith('.toml') else f'suite {suite}'})"


def _choice(where: str, key: str, value: Any, valid: tuple[str, ...]) -> str:
    if value not in valid:
        raise TaskError(f"{where}: {unknown(key, str(value), valid)}")
    return str(value)


def _published_sizes(where: str, table: Mapping[str, Any]) -> dict[str, int]:
    """Return an entry's ``rows``; check them and the samples."""
    rows, splits = table.get("rows", {}), table["splits"]
    named = [name for name in SPLITS if splits.get(name)]
    if not isinstance(rows, dict) or not rows.keys() <= set(named):
        raise TaskError(f"{where}: rows gives the size of {', '.join(named)}, got {rows!r}")
    if not all(_is_count(value) for value in rows.values()):
        raise TaskError(f"{where}: rows holds whole numbers from 1, got {rows!r}")
    for key in ("test-sample", "train-sample"):
        if key in table and not _is_count(table[key]):
            raise TaskError(f"{where}: {key} is a whole number from 1, got {table[key]!r}")
    if not splits["test"] and "test-sample" not in table:
        raise TaskError(
            f'{where}: splits has test = "" (held out of train); say how many with test-sample'
        )
    return rows


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
