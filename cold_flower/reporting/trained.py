"""Did it train? What contributions and evaluations say of their finetuning, and what to do then.

A recipe that hardly trains gives numbers all the same: contributions that are the base again, and
a finetuned score that is the fresh head's. Both look like a result.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cold_flower.config import PROTOCOLS
from cold_flower.reporting.statistics import Row, apart_se, pick
from cold_flower.reporting.tables import listed

FACTS = {"dev_start", "dev_accuracy", "dev_majority", "improving", "stopped"}  # of a row
# Shares above which it is the recipe. A third of real tasks are hard for a small model; and with a
# rate that falls to 0 the last validation is the best one for up to half, by chance (24 of 48 in
# three runs of the demo, which trains): six of eight are in one run of seven, seven in one of 28,
# four of four in one of 16.
HALF = 0.5  # of those that finetuned, at their largest class
MOST = 3 / 4  # of them, still improving,
RARE = 0.05  # and that in fewer runs by chance
MANY = 0.25  # of the tasks that are compared


@dataclass(frozen=True)
class Recipe:
    """What the scores of base 0 were made with, as far as it bears on comparing protocols."""

    max_examples: int = 0
    """That finetuning saw of a task at most; 0 is all."""
    few_shot: int = 100
    """Examples of few-shot finetuning."""
    fused: bool = False
    """Base 0 was fused before: it has learned such tasks, so that a probe may read it best."""

    @classmethod
    def of(cls, config: Mapping[str, Any], start: Mapping[str, Any]) -> "Recipe":
        """Read it from a run's flat configuration, and the manifest of its iteration 0."""
        most, few = config["finetune.max-examples"], config["few-shot.examples"]
        return cls(most, few, bool(start.get("fused")))

    @property
    def comparable(self) -> bool:
        """Return whether a finetuned score below another protocol's tells of the recipe."""
        return not self.fused and not 0 < self.max_examples <= self.few_shot


def still_improving(rows: Mapping[str, Row]) -> list[str]:
    """Return the rows whose last validation was the best, of those that ran all their epochs."""
    return [k for k, row in rows.items() if row.get("improving") and row["stopped"] == "epochs"]


@dataclass(frozen=True)
class Finetuned:
    """Some finetunings, and what can be said of them together."""

    what: str
    """``contributors``, or ``finetuned evaluations of base 0``."""
    rows: Mapping[str, Row]
    """By contributor or task."""

    @property
    def no_better(self) -> list[str]:
        """Return who ended no better on dev than always answering with the largest class."""
        return [k for k, row in self.rows.items() if row["dev_accuracy"] <= row["dev_majority"]]

    @property
    def improving(self) -> list[str]:
        """Return whose last validation was the best when its epochs were over."""
        return still_improving(self.rows)

    def findings(self) -> list[str]:
        """Say what calls for another recipe."""
        said, size = [], len(self.rows)
        if len(self.no_better) > HALF * size:
            said.append(
                f"{len(self.no_better)} of {size} {self.what} ended no better than their largest "
                f"class ({listed(self.no_better)}): raise finetune.learning-rate or "
                "finetune.max-epochs"
            )
        if len(self.improving) > MOST * size and _by_chance(len(self.improving), size) < RARE:
            said.append(
                f"{len(self.improving)} of {size} {self.what} were still improving when "
                f"finetune.max-epochs ended them ({listed(self.improving)}): raise it, or "
                "finetune.learning-rate"
            )
        return said


def finetunings(contributions: Sequence[Row], scores: Sequence[Row]) -> list[Finetuned]:
    """Collect what the contributors' last finetunings said, and those that scored a base.

    Args:
        contributions: the rows of contributions.jsonl.
        scores: of scores.jsonl; the first base that was scored by finetuning counts.
    """
    found = []
    last = {row["contributor"]: row for row in contributions if row.keys() >= FACTS}
    if last:
        found.append(Finetuned("contributors", dict(sorted(last.items()))))
    rows = [row for row in pick(scores, protocol="finetuned") if row.keys() >= FACTS]
    if rows:
        first = min(row["iteration"] for row in rows)
        scored = {row["task"]: row for row in pick(rows, iteration=first)}
        what = f"finetuned evaluations of base {first}"
        found.append(Finetuned(what, dict(sorted(scored.items()))))
    return found


def below(scores: Sequence[Row], recipe: Recipe) -> dict[str, list[str]]:
    """Return the tasks whose finetuned score is below another protocol's, by that protocol.

    Compared are the scores of base 0, for a later one may be what probing reads best, and so may a
    base 0 that was fused before; with no more examples than few-shot has there is nothing to
    expect. What is within a standard error of a difference is left out.
    """
    if not recipe.comparable:
        return {}
    first = pick(scores, iteration=0)
    start = {(r["task"], r["protocol"]): r for r in first if r["protocol"] in PROTOCOLS}
    lower: dict[str, list[str]] = {}
    for (task, protocol), row in start.items():
        own = start.get((task, "finetuned"))
        if own and protocol != "finetuned" and row["value"] - own["value"] > _error(row, own):
            lower.setdefault(protocol, []).append(task)
    return lower


def counts(contributions: Sequence[Row], scores: Sequence[Row], recipe: Recipe) -> dict[str, int]:
    """Return the plain numbers, for result.json."""
    numbers: dict[str, int] = {}
    for one in finetunings(contributions, scores):
        kind = "contributors" if one.what == "contributors" else "evaluations"
        numbers |= {
            kind: len(one.rows),
            f"{kind}-no-better-than-largest-class": len(one.no_better),
            f"{kind}-still-improving": len(one.improving),
        }
    for protocol, tasks in sorted(below(scores, recipe).items()):
        numbers[f"tasks-finetuned-below-{protocol}"] = len(tasks)
    return numbers


def findings(contributions: Sequence[Row], scores: Sequence[Row], recipe: Recipe) -> list[str]:
    """Say, a sentence each, what shows that a recipe trains too little; nothing if it does not."""
    said = [line for one in finetunings(contributions, scores) for line in one.findings()]
    if contributions and not any(row.keys() >= FACTS for row in contributions):
        said.append(
            "no contribution says whether it trained (a site with few dev rows, a trainer of its "
            "own and a drop box do not): nothing shows that the recipe trains but the bases' scores"
        )
    tasks = {row["task"] for row in pick(scores, iteration=0, protocol="finetuned")}
    lower = below(scores, recipe)
    if any(len(those) > MANY * len(tasks) for those in lower.values()):
        those = sorted({task for some in lower.values() for task in some})
        most = f" on at most {recipe.max_examples} examples" if recipe.max_examples else ""
        said.append(
            f"finetuned{most} is below {' or '.join(sorted(lower))} on {len(those)} of "
            f"{len(tasks)} tasks ({listed(those)}): the recipe trains too little"
        )
    return said


def _by_chance(found: int, size: int) -> float:
    # That at least as many of so many are, where each is in one case of two.
    return sum(math.comb(size, k) for k in range(found, size + 1)) / (1 << size)


def _error(one: Row, other: Row) -> float:
    # Of a correlation about 1 / sqrt(n) each.
    return apart_se(one, other) if one["metric"] == "accuracy" else math.sqrt(2 / one["n_test"])
