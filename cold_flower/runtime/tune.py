"""Find a recipe that trains: learning rates and epochs, tried on a few tasks, scored on dev.

By successive halving (Jamieson and Talwalkar 2016): all candidates are tried on two tasks, the
better half of them on twice as many, and so on; the last two on all. A rung is tasks, not epochs:
the learning rate falls to its end with the last epoch, so fewer epochs would be another candidate.
A task that no candidate learns (WSC, WNLI) says nothing but noise, so it does not count.
"""

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
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
from cold_flower.repository.journal import Journal
from cold_flower.runtime.candidates import (
    KEYS,
    Candidate,
    Choice,
    Tried,
    Tuned,
    learned,
    ranked,
    reasons,
)
from cold_flower.seeds import derive
from strategies.fusion import fingerprint
from strategies.names import unknown

TRIALS = "trials.jsonl"
FIRST = 2  # tasks of the first rung
TASKS = 4  # drawn, where none are named
GRIDS: Mapping[str, tuple[Sequence[float], Sequence[int]]] = {
    "finetuned": ((3e-5, 1e-4, 3e-4, 1e-3, 3e-3), (3, 10)),
    "frozen": ((1e-3, 3e-3, 1e-2, 3e-2), (50, 200)),
    "few-shot": ((3e-5, 1e-4, 3e-4, 1e-3, 3e-3), (10, 30)),
}


class _TimeUp(Exception):
    """The budget is spent."""


def tune(
    config: Config,
    *,
    tasks: Sequence[str] = (),
    protocols: Sequence[str] = PROTOCOLS,
    grids: Mapping[str, tuple[Sequence[float], Sequence[int]]] = GRIDS,
    budget: float = math.inf,
    say: Callable[[str], object] = print,
) -> Tuned:
    """Try candidates from the starting model; return the best of each protocol.

    Trials are kept in ``run-dir``: the same call goes on, also with more candidates or tasks, and
    with another value of a key that is tried. One on data or a model that changed is made anew.

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
    # Every trial sets what its protocol reads of these, so the run's own values are nothing to it.
    usual = Config().flat()
    tried = {key: usual[key] for keys in KEYS.values() for key in keys}
    config = Config.from_flat({**config.flat(), **tried})
    if config.finetune.proximal_mu:
        raise ConfigError(
            "tune finetunes as an evaluation does, without a proximal term: leave "
            "finetune.proximal-mu at 0"
        )
    if config.finetune.head != "fresh":
        raise ConfigError(
            "tune finetunes as an evaluation does, from a fresh head: leave finetune.head at fresh"
        )
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
    return Tuned(choices, unfinished, journal.run_dir)


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
        self._data: dict[str, str] = {}

    def __call__(self, candidate: Candidate, task: str) -> Mapping[str, Any]:
        """Return a trial's row; make it, if it was not made before.

        Raises:
            _TimeUp: it was not, and the budget is spent.
        """
        row: dict[str, Any] = {
            "protocol": candidate.protocol, "learning-rate": candidate.learning_rate,
            "epochs": candidate.epochs, "task": task, "data": self._digest(task),
            "base": self._base,
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

    def _digest(self, task: str) -> str:
        """Return what names a task's data, and the model that it is tokenised for."""
        if task not in self._data:
            self._data[task] = Contributor(self._config, self._plan.names.index(task)).digest()
        return self._data[task]

    @staticmethod
    def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
        keys = ("protocol", "learning-rate", "epochs", "task", "data", "base")
        return tuple(row[key] for key in keys)


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
            alive = alive[: max(2, math.ceil(len(alive) / 2))]
            count = min(len(tasks), 2 * count)
    except _TimeUp:
        finished = False
    if not order:
        return None, False
    result = [tried[candidate] for candidate in order]
    why = reasons(result, finalists, compared)
    if left:
        why.append(f"{', '.join(left)} did not count: none was better than its largest class")
    return Choice(protocol, result, compared, why), finished
