"""Have the contributors score a base; ask for nothing that is known.

A score is known by (sha256 of the base, task, protocol, seed): a base that did not change,
or an evaluation that was cut off, costs nothing again.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from cold_flower.config import Config
from cold_flower.data.schedule import evaluated
from cold_flower.reporting.tables import summary
from cold_flower.repository.journal import SCORES, VALIDATION, Journal
from cold_flower.server.attendance import Attendance
from cold_flower.server.roster import Member, longest_first
from strategies import records
from strategies.errors import Refused, RunStopped
from strategies.exchange import exchange, reason_of

COSTLY_FIRST = ("finetuned", "few-shot", "frozen")


class Evaluation:
    """Evaluates the bases of one run.

    Args:
        grid: Flower's.
        config: the run's; with ``transport = "shared-dir"`` a message names a published base.
        attendance: who is there, who evaluates, and whose task is unseen.
        journal: where the scores go.
        spread: ask for one protocol at a time, so that the workers of a simulation share
            the work; a site of its own gets one message with all of them.
        strict: stop where one cannot score; else say so and go on.
    """

    def __init__(
        self,
        grid: Grid,
        config: Config,
        attendance: Attendance,
        journal: Journal,
        *,
        spread: bool,
        strict: bool = True,
    ) -> None:
        self._grid = grid
        self._config = config
        self._journal = journal
        self._spread = spread
        self._strict = strict
        self._attendance = attendance

    def due(self, iteration: int) -> bool:
        """Return whether this iteration's base is evaluated."""
        config = self._config
        return evaluated(iteration, every=config.evaluate.every, last=config.iterations)

    def evaluate(
        self, iteration: int, arrays: ArrayRecord, sha256: str, say: Callable[..., None]
    ) -> None:
        """Score one base; the rows are in the journal as soon as each reply is there.

        Raises:
            RunStopped: a contributor did not answer, or not as it should.
        """
        self._reuse(iteration, sha256)
        asked = [p for p in COSTLY_FIRST if p in self._config.protocols()]
        known = {
            (row["task"], row["protocol"])
            for row in self._journal.rows(SCORES)
            if row["iteration"] == iteration
        }
        plan = self._attendance.plan
        due = {
            (member, protocol)
            for member in self._attendance.members.values()
            if member.name in plan.evaluated
            for protocol in asked
            if (plan.tasks[member.name].name, protocol) not in known
        }
        if not due:
            return
        say(f"evaluating {iteration}", done=0, of=self._messages(due))
        for _ in self._ask(iteration, arrays, sha256, due, say, SCORES):
            pass
        trained = self._config.iterations > 0
        scores = summary(self._journal.rows(SCORES), iteration, trained=trained)
        say(f"base {iteration}: {scores}", scores=scores)

    def validate(
        self,
        iteration: int,
        sha256: str,
        arrays: Callable[[], ArrayRecord],
        say: Callable[..., None],
    ) -> dict[str, float]:
        """Score a base or a candidate on the contributors' own validation data, for the gate.

        Args:
            iteration: that is being made.
            sha256: of the model to score.
            arrays: returns the model, if it has to be sent.
            say: takes each line of progress.

        Returns:
            The score by contributor, of those that are there and contribute. What is known of the
            same weights is not asked for again; fresh shards have new data every iteration.

        Raises:
            RunStopped: a contributor did not answer, or not as it should.
        """
        there, plan = self._attendance.members, self._attendance.plan
        seen = {name: member for name, member in there.items() if name in plan.seen}
        found = {
            row["contributor"]: row["value"]
            for row in self._journal.rows(VALIDATION)
            if row["base"] == sha256
            and row["contributor"] in seen
            and (row["iteration"] == iteration or not self._config.partition.fresh)
        }
        due = {(m, self._config.gate.protocol) for name, m in seen.items() if name not in found}
        if due:
            say(f"validating a candidate for iteration {iteration}", done=0, of=len(due))
            for row in self._ask(iteration, arrays(), sha256, due, say, VALIDATION):
                found[row["contributor"]] = row["value"]
        return dict(sorted(found.items()))

    def _messages(self, due: Collection[tuple[Member, str]]) -> int:
        return len(due) if self._spread else len({member for member, _ in due})

    def _ask(
        self,
        iteration: int,
        arrays: ArrayRecord,
        sha256: str,
        due: Collection[tuple[Member, str]],
        say: Callable[..., None],
        file: str,
    ) -> Iterator[dict[str, Any]]:
        """Have members score under a protocol each; yield each row once it is in the file."""
        about: dict[str, int | str] = {"split": "dev" if file == VALIDATION else "test"}
        # A candidate that is validated is not published.
        if self._config.transport == "shared-dir" and file == SCORES:
            about |= {"base": sha256, records.REFERENCE: iteration}
        work = self._work(iteration, about, arrays, due)
        replies = exchange(
            self._grid,
            {key: message for key, (_, _, message) in work.items()},
            timeout=self._config.wait.replies,
            actors=self._strict,
        )
        busy = 0.0
        for done, (key, reply) in enumerate(replies, start=1):
            member, asked, _ = work[key]
            try:
                rows = self._rows(iteration, member, asked, reply, sha256)
            except Refused as reason:
                said = f"iteration {iteration} was not evaluated at {member.name}: {reason}"
                if self._strict:
                    raise RunStopped(said) from reason
                say(f"{done}/{len(work)} {said}", done=done, of=len(work), busy=busy)
                continue
            assert reply is not None  # else refused
            if file == VALIDATION:
                rows = [{**row, "contributor": member.name} for row in rows]
            self._journal.append(file, rows)
            seconds = records.config_of(reply.content, records.CONTRIBUTOR).get("seconds")
            busy += seconds if isinstance(seconds, float) and 0 <= seconds < math.inf else 0.0
            figures = ", ".join(f"{row['protocol']} {row['value']:.3f}" for row in rows)
            line = f"{done}/{len(work)} {member.name} {figures}"
            say(line, done=done, of=len(work), busy=busy)
            yield from rows

    def _reuse(self, iteration: int, sha256: str) -> None:
        """Copy the rows of an earlier iteration with the same base."""
        if self._config.partition.fresh:
            return  # every iteration is evaluated with training examples of its own
        rows = self._journal.rows(SCORES)
        there = {(r["task"], r["protocol"]) for r in rows if r["iteration"] == iteration}
        same = {(r["task"], r["protocol"]): r for r in rows if r["base"] == sha256}
        copies = [{**row, "iteration": iteration} for k, row in same.items() if k not in there]
        self._journal.append(SCORES, copies)

    def _work(
        self,
        iteration: int,
        about: Mapping[str, int | str],
        arrays: ArrayRecord,
        due: Collection[tuple[Member, str]],
    ) -> dict[str, tuple[Member, list[str], Message]]:
        """Return whom to ask for which protocols, what takes longest first."""
        asked = [p for p in COSTLY_FIRST if any(p == protocol for _, protocol in due)]
        batches: Sequence[Sequence[str]] = [[p] for p in asked] if self._spread else [asked]
        work = {}
        for batch in batches:
            for member in longest_first({member for member, _ in due}):
                chosen = [p for p in batch if (member, p) in due]
                if chosen:
                    protocols = ",".join(chosen)
                    config: dict[str, int | str] = {
                        "protocols": protocols,
                        "seed": self._config.seed,
                        "iteration": iteration,
                        **about,
                    }
                    content = RecordDict({records.CONFIG: ConfigRecord(dict(config))})
                    if records.REFERENCE not in about:
                        content[records.ARRAYS] = arrays
                    message = Message(content, member.node, MessageType.EVALUATE)
                    work[f"{member.name} {protocols}"] = (member, chosen, message)
        return work

    def _rows(
        self,
        iteration: int,
        member: Member,
        asked: Sequence[str],
        reply: Message | None,
        sha256: str,
    ) -> list[dict[str, Any]]:
        if reply is None or reply.has_error():
            raise Refused("no reply" if reply is None else reason_of(reply))
        records.check_size(reply.content)
        metrics = records.metrics_of(reply.content)
        size = int(metrics.pop(records.EXAMPLES))
        plan = self._attendance.plan
        metric = plan.tasks[member.name].metric
        if differing := metrics.keys() ^ set(asked):
            name = min(differing)
            kind = "unexpected" if name in metrics else "missing"
            raise Refused(
                f"{kind} protocol {records.text_of(name)!r}, asked for {', '.join(asked)}"
            )
        for protocol, value in metrics.items():
            if not (0 if metric == "accuracy" else -1) <= value <= 1:
                raise Refused(f"{protocol} is {value}, which no {metric} can be")
        return [
            {
                "iteration": iteration,
                "task": plan.tasks[member.name].name,
                "protocol": protocol,
                "group": "unseen" if member.name in plan.unseen else "seen",
                "metric": metric,
                "value": value,
                "n_test": size,
                "seed": self._config.seed,
                "base": sha256,
            }
            for protocol, value in metrics.items()
        ]
