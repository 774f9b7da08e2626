"""A Grid around Flower's that collects one iteration's contributions.

To a strategy it is an ordinary Grid. `Inbox.get_node_ids` shows only the iteration's
cohort; `Inbox.send_and_receive` stamps train messages with iteration and base, screens
each reply as it arrives, writes its body to disk and drops it from memory, and does not
ask again for what is already there. So any Flower strategy trains exactly the chosen
contributors, and a run that was stopped goes on with what had arrived.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from strategies import records
from strategies.contributions import Contribution, Store
from strategies.diagnostics import Diagnosis, diagnose
from strategies.errors import QuorumError, Refused
from strategies.exchange import exchange, reason_of
from strategies.fusion import Template, Weights, fingerprint
from strategies.participants import Participants
from strategies.screening import Candidate, Verdict

Screening = Callable[[str, Sequence[Candidate], Diagnosis], Mapping[str, Verdict]]


class Inbox(Grid):
    """One iteration's cohort and its contributions, on disk.

    Args:
        grid: Flower's own.
        folder: where bodies go: ``<folder>/<iteration>/<name>.safetensors``.
        participants: who is there, and whom an iteration asks.
        first: the iteration that the first round makes.
        quorum: accepted contributions an iteration needs; 0 means a good reply of all that are
            asked, of which ``screen`` may then refuse fewer than half.
        keep_arrays: leave the arrays in the replies too, for strategies that fuse
            them themselves; costs one model per contributor in memory.
        window: how many contributors may be at work at once; 0 is all (see `exchange`).
        screen: judges the contributions of an iteration together, once all have arrived: takes
            the base's fingerprint, the candidates and what they measure.
        say: called with a line at each arrival.
        statistic: of the contributors' data, which the rule needs beside bodies; empty for none.
        needed: metrics that have to be there, above 0: the rule needs them.
        more: returns what else the train messages of an iteration hold under ``config``, by
            contributor.
        reference: returns which published iteration is the base; messages then carry that number
            instead of arrays, and contributors leave their bodies in ``folder`` (`Store.offer`).
    """

    def __init__(
        self,
        grid: Grid,
        folder: Path,
        participants: Participants,
        *,
        first: int = 1,
        quorum: int = 0,
        keep_arrays: bool = False,
        window: int = 0,
        screen: Screening | None = None,
        say: Callable[[str], None] = lambda line: None,
        statistic: str = "",
        needed: Sequence[str] = (),
        more: Callable[[], Mapping[str, Mapping[str, str]]] = dict,
        reference: Callable[[], int] | None = None,
    ) -> None:
        self._grid = grid
        self._folder = folder
        self._participants = participants
        self.quorum = quorum
        self._keep_arrays = keep_arrays
        self._window = window
        self._screen = screen
        self._say = say
        self._statistic = statistic
        self._needed = needed
        self._more = more
        self._reference = reference
        self.iteration = first - 1
        """The iteration whose contributions are in `contributions`."""
        self.contributions: dict[str, Contribution] = {}
        """Of the current iteration, by name."""
        self._measured: tuple[list[str], Diagnosis] | None = None

    def get_node_ids(self) -> list[int]:
        """Return the nodes of the coming iteration's cohort."""
        cohort = self._participants.cohort(self.iteration + 1)
        return [self._participants.members[name].node for name in cohort]

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
        self.iteration += 1
        self._measured = None
        arrays = listed[0].content.array_records[records.ARRAYS]
        base = fingerprint(records.unpack(arrays))
        names = {member.node: name for name, member in self._participants.members.items()}
        more, asked = self._more(), {}
        for message in listed:
            name = names[message.metadata.dst_node_id]
            asked[name] = self._stamped(message, base, more.get(name, {}))
        self.contributions = self._already_here(asked, base)
        self._collect(asked, records.template_of(arrays), base, timeout)
        self._check_quorum(self._judge(base, Weights(records.Tensors(arrays))))
        accepted = self.accepted()
        # Flower's strategies want the same metrics of all; contributors need not send them all.
        common = sorted(set.intersection(*(set(one.metrics) for one in accepted)))
        # By name, so that a strategy that sums in order of arrival gives the same bits.
        return [
            self._reply(asked.get(one.name, listed[0]), one, list(arrays), common)
            for one in accepted
        ]

    def accepted(self) -> list[Contribution]:
        """Return the contributions that are to be fused, by name."""
        return [one for _, one in sorted(self.contributions.items()) if one.verdict == "accepted"]

    def diagnosis(self, base: Weights) -> Diagnosis:
        """Measure the accepted contributions, by name; once, as long as they are the same.

        Args:
            base: of this iteration.
        """
        accepted = self.accepted()
        names = [one.name for one in accepted]
        if self._measured is None or self._measured[0] != names:
            self._measured = names, diagnose(base, [one.weights() for one in accepted])
        return self._measured[1]

    def refuse(self, name: str, reason: str) -> None:
        """Take back that a contribution was accepted."""
        refused = replace(self.contributions[name], verdict="refused", reason=reason)
        self.contributions[name] = refused
        self._say(f"iteration {self.iteration}: {name} refused: {reason}")

    def drop(self, refused: Iterable[str] = ()) -> None:
        """Delete the current iteration's files: they are fused and published.

        Args:
            refused: names whose files go to quarantine instead.
        """
        for name in refused:
            self._store.quarantine(name)
        self._store.clear()

    @property
    def state(self) -> Path:
        """Where a rule's stages leave their memory."""
        return self._store.state

    @property
    def _store(self) -> Store:
        return Store(self._folder, self.iteration)

    def _stamped(self, message: Message, base: str, more: Mapping[str, str]) -> Message:
        """Copy a message with iteration and base in its config; the arrays are shared."""
        config = records.config_of(message.content, records.CONFIG)
        config |= {"iteration": self.iteration, "base": base, **more}
        if self._statistic:
            config[records.STATISTIC] = self._statistic
        content = RecordDict()
        if self._reference:
            config[records.REFERENCE] = self._reference()
        else:
            content[records.ARRAYS] = message.content.array_records[records.ARRAYS]
        content[records.CONFIG] = ConfigRecord(config)
        return Message(content, message.metadata.dst_node_id, MessageType.TRAIN)

    def _already_here(self, asked: Iterable[str], base: str) -> dict[str, Contribution]:
        """Return what arrived before the run was stopped, also of a site that is away now."""
        away = []
        for name in self._store.names():
            if not self._participants.allowed(name):
                self._say(f"iteration {self.iteration}: {name} may take part no more: put aside")
                self._store.quarantine(name)
            elif name not in asked:
                away.append(name)
        kept = {name: self._store.find(name, base) for name in (*asked, *away)}
        return {name: one for name, one in kept.items() if one}

    def _collect(
        self, asked: Mapping[str, Message], template: Template, base: str, timeout: float | None
    ) -> None:
        """Ask those whose contribution is not here, and keep each as it arrives."""
        wanted = {name: m for name, m in asked.items() if name not in self.contributions}
        here = f" (already here: {', '.join(self.contributions)})" if self.contributions else ""
        self._say(f"iteration {self.iteration}: asking {len(asked)} contributors{here}")
        expected = len(self.contributions) + len(wanted)
        self._store.open()
        for name, reply in exchange(
            self._grid,
            wanted,
            timeout=timeout,
            window=self._window,
            simulated=self._participants.simulated,
        ):
            if reply is None:
                late = "no reply within {:g} s; one that comes later is dropped"
                one = Contribution(name, "missing", late.format(timeout) if timeout else "lost")
            else:
                one = self._received(name, reply, template, base)
            self.contributions[name] = one
            done = f"{len(self.contributions)}/{expected} {name}"
            if one.verdict == "accepted":
                self._say(f"{done} finetuned in {one.metrics.get('seconds', 0.0):.1f} s")
            else:
                self._say(f"{done} {one.verdict}: {one.reason}")

    def _received(self, name: str, reply: Message, template: Template, base: str) -> Contribution:
        """Check a reply's form and keep its body; what does not fit is refused."""
        if reply.has_error():
            return Contribution(name, "refused", f"error reply: {reason_of(reply)}")
        try:
            records.check_size(reply.content)
            metrics = records.metrics_of(reply.content)
            stated = records.config_of(reply.content, records.CONTRIBUTION)
            expected = {"contributor": name, "iteration": self.iteration, "base": base}
            for key, value in expected.items():
                if stated.get(key) != value:
                    got = records.text_of(stated.get(key))
                    raise Refused(f"{key} is {got!r}, expected {value!r}")
            if silent := [key for key in self._needed if not metrics.get(key, 0) > 0]:
                raise Refused(f"it does not say its {silent[0]}, which the fusion rule needs")
            kind = self._statistic
            one = Contribution(name, metrics=metrics, facts=records.facts(stated), statistic=kind)
            if self._reference:
                one = replace(one, sha256=str(stated.get("sha256", "")))
                return self._store.take(one, template, base)
            form, body = records.body_of(reply.content, template, kind)
            return self._store.put(one, body, form, base)
        except Refused as reason:
            return Contribution(name, "refused", records.text_of(reason, 500))

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
        accepted, asked = len(self.accepted()), len(self.contributions)
        # What screening tells apart rests on medians, so on more than half of them being good.
        enough = accepted + screened == asked and 2 * accepted > asked
        needed = self.quorum or asked
        if accepted >= needed or (enough and not self.quorum):
            return
        causes = []
        for one in self.contributions.values():
            if one.verdict == "refused":  # a resumed run asks it again
                self._store.quarantine(one.name)
            if one.verdict != "accepted":
                causes.append(f"{one.name} {one.verdict}: {one.reason}")
        raise QuorumError(
            f"iteration {self.iteration}: {accepted} of {asked} contributions are good, "
            f"the quorum is {needed} ({'; '.join(causes)})"
        )

    def _reply(
        self, asked: Message, one: Contribution, keys: Iterable[str], metrics: Iterable[str]
    ) -> Message:
        """Return the reply that a strategy sees, with arrays only where it needs them.

        They come in the base's order: some of Flower's strategies match them by position.
        """
        weights = one.weights()
        body = ((key, weights.get(key)) for key in keys) if self._keep_arrays else ()
        stated = {"contributor": one.name, "iteration": self.iteration}
        chosen = {key: one.metrics[key] for key in metrics}
        return Message(records.train_reply(body, chosen, stated), reply_to=asked)

    # The rest of the Grid, unchanged.

    def set_run(self, run: Any) -> None:
        """Set the run."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """Return the run."""
        return self._grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Create a message as Flower does."""
        return self._grid.create_message(*args, **kwargs)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Push messages as Flower does."""
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Pull messages as Flower does."""
        return self._grid.pull_messages(message_ids)
