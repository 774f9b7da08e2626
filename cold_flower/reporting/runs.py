"""Finished runs, read back: what each was, and which of them are one experiment's seeds."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cold_flower.config import Config
from cold_flower.data.suite import load_suite
from cold_flower.errors import RunError
from cold_flower.reporting import trained
from cold_flower.reporting.progress import Progress
from cold_flower.reporting.statistics import Row
from cold_flower.repository.bases import Repository
from cold_flower.repository.journal import (
    CONFIG,
    CONTRIBUTIONS,
    PROGRESS,
    SCORES,
    Journal,
    load_config,
)

# What may differ between two seeds of one experiment.
_SEED_KEYS = ("seed", "run-dir", "resume", "log")


def every_score(folder: Path) -> list[Row]:
    """Return the rows of a run's scores.jsonl."""
    return list(Journal(folder).rows(SCORES))


def scores(folder: Path) -> list[Row]:
    """Return a run's scores without those of iterations that a rollback left behind."""
    left = Repository(folder).abandoned()
    return [row for row in every_score(folder) if row["iteration"] not in left]


def configuration(folder: Path) -> dict[str, Any]:
    """Return the flat configuration of a run; keys that are newer than it have their default.

    Raises:
        RunError: the folder holds no run.
    """
    return {**Config().flat(), **load_config(folder)}


@dataclass(frozen=True)
class RunDirectory:
    """One run, as it lies on the disk."""

    folder: Path
    config: Mapping[str, Any]
    """The flat configuration it was started with."""

    @cached_property
    def scores(self) -> list[Row]:
        """Return the scores along the lineage."""
        return scores(self.folder)

    @cached_property
    def contributions(self) -> list[Row]:
        """Return the rows of contributions.jsonl."""
        return list(Journal(self.folder).rows(CONTRIBUTIONS))

    @property
    def findings(self) -> list[str]:
        """Say, a sentence each, what shows that its recipe trains too little."""
        recipe = trained.Recipe.of(self.config, Repository(self.folder).manifest(0))
        return trained.findings(self.contributions, self.scores, recipe)

    @cached_property
    def progress(self) -> Progress:
        """Return what the events say: phases and their time."""
        events = Journal(self.folder).rows(PROGRESS)
        progress = Progress(events[0]["time"] if events else 0.0)
        for event in events:
            progress.take(event)
        return progress

    @property
    def manifests(self) -> list[dict[str, Any]]:
        """Return the manifests along the lineage."""
        repository = Repository(self.folder)
        return [repository.manifest(iteration) for iteration in repository.lineage()]

    @property
    def body_bytes(self) -> int:
        """Return the size of what a message carries."""
        template = Repository(self.folder).body(0).template()
        return sum(4 * math.prod(shape) for _, shape in template.values())


@dataclass(frozen=True)
class Condition:
    """The seeds of one configuration."""

    label: str
    """What tells it from the other conditions: ``partition.shards = 5``."""
    runs: tuple[RunDirectory, ...]

    @property
    def scores(self) -> list[list[Row]]:
        """Return each seed's rows."""
        return [run.scores for run in self.runs]

    @property
    def config(self) -> Mapping[str, Any]:
        """Return the configuration, of the first seed."""
        return self.runs[0].config

    @property
    def last(self) -> int:
        """Return the last iteration that all seeds were evaluated at."""
        return min(max((r["iteration"] for r in rows), default=0) for rows in self.scores)

    @property
    def is_baseline(self) -> bool:
        """Return whether its last base is a level to compare with, not a curve."""
        return bool(self.config["baseline"]) or self.last <= 1

    @property
    def as_published(self) -> bool:
        """Return whether contributors hold datasets of the paper's, as the released models' did."""
        own = {row["task"] for rows in self.scores for row in rows}
        whole = self.config["partition.kind"] == "tasks"
        return bool(whole and own <= load_suite("paper").tasks.keys())


def find(folders: Iterable[Path]) -> list[RunDirectory]:
    """Open runs; a folder of runs (a sweep) stands for all that are in it.

    Raises:
        RunError: a folder holds no run, or one without scores.
    """
    runs = []
    for folder in folders:
        inside = sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
        for path in [folder] if (folder / CONFIG).exists() or not inside else inside:
            run = RunDirectory(path.resolve(), configuration(path))
            if not run.scores:
                raise RunError(f"{path}: no scores yet, nothing to report")
            runs.append(run)
    return runs


def conditions(runs: Sequence[RunDirectory]) -> list[Condition]:
    """Group runs by configuration; label each by the keys in which they differ."""
    groups: dict[tuple[Any, ...], list[RunDirectory]] = {}
    for run in runs:
        key = tuple((k, v) for k, v in run.config.items() if k not in _SEED_KEYS)
        groups.setdefault(key, []).append(run)
    keys = [dict(key) for key in groups]
    differing = [
        name
        for name in {name: None for key in keys for name in key}
        if len({repr(key.get(name)) for key in keys}) > 1
    ]
    experiments = [key["experiment"] for key in keys]
    if len(set(experiments)) == len(keys) > 1:  # their names tell them apart
        differing = ["experiment"]
    told = [name for name in differing if name != "experiment"] or differing
    return [
        Condition(_label({name: key.get(name) for name in told}), tuple(group))
        for key, group in zip(keys, groups.values(), strict=True)
    ]


def _label(about: Mapping[str, Any]) -> str:
    """Say what a condition is, in few words."""
    if [*about] == ["experiment"]:
        return str(about["experiment"])
    if baseline := about.get("baseline"):
        return str(baseline)
    said = []
    for name, value in about.items():
        if name in ("baseline", "sampling") or value in ("", None):
            continue
        said.append(f"{name} = {value}")
    return ", ".join(said)
