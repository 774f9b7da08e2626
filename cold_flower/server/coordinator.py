"""The coordinator of a run: what stands around Flower's loop.

Flower's own loop (`Strategy.start`) drives every strategy, ours or a stock one. Its
``evaluate_fn`` is called before the first round and after each: there the new base is
published and evaluated (`Coordinator.after_round`).
"""

import os
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid

from cold_flower.config import Config
from cold_flower.models import heads, text_to_text
from cold_flower.models.base import Base, load_base
from cold_flower.models.body import prefix_of
from cold_flower.models.starting import save_starting_model, starting_model
from cold_flower.reporting import trackers
from cold_flower.repository import by_reference, leaving
from cold_flower.repository.arrivals import Arrivals
from cold_flower.repository.bases import Repository
from cold_flower.repository.journal import (
    BEGUN,
    RUNNER,
    SCORES,
    WORKERS,
    Journal,
    run_id,
)
from cold_flower.repository.provenance import was_fused
from cold_flower.repository.start import MODEL, check_start, described
from cold_flower.server import gating, turns
from cold_flower.server.drops import FromDropbox
from cold_flower.server.evaluation import Evaluation
from cold_flower.server.participants import Contributors
from cold_flower.server.publishing import Publishing, record_contributions
from cold_flower.server.reuse import REUSED
from cold_flower.server.simulation import WINDOW, Simulation
from cold_flower.server.sites import Sites
from cold_flower.server.stock import memory_lost, proximal_mu
from cold_flower.server.strategy import least, needed, screen, strategy
from strategies import records
from strategies.collecting import Collector
from strategies.contributions import INCOMING
from strategies.inbox import Inbox


class Coordinator:
    """One run: who takes part, and what is published, recorded and said of each iteration.

    Making it publishes the starting model, if that is not there, and waits for the contributors.

    Raises:
        ConfigError: the run cannot go by reference, as it is to.
        RunError: too few are there, or one that does not fit.
    """

    def __init__(self, config: Config, run_dir: Path, grid: Grid) -> None:
        by_reference.check(config)
        turns.check(config)
        self._config = config
        self._journal = Journal(run_dir)
        self._say = self._journal.say
        self._repository = Repository(run_dir)
        base = load_base(config.base_model)
        heads.check(base, config.finetune.head)
        text_to_text.check_statistic(base, needed(config)[0])
        if self._repository.recover() is None:
            self._publish_start(base)
        else:
            check_start(self._repository, config.base_model)
            leaving.check(self._journal, self._repository)
        self._first = self._repository.numbers()[-1] + 1
        arrivals = Arrivals(self._journal)
        record_contributions(self._journal, self._repository, self._first - 1)
        # Before the others: while they are waited for, it is seen whether what lies there changes.
        self._drops = FromDropbox(
            config,
            run_dir,
            lambda: self._participants.known,
            self._journal.left(),
            self._say,
        )
        workers = int(os.environ.get(WORKERS, "0"))
        # Ten times a second Flower's simulation looks for each node through all that are under way.
        window = 2 * workers + 2 if workers else 0
        self._participants: Contributors = (
            Sites(grid, config, base.sha256, self._journal)
            if config.sites.allow
            else Simulation(
                grid,
                config,
                base.sha256,
                self._say,
                first=self._first,
                checked=RUNNER in os.environ,  # as `cold-flower simulate` does
                window=window or WINDOW,
                left=self._journal.left(),
            )
        )
        self._evaluation = Evaluation(
            grid, config, self._participants, self._journal, window=window
        )
        self._inbox = Inbox(
            self._collector(grid, arrivals, workers),
            quorum=config.quorum,
            least=least(config),
            keep_arrays=bool(config.fusion.strategy),
            screen=screen(config),
        )
        self._gate = gating.gate(
            config, self._participants, self._evaluation, self._repository, self._inbox
        )
        self._publishing = Publishing(
            config, self._journal, self._repository, self._inbox, self._gate
        )

    def _collector(self, grid: Grid, arrivals: Arrivals, workers: int) -> Collector:
        """Return what asks an iteration's cohort; ``workers``: of a simulation, else 0."""
        config, participants, repository = self._config, self._participants, self._repository
        statistic, metrics = needed(config)
        replayed = participants.replayed
        return Collector(
            grid,
            self._journal.run_dir / INCOMING,
            participants,
            first=self._first,
            turns=turns.turns(config, len(participants.training), workers),
            say=self._say_of_finetuning,
            statistic=statistic,
            needed=metrics,
            more=self._more,
            reference=(lambda: self._head) if config.transport == "shared-dir" else None,
            bases=repository,
            staleness=turns.staleness(config),
            arrived=lambda one, number: arrivals.record(self._inbox.iteration, one, number),
            starts=(lambda i: replayed.starts(i, repository.sha256)) if replayed else None,
            drops=None if replayed else self._drops,
            older=config.staleness,
        )

    def run(self) -> None:
        """Run from the newest base to the last iteration, and return when all is published."""
        config = self._config
        self._participants.norms = self._publishing.norms
        body = self._repository.body(self._head)
        run = run_id(self._journal.run_dir)
        train = ConfigRecord({"seed": config.seed, "run": run})
        if config.explicit:
            train[records.EXPLICIT] = config.explicit
        if mu := proximal_mu(config):
            train[records.PROXIMAL_MU] = mu
        # Where nobody trained, a head of that number is of what a replay took the place of.
        replays = [one["iteration"] for one in self._repository.line() if "replay" in one]
        if abandoned := sorted({*self._repository.abandoned(), *replays}):
            train["abandoned"] = abandoned
        self._say(self._introduction(), iterations=config.iterations)
        if self._drops.there or not self._participants.training:
            self._say(f"drop box: {self._drops.box.folder}")
        chosen = strategy(
            config,
            self._inbox,
            self._repository,
            self._gate,
            self._say_of_fusing,
            self._publishing.measured,
        )
        if warning := memory_lost(chosen, self._first):
            self._say(warning)
        with trackers.open(config, self._journal.run_dir, run) as self._tracker:
            chosen.start(
                self._inbox,
                records.pack(body.items()),
                num_rounds=max(0, config.iterations - self._first + 1),
                timeout=config.wait.replies,
                train_config=train,
                evaluate_fn=self.after_round,
            )
        if waiting := self._drops.waiting:
            self._say(
                f"drop box: {', '.join(waiting)} came too late; with --resume --set "
                f"iterations={config.iterations + 1} the next iteration takes what waits"
            )

    def _introduction(self) -> str:
        there, members = self._participants.there, self._participants.members
        ready = f"{len(there)} contributors are ready"
        if not self._config.iterations:
            return f"{ready} to evaluate the model"
        training = self._participants.training
        known = [members[name].examples for name in training if name in members]
        asked = "" if len(members) == len(there) else f", {len(known)} of which were asked so far"
        left = f"iterations {self._first} to {self._config.iterations}"
        if self._first > self._config.iterations:
            left = f"base {self._head} is the last; what its evaluation lacks is left"
        return (
            f"{ready}, {len(training)} of them contribute{asked} ({sum(known)} training examples); "
            f"{left}"
        )

    def after_round(self, server_round: int, arrays: ArrayRecord) -> None:
        """Publish what the round made, then evaluate it if that is due."""
        iteration = self._first - 1 + server_round if server_round else self._head
        if server_round:
            self._complete(self._head)
            self._publish(iteration, arrays)
        sha256, scored = self._repository.sha256(iteration), False
        if self._evaluation.due(iteration):
            scored = self._evaluation.evaluate(iteration, arrays, sha256)
            scored |= self._evaluate_average(iteration, sha256)
        # A resumed run has logged its first base before, unless it was stopped amid its scores.
        if (server_round or scored) and not self._evaluation.left_out:
            self._log(iteration)

    def _evaluate_average(self, iteration: int, sha256: str) -> bool:
        """Evaluate the moving average beside a base; at the start it is the base (``sha256``)."""
        if not self._config.fusion.ema:
            return False
        of = self._repository.manifest(iteration).get("ema", {}).get("sha256", sha256)
        body = self._repository.average(iteration)
        return self._evaluation.evaluate_average(iteration, lambda: records.pack(body.items()), of)

    def _complete(self, iteration: int) -> None:
        """Take from the contributions what scores of their base were to come; ask for the rest."""
        if not self._evaluation.left_out:
            return
        sha256 = self._repository.sha256(iteration)
        self._evaluation.complete(
            iteration,
            lambda: records.pack(self._repository.body(iteration).items()),
            sha256,
            self._inbox.contributions.values(),
        )
        self._evaluate_average(iteration, sha256)
        self._log(iteration)

    def _log(self, iteration: int) -> None:
        rows = self._journal.where(SCORES, "iteration", iteration)
        rows_of = self._repository.manifest(iteration).get("contributors", [])
        self._tracker.log(iteration, rows, rows_of)

    @property
    def _head(self) -> int:
        head = self._repository.latest()
        assert head is not None  # the start is published first
        return head

    def _publish_start(self, base: Base) -> None:
        self._say(f"loading the starting model {base.name}")
        starting, body = starting_model(base, self._config.seed)
        self._repository.create(
            lambda folder: save_starting_model(starting, base, folder),
            body,
            prefix_of(starting),
            {"base-model": base.name, MODEL: described(base), "fused": was_fused(base.name)},
        )

    def _publish(self, iteration: int, arrays: ArrayRecord) -> None:
        self._publishing.publish(self._head, iteration, arrays)
        if self._config.keep_iterations:
            old = self._config.staleness if self._drops.there else turns.staleness(self._config)
            begun_from = self._repository.recent(old + 1)
            self._repository.prune(self._config.keep_iterations, [i for i, _ in begun_from])
        self._compare(iteration)
        where = self._repository.path(iteration)
        self._say(f"iteration {iteration} published: {where}", published=iteration)

    def _compare(self, iteration: int) -> None:
        """Say where a base is not the one that is repeated."""
        replayed = self._participants.replayed
        if replayed and self._repository.sha256(iteration) != replayed.sha256(iteration):
            self._say(
                f"WARNING: base {iteration} is not the one of {self._config.replay}: another "
                "machine, number of threads, version or setting"
            )

    def _more(self) -> dict[str, dict[str, str]]:
        """Return what train messages ask for beside a contribution, by contributor."""
        return {name: {records.SCORE: REUSED} for name in self._evaluation.left_out}

    def _say_of_fusing(self, line: str, done: int, of: int) -> None:
        self._say(line, phase="fuse", iteration=self._inbox.iteration, done=done, of=of)

    def _say_of_finetuning(self, line: str, **facts: Any) -> None:
        if BEGUN in facts:
            self._say(line, **facts)
            return
        iteration, arrived = self._inbox.iteration, self._inbox.contributions.values()
        self._say(
            line,
            phase="finetune",
            iteration=iteration,
            done=len(arrived),
            of=self._inbox.expected,
            busy=sum(one.metrics.get("seconds", 0.0) for one in arrived),
            left=self._evaluation.left(iteration, evaluations_from=iteration),
            **facts,
        )
