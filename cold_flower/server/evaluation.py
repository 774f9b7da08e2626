"""Have the contributors score a base; ask for nothing that is known."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from cold_flower.config import EMA, Config
from cold_flower.data.schedule import evaluated
from cold_flower.reporting.tables import summary
from cold_flower.repository.journal import LEFT_OUT, SCORES, VALIDATION, Journal
from cold_flower.server.participants import Contributors, longest_first
from cold_flower.server.reuse import REUSED, applies
from cold_flower.server.scores import COSTLY_FIRST, Model, Scores
from strategies import records
from strategies.contributions import Contribution, Start
from strategies.errors import Refused, RunStopped
from strategies.exchange import exchange, reason_of
from strategies.participants import Member


class Evaluation:
    """Evaluates the bases of one run.

    Args:
        grid: Flower's.
        config: the run's; with ``transport = "shared-dir"`` a message names a published base.
        participants: who is there, who evaluates, and whose task is unseen. In a simulation the
            run stops where one cannot score; a site is then left out.
        journal: where the scores go, and what is said of the progress.
        window: how many messages may be under way at once, each for one protocol, so that the
            workers of a simulation share the work; 0 sends all, and a contributor gets one
            message with all protocols.
    """

    def __init__(
        self,
        grid: Grid,
        config: Config,
        participants: Contributors,
        journal: Journal,
        *,
        window: int = 0,
    ) -> None:
        self._grid = grid
        self._config = config
        self._participants = participants
        self._journal = journal
        self._window = window
        self._scores = Scores(config, participants, journal)
        self._reuses = applies(config)
        self.left_out: list[str] = []
        """Whose contributions are to say the finetuned score of the last evaluated base."""
        self._base = ""  # fingerprint of the last evaluated one

    def due(self, iteration: int) -> bool:
        """Return whether this iteration's base is evaluated."""
        config = self._config
        return evaluated(iteration, every=config.evaluate.every, last=config.iterations)

    def left(self, iteration: int, evaluations_from: int) -> dict[str, int]:
        """Return how many phases of each kind are to come."""
        last = self._config.iterations
        evaluations = sum(map(self.due, range(evaluations_from, last + 1)))
        return {"finetune": last - iteration, "evaluate": evaluations}

    def evaluate(self, iteration: int, arrays: ArrayRecord, sha256: str) -> bool:
        """Score one base; the rows are in the journal as soon as each reply is there.

        Left out is what the next contributions are to say (`left_out`), until `complete`.

        Returns:
            Whether a score was missing; a run that is resumed may have them all.

        Raises:
            RunStopped: a contributor did not answer, or not as it should.
        """
        self._participants.refresh()
        self._base = sha256
        model = Model(iteration, sha256, arrays)
        self._scores.copy(model)
        due, self.left_out = self._scores.missing(iteration), self._to_come(iteration)
        for name in self.left_out:
            due[name].remove(REUSED)
        if due := {name: missing for name, missing in due.items() if missing}:
            self._ask(model, due, f"evaluating {iteration}", **{LEFT_OUT: self.left_out})
            self._tell(model)
        return bool(due)

    def evaluate_average(
        self, iteration: int, arrays: Callable[[], ArrayRecord], sha256: str
    ) -> bool:
        """Score the moving average beside a base, under what ``evaluate.protocols`` asks of it.

        Where it is that base itself, and scores of it are to come (`left_out`), it has them
        afterwards: nothing is done now. Returns whether a score was missing.

        Raises:
            RunStopped: as `evaluate`.
        """
        if sha256 == self._base and self.left_out:
            return False
        model = Model(iteration, sha256, ArrayRecord(), prefix=EMA)
        self._scores.copy(model)
        if due := self._scores.missing(iteration, EMA):
            what = f"evaluating the average at {iteration}"
            self._ask(replace(model, arrays=arrays()), due, what)
            self._tell(model)
        return bool(due)

    def _to_come(self, iteration: int) -> list[str]:
        # Whom the next iteration is to ask, of those whose score is due and not known. After a
        # rollback that iteration has a later number: some may be asked in vain, and once more.
        config = self._config
        if not self._reuses or not self.due(iteration) or iteration >= config.iterations:
            return []
        due = self._scores.missing(iteration)
        expected = self._participants.expected(iteration + 1)
        return [name for name in expected if REUSED in due.get(name, ())]

    def complete(
        self,
        iteration: int,
        arrays: Callable[[], ArrayRecord],
        sha256: str,
        given: Iterable[Contribution],
    ) -> None:
        """Take the finetuned scores that contributions from a base came with.

        Those that were left out and did not come so are asked for: of who is not in the cohort
        after all, whose contribution did not arrive, or came with a score that cannot be.
        ``arrays`` returns the base, if it has to be sent. What screening says of a body says
        nothing of its base's score.

        Raises:
            RunStopped: as `evaluate`.
        """
        model, missing = Model(iteration, sha256, ArrayRecord()), self._scores.missing(iteration)
        for one in given:
            # After a rollback the next iteration, and with it the draws, is a later one.
            if one.start != Start(iteration + 1, sha256):
                continue
            if REUSED not in one.metrics or REUSED not in missing.get(one.name, ()):
                continue
            size = one.metrics.get("num-test-examples", 0)
            scores = {REUSED: one.metrics[REUSED], records.EXAMPLES: size}
            stated = {**one.metrics, **one.facts}
            try:
                rows = self._scores.rows(model, one.name, [REUSED], scores, stated)
            except Refused as reason:
                self._say(model, f"the score that {one.name} sent is left out: {reason}")
            else:
                self._journal.append(SCORES, rows)
        self._participants.refresh()  # who is gone since is not waited for again
        missing = self._scores.missing(iteration)
        if due := {n: [REUSED] for n in self.left_out if REUSED in missing.get(n, ())}:
            what = f"evaluating {iteration}, what did not come with a contribution"
            self._ask(replace(model, arrays=arrays()), due, what)
        self.left_out = []
        self._tell(model)

    def _tell(self, model: Model) -> None:
        """Say a base's mean scores, but for finetuned ones while some are to follow."""
        i = model.iteration
        rows = [
            row
            for n in {0, i}
            for row in self._journal.where(SCORES, "iteration", n)
            if row["protocol"].startswith(EMA) == bool(model.prefix)
        ]
        says = ""
        if self.left_out and not model.prefix:  # the mean of the others is not the base's
            rows = [row for row in rows if row["protocol"] != REUSED]
            says = f"{REUSED} of {len(self.left_out)} tasks comes with the next contributions"
        scores = summary(rows, i)
        shown: dict[str, Any] = {"scores": scores} if scores else {}
        if not model.prefix:
            shown[LEFT_OUT] = self.left_out
        self._say(model, f"base {i}: {', '.join(filter(None, (scores, says)))}", **shown)

    def validate(
        self, iteration: int, sha256: str, arrays: Callable[[], ArrayRecord], what: str
    ) -> dict[str, float]:
        """Score a base or a candidate on the contributors' own validation data, for the gate.

        Args:
            iteration: that is being made.
            sha256: of the model to score.
            arrays: returns the model, if it has to be sent.
            what: the model is, to be said.

        Returns:
            The score by contributor, of those that are there and contribute. What is known of the
            same weights is not asked for again; fresh shards have new data every iteration.

        Raises:
            RunStopped: a contributor did not answer, or not as it should.
        """
        training = self._participants.training
        scores = self._scores.validated(iteration, sha256, training)
        protocols = [self._config.gate.protocol]
        due = {name: protocols for name in training if name not in scores}
        if due:
            model = Model(iteration, sha256, arrays(), candidate=True)
            for row in self._ask(model, due, f"iteration {iteration}, gate: validating {what}"):
                scores[row["contributor"]] = row["value"]
        return dict(sorted(scores.items()))

    def _ask(
        self, model: Model, due: Mapping[str, list[str]], what: str, **event: Any
    ) -> list[dict[str, Any]]:
        """Have contributors score under protocols; return the rows, which are in the file then.

        ``what`` is said first, with ``event``.
        """
        members = longest_first(self._participants.asked(due))
        if self._window:
            pairs = [(m, [p]) for p in COSTLY_FIRST for m in members if p in due[m.name]]
        else:
            pairs = [(m, due[m.name]) for m in members]
        asked = {f"{m.name} {','.join(protocols)}": (m, protocols) for m, protocols in pairs}
        self._say(model, what, done=0, of=len(asked), asked=[*asked], **event)
        strict = self._participants.simulated
        replies = exchange(
            self._grid,
            {key: self._question(model, *pair) for key, pair in asked.items()},
            timeout=self._config.wait.replies,
            window=self._window,
            simulated=strict,
            say=self._journal.say,
        )
        busy, scored = 0.0, []
        for done, (key, reply) in enumerate(replies, start=1):
            member, protocols = asked[key]
            facts: dict[str, Any] = {"who": key}
            try:
                rows, seconds, worker = self._read(model, member, protocols, reply)
            except Refused as reason:
                text = f"iteration {model.iteration} was not evaluated at {member.name}: {reason}"
                if strict:
                    raise RunStopped(text) from reason
                facts |= {"verdict": "missing", "reason": str(reason)}
            else:
                self._journal.append(VALIDATION if model.candidate else SCORES, rows)
                scored += rows
                busy += seconds
                figures = ", ".join(f"{row['protocol']} {row['value']:.3f}" for row in rows)
                text = f"{member.name} {figures}"
                facts |= {"seconds": seconds, "worker": worker}
            line = f"{done}/{len(asked)} {text}"
            self._say(model, line, done=done, of=len(asked), busy=busy, **facts)
        return scored

    def _question(self, model: Model, member: Member, protocols: Sequence[str]) -> Message:
        config: dict[str, int | str] = {
            "protocols": ",".join(protocols),
            "seed": self._config.seed,
            "iteration": model.iteration,
            "split": "dev" if model.candidate else "test",
        }
        if self._config.explicit:
            config[records.EXPLICIT] = self._config.explicit
        content = RecordDict()
        if self._config.transport == "shared-dir" and not (model.candidate or model.prefix):
            config |= {"base": model.sha256, records.REFERENCE: model.iteration}
        else:
            content[records.ARRAYS] = model.arrays
        content[records.CONFIG] = ConfigRecord(dict(config))
        return Message(content, member.node, MessageType.EVALUATE)

    def _read(
        self, model: Model, member: Member, asked: Sequence[str], reply: Message | None
    ) -> tuple[list[dict[str, Any]], float, str]:
        """Return a reply's rows, the seconds that it took, and the worker that took them."""
        if reply is None or reply.has_error():
            raise Refused("no reply" if reply is None else reason_of(reply))
        records.check_size(reply.content)
        metrics = records.metrics_of(reply.content)
        stated = records.config_of(reply.content, records.CONTRIBUTOR)
        rows = self._scores.rows(model, member.name, asked, metrics, stated)
        seconds = stated.get("seconds")
        took = seconds if isinstance(seconds, float) and 0 <= seconds < math.inf else 0.0
        return rows, took, records.text_of(stated.get("worker", ""))

    def _say(self, model: Model, line: str, **event: Any) -> None:
        iteration = model.iteration
        if model.candidate:
            self._journal.say(line, phase="validate", iteration=iteration, **event)
        else:
            left = self.left(iteration, evaluations_from=iteration + 1)
            self._journal.say(line, phase="evaluate", iteration=iteration, left=left, **event)
