"""A Grid around Flower's that collects one iteration's contributions.

To a strategy it is an ordinary Grid. `Inbox.get_node_ids` shows only the iteration's
cohort; `Inbox.send_and_receive` stamps train messages with iteration and base, screens
each reply as it arrives, writes its body to disk and drops it from memory, and does not
ask again for what is already there. So any Flower strategy trains exactly the chosen
contributors, and a run that was stopped goes on with what had arrived.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid

from strategies import records
from strategies.errors import QuorumError, Refused
from strategies.exchange import exchange, reason_of
from strategies.fusion import (
    Fingerprint,
    Template,
    Weights,
    fingerprint,
    read_metadata,
    write_safetensors,
)
from strategies.names import NAME
from strategies.screening import finite


@dataclass(frozen=True)
class Arrival:
    """What became of one contributor's answer in this iteration."""

    name: str
    verdict: str
    """``accepted``, ``refused`` or ``missing``."""
    reason: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    sha256: str = ""
    path: Path | None = None
    where: Mapping[str, str] = field(default_factory=dict)
    """What it was computed on: see `records.WHEREABOUTS`."""

    def weights(self) -> Weights:
        """Open the accepted body."""
        if self.path is None:
            raise ValueError(f"{self.name} is {self.verdict}: no body to read")
        examples = int(self.metrics[records.EXAMPLES])
        return Weights(self.path, name=self.name, examples=examples)


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
        say: called with a line at each arrival.
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
        say: Callable[[str], None] = lambda line: None,
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
        self._say = say
        self._poll = poll
        self.iteration = first - 1
        """The iteration whose contributions are in `arrivals`."""
        self.arrivals: dict[str, Arrival] = {}
        """Of the current iteration, by name."""

    def get_node_ids(self) -> list[int]:
        """Return the nodes of the coming iteration's cohort."""
        return [self._roster[name] for name in self._cohort(self.iteration + 1)]

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
        arrays = listed[0].content.array_records[records.ARRAYS]
        template = records.template_of(arrays)
        base = fingerprint(records.unpack(arrays))
        names = {node: name for name, node in self._roster.items()}
        asked = {names[m.metadata.dst_node_id]: self._stamped(m, base) for m in listed}
        self.arrivals = self._on_disk(asked, base)
        here = f" (already here: {', '.join(self.arrivals)})" if self.arrivals else ""
        self._say(f"iteration {self.iteration}: asking {len(asked)} contributors{here}")
        replies = [self._reread(asked[name], arrival) for name, arrival in self.arrivals.items()]
        wanted = {name: m for name, m in asked.items() if name not in self.arrivals}
        arriving = exchange(
            self._grid, wanted, timeout=timeout, poll=self._poll, window=self._window
        )
        for name, reply in arriving:
            arrival = self._take(name, reply, template, base, timeout)
            self.arrivals[name] = arrival
            self._say(self._line(arrival, len(asked)))
            if arrival.path and reply is not None:
                replies.append(self._reread(reply, arrival) if self._keep_arrays else reply)
        self._check_quorum(len(asked))
        # Sorted, so that a strategy that sums in order of arrival gives the same bits.
        return sorted(replies, key=lambda m: str(m.content[records.CONTRIBUTION]["contributor"]))

    def drop(self) -> None:
        """Delete the current iteration's files: they are fused and published."""
        shutil.rmtree(self._folder / f"{self.iteration:04d}", ignore_errors=True)

    def _stamped(self, message: Message, base: str) -> Message:
        """Copy a message with iteration and base in its config; the arrays are shared."""
        config = {**records.config_of(message.content, records.CONFIG)}
        config |= {"iteration": self.iteration, "base": base}
        content = RecordDict(
            {
                records.ARRAYS: message.content.array_records[records.ARRAYS],
                records.CONFIG: ConfigRecord(config),
            }
        )
        return Message(content, message.metadata.dst_node_id, MessageType.TRAIN)

    @property
    def state(self) -> Path:
        """Where a rule's stages leave their memory; no contributor can have that name."""
        return self._path("_state")

    def _path(self, name: str) -> Path:
        return self._folder / f"{self.iteration:04d}" / f"{name}.safetensors"

    def _on_disk(self, names: Iterable[str], base: str) -> dict[str, Arrival]:
        found = {}
        for name in names:
            path = self._path(name)
            if path.exists():
                about = read_metadata(path)
                if about["base"] == base:
                    metrics = json.loads(about["metrics"])
                    sha256 = fingerprint(Weights(path).items())
                    where = json.loads(about["where"])
                    found[name] = Arrival(name, "accepted", "", metrics, sha256, path, where)
        return found

    def _take(
        self, name: str, reply: Message | None, template: Template, base: str, timeout: float | None
    ) -> Arrival:
        if reply is None:
            late = f"no reply within {timeout:g} s; one that comes later is dropped"
            return Arrival(name, "missing", late if timeout else "lost")
        if reply.has_error():
            return Arrival(name, "refused", f"error reply: {reason_of(reply)}")
        try:
            metrics = records.metrics_of(reply.content)
            self._check_about(name, reply.content, base)
            where = records.whereabouts_of(reply.content, records.CONTRIBUTION)
            about = {"base": base, "metrics": json.dumps(metrics), "where": json.dumps(where)}
            sha256 = self._spill(name, reply.content, template, about)
        except Refused as reason:
            return Arrival(name, "refused", str(reason))
        return Arrival(name, "accepted", "", metrics, sha256, self._path(name), where)

    def _check_about(self, name: str, content: RecordDict, base: str) -> None:
        about = records.config_of(content, records.CONTRIBUTION)
        expected = {"contributor": name, "iteration": self.iteration, "base": base}
        for key, value in expected.items():
            if about.get(key) != value:
                raise Refused(f"{key} is {str(about.get(key))[:80]!r}, expected {value!r}")

    def _spill(
        self, name: str, content: RecordDict, template: Template, about: Mapping[str, str]
    ) -> str:
        """Write a reply's body to disk, emptying the reply; return its fingerprint."""
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        seen = Fingerprint()
        body = seen.passing(finite(records.body_of(content, template)))
        write_safetensors(path, template, body, about)
        return seen.hexdigest()

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

    def _line(self, arrival: Arrival, asked: int) -> str:
        done = f"{len(self.arrivals)}/{asked}"
        if arrival.verdict != "accepted":
            return f"{done} {arrival.name} {arrival.verdict}: {arrival.reason}"
        seconds = arrival.metrics.get("seconds", 0.0)
        return f"{done} {arrival.name} finetuned in {seconds:.1f} s"

    def _check_quorum(self, asked: int) -> None:
        accepted = sum(arrival.verdict == "accepted" for arrival in self.arrivals.values())
        needed = self._quorum or asked
        if accepted < needed:
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
