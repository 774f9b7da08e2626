"""What a search for a recipe tries, what that gave, and which one it chooses and why."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cold_flower.reporting.statistics import binomial_se, mean_and_sem
from cold_flower.reporting.trained import still_improving

KEYS = {
    "finetuned": ("finetune.learning-rate", "finetune.max-epochs"),
    "few-shot": ("few-shot.learning-rate", "few-shot.epochs"),
    "frozen": ("probe.learning-rate", "probe.epochs"),
}


@dataclass(frozen=True)
class Candidate:
    """A learning rate and a number of epochs, for one protocol."""

    protocol: str
    learning_rate: float
    epochs: int

    @property
    def settings(self) -> dict[str, float | int]:
        """Return them as keys of a run."""
        rate, epochs = KEYS[self.protocol]
        return {rate: self.learning_rate, epochs: self.epochs}

    def __str__(self) -> str:
        return f"learning rate {self.learning_rate:g}, {self.epochs} epochs"


@dataclass(frozen=True)
class Tried:
    """What a candidate's trials gave."""

    candidate: Candidate
    rows: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By task, a line of trials.jsonl."""

    def mean(self, tasks: Iterable[str]) -> float:
        """Return the mean dev score over tasks; NaN if it was not tried on one of them."""
        scores = [self.rows[task]["dev"] if task in self.rows else math.nan for task in tasks]
        return mean_and_sem(scores)[0]

    @property
    def no_better(self) -> list[str]:
        """Return the tasks on which it ended no better than dev's largest class."""
        return [task for task, row in self.rows.items() if row["dev"] <= row["majority"]]

    @property
    def improving(self) -> list[str]:
        """Return the tasks on which the last of all its epochs was the best."""
        return still_improving(self.rows)


@dataclass(frozen=True)
class Choice:
    """One protocol's result: the candidates, best first, and why the first is chosen."""

    protocol: str
    tried: Sequence[Tried]
    tasks: Sequence[str]
    """Those that the finalists were compared on: were tried on, and some of them learned."""
    reasons: Sequence[str]

    @property
    def best(self) -> Candidate:
        """Return the chosen one."""
        return self.tried[0].candidate


@dataclass(frozen=True)
class Tuned:
    """A recipe, and what it rests on."""

    choices: Mapping[str, Choice]
    """By protocol."""
    unfinished: Sequence[str]
    """Protocols that the budget did not reach to the end."""
    folder: Path
    """Where the trials are kept."""

    @property
    def recipe(self) -> dict[str, float | int]:
        """Return the chosen keys."""
        return {k: v for one in self.choices.values() for k, v in one.best.settings.items()}

    def toml(self) -> str:
        """Write a ``[recipe]`` for a suite file, with the reasons."""
        lines = ["[recipe]"]
        for protocol, choice in self.choices.items():
            lines += [f"# {protocol}: {reason}" for reason in choice.reasons]
            lines += [f"{key} = {value!r}" for key, value in choice.best.settings.items()]
        return "\n".join(lines) + "\n"


def learned(tried: Sequence[Tried], tasks: Sequence[str]) -> list[str]:
    """Return the tasks on which some candidate beats the largest class by two standard errors.

    If there is none, all of them: then the candidates differ by noise, and the reasons say it.
    """

    def beaten(row: Mapping[str, Any]) -> bool:
        known, size = row["majority"], row["n-dev"]  # of a correlation, which is 0, about 1/sqrt(n)
        error = binomial_se(known, size) if known > 0 else 1 / math.sqrt(size)
        return bool(row["dev"] - known > 2 * error)

    able = [task for task in tasks if any(beaten(one.rows[task]) for one in tried)]
    return able or list(tasks)


def ranked(tried: Sequence[Tried], tasks: Sequence[str]) -> list[Candidate]:
    """Return candidates, the best first; of equals the one with fewer epochs."""
    means = {one.candidate: one.mean(tasks) for one in tried}
    return sorted(means, key=lambda one: (-means[one], one.epochs, one.learning_rate))


def reasons(tried: Sequence[Tried], finalists: int, tasks: Sequence[str]) -> list[str]:
    """Say why the first one is chosen, and what to doubt."""
    best = tried[0]
    said = [
        f"{best.candidate}: mean dev {100 * best.mean(tasks):.1f} on {', '.join(tasks)}, the best "
        f"of {len(tried)}"
    ]
    if finalists > 1:
        next_one = tried[1]
        differences = [100 * (best.rows[t]["dev"] - next_one.rows[t]["dev"]) for t in tasks]
        mean, sem = mean_and_sem(differences)
        error = "" if math.isnan(sem) else f" ± {sem:.1f}"
        said.append(f"{mean:.1f}{error} points above the next, {next_one.candidate}")
    rates = sorted({one.candidate.learning_rate for one in tried})
    epochs = sorted({one.candidate.epochs for one in tried})
    edges = [
        *(["learning rate"] if best.candidate.learning_rate in (rates[0], rates[-1]) else []),
        *(["number of epochs"] if best.candidate.epochs == epochs[-1] and best.improving else []),
    ]
    if edges and len(tried) > 1:
        said.append(f"at the edge of what was tried: another {' and '.join(edges)} may be better")
    if none := [task for task in best.no_better if task in tasks]:
        said.append(f"no better than the largest class on {', '.join(none)}")
    return said
