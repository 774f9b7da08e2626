"""Finished runs, read back: what lies in each, and which of some folders can be reported."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cold_flower.config import Config
from cold_flower.errors import RunError
from cold_flower.reporting import trained
from cold_flower.reporting.progress import Progress
from cold_flower.reporting.statistics import Row
from cold_flower.repository.bases import Repository
from cold_flower.repository.journal import (
    CONFIG,
    CONTRIBUTIONS,
    LEFT_OUT,
    PROGRESS,
    SCORES,
    WHO,
    Journal,
    load_config,
)
from strategies.contributions import FROM

FIGURES = "figures"  # of a report, beside it


def every_score(folder: Path) -> list[Row]:
    """Return the rows of a run's scores.jsonl.

    But for the finetuned ones of a base while others are to come with the next contributions
    (``evaluate.reuse``): a mean over some is not that base's.
    """
    journal = Journal(folder)
    told = [event for event in journal.rows(PROGRESS) if LEFT_OUT in event][-1:]
    some = [(event["iteration"], "finetuned") for event in told if event[LEFT_OUT]]
    return [row for row in journal.rows(SCORES) if (row["iteration"], row["protocol"]) not in some]


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
    def bodies(self) -> int:
        """Return how many bodies messages carried; those that went by reference are none.

        A contribution that was asked for is one there and one back; to have a base or a candidate
        scored is one there, a message. By reference goes what is published: no candidate of a gate
        is, nor is a moving average, but nothing tells the messages that carried one from others.
        """
        events = [event for event in Journal(self.folder).rows(PROGRESS) if WHO in event]
        scored = Counter(event.get("phase") for event in events)
        if self.config["transport"] == "shared-dir":
            return scored["validate"]
        asked = sum(FROM not in row for row in self.contributions) - self.progress.taken_over
        return 2 * max(0, asked) + scored["evaluate"] + scored["validate"]

    @property
    def manifests(self) -> list[dict[str, Any]]:
        """Return the manifests along the lineage."""
        return Repository(self.folder).line()

    @property
    def body_bytes(self) -> int:
        """Return the size of what a message carries."""
        template = Repository(self.folder).body(0).template()
        return sum(4 * math.prod(shape) for _, shape in template.values())


def find(folders: Iterable[Path]) -> tuple[list[RunDirectory], list[str]]:
    """Open runs; a folder of runs (a sweep) stands for all that are in it.

    A run counts once, however often it is named.

    Returns:
        The runs, and a line for each folder that is left out, with the reason.

    Raises:
        RunError: a path that is not there; or nothing remains.
    """
    runs: dict[Path, RunDirectory] = {}
    left_out = []
    for folder in folders:
        if not folder.is_dir():
            raise RunError(f"{folder} holds no run (no such folder)")
        for path in [folder] if (folder / CONFIG).exists() else _inside(folder) or [folder]:
            try:
                run = RunDirectory(path.resolve(), configuration(path))
                if not run.scores:
                    raise RunError(f"{path}: no scores yet, nothing to report")
            except RunError as error:
                left_out.append(str(error))
            else:
                runs.setdefault(run.folder, run)
    if not runs:
        raise RunError("; ".join(left_out))
    return list(runs.values()), left_out


def _inside(folder: Path) -> list[Path]:
    """Return the folders in a folder of runs; none where it holds no run."""
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and path.name != FIGURES)
    return inside if any((path / CONFIG).exists() for path in inside) else []
