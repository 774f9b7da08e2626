"""``report.html`` while a run goes on: what it does now, and its figures so far.

Written by whoever follows the run, beside its table; no server, no port. The page loads itself
again until the run has ended. What changes with every arrival is a few lines of text; pictures are
drawn once for each base and evaluation, and take less than a hundredth of the time.
"""

import html
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cold_flower.config import Config
from cold_flower.reporting.markup import SCRIPT, STYLE
from cold_flower.reporting.pictures import drawings
from cold_flower.reporting.progress import WORK, Arrived, Event, Progress, clock
from cold_flower.reporting.runs import RunDirectory, configuration
from cold_flower.repository.journal import CONFIG
from cold_flower.repository.publish import replace_text

REPORT = "report.html"
EVERY = 1.0  # seconds between two writes, at least
SHARE = 100  # times as long as drawing took, it is not done again
AGAIN = 3  # seconds after which the page loads itself again
ROWS = 60  # of a cohort that is larger, only so many are named
NEXT = 8  # evaluations that are due next, and named


@contextmanager
def live(
    config: Config, progress: Progress, opened: Callable[[Path], object] | None = None
) -> Iterator[Callable[[Event], None]]:
    """Yield a function that takes each event once ``progress`` has, and keeps the page up to date.

    Args:
        config: of the run.
        progress: its state.
        opened: called once, with the first page.
    """
    page = _Page(config, progress, opened)
    thread = threading.Thread(target=page.keep, daemon=True)
    thread.start()
    try:
        yield page.take
    finally:
        page.over.set()
        thread.join()
        page.write(ended=True)


class _Page:
    def __init__(
        self, config: Config, progress: Progress, opened: Callable[[Path], object] | None
    ) -> None:
        self._folder, self._config, self._progress = Path(config.run_dir), config, progress
        self._opened = opened
        self._changed, self.over = threading.Event(), threading.Event()
        self._drawn, self._pictures = -1, ""
        self._due = 0.0
        self._steps = 0
        self._newest: list[str] = []

    def take(self, event: Event) -> None:
        """Note an event; with some, pictures are drawn anew."""
        if event["line"]:
            self._newest = [*self._newest, *str(event["line"]).splitlines()][-6:]
        self._steps += "published" in event or "scores" in event
        self._changed.set()

    def keep(self) -> None:
        """Write the page after events, not more often than `EVERY`, until the run is over."""
        while not self.over.wait(EVERY):
            if self._changed.is_set():
                self._changed.clear()
                self.write()

    def write(self, *, ended: bool = False) -> None:
        """Write the page; a run goes on without it where that fails."""
        if not (self._folder / CONFIG).exists():
            return
        steps = self._steps
        # A full disk, an event that comes while this reads, a file of an older version: a run
        # goes on without its page, and the next one has what came.
        with suppress(Exception):
            if steps != self._drawn and (ended or time.monotonic() >= self._due):
                begun = time.monotonic()
                run = RunDirectory(self._folder, configuration(self._folder))
                self._pictures, self._drawn = drawings(run, self._progress), steps
                now = time.monotonic()
                self._due = now + SHARE * (now - begun)
            page = "".join(self._parts(time.time(), ended))
            replace_text(self._folder / REPORT, page)
            if self._opened:
                self._opened(self._folder / REPORT)
                self._opened = None

    def _parts(self, now: float, ended: bool) -> Iterator[str]:
        name, progress = html.escape(self._config.experiment), self._progress
        yield f"<!doctype html><html lang=en><meta charset=utf-8><title>{name}</title>"
        yield "<meta name=viewport content='width=device-width, initial-scale=1'>"
        again = "" if ended else f"setTimeout(() => location.reload(), {1000 * AGAIN});"
        yield f"<style>{STYLE}</style><script>{SCRIPT}{again}</script><h1>{name}</h1>"
        yield f"<p class=note>{html.escape(str(self._folder))}</p>"
        yield _now(progress, now, ended)
        if progress.scores:
            yield f"<p class=scores>{html.escape(progress.scores)}</p>"
        if not ended:
            yield from _cohort(progress, now)
        lines = html.escape("\n".join(self._newest))
        yield f"<pre class=lines>{lines}</pre>{self._pictures}"


def _now(progress: Progress, now: float, ended: bool) -> str:
    """Say where the run is: iteration, phase, how far, for how long, how long yet."""
    of = f" of {progress.iterations}" if progress.iterations else ""
    where = f"iteration {progress.iteration}{of}" if progress.iteration else "the start"
    said = [f"<b>{where}</b>"]
    if ended:
        said.append("this run is at work no more")
    elif progress.waits:
        said.append(html.escape(f"waiting for {progress.waits}"))
    else:
        said.append(progress.phase)
        if progress.of:
            said.append(f"{progress.done} of {progress.of}")
            said.append(f"<progress max={progress.of} value={progress.done}></progress>")
    said.append(f"{clock(now - progress.started)} so far")
    left = None if ended else progress.left(now)
    if left is not None:
        said.append(f"about {clock(left)} left")
    return f"<p class=now>{' <i>·</i> '.join(said)}</p>"


def _cohort(progress: Progress, now: float) -> Iterator[str]:
    """Yield who works on what: a bar for each that is asked, those at work first."""
    arrived, begun = dict(progress.arrived), dict(progress.begun)
    usual = progress.usual()
    waiting = [name for name in progress.asked if name not in arrived and name not in begun]
    order = [name for name in begun if name not in arrived]
    order += waiting if progress.phase == "finetune" else waiting[:NEXT]
    order += [name for name, one in arrived.items() if one.verdict != "accepted"]
    if progress.phase == "finetune":
        order += [name for name, one in arrived.items() if one.verdict == "accepted"]
    if not order or progress.phase not in WORK:
        return
    yield "<div class=cohort>"
    for name in order[:ROWS]:
        if name in arrived:
            kind, bar, words = _arrived(arrived[name])
        elif name in begun:
            spent = now - begun[name]
            expected = usual.get(name, usual.get("", 0.0))
            share = min(0.97, spent / expected) if expected else 0.0
            rest = max(1.0, expected - spent)
            kind, words = "work", f"{spent:.0f} s" + (f" of about {expected:.0f}" * bool(expected))
            bar = f'style="width:{share:.0%};animation-duration:{rest:.0f}s"' if expected else ""
            kind += "" if expected else " unknown"
        else:
            kind, bar, words = "", 'style="width:0"', "asked"
        yield (
            f"<span>{html.escape(name)}</span><div class=bar><div class='{kind}' {bar}></div></div>"
            f"<span class=small>{html.escape(words)}</span>"
        )
    yield "</div>"
    if len(order) > ROWS:
        yield f"<p class=note>and {len(order) - ROWS} more, {len(arrived)} have answered</p>"


def _arrived(one: Arrived) -> tuple[str, str, str]:
    if one.verdict == "accepted":
        return "good", "", f"{one.seconds:.1f} s" if one.seconds else "here"
    return "bad", "", f"{one.verdict}: {one.reason}"
