"""An entry of a suite: a task, as its TOML table says it, checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cold_flower import sources
from cold_flower.errors import TaskError
from strategies.names import NAME, unknown

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
    """By split: its size as published; see `cold_flower.published`."""
    test_sample: int = 0
    """So many test rows, the same in every run; 0 is all."""
    paper_name: str = ""
    seed: int = 0
    """Of the run; the embedded demo is generated from it."""

    @property
    def where(self) -> str:
        """Say which entry this is, for messages."""
        return f"task {self.name} (suite {self.suite})"


def parse(name: str, entry: Any, suite: str, seed: int) -> Task:
    """Return the task of one table of a suite file.

    Raises:
        TaskError: it is not as documented (README, "Run your own tasks").
    """
    where = f"task {name} (suite {suite})"
    if not NAME.fullmatch(name):
        raise TaskError(f"{where}: not a valid name (expected {NAME.pattern})")
    if not isinstance(entry, dict):
        raise TaskError(f"{where}: expected a table, got {entry!r}")
    for key in entry:
        if key not in KEYS:
            raise TaskError(f"{where}: {unknown('key', key, KEYS)}")
    for key in ("source", "text", "label", "splits"):
        if key not in entry:
            raise TaskError(f"{where}: {key} is missing")
    kind = _choice(where, "kind", entry.get("kind", "classification"), tuple(METRIC_OF))
    for key in ("path", "subset", "label", "paper-name"):
        if not isinstance(entry.get(key, ""), str):
            raise TaskError(f"{where}: {key} is a string, got {entry[key]!r}")
    text = entry["text"]
    sides = text if isinstance(text, list) else []
    if len(sides) not in (1, 2) or not all(isinstance(side, str) for side in sides):
        raise TaskError(f"{where}: text is a list of one or two columns, got {text!r}")
    for side in sides:
        try:
            sources.columns_of(side)
        except ValueError as error:
            raise TaskError(f"{where}: text {side!r} is no template: {error}") from error
    labels = entry.get("labels", [])
    if not isinstance(labels, list) or len(set(map(str, labels))) != len(labels):
        raise TaskError(f"{where}: labels is a list of different names, got {labels!r}")
    splits = entry["splits"]
    if (
        not isinstance(splits, dict)
        or not {"train", "test"} <= splits.keys() <= set(SPLITS)
        or not all(isinstance(name, str) for name in splits.values())
        or not splits["train"]
    ):
        raise TaskError(f"{where}: splits names train, test and perhaps validation, got {splits!r}")
    rows, sample = _published(where, entry)
    return Task(
        name=name,
        suite=suite,
        source=_choice(where, "source", entry["source"], sources.SOURCES),
        text=tuple(text),
        label=entry["label"],
        path=entry.get("path", ""),
        subset=entry.get("subset", ""),
        labels=tuple(map(str, labels)),
        kind=kind,
        metric=_choice(where, "metric", entry.get("metric", METRIC_OF[kind]), (METRIC_OF[kind],)),
        splits=splits,
        rows=rows,
        test_sample=sample,
        paper_name=entry.get("paper-name", name),
        seed=seed,
    )


def _choice(where: str, key: str, value: Any, valid: tuple[str, ...]) -> str:
    if value not in valid:
        raise TaskError(f"{where}: {unknown(key, str(value), valid)}")
    return str(value)


def _published(where: str, entry: Mapping[str, Any]) -> tuple[dict[str, int], int]:
    rows, sample, splits = entry.get("rows", {}), entry.get("test-sample", 0), entry["splits"]
    there = [name for name in SPLITS if splits.get(name)]
    if not isinstance(rows, dict) or not rows.keys() <= set(there):
        raise TaskError(f"{where}: rows gives the size of {', '.join(there)}, got {rows!r}")
    if not all(_count(value) for value in rows.values()):
        raise TaskError(f"{where}: rows holds whole numbers from 1, got {rows!r}")
    if "test-sample" in entry and not _count(sample):
        raise TaskError(f"{where}: test-sample is a whole number from 1, got {sample!r}")
    if not splits["test"] and not sample:
        raise TaskError(
            f'{where}: splits has test = "" (held out of train); say how many with test-sample'
        )
    return rows, sample


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
