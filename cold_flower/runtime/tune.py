"""Find a recipe that trains: learning rates and epochs, tried on a few tasks, scored on dev.

By successive halving (Jamieson and Talwalkar 2016): all candidates are tried on two tasks, the
better half of them on twice as many, and so on. A rung is tasks, not epochs: the learning rate
falls to its end with the last epoch, so fewer epochs would be another candidate. A task that no
candidate learns (WSC, WNLI) says nothing but noise, so it does not count.
"""

import math
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from cold_flower.config import PROTOCOLS, Config
from cold_flower.contributors.contributor import Contributor
from cold_flower.data.plan import Plan, plan
from cold_flower.data.splits import check_few_shot, load_splits
from cold_flower.errors import ConfigError, RunError
from cold_flower.models import text_to_text
from cold_flower.models.base import load_base
from cold_flower.models.starting import starting_model
from cold_flower.reporting.statistics import binomial_se, mean_and_sem
from cold_flower.repository.journal import Journal
from cold_flower.seeds import derive
from strategies.fusion import fingerprint
from strategies.names import unknown

TRIALS = "trials.jsonl"
FIRST = 2  # tasks of the first rung
TASKS = 4  # drawn, where none are named
KEYS = {
    "finetuned": ("finetune.learning-rate", "finetune.max-epochs"),
    "few-shot": ("few-shot.learning-rate", "few-shot.epochs"),
    "frozen": ("probe.learning-rate", "probe.epochs"),
}
GRIDS: Mapping[str, tuple[Sequence[float], Sequence[int]]] = {
    "finetuned": ((3e-5, 1e-4, 3e-4, 1e-3, 3e-3), (3, 10)),
    "frozen": ((1e-3, 3e-3, 1e-2, 3e-2), (50, 200)),
    "few-shot": ((3e-5, 1e-4, 3e-4, 1e-3, 3e-3), (10, 30)),
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
        """Return the tasks on which the last epoch was the best."""
        return [task for task, row in self.rows.items() if row.get("improving")]


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


class _TimeUp(Exception):
    """The budget is spent."""


def tune(
    config: Config,
    *,
    tasks: Sequence[str] = (),
    protocols: Sequence[str] = (*KEYS,),
    grids: Mapping[str, tuple[Sequence[float], Sequence[int]]] = GRIDS,
    budget: float = math.inf,
    say: Callable[[str], object] = print,
) -> Tuned:
    """Try candidates from the starting model; return the best of each protocol.

    Trials are kept in ``run-dir``: the same call goes on, also with more candidates or tasks. What
    was tried with other weights in the base model's folder is tried again.

    Args:
        config: resolved; suite, base model, sizes and all that is not tried.
        tasks: to try on; none draws four of those that contribute, from the seed.
        protocols: whose recipe is looked for.
        grids: learning rates and epochs by protocol.
        budget: seconds; no trial begins after them.
        say: takes a line for each trial.

    Raises:
        ConfigError: no such task or protocol, or no candidate.
        ModelError, TaskError: the base model or a task's data cannot be used.
        RunError: the budget ended before every candidate was tried on the first tasks; another
            run lies in ``run-dir``.
    """
    whole = plan(config)
    chosen = _tasks(whole, tasks, config.seed)
    if not protocols or len(set(chosen)) < len(chosen):
        raise ConfigError("tune needs a protocol, and no task twice")
    for protocol in protocols:
        if protocol not in PROTOCOLS:
            raise ConfigError(unknown("protocol", protocol, PROTOCOLS))
    body = _checked(config, whole, chosen, protocols)
    journal = Journal(Path(config.run_dir))
    journal.open(config, {})
    try:
        trials = _Trials(config, whole, body, journal, time.monotonic() + budget, say)
        choices, unfinished = {}, []
        for protocol in protocols:
            rates, epochs = grids[protocol]
            candidates = [Candidate(protocol, r, e) for r, e in product(rates, epochs)]
            if not candidates:
                raise ConfigError(f"{protocol}: no learning rate, or no number of epochs, to try")
            choice, finished = _search(protocol, candidates, chosen, trials)
            if choice:
                choices[protocol] = choice
            if not finished:
                unfinished.append(protocol)
    finally:
        journal.unlock()
    if not choices:
        raise RunError(
            f"the budget ended before every candidate was tried on {', '.join(chosen[:FIRST])}: "
            "the same command goes on, or give it more minutes"
        )
    return Tuned(choices, unfinished)


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


def _tasks(whole: Plan, named: Sequence[str], seed: int) -> list[str]:
    for task in named:
        if task not in whole.names:
            raise ConfigError(unknown("task", task, whole.names))
    if named:
        return list(named)
    seen = sorted(whole.seen)
    return random.Random(derive(seed, "tune")).sample(seen, min(TASKS, len(seen)))


def _checked(
    config: Config, whole: Plan, tasks: Sequence[str], protocols: Sequence[str]
) -> Mapping[str, Any]:
    """Check model and data before anything is written; return the starting model's body."""
    base = load_base(config.base_model)
    for task in tasks:
        shard = whole.names.index(task) if config.partition.kind == "shards" else None
        data = load_splits(whole.tasks[task], config, shard)
        text_to_text.check(base, whole.tasks[task], data.labels)
        if "few-shot" in protocols:
            check_few_shot(whole.tasks[task], config, len(data.train))
    return starting_model(base, config.seed)[1]


class _Trials:
    """Finetunes and probes; knows what was tried before."""

    def __init__(
        self,
        config: Config,
        whole: Plan,
        body: Mapping[str, Any],
        journal: Journal,
        until: float,
        say: Callable[[str], object],
    ) -> None:
        self._config, self._plan, self._body, self._journal = config, whole, body, journal
        self._until, self._say, self._base = until, say, fingerprint(body.items())
        self._rows = {self._key(row): row for row in journal.rows(TRIALS)}

    def __call__(self, candidate: Candidate, task: str) -> Mapping[str, Any]:
        """Return a trial's row; make it, if it was not made before.

        Raises:
            _TimeUp: it was not, and the budget is spent.
        """
        row: dict[str, Any] = {
            "protocol": candidate.protocol, "learning-rate": candidate.learning_rate,
            "epochs": candidate.epochs, "task": task, "base": self._base,
        }  # fmt: skip
        if (known := self._rows.get(self._key(row))) is not None:
            return known
        if time.monotonic() >= self._until:
            raise _TimeUp
        started = time.monotonic()
        row |= self._score(candidate, task)
        row["seconds"] = round(time.monotonic() - started, 3)
        self._journal.append(TRIALS, [row])
        self._rows[self._key(row)] = row
        self._say(
            f"{candidate.protocol}, {candidate}, {task}: dev {100 * row['dev']:.1f} "
            f"({row['seconds']:.0f} s)"
        )
        return row

    def _score(self, candidate: Candidate, task: str) -> dict[str, Any]:
        settings = {**self._config.flat(), **candidate.settings}
        folder = self._journal.run_dir / "contributors"
        me = Contributor(Config.from_flat(settings), self._plan.names.index(task), folder)
        protocol, seed = candidate.protocol, self._config.seed
        scores, facts = me.evaluate(self._body, [protocol], iteration=0, seed=seed, split="dev")
        size = int(scores["num-examples"])
        return {"dev": scores[protocol], "n-dev": size, "majority": me.knowing_nothing(), **facts}

    @staticmethod
    def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(row[key] for key in ("protocol", "learning-rate", "epochs", "task", "base"))


def _search(
    protocol: str, candidates: Sequence[Candidate], tasks: Sequence[str], trials: _Trials
) -> tuple[Choice | None, bool]:
    """Halve the candidates and double the tasks; return the best, and whether it came to an end."""
    tried = {candidate: Tried(candidate, {}) for candidate in candidates}
    alive, count = list(candidates), min(FIRST, len(tasks))
    order: list[Candidate] = []  # best first: the last rung's, before it those that it left out
    compared: list[str] = []
    left: list[str] = []
    finished = True
    try:
        while True:
            for candidate, task in product(alive, tasks[:count]):
                rows = {**tried[candidate].rows, task: trials(candidate, task)}
                tried[candidate] = Tried(candidate, rows)
            rung = [tried[candidate] for candidate in alive]
            compared = learned(rung, tasks[:count])
            left = [task for task in tasks[:count] if task not in compared]
            alive = ranked(rung, compared)
            order[: len(alive)] = alive
            finalists = len(alive)
            if count == len(tasks):
                break
            alive = alive[: math.ceil(len(alive) / 2)]
            count = min(len(tasks), 2 * count)
    except _TimeUp:
        finished = False
    if not order:
        return None, False
    result = [tried[candidate] for candidate in order]
    reasons = _reasons(result, finalists, compared)
    if left:
        reasons.append(f"{', '.join(left)} did not count: none was better than its largest class")
    return Choice(protocol, result, compared, reasons), finished


def _reasons(tried: Sequence[Tried], finalists: int, tasks: Sequence[str]) -> list[str]:
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
