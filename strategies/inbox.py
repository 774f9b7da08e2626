"""A Grid around Flower's that collects one iteration's contributions.

To a strategy it is an ordinary Grid. `Inbox.get_node_ids` shows only the iteration's
cohort; `Inbox.send_and_receive` stamps train messages with iteration and base, screens
each reply as it arrives, writes its body to disk and drops it from memory, and does not
ask again for what is already there. So any Flower strategy trains exactly the chosen
contributors, and a run that was stopped goes on with what had arrived.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from flwr.app import ArrayRecord, Message, MessageType
from flwr.serverapp import Grid

from strategies import exchange, records
from strategies.asking import Asking
from strategies.contributions import Contribution, Start, Store
from strategies.diagnostics import Diagnosis, diagnose
from strategies.errors import QuorumError
from strategies.exchange import Letter, Post
from strategies.fusion import Template, Weights, fingerprint
from strategies.fusion._deltas import Scaled
from strategies.participants import Participants
from strategies.passing import Passing
from strategies.screening import Candidate, Verdict
from strategies.staleness import Bases, discount
from strategies.turns import Together, Turns

Screening = Callable[[str, Sequence[Candidate], Diagnosis], Mapping[str, Verdict]]


class Inbox(Passing):
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
        bases: of the run; needed for ``staleness``.
        staleness: how many bases older than the last one a contribution may have begun from. With
            1, one that comes after its iteration's deadline counts in the next one.
        arrived: called with each contribution of the right form, as soon as it is on the disk, and
            the iteration whose base it began from.
        turns: whom to ask when, and when to go on; by default all, and when all have answered.
        starts: what an iteration's contributors begin from, by name, where it is not the last base:
            of a run that is repeated.
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
        bases: Bases | None = None,
        staleness: int = 0,
        arrived: Callable[[Contribution, int], None] = lambda one, number: None,
        turns: Turns | None = None,
        starts: Callable[[int], Mapping[str, Start]] | None = None,
    ) -> None:
        super().__init__(grid)
        self._folder = folder
        self._participants = participants
        self.quorum = quorum
        self._keep_arrays = keep_arrays
        self._screen = screen
        self._say = say
        self._asking = Asking(folder, statistic, needed, reference is not None)
        self._more = more
        self._reference = reference
        self._bases = bases
        self._staleness = staleness
        self._tell_of = arrived
        self._turns = turns or Together(window)
        self._starts_of = starts
        self.iteration = first - 1
        """The iteration whose contributions are in `contributions`."""
        self.contributions: dict[str, Contribution] = {}
        """Of the current iteration, by name."""
        self.expected = 0
        """How many contributions the current iteration waits for."""
        self._measured: tuple[list[str], Diagnosis] | None = None
        self._post = Post(grid, simulated=participants.simulated)
        self.at_work: dict[str, Start] = {}
        """What each began from who is at work, by name."""
        self._asked: set[str] = set()  # by this iteration
        self._template: Template = {}
        self._recent: dict[str, tuple[int, int]] = {}  # by fingerprint: staleness, iteration

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
            return list(super().send_and_receive(listed, timeout=timeout)) if listed else []
        self.iteration += 1
        self._measured = None
        arrays = listed[0].content.array_records[records.ARRAYS]
        base = fingerprint(records.unpack(arrays))
        self._template = records.template_of(arrays)
        self._recent = self._bases_from(base)
        names = {member.node: name for name, member in self._participants.members.items()}
        asked = {names[message.metadata.dst_node_id]: message for message in listed}
        self._forget_the_lost(timeout)
        awaited = {start.iteration for start in self.at_work.values()}
        Store.clear_before(self._folder, self.iteration, awaited)
        self._store.open()
        addressed = self._addressed(asked, base)
        self.contributions = self._already_here(asked)
        self._collect(addressed, timeout)
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
        assert self._bases
        start = self._bases.body(self._recent[one.start.base][1])
        return Scaled(base, whole, discount(one.staleness), start)

    def diagnosis(self, base: Weights) -> Diagnosis:
        """Measure the accepted contributions, by name; once, as long as they are the same.

        Args:
            base: of this iteration.
        """
        accepted = self.accepted()
        names = [one.name for one in accepted]
        if self._measured is None or self._measured[0] != names:
            self._measured = names, diagnose(base, [self.weights(one, base) for one in accepted])
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
        at_work = any(start.iteration == self.iteration for start in self.at_work.values())
        self._store.clear(open=at_work)

    @property
    def state(self) -> Path:
        """Where a rule's stages leave their memory."""
        return self._store.state

    @property
    def _store(self) -> Store:
        return Store(self._folder, self.iteration)

    def _bases_from(self, base: str) -> dict[str, tuple[int, int]]:
        """Return the bases that a contribution may have begun from: staleness and iteration."""
        if not self._bases:
            return {base: (0, self._reference() if self._reference else -1)}
        newest = self._bases.recent(self._staleness + 1)
        return {sha256: (age, number) for age, (number, sha256) in enumerate(newest)}

    def _addressed(
        self, asked: Mapping[str, Message], base: str
    ) -> dict[str, tuple[Message, Start]]:
        """Return what each of the cohort is to be sent, and what that says."""
        more, usual = self._more(), Start(self.iteration, base)
        given = self._starts_of(self.iteration) if self._starts_of else {}
        packed: dict[str, ArrayRecord] = {}
        addressed = {}
        for name, message in asked.items():
            start = given.get(name, usual)
            number = self._recent[start.base][1]
            if start.base != base and start.base not in packed and not self._asking.by_reference:
                assert self._bases
                packed[start.base] = records.pack(self._bases.body(number).items())
            addressed[name] = (
                self._asking.message(
                    message, start, number, more.get(name, {}), packed.get(start.base)
                ),
                start,
            )
            Store(self._folder, start.iteration).open()
        return addressed

    def _already_here(self, asked: Iterable[str]) -> dict[str, Contribution]:
        """Return what arrived before the run was stopped, also of a site that is away now."""
        away = []
        for name in self._store.names():
            if not self._participants.allowed(name):
                self._say(f"iteration {self.iteration}: {name} may take part no more: put aside")
                self._store.quarantine(name)
            elif name not in asked:
                away.append(name)
        kept = (self._store.find(name, self._recent) for name in (*asked, *away))
        return {one.name: self._arrived(one) for one in kept if one}

    def _arrived(self, one: Contribution) -> Contribution:
        """Note how old the base is that a contribution of the right form began from; tell of it."""
        age, number = self._recent[one.start.base]
        dated = replace(one, staleness=age)
        self._tell_of(dated, number)
        return dated

    def _collect(
        self, addressed: Mapping[str, tuple[Message, Start]], timeout: float | None
    ) -> None:
        """Ask those whose contribution is not here, and keep each as it arrives."""
        turns, here, at_work = self._turns, self.contributions, self.at_work
        busy = [name for name in addressed if name in at_work]
        before = f" (already here: {', '.join(here)})" if here else ""
        still = f" (still at work: {', '.join(busy)})" if busy else ""
        self.expected = turns.begin(list(addressed), here, at_work)
        self._asked.clear()
        self._say(turns.said(self.iteration, len(addressed)) + before + still)
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while not turns.complete(here, bool(self._waiting)):
            late = time.monotonic() >= deadline  # then what lies there is still taken
            while not late and (name := turns.next(here, at_work)):
                message, start = addressed[name]
                if self._post.send(name, message):
                    at_work[name] = start
                    self._asked.add(name)
                else:  # the SuperLink refused it
                    self._keep(Contribution(name, "missing", "lost"))
            if found := self._post.first():
                self._take(*found)
            elif late or not self._post:
                break
            else:
                time.sleep(exchange.POLL)
        if not turns.complete(here, bool(self._waiting)):
            self._give_up(f"no reply within {timeout:g} s" if timeout else "lost")

    @property
    def _waiting(self) -> list[str]:
        """Return whom this iteration asked and who is at work."""
        return [name for name in self.at_work if name in self._asked]

    def _forget_the_lost(self, timeout: float | None) -> None:
        """Wait no longer for those whose time is over and who began from too old a base."""
        for letter in self._post:
            old = self.at_work[letter.name].base not in self._recent
            if old and timeout and time.monotonic() - letter.sent >= timeout:
                self._say(
                    f"{letter.name} did not answer within {timeout:g} s: it may be asked anew"
                )
                self._forget(letter.name)

    def _forget(self, name: str) -> None:
        self._post.forget(name)
        del self.at_work[name]

    def _give_up(self, reason: str) -> None:
        """Record who did not answer in time; nobody waits for them any more, or the next does."""
        late = "counts in the next iteration" if self._staleness else "is dropped"
        for name in self._waiting:
            why = f"{reason}; one that comes later {late}"
            self._keep(Contribution(name, "missing", why))
            if not self._staleness:
                self._forget(name)
        for name in self._turns.left():
            self._keep(Contribution(name, "missing", f"{reason}: it was not asked"))

    def _take(self, letter: Letter, reply: Message) -> None:
        """Keep what a reply brings, unless it began from too old a base."""
        name, start = letter.name, self.at_work.pop(letter.name)
        if start.base not in self._recent:
            since = f"a base that is more than {self._staleness} older than the last one"
            self._say(f"{name} began from {since}: what it gives is dropped")
            return
        one = self._asking.answer(name, reply, start, self._template, self._store)
        self._keep(self._arrived(one) if one.verdict == "accepted" else one)

    def _keep(self, one: Contribution) -> None:
        self.contributions[one.name] = one
        done = f"{len(self.contributions)}/{self.expected} {one.name}"
        if one.verdict != "accepted":
            self._say(f"{done} {one.verdict}: {one.reason}")
            return
        since = f", from base {self._recent[one.start.base][1]}" if one.staleness else ""
        self._say(f"{done} finetuned in {one.metrics.get('seconds', 0.0):.1f} s{since}")

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
        accepted, asked = len(self.accepted()), self._turns.good(self.contributions)
        # What screening tells apart rests on medians, so on more than half of them being good.
        enough = accepted + screened >= asked and 2 * accepted > asked
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
