"""A task: one entry of a suite file, checked."""

import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from cold_flower.errors import TaskError
from strategies.names import NAME, unknown

SOURCES = ("hub", "files", "demo")
METRIC_OF = {"classification": "accuracy", "regression": "pearson"}
SPLITS = ("train", "validation", "test")
KEYS = (
    *("source", "path", "subset", "text", "label", "labels", "kind", "metric", "splits"),
    *("rows", "test-sample", "paper-name"),
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
    """By split: its size as published; see `cold_flower.data.published`."""
    test_sample: int = 0
    """So many test rows, the same in every run; 0 is all."""
    paper_name: str = ""
    seed: int = 0
    """Of the run; the embedded demo is generated from it."""

    @property
    def where(self) -> str:
        """Say which entry this is, for messages."""
        return f"task {self.name} (suite {self.suite})"

    @classmethod
    def from_table(cls, name: str, table: Any, suite: str, seed: int) -> Self:
        """Return the task that a table of a suite file describes.

        Raises:
            TaskError: it is not as documented (docs/suites.md).
        """
        where = f"task {name} (suite {suite})"
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
        kind = _choice(where, "kind", table.get("kind", "classification"), tuple(METRIC_OF))
        for key in ("path", "subset", "label", "paper-name"):
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
        labels = table.get("labels", [])
        if not isinstance(labels, list) or len(set(map(str, labels))) != len(labels):
            raise TaskError(f"{where}: labels is a list of different names, got {labels!r}")
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
        rows, sample = _published_sizes(where, table)
        usual = METRIC_OF[kind]
        metric = _choice(where, "metric", table.get("metric", usual), (usual,))
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
            metric=metric,
            splits=splits,
            rows=rows,
            test_sample=sample,
            paper_name=table.get("paper-name", name),
            seed=seed,
        )


def columns_of(text: str) -> list[str]:
    """Return the columns of a template such as ``"{premise} {question}"``, or the column.

    Raises:
        ValueError: a brace that is not closed, or one that names no column.
    """
    if "{" not in text:
        return [text]
    named = [column for _, column, _, _ in string.Formatter().parse(text) if column is not None]
    if not all(named):
        raise ValueError("every {} names a column")
    return named


def _choice(where: str, key: str, value: Any, valid: tuple[str, ...]) -> str:
    if value not in valid:
        raise TaskError(f"{where}: {unknown(key, str(value), valid)}")
    return str(value)


def _published_sizes(where: str, table: Mapping[str, Any]) -> tuple[dict[str, int], int]:
    rows, sample, splits = table.get("rows", {}), table.get("test-sample", 0), table["splits"]
    named = [name for name in SPLITS if splits.get(name)]
    if not isinstance(rows, dict) or not rows.keys() <= set(named):
        raise TaskError(f"{where}: rows gives the size of {', '.join(named)}, got {rows!r}")
    if not all(_is_count(value) for value in rows.values()):
        raise TaskError(f"{where}: rows holds whole numbers from 1, got {rows!r}")
    if "test-sample" in table and not _is_count(sample):
        raise TaskError(f"{where}: test-sample is a whole number from 1, got {sample!r}")
    if not splits["test"] and not sample:
        raise TaskError(
            f'{where}: splits has test = "" (held out of train); say how many with test-sample'
        )
    return rows, sample


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
