"""A Grid around Flower's that collects one iteration's contributions.

To a strategy it is an ordinary Grid. `Inbox.get_node_ids` shows only the iteration's
cohort; `Inbox.send_and_receive` has a `Collector` stamp train messages with iteration and base,
check each reply as it arrives, write its body to disk and drop it from memory, and not
ask again for what is already there. So any Flower strategy trains exactly the chosen
contributors, and a run that was stopped goes on with what had arrived.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, Message, MessageType
from flwr.serverapp import Grid
from torch import Tensor

from strategies import records
from strategies.collecting import Collector
from strategies.contributions import Contribution, Start
from strategies.diagnostics import Diagnosis, diagnose
from strategies.errors import QuorumError
from strategies.fusion import Weights, fingerprint, is_finite
from strategies.fusion._deltas import Scaled
from strategies.screening import Candidate, Verdict
from strategies.staleness import discount

NOBODY = -1
"""The node that an iteration shows which asks nobody: a strategy has to have one to write to."""

Screening = Callable[[str, Sequence[Candidate], Diagnosis], Mapping[str, Verdict]]


class Inbox(Grid):
    """One iteration's cohort and its contributions.

    Args:
        collector: asks the cohort, and keeps what it sends.
        quorum: accepted contributions an iteration needs; 0 means a good reply of all that are
            asked, of which ``screen`` may then refuse fewer than half.
        least: accepted contributions that the rule or strategy needs, whatever the quorum.
        keep_arrays: leave the arrays in the replies too, for strategies that fuse
            them themselves; costs one model per contributor in memory.
        screen: judges the contributions of an iteration together, once all have arrived: takes
            the base's fingerprint, the candidates and what they measure.
    """

    def __init__(
        self,
        collector: Collector,
        *,
        quorum: int = 0,
        least: int = 1,
        keep_arrays: bool = False,
        screen: Screening | None = None,
    ) -> None:
        self._grid = collector.grid
        self._collector = collector
        self._participants = collector.participants
        self.quorum = quorum
        self._least = least
        self._keep_arrays = keep_arrays
        self._screen = screen
        self._measured: tuple[list[str], Diagnosis] | None = None
        self.with_mean = False
        """Whether what screening reads is averaged meanwhile: see `mean`."""
        self._mean: dict[str, Tensor] = {}

    @property
    def iteration(self) -> int:
        """Return the iteration whose contributions are in `contributions`."""
        return self._collector.iteration

    @property
    def contributions(self) -> dict[str, Contribution]:
        """Return those of the current iteration, by name."""
        return self._collector.here

    @property
    def expected(self) -> int:
        """Return how many contributions the current iteration waits for."""
        return self._collector.expected

    @property
    def at_work(self) -> Mapping[str, Start]:
        """Return what each began from who is at work, by name."""
        return self._collector.at_work

    def get_node_ids(self) -> list[int]:
        """Return the nodes of the coming iteration's cohort, or `NOBODY`."""
        cohort = self._participants.cohort(self.iteration + 1)
        nodes = [self._participants.members[name].node for name in cohort]
        # An iteration that takes the first that come may have nobody to ask: `Drops` alone.
        return nodes or ([NOBODY] if self._collector.turns.good({}) else [])

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Collect an iteration's contributions; pass other messages through.

        Raises:
            QuorumError: too few good replies; those are kept on disk.
            DeadActorError: a Ray actor died.
        """
        listed = list(messages)
        if not listed or listed[0].metadata.message_type != MessageType.TRAIN:
            return list(self._grid.send_and_receive(listed, timeout=timeout)) if listed else []
        self._measured, self._mean = None, {}
        arrays = listed[0].content.array_records[records.ARRAYS]
        base = fingerprint(records.unpack(arrays))
        names = {member.node: name for name, member in self._participants.members.items()}
        nodes = {message.metadata.dst_node_id: message for message in listed}
        asked = {names[node]: message for node, message in nodes.items() if node != NOBODY}
        self._collector.collect(asked, arrays, base, timeout)
        self._check_quorum(self._judge(base, Weights(records.Tensors(arrays))))
        accepted = self.accepted()
        # Flower's strategies want the same metrics of all; contributors need not send them all.
        common = sorted(set.intersection(*(set(one.metrics) for one in accepted)))
        # By name, so that a strategy that sums in order of arrival gives the same bits.
        return [
            self._reply(asked.get(one.name, listed[0]), one, arrays, common) for one in accepted
        ]

    def accepted(self) -> list[Contribution]:
        """Return the contributions that are to be fused, by name."""
        return [one for _, one in sorted(self.contributions.items()) if one.verdict == "accepted"]

    def weights(self, one: Contribution, base: Weights) -> Weights:
        """Open a contribution as one to this iteration's base: a stale one as base + s(tau) * d_i.

        Args:
            one: of the current iteration.
            base: of this iteration.
        """
        whole = one.weights()
        if not one.staleness:
            return whole
        assert self._collector.bases
        start = self._collector.bases.body(self._collector.recent[one.start.base][1])
        return Scaled(base, whole, discount(one.staleness), start)

    def diagnosis(self, base: Weights) -> Diagnosis:
        """Measure the accepted contributions, by name; once, as long as they are the same.

        Args:
            base: of this iteration.
        """
        accepted = self.accepted()
        names = [one.name for one in accepted]
        if self._measured is None or self._measured[0] != names:
            mean = self._mean if self.with_mean and not self._measured else None
            given = [self.weights(one, base) for one in accepted]
            self._measured = names, diagnose(base, given, mean)
        return self._measured[1]

    def mean(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]] | None:
        """Give away, once, what the rule ``average`` makes of these contributions.

        None unless just these were measured, `with_mean`, and the result is finite.
        """
        mean, self._mean = self._mean, {}
        these = mean and self._measured and self._measured[0] == [*names]
        if not these or not all(map(is_finite, mean.values())):
            return None
        return ((key, mean.pop(key)) for key in [*mean])

    def refuse(self, name: str, reason: str) -> None:
        """Take back that a contribution was accepted."""
        refused = replace(self.contributions[name], verdict="refused", reason=reason)
        self.contributions[name] = refused
        line = f"iteration {self.iteration}: {name} refused: {reason}"
        self._collector.say(line, who=name, verdict="refused", reason=reason)

    def drop(self, refused: Mapping[str, str]) -> None:
        """Delete the current iteration's files: they are fused and published.

        Args:
            refused: whose files are put aside instead, and why.
        """
        store = self._collector.store
        for name, reason in refused.items():
            self._collector.put_aside(name, reason)
        at_work = any(start.iteration == self.iteration for start in self.at_work.values())
        store.clear(open=at_work)

    @property
    def state(self) -> Path:
        """Where a rule's stages leave their memory."""
        return self._collector.store.state

    def _judge(self, sha256: str, base: Weights) -> int:
        """Screen what was accepted so far, all together; return how many it refuses."""
        if not self._screen:
            return 0
        promised = {name: m.examples for name, m in self._participants.members.items()}
        candidates = [
            Candidate(
                one.name,
                one.sha256,
                one.metrics,
                promised.get(one.name, 0),
                self._participants.norms.get(one.name, ()),
                one.start.base,
            )
            for one in self.accepted()
        ]
        if not candidates:
            return 0
        verdicts = self._screen(sha256, candidates, self.diagnosis(base))
        for name, verdict in verdicts.items():
            self.contributions[name] = replace(self.contributions[name], figures=verdict.figures)
            if verdict.reason:
                self.refuse(name, verdict.reason)
        return sum(bool(verdict.reason) for verdict in verdicts.values())

    def _check_quorum(self, screened: int) -> None:
        accepted, asked = len(self.accepted()), self._collector.turns.good(self.contributions)
        # What screening tells apart rests on medians, so on more than half of them being good.
        enough = accepted + screened >= asked and 2 * accepted > asked
        good = accepted >= self.quorum if self.quorum else accepted >= asked or enough
        if good and accepted >= self._least:
            return
        causes = []
        for one in self.contributions.values():
            if one.verdict == "refused":  # a resumed run asks it again
                self._collector.put_aside(one.name, one.reason)
            if one.verdict != "accepted":
                causes.append(f"{one.name} {one.verdict}: {one.reason}")
        short = f"the quorum is {self.quorum or asked}"
        if good:
            short = f"the fusion rule needs {self._least}"
        raise QuorumError(
            f"iteration {self.iteration}: {accepted} of {asked} contributions are good, "
            f"{short} ({'; '.join(causes) or 'nothing further came in time'})"
        )

    def _reply(
        self, asked: Message, one: Contribution, arrays: ArrayRecord, metrics: Iterable[str]
    ) -> Message:
        """Return the reply that a strategy sees, with arrays only where it needs them.

        They come in the base's order: some of Flower's strategies match them by position.
        """
        weights = self.weights(one, Weights(records.Tensors(arrays)))
        body = ((key, weights.get(key)) for key in arrays) if self._keep_arrays else ()
        stated = {"contributor": one.name, "iteration": self.iteration}
        chosen = {key: one.metrics[key] for key in metrics}
        return Message(records.train_reply(body, chosen, stated), reply_to=asked)

    # Flower's own from here on: a Grid has to have them.

    @property
    def run(self) -> Any:
        """Return the run."""
        return self._grid.run

    def set_run(self, run: Any) -> None:
        """Set the run."""
        self._grid.set_run(run)

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Create a message as Flower does."""
        return self._grid.create_message(*args, **kwargs)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push messages as Flower does."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull messages as Flower does."""
        return self._grid.pull_messages(message_ids)
