"""Which runs are one experiment's seeds, and what tells the experiments apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import PurePath
from typing import Any

from cold_flower.config import NO_BEARING
from cold_flower.data.suite import load_suite
from cold_flower.reporting.runs import RunDirectory
from cold_flower.reporting.statistics import Row
from cold_flower.repository.journal import facts_of

# What does not bear on a score: two runs that differ in nothing else are one condition.
_BESIDE = (*NO_BEARING, "seed", "finetune.micro-batch-size", "evaluate.protocols")
_PATHS = ("base-model", "suite")


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
    def rows(self) -> list[Row]:
        """Return the rows of all seeds."""
        return [row for rows in self.scores for row in rows]

    @property
    def config(self) -> Mapping[str, Any]:
        """Return the configuration, of the first seed."""
        return self.runs[0].config

    @property
    def last(self) -> int:
        """Return the last iteration that all seeds were evaluated at."""
        return min(max((r["iteration"] for r in rows), default=0) for rows in self.scores)

    @property
    def mixed(self) -> list[str]:
        """Return what else differs among its runs: versions, code, a file such as the suite's."""
        kept = [facts_of(run.folder) for run in self.runs]
        found = {key: {value for one in kept for value in one.get(key, ())} for key in chain(*kept)}
        return sorted(key for key, values_there in found.items() if len(values_there) > 1)

    @property
    def is_level(self) -> bool:
        """Return whether it is a level to compare with, not a curve: a baseline, or one model."""
        return bool(self.config["baseline"]) or self.last == 0

    @property
    def as_published(self) -> bool:
        """Return whether contributors hold datasets of the paper's, as the released models' did."""
        own = {row["task"] for row in self.rows}
        whole = self.config["partition.kind"] == "tasks"
        return bool(whole and own <= load_suite("paper").tasks.keys())


def _values(run: RunDirectory) -> dict[tuple[Any, ...], float]:
    """Return a run's scores, whatever the order in which they came."""
    return {(row["iteration"], row["task"], row["protocol"]): row["value"] for row in run.scores}


def conditions(runs: Sequence[RunDirectory]) -> tuple[list[Condition], list[str]]:
    """Group runs by what bears on their scores; label each group by the keys in which they differ.

    A seed counts once: SD and SEM are over seeds, and one that was run twice would make them too
    small. The run with the most scores counts, of equals the first.

    Returns:
        The conditions, and a line for each run that is left out.
    """
    groups: dict[tuple[Any, ...], dict[int, RunDirectory]] = {}
    left_out = []
    for run in runs:
        key = tuple((k, v) for k, v in run.config.items() if k not in _BESIDE)
        seeds, seed = groups.setdefault(key, {}), run.config["seed"]
        if (before := seeds.get(seed)) is None:
            seeds[seed] = run
            continue
        kept, other = (run, before) if len(run.scores) > len(before.scores) else (before, run)
        seeds[seed] = kept
        how = "the same scores" if _values(kept) == _values(other) else "other scores"
        left_out.append(
            f"{other.folder}: seed {seed} occurs twice, {how} are in {kept.folder}, which counts"
        )
    labels = _labels([dict(key) for key in groups])
    return [
        Condition(label, tuple(seeds.values()))
        for label, seeds in zip(labels, groups.values(), strict=True)
    ], left_out


def _labels(keys: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say what tells each condition from the others, in few words.

    That is the experiment's or baseline's name, where it is enough; else the keys that differ
    among those of one name, a path by its end.
    """
    if len(keys) == 1:
        return [""]
    experiments = [str(key["experiment"]) for key in keys]
    if len(set(experiments)) == len(keys):
        return experiments
    labels = []
    for key in keys:
        baseline = key["baseline"]
        alike = [other for other in keys if other["baseline"] == baseline]
        differing = [name for name in key if len({repr(one[name]) for one in alike}) > 1]
        differing = [name for name in differing if name != "experiment"] or differing
        said = [str(baseline)] if baseline else []
        for name in differing:
            value = key[name]
            if name in _PATHS:
                value = _end(str(value), {str(one[name]) for one in alike})
            said.append(f'{name} = ""' if value == "" else f"{name} = {value}")
        labels.append(", ".join(said) or str(key["experiment"]))
    if len(set(labels)) < len(labels):
        return [f"{name}: {label}" for name, label in zip(experiments, labels, strict=True)]
    return labels


def _end(path: str, others: set[str]) -> str:
    """Shorten a path to the last parts in which it differs from the others."""
    parts = PurePath(path).parts
    for size in range(1, len(parts)):
        if len({PurePath(other).parts[-size:] for other in others}) == len(others):
            return str(PurePath(*parts[-size:]))
    return path
