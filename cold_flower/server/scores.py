"""The scores of a run's bases: which are known, which are due, what a reply says of them.

A score is known by (sha256 of the base, task, protocol, seed): a base that did not change,
or an evaluation that was cut off, costs nothing again.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord

from cold_flower.config import EMA, Config
from cold_flower.repository.journal import SCORES, VALIDATION, Journal
from cold_flower.server.participants import Contributors
from strategies import records
from strategies.errors import Refused

COSTLY_FIRST = ("finetuned", "few-shot", "frozen")


@dataclass(frozen=True)
class Model:
    """What is scored."""

    iteration: int
    """That it is the base of, or that it is a candidate for."""
    sha256: str
    arrays: ArrayRecord
    candidate: bool = False
    """It is not published, and is scored on the dev split, for the gate."""
    prefix: str = ""
    """Before the names of its protocols: `EMA` where it is the average beside the base."""


class Scores:
    """What is known of the bases of one run.

    Args:
        config: the run's.
        participants: who is there, who evaluates, and whose task is unseen.
        journal: where the scores are.
    """

    def __init__(self, config: Config, participants: Contributors, journal: Journal) -> None:
        self._config = config
        self._participants = participants
        self._journal = journal

    def copy(self, model: Model) -> None:
        """Copy the rows of an earlier iteration, or of the base, with the same weights."""
        fresh, known = self._config.partition.fresh, self._known(model.iteration)
        same = {}
        for row in self._journal.where(SCORES, "base", model.sha256):
            name = model.prefix + row["protocol"].removeprefix(EMA)
            # Every iteration is evaluated with fresh shards of its own.
            if name in self._config.protocols() and not (
                fresh and row["iteration"] != model.iteration
            ):
                same[row["task"], name] = row | {"iteration": model.iteration, "protocol": name}
        self._journal.append(SCORES, [row for key, row in same.items() if key not in known])

    def missing(self, iteration: int, prefix: str = "") -> dict[str, list[str]]:
        """Return the protocols under which a base has no score yet, by contributor.

        With a ``prefix`` of its average; they are returned without it.
        """
        plan, known = self._participants.plan, self._known(iteration)
        protocols = [p for p in COSTLY_FIRST if prefix + p in self._config.protocols()]
        there, tasks = self._participants.there, plan.tasks
        return {
            name: missing
            for name in plan.evaluated
            if name in there
            and (missing := [p for p in protocols if (tasks[name].name, prefix + p) not in known])
        }

    def _known(self, iteration: int) -> set[tuple[str, str]]:
        """Return the tasks and protocols under which an iteration's base has its scores."""
        rows = self._journal.where(SCORES, "iteration", iteration)
        return {(row["task"], row["protocol"]) for row in rows}

    def validated(self, iteration: int, sha256: str, voters: Collection[str]) -> dict[str, float]:
        """Return how these contributors' dev data score the same weights, of those who did.

        Fresh shards have new data every iteration.
        """
        return {
            row["contributor"]: row["value"]
            for row in self._journal.where(VALIDATION, "base", sha256)
            if row["contributor"] in voters
            and (row["iteration"] == iteration or not self._config.partition.fresh)
        }

    def rows(
        self,
        model: Model,
        name: str,
        asked: Sequence[str],
        metrics: Mapping[str, float],
        stated: Mapping[str, Any],
    ) -> list[dict[str, Any]]:
        """Return the rows of a contributor's scores; ``stated``: of a finetuning, if it trained.

        Raises:
            Refused: not those that were asked for, or one that cannot be.
        """
        trained = {key.replace("-", "_"): v for key, v in records.trained(stated).items()}
        plan = self._participants.plan
        task, size = plan.tasks[name], int(metrics[records.EXAMPLES])
        if not 1 <= size <= records.MOST_EXAMPLES:
            raise Refused(f"measured on {size} examples")
        scores = {key: value for key, value in metrics.items() if key != records.EXAMPLES}
        _check_scores(scores, asked, task.metric)
        return [
            {
                "iteration": model.iteration,
                "task": task.name,
                "protocol": model.prefix + protocol,
                "group": "unseen" if name in plan.unseen else "seen",
                "metric": task.metric,
                "value": value,
                "n_test": size,
                "seed": self._config.seed,
                "base": model.sha256,
                **({"contributor": name} if model.candidate else {}),
                **(trained if protocol == "finetuned" else {}),
            }
            for protocol, value in scores.items()
        ]


def _check_scores(scores: Mapping[str, float], asked: Sequence[str], metric: str) -> None:
    if differing := scores.keys() ^ set(asked):
        name = min(differing)
        kind = "unexpected" if name in scores else "missing"
        raise Refused(f"{kind} protocol {records.text_of(name)!r}, asked for {', '.join(asked)}")
    for protocol, value in scores.items():
        if not (0 if metric == "accuracy" else -1) <= value <= 1:
            raise Refused(f"{protocol} is {value}, which no {metric} can be")
