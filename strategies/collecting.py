"""Asks contributors, and keeps on the disk what each sends, as it arrives."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid

from strategies import records
from strategies.asking import Asking
from strategies.contributions import FROM, Contribution, Start, Store
from strategies.errors import StrategyError
from strategies.exchange import Letter, Post
from strategies.fusion import Template
from strategies.participants import Drops, Participants
from strategies.staleness import Bases
from strategies.turns import Together, Turns

Recent = Mapping[str, tuple[int, int]]
"""The bases that a contribution may have begun from: staleness and iteration by fingerprint."""


class Collector:
    """Collects the contributions of one iteration after the other.

    Args:
        grid: Flower's own.
        folder: where bodies go: ``<folder>/<iteration>/<name>.safetensors``.
        participants: who is there, and whom an iteration asks.
        first: the iteration that the first round makes.
        turns: whom to ask when, and when to go on; by default all, and when all have answered.
        say: called with a line at each arrival, and facts: ``asked`` names an iteration's cohort,
            ``begun`` who is at work now (there the line is empty), ``who`` whose answer came, with
            its ``verdict``, ``seconds`` and ``worker``.
        statistic: of the contributors' data, which the rule needs beside bodies; empty for none.
        needed: metrics that have to be there, above 0: the rule needs them.
        more: returns what else the train messages of an iteration hold under ``config``, by
            contributor.
        reference: returns which published iteration is the base; messages then carry that number
            instead of arrays, and contributors leave their bodies in ``folder`` (`Store.offer`).
        bases: of the run; needed for ``staleness`` and ``starts``.
        staleness: how many bases older than the last one a contribution may have begun from. With
            1, one that comes after its iteration's deadline counts in the next one.
        arrived: called with each contribution of the right form, as soon as it is on the disk, and
            the iteration whose base it began from.
        starts: what an iteration's contributors begin from, by name, where it is not the last base:
            of a run that is repeated.
        drops: contributions that come beside those that are asked for; of bases that are ``older``
            by so many at most.
    """

    def __init__(
        self,
        grid: Grid,
        folder: Path,
        participants: Participants,
        *,
        first: int = 1,
        turns: Turns | None = None,
        say: Callable[..., object] = lambda line, **facts: None,
        statistic: str = "",
        needed: Sequence[str] = (),
        more: Callable[[], Mapping[str, Mapping[str, str]]] = dict,
        reference: Callable[[], int] | None = None,
        bases: Bases | None = None,
        staleness: int = 0,
        arrived: Callable[[Contribution, int], None] = lambda one, number: None,
        starts: Callable[[int], Mapping[str, Start]] | None = None,
        drops: Drops | None = None,
        older: int = 0,
    ) -> None:
        self.grid = grid
        self.participants = participants
        self.turns = turns or Together()
        self.say = say
        self.bases = bases
        self._folder = folder
        self._asking = Asking(folder, statistic, needed, reference is not None)
        self._more = more
        self._reference = reference
        self._staleness = staleness
        self._tell_of = arrived
        self._starts_of = starts
        self._drops = drops or Drops()
        self._older = max(staleness, older)
        self.iteration = first - 1
        """The iteration whose contributions are `here`."""
        self.here: dict[str, Contribution] = {}
        """Those of the current iteration, by name."""
        self.at_work: dict[str, Start] = {}
        """What each began from who is at work, by name."""
        self.recent: Recent = {}
        self._post = Post(
            grid,
            simulated=participants.simulated,
            wanted=lambda name: not self._too_old(self.at_work[name]),
            say=say,
        )
        self._asked: set[str] = set()  # by this iteration
        self._awaited = 0
        self._template: Template = {}

    @property
    def expected(self) -> int:
        """Return how many contributions the current iteration waits for, or has."""
        return max(self._awaited, len(self.here))

    @property
    def store(self) -> Store:
        """Return where the current iteration's contributions lie."""
        return Store(self._folder, self.iteration)

    def collect(
        self, given: Mapping[str, Message], arrays: ArrayRecord, base: str, timeout: float | None
    ) -> None:
        """Begin the next iteration, and return when it has what it waits for, or time is up.

        Args:
            given: a strategy's messages, by contributor.
            arrays: the base.
            base: its fingerprint.
            timeout: seconds; None waits without end.

        Raises:
            DeadActorError: a Ray actor died.
        """
        self.iteration += 1
        self._template = records.template_of(arrays)
        self.recent = self._bases_from(base)
        self._forget_the_lost(timeout)
        awaited = {start.iteration for start in self.at_work.values()}
        Store.clear_before(self._folder, self.iteration, awaited)
        self.store.open()
        addressed = self._addressed(given, base)
        self.here = self._already_here(given)
        self._exchange(addressed, timeout)

    def put_aside(self, name: str, reason: str) -> None:
        """Put a contribution of the current iteration into quarantine; a drop to its like."""
        self.store.quarantine(name)
        if name in self._drops.names(self.iteration):
            self._drops.refuse(name, self.iteration, reason)

    def _bases_from(self, base: str) -> Recent:
        if not self.bases:
            return {base: (0, self._reference() if self._reference else -1)}
        newest = self.bases.recent(self._older + 1)
        found: dict[str, tuple[int, int]] = {}
        for age, (number, sha256) in enumerate(newest):
            found.setdefault(sha256, (age, number))  # a base may come back: it is as old as then
        return found

    def _addressed(
        self, given: Mapping[str, Message], base: str
    ) -> dict[str, tuple[Message, Start]]:
        """Return what each of the cohort is to be sent, and what that says."""
        more, usual = self._more(), Start(self.iteration, base)
        starts = self._starts_of(self.iteration) if self._starts_of else {}
        packed: dict[str, ArrayRecord] = {}
        addressed = {}
        for name, message in given.items():
            start = starts.get(name, usual)
            if start.base not in self.recent:
                raise StrategyError(
                    f"iteration {self.iteration}: {name} is to begin from a base that is more than "
                    f"{self._older} older than the last one: a higher staleness allows it"
                )
            number = self.recent[start.base][1]
            if start.base != base and start.base not in packed and not self._asking.by_reference:
                assert self.bases
                packed[start.base] = records.pack(self.bases.body(number).items())
            older = packed.get(start.base)
            letter = self._asking.message(message, start, number, more.get(name, {}), older)
            addressed[name] = letter, start
            Store(self._folder, start.iteration).open()
        return addressed

    def _already_here(self, asked: Iterable[str]) -> dict[str, Contribution]:
        """Return what arrived before the run was stopped, also of a site that is away now."""
        away = []
        dropped = self._drops.names(self.iteration)
        for name in self.store.names():
            if name not in dropped and not self.participants.allowed(name):
                self.say(f"iteration {self.iteration}: {name} may take part no more: put aside")
                self.store.quarantine(name)
            elif name not in asked:
                away.append(name)
        # A rollback that was undone leaves files of the same number, but of the other base.
        allowed = [base for base, (age, _) in self.recent.items() if age <= self._staleness]
        kept = (
            self.store.find(name, self.recent if name in dropped else allowed)
            for name in (*asked, *away)
        )
        return {one.name: self._arrived(one) for one in kept if one}

    def _arrived(self, one: Contribution) -> Contribution:
        """Note how old the base is that a contribution of the right form began from; tell of it."""
        age, number = self.recent[one.start.base]
        dated = replace(one, staleness=age)
        self._tell_of(dated, number)
        return dated

    def _exchange(
        self, addressed: Mapping[str, tuple[Message, Start]], timeout: float | None
    ) -> None:
        """Ask those whose contribution is not here, and keep each as it arrives."""
        turns, here, at_work = self.turns, self.here, self.at_work
        busy = [name for name in addressed if name in at_work]
        before = f" (already here: {', '.join(here)})" if here else ""
        still = f" (still at work: {', '.join(busy)})" if busy else ""
        self._awaited = turns.begin(list(addressed), here, at_work)
        self._asked.clear()
        self.say(turns.said(self.iteration, len(addressed)) + before + still, asked=[*addressed])
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while not turns.complete(here, bool(self._waiting)):
            late = time.monotonic() >= deadline  # then what lies there is still taken
            while not late and (name := turns.next(here, at_work)):
                message, start = addressed[name]
                if self._post.send(name, message):
                    at_work[name] = start
                    self._asked.add(name)
                    self.say("", begun=name)
                else:  # the SuperLink refused it
                    self._keep(Contribution(name, "missing", "lost"))
            if dropped := self._drops.next(self.iteration, here, self._template, self.store):
                self._keep(self._arrived(dropped))
            elif found := self._post.first(deadline):
                self._take(*found)
            elif late or (addressed and not self._post):
                break
            else:
                self._post.rest(deadline)
        if not turns.complete(here, bool(self._waiting)):
            self._give_up(f"no reply within {timeout:g} s" if timeout else "lost")

    @property
    def _waiting(self) -> list[str]:
        """Return whom this iteration asked and who is at work."""
        return [name for name in self.at_work if name in self._asked]

    def _forget_the_lost(self, timeout: float | None) -> None:
        """Wait no longer for those whose time is over and who began from too old a base."""
        for letter in self._post:
            old = self._too_old(self.at_work[letter.name])
            if old and timeout and time.monotonic() - letter.sent >= timeout:
                self.say(f"{letter.name} did not answer in {timeout:g} s: it may be asked anew")
                self._forget(letter.name)

    def _too_old(self, start: Start) -> bool:
        return self.recent.get(start.base, (math.inf, 0))[0] > self._staleness

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
        for name in self.turns.left():
            self._keep(Contribution(name, "missing", f"{reason}: it was not asked"))

    def _take(self, letter: Letter, reply: Message) -> None:
        """Keep what a reply brings, unless it began from too old a base."""
        name, start = letter.name, self.at_work.pop(letter.name)
        if self._too_old(start):
            since = f"a base that is more than {self._staleness} older than the last one"
            self.say(f"{name} began from {since}: what it gives is dropped")
            return
        one = self._asking.answer(name, reply, start, self._template, self.store)
        self._keep(self._arrived(one) if one.verdict == "accepted" else one)

    def _keep(self, one: Contribution) -> None:
        self.here[one.name] = one
        done = f"{len(self.here)}/{self.expected} {one.name}"
        seconds = one.metrics.get("seconds", 0.0)
        took = f" in {seconds:.1f} s" if seconds else ""
        facts = {"who": one.name, "verdict": one.verdict, "seconds": seconds}
        if worker := one.facts.get("worker", one.facts.get("device", "")):
            facts["worker"] = worker
        if one.verdict != "accepted":
            self.say(f"{done} {one.verdict}: {one.reason}", **facts, reason=one.reason)
        elif FROM in one.facts:
            recognised = one.facts.get("recognised", "")
            self.say(f"{done} taken from the {one.facts[FROM]}: {recognised}", **facts)
        else:
            since = f", from base {self.recent[one.start.base][1]}" if one.staleness else ""
            self.say(f"{done} finetuned{took}{since}", **facts)
