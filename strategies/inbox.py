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

from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid

from strategies import records
from strategies.arrivals import Arrival, Shelf
from strategies.diagnostics import Diagnosis, diagnose
from strategies.errors import QuorumError, Refused
from strategies.exchange import exchange, reason_of
from strategies.fusion import Template, Weights, fingerprint
from strategies.names import NAME
from strategies.screening import Candidate, Verdict

Screening = Callable[[str, Sequence[Candidate], Diagnosis], Mapping[str, Verdict]]


class Inbox(Grid):
    """One iteration's cohort and its contributions, on disk.

    Args:
        grid: Flower's own.
        folder: where replies go: ``<folder>/<iteration>/<name>.safetensors``.
        roster: node id by contributor name; may change while a cohort is drawn.
        cohort: the names to ask in an iteration.
        first: the iteration that the first round makes.
        quorum: accepted contributions an iteration needs; 0 means all that are asked.
        keep_arrays: leave the arrays in the replies too, for strategies that fuse
            them themselves; costs one model per contributor in memory.
        window: how many contributors may be at work at once; 0 is all (see `exchange`).
        actors: the contributors are Ray actors (see `exchange`).
        allowed: whether what a contributor gave before the run was stopped still counts.
        screen: judges the contributions of an iteration together, once all have arrived: takes
            the base's fingerprint, the candidates and what they measure.
        promised: returns how many training examples a contributor said to have; 0 = unknown.
        history: returns the norms of a contributor's earlier contributions.
        say: called with a line at each arrival.
        reference: returns which published iteration is the base; messages then carry that number
            instead of arrays, and contributors leave their bodies in ``folder`` (`Shelf.offer`).
    """

    def __init__(
        self,
        grid: Grid,
        folder: Path,
        roster: Mapping[str, int],
        cohort: Callable[[int], Sequence[str]],
        *,
        first: int = 1,
        quorum: int = 0,
        keep_arrays: bool = False,
        window: int = 0,
        actors: bool = True,
        allowed: Callable[[str], bool] = lambda name: True,
        screen: Screening | None = None,
        promised: Callable[[str], int] = lambda name: 0,
        history: Callable[[str], Sequence[float]] = lambda name: (),
        say: Callable[[str], None] = lambda line: None,
        reference: Callable[[], int] | None = None,
        poll: float = 0.1,
    ) -> None:
        if bad := [name for name in roster if not NAME.fullmatch(name)]:
            raise ValueError(f"not a contributor name: {bad[0]!r} (expected {NAME.pattern})")
        self._grid = grid
        self._folder = folder
        self._roster = roster
        self._cohort = cohort
        self._quorum = quorum
        self._keep_arrays = keep_arrays
        self._window = window
        self._actors = actors
        self._allowed = allowed
        self._screen = screen
        self._promised = promised
        self._history = history
        self._say = say
        self._reference = reference
        self._poll = poll
        self.iteration = first - 1
        """The iteration whose contributions are in `arrivals`."""
        self.arrivals: dict[str, Arrival] = {}
        """Of the current iteration, by name."""
        self._measured: tuple[list[str], Diagnosis] | None = None

    def get_node_ids(self) -> list[int]:
        """Return the nodes of the coming iteration's cohort."""
        return [self._roster[name] for name in self._cohort(self.iteration + 1)]

    @property
    def quorum(self) -> int:
        """How many good contributions an iteration needs; 0 is all that are asked."""
        return self._quorum

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
        template = records.template_of(arrays)
        base = fingerprint(records.unpack(arrays))
        names = {node: name for name, node in self._roster.items()}
        asked = {names[m.metadata.dst_node_id]: self._stamped(m, base) for m in listed}
        there = {name: self._allowed(name) for name in self._shelf.names()}
        for name in (name for name, allowed in there.items() if not allowed):
            self._say(f"iteration {self.iteration}: {name} may take part no more: put aside")
            self._shelf.quarantine(name)
        # Also of a site that is not there now: what it gave before the run was stopped counts.
        away = [name for name, allowed in there.items() if allowed and name not in asked]
        found = {name: self._shelf.find(name, base) for name in (*asked, *away)}
        self.arrivals = {name: arrival for name, arrival in found.items() if arrival}
        here = f" (already here: {', '.join(self.arrivals)})" if self.arrivals else ""
        self._say(f"iteration {self.iteration}: asking {len(asked)} contributors{here}")
        replies = {
            name: self._reread(asked.get(name, listed[0]), arrival)
            for name, arrival in self.arrivals.items()
        }
        wanted = {name: m for name, m in asked.items() if name not in self.arrivals}
        expected = len(self.arrivals) + len(wanted)
        self._shelf.open()
        arriving = exchange(
            self._grid,
            wanted,
            timeout=timeout,
            poll=self._poll,
            window=self._window,
            actors=self._actors,
        )
        for name, reply in arriving:
            arrival = self._take(name, reply, template, base, timeout)
            self.arrivals[name] = arrival
            self._say(self._line(arrival, expected))
            if arrival.path and reply is not None:
                replies[name] = self._reread(reply, arrival) if self._keep_arrays else reply
        if self._screen:
            self._judge(self._screen, Weights(records.Tensors(arrays)), base)
        self._check_quorum()
        accepted = self.accepted()
        # Flower's strategies want the same metrics of all; contributors need not send them all.
        common = set.intersection(*(set(arrival.metrics) for arrival in accepted))
        for arrival in accepted:
            metrics = {key: arrival.metrics[key] for key in sorted(common)}
            replies[arrival.name].content[records.METRICS] = MetricRecord(dict(metrics))
        # By name, so that a strategy that sums in order of arrival gives the same bits.
        return [replies[arrival.name] for arrival in accepted]

    def accepted(self) -> list[Arrival]:
        """Return the contributions that are to be fused, by name."""
        return [a for _, a in sorted(self.arrivals.items()) if a.verdict == "accepted"]

    def diagnosis(self, base: Weights) -> Diagnosis:
        """Measure the accepted contributions, by name; once, as long as they are the same.

        Args:
            base: of this iteration.
        """
        accepted = self.accepted()
        names = [arrival.name for arrival in accepted]
        if self._measured is None or self._measured[0] != names:
            found = diagnose(base, [arrival.weights() for arrival in accepted])
            self._measured = names, found
        return self._measured[1]

    def refuse(self, name: str, reason: str) -> None:
        """Take back that a contribution was accepted."""
        self.arrivals[name] = replace(self.arrivals[name], verdict="refused", reason=reason)
        self._say(f"iteration {self.iteration}: {name} refused: {reason}")

    def drop(self, refused: Iterable[str] = ()) -> None:
        """Delete the current iteration's files: they are fused and published.

        Args:
            refused: names whose files go to quarantine instead.
        """
        for name in refused:
            self._shelf.quarantine(name)
        self._shelf.clear()

    def _judge(self, screen: Screening, base: Weights, sha256: str) -> None:
        candidates = [
            Candidate(a.name, a.sha256, a.metrics, self._promised(a.name), self._history(a.name))
            for a in self.accepted()
        ]
        if not candidates:
            return
        for name, verdict in screen(sha256, candidates, self.diagnosis(base)).items():
            self.arrivals[name] = replace(self.arrivals[name], figures=verdict.figures)
            if verdict.reason:
                self.refuse(name, verdict.reason)

    def _stamped(self, message: Message, base: str) -> Message:
        """Copy a message with iteration and base in its config; the arrays are shared."""
        config = {**records.config_of(message.content, records.CONFIG)}
        config |= {"iteration": self.iteration, "base": base}
        content = RecordDict()
        if self._reference:
            config[records.REFERENCE] = self._reference()
        else:
            content[records.ARRAYS] = message.content.array_records[records.ARRAYS]
        content[records.CONFIG] = ConfigRecord(config)
        return Message(content, message.metadata.dst_node_id, MessageType.TRAIN)

    @property
    def state(self) -> Path:
        """Where a rule's stages leave their memory."""
        return self._shelf.state

    @property
    def _shelf(self) -> Shelf:
        return Shelf(self._folder, self.iteration)

    def _take(
        self, name: str, reply: Message | None, template: Template, base: str, timeout: float | None
    ) -> Arrival:
        if reply is None:
            late = f"no reply within {timeout:g} s; one that comes later is dropped"
            return Arrival(name, "missing", late if timeout else "lost")
        if reply.has_error():
            return Arrival(name, "refused", f"error reply: {reason_of(reply)}")
        try:
            records.check_size(reply.content)
            metrics = records.metrics_of(reply.content)
            self._check_about(name, reply.content, base)
            where = records.whereabouts_of(reply.content, records.CONTRIBUTION)
            if self._reference:
                about = records.config_of(reply.content, records.CONTRIBUTION)
                sha256 = str(about.get("sha256", ""))
                return self._shelf.take(name, template, base, metrics, where, sha256)
            body = records.body_of(reply.content, template)
            return self._shelf.put(name, body, template, base, metrics, where)
        except Refused as reason:
            return Arrival(name, "refused", records.text_of(reason, 500))

    def _check_about(self, name: str, content: RecordDict, base: str) -> None:
        about = records.config_of(content, records.CONTRIBUTION)
        expected = {"contributor": name, "iteration": self.iteration, "base": base}
        for key, value in expected.items():
            if about.get(key) != value:
                raise Refused(f"{key} is {records.text_of(about.get(key))!r}, expected {value!r}")

    def _reread(self, message: Message, arrival: Arrival) -> Message:
        """Return a reply built from the file, with arrays only where they are needed."""
        content = RecordDict(
            {
                records.METRICS: MetricRecord(dict(arrival.metrics)),
                records.CONTRIBUTION: ConfigRecord(
                    {"contributor": arrival.name, "iteration": self.iteration}
                ),
            }
        )
        if self._keep_arrays:
            content[records.ARRAYS] = records.pack(arrival.weights().items())
        if message.has_content() and message.metadata.reply_to_message_id:
            message.content = content
            return message
        return Message(content, reply_to=message)

    def _line(self, arrival: Arrival, expected: int) -> str:
        done = f"{len(self.arrivals)}/{expected}"
        if arrival.verdict != "accepted":
            return f"{done} {arrival.name} {arrival.verdict}: {arrival.reason}"
        seconds = arrival.metrics.get("seconds", 0.0)
        return f"{done} {arrival.name} finetuned in {seconds:.1f} s"

    def _check_quorum(self) -> None:
        accepted, asked = len(self.accepted()), len(self.arrivals)
        needed = self._quorum or asked
        if accepted < needed:
            for arrival in self.arrivals.values():
                if arrival.verdict == "refused":  # a resumed run asks it again
                    self._shelf.quarantine(arrival.name)
            causes = "; ".join(
                f"{a.name} {a.verdict}: {a.reason}"
                for a in self.arrivals.values()
                if a.verdict != "accepted"
            )
            raise QuorumError(
                f"iteration {self.iteration}: {accepted} of {asked} contributions are good, "
                f"the quorum is {needed} ({causes})"
            )

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
