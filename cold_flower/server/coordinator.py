"""The coordinator of a run: what stands around Flower's loop.

Flower's own loop (`Strategy.start`) drives every strategy, ours or a stock one. Its
``evaluate_fn`` is called before the first round and after each: there the new base is
published and evaluated (`Coordinator.after_round`).
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid

from cold_flower.config import Config
from cold_flower.models.base import Base, load_base
from cold_flower.models.body import prefix_of
from cold_flower.models.starting import save_starting_model, starting_model
from cold_flower.reporting import trackers
from cold_flower.repository import by_reference
from cold_flower.repository.bases import Repository, rejected
from cold_flower.repository.journal import CONTRIBUTIONS, SCORES, SITES, WORKERS, Journal, run_id
from cold_flower.server.attendance import Attendance, Planned
from cold_flower.server.evaluation import Evaluation
from cold_flower.server.manifest import manifest
from cold_flower.server.roster import longest_first
from cold_flower.server.sites import Sites
from cold_flower.server.strategy import screen, strategy
from strategies import records
from strategies.arrivals import INCOMING
from strategies.fusion import Weights, fingerprint
from strategies.gate import Gate
from strategies.inbox import Inbox


class Coordinator:
    """One run: publish the start, have it finetuned and fused, publish and evaluate each base."""

    def __init__(self, config: Config, run_dir: Path, grid: Grid) -> None:
        self._config = config
        self._grid = grid
        self._journal = Journal(run_dir)
        self._say = self._journal.say
        self._repository = Repository(run_dir)
        self._incoming = run_dir / INCOMING
        self._run_id = run_id(run_dir)

    def run(self) -> None:
        """Run from the newest base to the last iteration, and return when all is published."""
        config = self._config
        by_reference.check(config)
        base = load_base(config.base_model)
        self._publish_start(base)
        first = self._repository.numbers()[-1] + 1
        self._record_contributions(first - 1)
        self._norms = self._accepted_norms()
        self._attendance = self._attend(base)
        self._first = first
        self._warn_of_idle_gpus()
        workers = int(os.environ.get(WORKERS, "0"))
        self._evaluation = Evaluation(
            self._grid,
            config,
            self._attendance,
            self._journal,
            spread=workers > 0,
            strict=not config.sites.allow,
        )
        self._inbox = Inbox(
            self._grid,
            self._incoming,
            self._attendance.roster,
            self._cohort,
            first=first,
            quorum=config.quorum,
            keep_arrays=bool(config.fusion.strategy),
            # One more than there are workers: the next message waits where it is needed.
            window=workers + 1 if workers else 0,
            actors=not config.sites.allow,
            allowed=self._attendance.allowed,
            screen=screen(config),
            promised=self._promised,
            history=lambda name: self._norms.get(name, []),
            say=self._say_of_finetuning,
            reference=(lambda: self._head) if config.transport == "shared-dir" else None,
        )
        self._drop()  # what a crash left between publishing and dropping
        body = self._repository.body(self._head)
        train = ConfigRecord({"seed": config.seed, "run": self._run_id})
        if abandoned := self._repository.abandoned():
            train["abandoned"] = abandoned
        there = self._attendance.members
        seen = [there[name] for name in self._attendance.plan.seen if name in there]
        self._say(
            f"{len(there)} contributors are ready, {len(seen)} of them contribute "
            f"({sum(member.examples for member in seen)} training examples); "
            f"iterations {first} to {config.iterations}",
            iterations=config.iterations,
        )
        with trackers.open(config, self._journal.run_dir, self._run_id) as self._tracker:
            self._gate = self._make_gate() if config.gate.protocol else None
            strategy(config, self._inbox, self._repository, self._gate).start(
                self._inbox,
                records.pack(body.items()),
                num_rounds=max(0, config.iterations - first + 1),
                timeout=config.wait.replies,
                train_config=train,
                evaluate_fn=self.after_round,
            )

    def after_round(self, server_round: int, arrays: ArrayRecord) -> None:
        """Publish what the round made, then evaluate it if that is due."""
        iteration = self._first - 1 + server_round if server_round else self._head
        if server_round:
            self._publish(iteration, arrays)
            where = self._repository.path(iteration)
            self._say(f"iteration {iteration} published: {where}", published=iteration)
        if self._evaluation.due(iteration):
            left = self._left(iteration, evaluations_from=iteration + 1)

            def say(line: str, **about: Any) -> None:
                self._say(line, phase="evaluate", iteration=iteration, left=left, **about)

            sha256 = self._repository.manifest(iteration)["sha256"]
            self._attendance.refresh()
            self._evaluation.evaluate(iteration, arrays, sha256, say)
        rows = [r for r in self._journal.rows(SCORES) if r["iteration"] == iteration]
        contributors = self._repository.manifest(iteration).get("contributors", [])
        if server_round or self._first == 1:  # a resumed run has logged its first base before
            self._tracker.log(iteration, rows, contributors)

    @property
    def _head(self) -> int:
        head = self._repository.latest()
        assert head is not None  # the start is published first
        return head

    def _promised(self, name: str) -> int:
        """Return how many training examples a contributor said to have when it joined."""
        member = self._attendance.members.get(name)
        return member.examples if member else 0

    def _accepted_norms(self) -> dict[str, list[float]]:
        """Return each contributor's norms along the lineage, for screening."""
        found: dict[str, list[float]] = {}
        for iteration in self._repository.lineage():
            about = self._repository.manifest(iteration)
            if rejected(about):
                continue  # its contributions were not fused
            for row in about.get("contributors", []):
                if row["verdict"] == "accepted":
                    found.setdefault(row["name"], []).append(row["diff-norm"])
        return found

    def _make_gate(self) -> Gate[ArrayRecord]:
        def validate(sha256: str, arrays: Callable[[], ArrayRecord]) -> dict[str, float]:
            iteration = self._inbox.iteration

            def say(line: str, **about: Any) -> None:
                self._say(line, phase="validate", iteration=iteration, **about)

            return self._evaluation.validate(iteration, sha256, arrays, say)

        def before() -> dict[str, float]:
            body = self._repository.body(self._head)
            sha256 = self._repository.manifest(self._head)["sha256"]
            return validate(sha256, lambda: records.pack(body.items()))

        chosen, there = self._config.gate, self._attendance
        return Gate(
            lambda candidate: validate(fingerprint(records.unpack(candidate)), lambda: candidate),
            before,
            tolerance=chosen.tolerance,
            task_tolerance=chosen.task_tolerance,
            budget=chosen.budget,
            voters=lambda: sum(name in there.members for name in there.plan.seen),
        )

    def _say_of_finetuning(self, line: str) -> None:
        iteration, arrivals = self._inbox.iteration, self._inbox.arrivals.values()
        self._say(
            line,
            phase="finetune",
            iteration=iteration,
            done=len(arrivals),
            of=len(self._attendance.cohort(iteration)),
            busy=sum(arrival.metrics.get("seconds", 0.0) for arrival in arrivals),
            left=self._left(iteration, evaluations_from=iteration),
        )

    def _left(self, iteration: int, evaluations_from: int) -> dict[str, int]:
        """Return how many phases of each kind are to come."""
        last = self._config.iterations
        evaluations = sum(map(self._evaluation.due, range(evaluations_from, last + 1)))
        return {"finetune": last - iteration, "evaluate": evaluations}

    def _warn_of_idle_gpus(self) -> None:
        gpus = torch.cuda.device_count()
        used = any(member.device == "cuda" for member in self._attendance.members.values())
        if gpus and not used and not self._config.sites.allow:
            self._say(
                f"WARNING: this machine has {gpus} GPU(s), but the contributors compute on "
                "cores. In a simulation: --gpus-per-contributor 1, or with flwr run "
                "client-resources-num-gpus=1.0 in --federation-config"
            )

    def _publish_start(self, base: Base) -> None:
        if self._repository.recover() is not None:
            return
        self._say(f"loading the starting model {base.name}")
        starting, body = starting_model(base, self._config.seed)
        self._repository.create(
            lambda folder: save_starting_model(starting, base, folder),
            body,
            prefix_of(starting),
            {"base-model": base.name},
        )

    def _attend(self, base: Base) -> Attendance:
        if not self._config.sites.allow:
            return Planned(self._grid, self._config, base.sha256, self._say)

        def record(row: dict[str, Any]) -> None:
            self._journal.append(SITES, [row])

        return Sites(self._grid, self._config, base.sha256, self._say, record)

    def _cohort(self, iteration: int) -> list[str]:
        names = self._attendance.cohort(iteration)
        members = self._attendance.members
        return [member.name for member in longest_first(members[name] for name in names)]

    def _publish(self, iteration: int, arrays: ArrayRecord) -> None:
        parent = self._head
        judged = self._gate.judgement if self._gate else None
        for name in judged.left_out if judged else ():
            self._inbox.refuse(name, "gate: the validation scores are better without it")
        if judged and not judged.accepted:
            self._say(f"iteration {iteration} rejected by the gate: {judged.reason}")
        fused = Weights(records.Tensors(arrays))
        about = manifest(
            self._config,
            self._inbox.arrivals.values(),
            self._inbox.diagnosis(self._repository.body(parent)),
            judged,
        )
        # A candidate that was rejected has left its memory in the inbox; the base keeps its own.
        state = self._repository.state() if rejected(about) else self._inbox.state
        state = state if state and state.exists() else None
        self._repository.publish(iteration, parent, fused, about, state=state)
        self._record_contributions(iteration)
        self._norms = self._accepted_norms()
        self._drop()
        if self._config.keep_iterations:
            self._repository.prune(self._config.keep_iterations)

    def _drop(self) -> None:
        """Empty the inbox of an iteration that is published; keep what was refused aside."""
        rows = self._repository.manifest(self._inbox.iteration).get("contributors", [])
        self._inbox.drop([row["name"] for row in rows if row["verdict"] == "refused"])

    def _record_contributions(self, iteration: int) -> None:
        """Copy those of an iteration's contributors from its manifest that are not there."""
        there = {(r["iteration"], r["contributor"]) for r in self._journal.rows(CONTRIBUTIONS)}
        rows = []
        for row in self._repository.manifest(iteration).get("contributors", []):
            plain = {k.replace("-", "_"): v for k, v in row.items() if k != "name"}
            if (iteration, row["name"]) not in there:
                rows.append({**plain, "iteration": iteration, "contributor": row["name"]})
        self._journal.append(CONTRIBUTIONS, rows)
