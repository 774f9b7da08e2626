"""The state of a run, from its events, with hand-made times."""

import io

import pytest
from rich.console import Console

from cold_flower.reporting.display import display, panel
from cold_flower.reporting.progress import Progress, clock, phases


def finetune(time, iteration, done, busy, left):
    return {
        "time": time, "line": "x", "phase": "finetune", "iteration": iteration, "done": done,
        "of": 2, "busy": busy, "left": {"finetune": left, "evaluate": left + 1},
    }  # fmt: skip


def evaluate(time, iteration, done, busy, left):
    event = {**finetune(time, iteration, done, busy, left), "phase": "evaluate"}
    return {**event, "left": {"finetune": left, "evaluate": left}}


EVENTS = [
    {"time": 103.0, "line": "ready", "iterations": 2},
    evaluate(110.0, 0, 0, 0.0, 2),
    evaluate(114.0, 0, 1, 4.0, 2),
    evaluate(120.0, 0, 2, 9.0, 2),
    finetune(121.0, 1, 0, 0.0, 1),
    finetune(131.0, 1, 1, 9.0, 1),
    finetune(141.0, 1, 2, 28.0, 1),
    {"time": 143.0, "line": "published", "published": 1},
    evaluate(144.0, 1, 0, 0.0, 1),
]


def after(count: int) -> Progress:
    progress = Progress(started=100.0)
    for event in EVENTS[:count]:
        progress.take(event)
    return progress


def test_time_goes_to_the_phase_it_was_spent_in() -> None:
    progress = after(len(EVENTS))
    spent = {"start": 10, "finetune": 20, "validate": 0, "fuse": 3, "evaluate": 11}
    assert progress.seconds == spent
    assert (progress.phase, progress.iteration, progress.iterations) == ("evaluate", 1, 2)
    assert progress.busy == 37
    assert progress.idle(2) == pytest.approx(1 - 37 / (2 * 31))
    assert "start 10 s, finetune 20 s, fuse 3 s, evaluate 11 s" in phases(progress, 2)


def test_what_lies_between_a_run_and_its_resumption_is_no_time_of_it() -> None:
    progress = Progress(started=100.0)
    again = {"line": "ready", "server": 2}
    events = [{"time": 101.0, "line": "ready", "server": 1}, *EVENTS, {**again, "time": 9000.0}]
    for event in [*events, evaluate(9005.0, 1, 0, 0.0, 1), evaluate(9008.0, 1, 2, 9.0, 1)]:
        progress.take(event)
    spent = {"start": 15, "finetune": 20, "validate": 0, "fuse": 3, "evaluate": 14}
    assert progress.seconds == spent


def test_tensors_count_while_a_fuse_takes_long() -> None:
    progress = after(7)
    progress.take(
        {"time": 142.0, "line": "x", "phase": "fuse", "iteration": 1, "done": 45, "of": 104}
    )
    assert (progress.phase, progress.done, progress.of) == ("fuse", 45, 104)
    for event in EVENTS[7:]:
        progress.take(event)
    assert (progress.done, progress.of) == (0, 2)
    assert (progress.seconds, progress.busy) == (after(9).seconds, after(9).busy)


def test_the_time_left_is_what_phases_took_so_far() -> None:
    assert after(1).left(104.0) is None
    assert after(3).left(114.0) is None  # nothing is known of finetuning
    # Half of the first finetuning is done in 10 s, the same again; then an evaluation of 11,
    # one more finetuning of 20 and the last evaluation.
    assert after(6).left(131.0) == pytest.approx(10 + 11 + 20 + 11)
    # In the second evaluation, 4 s of an expected 11; one of each is to come.
    assert after(len(EVENTS)).left(148.0) == pytest.approx(7 + 20 + 11)


def test_what_a_resumed_run_finds_was_worked_before() -> None:
    progress = Progress(started=0.0)
    progress.take(finetune(5.0, 3, 1, 100.0, 0))
    progress.take(finetune(9.0, 3, 2, 104.0, 0))
    assert progress.busy == 4
    assert progress.phase == "fuse"


def test_plain_lines_where_there_is_no_terminal() -> None:
    console = Console(width=80, record=True, force_terminal=False)
    with display(console, Progress(started=100.0), now=lambda: 143.0) as show:
        for event in EVENTS[:8]:
            show(event)
    lines = console.export_text().splitlines()
    assert lines[0] == "ready"
    assert len(lines) == 8
    # At 143 s: nothing of this evaluation (an expected 11), then one of each: 20 and 11.
    assert lines[-1] == "published (about 0:00:42 left)"


def test_a_terminal_shows_lines_and_below_them_the_state() -> None:
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True)
    with display(console, Progress(started=100.0)) as show:
        for event in EVENTS:
            show(event)
    written = out.getvalue()
    assert "published" in written
    assert "left)" not in written  # the state line has it
    assert "iteration 1 of 2" in written


def test_what_is_waited_for_stands_in_the_state_and_is_no_news_to_a_terminal() -> None:
    wait = {"time": 101.0, "line": "starting", "waits": "Ray to start"}
    still = {"time": 131.0, "line": "still waiting for Ray", "waits": "Ray to start", "again": True}
    for terminal in (True, False):
        console = Console(file=io.StringIO(), width=80, force_terminal=terminal)
        progress = Progress(started=100.0)
        with display(console, progress) as show:
            show(wait)
            show(still)
        assert ("still waiting" in console.file.getvalue()) is not terminal
        console = Console(width=80, record=True)
        console.print(panel(progress, 151.0))
        assert "waiting for Ray to start, 50 s" in console.export_text()
        progress.take(EVENTS[0])
        assert not progress.waits


def test_the_panel_fits_a_terminal_of_80() -> None:
    progress = after(6)
    progress.scores = "frozen seen 50.1 (+3.0)"
    console = Console(width=80, record=True)
    console.print(panel(progress, 131.0))
    text = console.export_text()
    for words in ("iteration 1 of 2", "finetune", "1/2", "0:00:31", "about 0:00:52 left", "+3.0"):
        assert words in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_clock() -> None:
    assert [clock(s) for s in (0, 61.9, 36_000)] == ["0:00:00", "0:01:01", "10:00:00"]
