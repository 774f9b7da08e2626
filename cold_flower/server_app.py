"""The ServerApp: run the strategy, publish each new base, have it evaluated.

Flower's own loop (`Strategy.start`) drives every strategy, ours or a stock one. Its
``evaluate_fn`` is called before the first round and after each: there the new base is
published and evaluated (`_Run.after_round`).
"""

import importlib
import os
import time
import traceback
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from cold_flower import model
from cold_flower.config import Config
from cold_flower.contributor import home, plan, resolve
from cold_flower.errors import ColdFlowerError, ConfigError
from cold_flower.identity import code_sha256, versions
from cold_flower.journal import CONTRIBUTIONS, RESULT, SCORES, WORKERS, Journal
from cold_flower.repository import Repository
from cold_flower.roster import Member, gather, longest_first
from cold_flower.schedule import cohort
from strategies import records
from strategies.cold_fusion import ColDFusion
from strategies.errors import Refused, RunStopped, StrategyError
from strategies.exchange import exchange, reason_of
from strategies.fusion import Weights, fingerprint, load
from strategies.inbox import Inbox
from strategies.screening import measure

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run one experiment; ``<run-dir>/result.json`` is written last and tells how it went."""
    config = resolve(Config.from_flat(context.run_config))
    default = home() / "runs" / f"{config.experiment}-{context.run_id}"
    run_dir = Path(config.run_dir) if config.run_dir else default
    journal = Journal(run_dir)
    journal.open(config, {"versions": versions(), "code": code_sha256()})
    try:
        _Run(config, run_dir, grid).run()
    except Exception as error:
        expected = isinstance(error, ColdFlowerError | StrategyError)
        cause = str(error) if expected else traceback.format_exc(limit=-3).strip()
        head = Repository(run_dir).latest()
        journal.write(RESULT, {"status": "failed", "iterations": head or 0, "cause": cause})
        raise
    journal.write(RESULT, {"status": "completed", "iterations": config.iterations, "cause": ""})


class _Run:
    def __init__(self, config: Config, run_dir: Path, grid: Grid) -> None:
        self._config = config
        self._grid = grid
        self._journal = Journal(run_dir)
        self._say = self._journal.say
        self._repository = Repository(run_dir)
        self._incoming = run_dir / "incoming"
        self._started = time.monotonic()

    def run(self) -> None:
        config = self._config
        base = model.load_base(config.base_model)
        self._publish_start(base)
        first = (self._repository.latest() or 0) + 1
        self._record_contributions(first - 1)
        whole = plan(config)
        self._members = gather(
            self._grid,
            len(whole.names),
            wait=config.wait,
            code=code_sha256(),
            model=base.sha256,
            say=self._say,
        )
        self._seen = [name for name in self._members if name in whole.seen]
        self._size = config.contributors_per_iteration
        if len(self._members) < len(whole.names):  # `gather` has said so
            self._size = min(self._size, len(self._seen))
        self._first = first
        roster = {name: member.node for name, member in self._members.items()}
        self._inbox = Inbox(
            self._grid,
            self._incoming,
            roster,
            self._cohort,
            first=first,
            quorum=config.quorum,
            keep_arrays=bool(config.fusion.strategy),
            window=window(),
            say=self._say,
        )
        self._inbox.drop()  # what a crash left between publishing and dropping
        body = self._repository.body(first - 1)
        self._say(
            f"{len(self._members)} contributors are ready, {len(self._seen)} of them contribute "
            f"({sum(self._members[name].examples for name in self._seen)} training examples); "
            f"iterations {first} to {config.iterations}"
        )
        strategy(config, self._inbox).start(
            self._inbox,
            records.pack(body.items()),
            num_rounds=max(0, config.iterations - first + 1),
            timeout=config.wait.replies,
            train_config=ConfigRecord({"seed": config.seed}),
            evaluate_fn=self.after_round,
        )

    def after_round(self, server_round: int, arrays: ArrayRecord) -> None:
        """Publish what the round made, then evaluate it if that is due."""
        iteration = self._first - 1 + server_round
        if server_round:
            self._publish(iteration, arrays)
            self._say(f"iteration {iteration} published: {self._repository.path(iteration)}")
        every, last = self._config.evaluate.every, self._config.iterations
        if iteration % every == 0 or iteration == last:
            self._evaluate(iteration, arrays)
        self._report_time(iteration)

    def _publish_start(self, base: model.Base) -> None:
        if self._repository.recover() is not None:
            return
        self._say(f"loading the starting model {base.name}")
        starting, body = model.starting_model(base, self._config.seed)
        self._repository.create(
            lambda folder: model.save_starting_model(starting, base, folder),
            body,
            model.prefix_of(starting),
            {"sha256": fingerprint(body.items()), "base-model": base.name, "time": _now()},
        )

    def _cohort(self, iteration: int) -> list[str]:
        names = cohort(
            self._seen,
            iteration,
            size=self._size,
            schedule=self._config.schedule,
            seed=self._config.seed,
        )
        return [member.name for member in longest_first(self._members[name] for name in names)]

    def _publish(self, iteration: int, arrays: ArrayRecord) -> None:
        parent = iteration - 1
        fused = Weights(records.Tensors(arrays))
        arrivals = sorted(self._inbox.arrivals.values(), key=lambda a: a.name)
        accepted = [arrival for arrival in arrivals if arrival.path]
        updates = measure(
            self._repository.body(parent),
            [arrival.weights() for arrival in accepted],
            fused,
        )
        sizes = dict(zip((a.name for a in accepted), updates, strict=True))
        rows = []
        for arrival in arrivals:
            update = sizes.get(arrival.name)
            numbers = {k: v for k, v in arrival.metrics.items() if k != records.EXAMPLES}
            rows.append(
                {
                    **numbers,
                    "name": arrival.name,
                    "verdict": arrival.verdict,
                    "reason": arrival.reason,
                    "examples": int(arrival.metrics.get(records.EXAMPLES, 0)),
                    "sha256": arrival.sha256,
                    "diff-norm": update.norm if update else None,
                    "cosine": update.cosine if update else None,
                }
            )
        manifest = {
            "rule": self._config.fusion.strategy or self._config.fusion.rule,
            "options": self._config.rule_options(),
            "contributors": rows,
            "sha256": fingerprint(fused.items()),
            "time": _now(),
        }
        self._repository.publish(iteration, parent, fused, manifest)
        self._record_contributions(iteration)
        self._inbox.drop()

    def _record_contributions(self, iteration: int) -> None:
        """Copy those of an iteration's contributors from its manifest that are not there."""
        there = {(r["iteration"], r["contributor"]) for r in self._journal.rows(CONTRIBUTIONS)}
        rows = []
        for row in self._repository.manifest(iteration).get("contributors", []):
            plain = {k.replace("-", "_"): v for k, v in row.items() if k != "name"}
            if (iteration, row["name"]) not in there:
                rows.append({**plain, "iteration": iteration, "contributor": row["name"]})
        self._journal.append(CONTRIBUTIONS, rows)

    def _evaluate(self, iteration: int, arrays: ArrayRecord) -> None:
        """Have every contributor score the base; ask for nothing that is known."""
        known = {
            (row["task"], row["protocol"])
            for row in self._journal.rows(SCORES)
            if row["iteration"] == iteration
        }
        messages = {}
        for member in self._evaluators():
            due = [p for p in self._config.protocols() if (member.task, p) not in known]
            if due:
                asked = ConfigRecord({"protocols": ",".join(due), "seed": self._config.seed})
                asked["iteration"] = iteration
                content = RecordDict({records.ARRAYS: arrays, records.CONFIG: asked})
                messages[member.name] = Message(content, member.node, MessageType.EVALUATE)
        replies = exchange(self._grid, messages, timeout=self._config.wait.replies)
        for done, (name, reply) in enumerate(replies, start=1):
            if reply is None or reply.has_error():
                cause = "no reply" if reply is None else reason_of(reply)
                raise RunStopped(f"iteration {iteration} was not evaluated at {name}: {cause}")
            try:
                rows = self._score_rows(iteration, self._members[name], reply)
            except Refused as reason:
                raise RunStopped(f"iteration {iteration}, scores of {name}: {reason}") from reason
            self._journal.append(SCORES, rows)
            figures = ", ".join(f"{row['protocol']} {row['value']:.3f}" for row in rows)
            self._say(f"evaluated {iteration}: {done}/{len(messages)} {name} {figures}")

    def _evaluators(self) -> list[Member]:
        """Everybody; with shards the first alone, for all have the same test split."""
        members = list(self._members.values())
        shards = self._config.partition.kind == "shards"
        return members[:1] if shards else longest_first(members)

    def _score_rows(self, iteration: int, member: Member, reply: Message) -> list[dict[str, Any]]:
        metrics = records.metrics_of(reply.content)
        size = int(metrics.pop(records.EXAMPLES))
        if extra := metrics.keys() - set(self._config.protocols()):
            raise Refused(f"unexpected protocol {min(extra)[:80]!r}")
        metric = records.config_of(reply.content, records.CONTRIBUTOR).get("metric", "")
        return [
            {
                "iteration": iteration,
                "task": member.task,
                "protocol": protocol,
                "group": "seen" if member.name in self._seen else "unseen",
                "metric": metric,
                "value": value,
                "n_test": size,
                "seed": self._config.seed,
            }
            for protocol, value in metrics.items()
        ]

    def _report_time(self, iteration: int) -> None:
        done, left = iteration - self._first + 1, self._config.iterations - iteration
        if done and left:
            minutes = (time.monotonic() - self._started) / done * left / 60
            self._say(f"iteration {iteration} done; about {minutes:.1f} min left")


def window() -> int:
    """Return how many contributors to keep busy at once: a simulation's workers and one.

    The runner says how many workers there are; elsewhere every contributor works on a
    machine of its own, and all are asked at once.
    """
    workers = int(os.environ.get(WORKERS, "0"))
    return workers + 1 if workers else 0


def strategy(config: Config, inbox: Inbox) -> Strategy:
    """Return ColDFusion with the chosen rule, or the Flower strategy that is named.

    Raises:
        ConfigError: ``fusion.strategy`` names no Flower strategy.
        FusionError: no such rule or option.
    """
    if not config.fusion.strategy:
        rule = load(config.fusion.rule, **config.rule_options())
        return ColDFusion(rule, inbox=inbox, seed=config.seed)
    return stock_strategy(config)


def stock_strategy(config: Config) -> Strategy:
    """Build the Flower strategy that ``fusion.strategy`` names; it trains the cohort.

    Evaluation is ours (`_Run.after_round`), so the strategy's own is switched off.

    Raises:
        ConfigError: it cannot be imported, or does not take FedAvg's arguments.
    """
    name = config.fusion.strategy
    module, _, attribute = name.partition(":")
    try:
        kind = getattr(importlib.import_module(module), attribute)
        made = kind(
            fraction_evaluate=0.0,
            min_train_nodes=1,
            min_available_nodes=1,
            **config.rule_options(),
        )
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"fusion.strategy {name!r} is not usable: {error}. Expected module:class, such as "
            "flwr.serverapp.strategy:FedAvg; its options go into fusion.options"
        ) from error
    if not isinstance(made, Strategy):
        raise ConfigError(f"fusion.strategy {name!r} is no flwr.serverapp.strategy.Strategy")
    return made


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
