"""What a run is doing, from its events (`cold_flower.reporting.display` shows it)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cold_flower.repository.journal import ASKED, BEGUN, READ, TAKEN_OVER, WAITS, WHO

Event = Mapping[str, Any]
AGAIN = "again"  # of an event: it says nothing new, the run still waits

WORK = ("finetune", "validate", "evaluate")  # of the contributors
PHASES = ("start", "finetune", "validate", "fuse", "evaluate")


@dataclass(frozen=True)
class Arrived:
    """What became of somebody's answer in this phase."""

    verdict: str
    seconds: float
    """Of its work."""
    reason: str


@dataclass(frozen=True)
class Span:
    """What a worker did: a finetuning, or the scores of a task."""

    phase: str
    iteration: int
    who: str
    start: float
    """Unix time; so is the end."""
    end: float
    worker: str
    """Its process, or the device."""


@dataclass
class Progress:
    """The state of a run, built up event by event (`cold_flower.repository.journal.Journal.say`).

    Phases follow one another in wall-clock time: **start** until the first message to a
    contributor, **finetune** from asking a cohort to its last answer, **fuse** from there to
    the published base, with a gate interrupted by **validate**, **evaluate** until its last score.
    """

    started: float
    """Unix time at which the command began."""
    phase: str = "start"
    iteration: int = 0
    iterations: int = 0
    done: int = 0
    of: int = 0
    scores: str = ""
    waits: str = ""
    """What the run waits for, where that may take long."""
    read: dict[str, Mapping[str, float]] = field(default_factory=dict)
    """By contributor: which shares of its tokens are ``unknown``, of its texts ``cut``."""
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PHASES, 0.0))
    """Time spent in each phase, up to the last event."""
    taken_over: int = 0
    """Contributions that another run has finetuned: their time is in none of the phases."""
    busy: float = 0.0
    """Seconds of the contributors' own work, summed over them."""
    asked: Sequence[str] = ()
    """Whom this phase of this iteration asks."""
    begun: dict[str, float] = field(default_factory=dict)
    """Who is at work, and since when (Unix time)."""
    arrived: dict[str, Arrived] = field(default_factory=dict)
    """Who has answered in this phase."""
    spans: list[Span] = field(default_factory=list)
    """All that was done since the run was started or resumed."""
    waits_since: float = 0.0
    _since: float = 0.0  # when this phase began
    _last: float = 0.0
    _servers: int = 0  # that have started: more than one in a run that was resumed
    _busy: float = 0.0  # of this phase, so far
    _left: Mapping[str, int] = field(default_factory=dict)
    _durations: dict[str, list[float]] = field(
        default_factory=lambda: {"finetune": [], "evaluate": []}
    )

    def __post_init__(self) -> None:
        self._since = self._last = self.started

    def take(self, event: Event) -> None:
        """Take in one event."""
        now = float(event["time"])
        if "server" in event and self._servers:  # nobody worked since the last one stopped
            self.phase, self._since, self._last = "start", now, now
        self.seconds[self.phase] += max(0.0, now - self._last)
        self._last = max(now, self._last)
        if AGAIN in event:
            return
        self.waits, self.waits_since = event.get(WAITS, ""), now
        self.iterations = event.get("iterations", self.iterations)
        self.scores = event.get("scores", self.scores)
        self.read |= event.get(READ, {})
        self.taken_over += event.get(TAKEN_OVER, 0)
        if "server" in event:
            self._servers += 1
            self.spans, self.begun, self.arrived = [], {}, {}
        if who := event.get(BEGUN):
            self.begun[who] = now
        if "phase" not in event:
            return
        entered = self._enter(event["phase"], int(event["iteration"]), now)
        self.done, self.of = event.get("done", self.done), event.get("of", self.of)
        self._left = event.get("left", self._left)
        busy = float(event.get("busy", self._busy))
        if not entered:  # what a resumed run found at the start was worked before
            self.busy += busy - self._busy
        self._busy = busy
        if ASKED in event:
            self.asked, self.arrived = event[ASKED], {}
        if who := event.get(WHO):
            self._arrive(event, who, now)
        if self.phase == "finetune" and self.done == self.of:
            self._enter("fuse", self.iteration, now)

    def _arrive(self, event: Event, who: str, now: float) -> None:
        seconds = float(event.get("seconds", 0.0))
        self.begun.pop(who, None)
        before = self.arrived.get(who)
        worked = seconds or (before.seconds if before else 0.0)  # it may be refused later
        verdict, reason = str(event.get("verdict", "accepted")), str(event.get("reason", ""))
        self.arrived[who] = Arrived(verdict, worked, reason)
        if seconds:
            worker = str(event.get("worker", ""))
            span = Span(self.phase, self.iteration, who, now - seconds, now, worker)
            self.spans.append(span)

    def _enter(self, phase: str, iteration: int, now: float) -> bool:
        if (phase, iteration) == (self.phase, self.iteration):
            return False
        if self.phase in self._durations:
            self._durations[self.phase].append(now - self._since)
        if phase != "fuse":
            self.done = self.of = 0
            self._busy = 0.0
        self.phase, self.iteration, self._since = phase, iteration, now
        return True

    def left(self, now: float) -> float | None:
        """Estimate the seconds left: phases to come take as long as those that were.

        None while there is nothing to go by.
        """
        total = 0.0
        if self.phase in self._durations:
            known = self._durations[self.phase]
            spent = now - self._since
            if known:
                total += max(0.0, sum(known) / len(known) - spent)
            elif self.done:
                total += spent / self.done * (self.of - self.done)
            else:
                return None
        for phase, count in self._left.items():
            known = self._durations[phase]
            if not known and count and phase == self.phase and self.done:
                known = [(now - self._since) / self.done * self.of]
            if count and not known:
                return None
            total += count * sum(known) / len(known) if count else 0.0
        return total if self._left else None

    def usual(self) -> dict[str, float]:
        """Return the seconds that each took last time in this phase; under "" their mean."""
        known = {span.who: span.end - span.start for span in self.spans if span.phase == self.phase}
        return {**known, "": sum(known.values()) / len(known)} if known else {}

    def idle(self, workers: int) -> float:
        """Return the share of the workers' time, while they had work, that was not used."""
        available = workers * sum(self.seconds[phase] for phase in WORK)
        return max(0.0, 1 - self.busy / available) if available else 0.0


def phases(progress: Progress, workers: int) -> str:
    """Say how long each phase took in all."""
    shown = [name for name in PHASES if name != "validate" or progress.seconds[name]]
    parts = ", ".join(f"{name} {progress.seconds[name]:.0f} s" for name in shown)
    idle = f"{100 * progress.idle(workers):.0f} %"
    return f"{parts}; while contributors worked, their {workers} workers were idle {idle}"


def clock(seconds: float) -> str:
    """Write a duration as h:mm:ss."""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
