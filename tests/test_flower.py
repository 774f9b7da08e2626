"""Flower's command line, the judgement of a run, and where a run may write."""

import json
import os
from pathlib import Path
from unittest.mock import Mock

import pytest

from cold_flower.config import Config
from cold_flower.errors import RunError
from cold_flower.repository.journal import CONFIG, LOG, PROGRESS, RESULT, Journal
from cold_flower.runtime import events, flower, scratch, simulate
from cold_flower.runtime.events import Events
from cold_flower.runtime.machine import killed_for_memory
from cold_flower.runtime.writable import check_writable

COMPLETED = {"status": "completed", "iterations": 2, "cause": ""}
FAILED = {"status": "failed", "iterations": 1, "cause": "below the quorum"}


@pytest.fixture
def flwr(tmp_path, monkeypatch):
    """Return a function that lets Flower's command be a line of shell."""

    def be(script: str) -> None:
        tool = tmp_path / "flwr"
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
        monkeypatch.setattr(flower, "tool", lambda name: str(tool))

    return be


def test_an_answer_is_json_also_behind_warnings(flwr) -> None:
    flwr("""echo "{\\"asked\\": \\"$*\\"}" """)
    assert flower.flwr("ls", "", "mine") == {"asked": "ls mine --format json"}
    flwr("""echo a warning; echo '{"runs": [{"status": "finished:failed"}]}'""")
    assert flower.status_of(flower.flwr("ls")) == "finished:failed"


def test_an_answer_is_plain_where_a_notebook_asks_for_colours(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as a Jupyter kernel does
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    assert "SuperLink connection 'nosuch' not found" in flower.flwr("ls", "nosuch")["error-message"]
    assert flower.flwr("ls", "nosuch")["success"] is False


def test_no_answer_is_an_error_on_one_line(flwr) -> None:
    flwr("echo no such; echo connection >&2; exit 1")
    answer = flower.flwr("ls")
    assert flower.status_of(answer) == ""
    assert flower.error_of(answer) == "no such connection"
    flwr("exec sleep 9")
    assert flower.error_of(flower.flwr("ls", seconds=0.2)) == "no answer within 0.2 s"
    assert flower.error_of({"error-message": "x" * 600}) == "x" * 500
    assert flower.status_of({"runs": []}) == ""


@pytest.mark.parametrize(
    ("status", "result", "line"),
    [
        (
            "finished:completed",
            None,
            "the run failed: killed? (Flower says finished:completed; log: there).",
        ),
        (
            "finished:failed below the quorum, at length",
            FAILED,
            "the run failed: below the quorum (Flower says finished:failed; log: there).",
        ),
        (
            "finished:failed lost",
            COMPLETED,
            "the run failed: finished:failed lost (Flower says finished:failed; log: there).",
        ),
        (
            "nothing (no answer)",
            FAILED,
            "the run failed: below the quorum (Flower says nothing; log: there).",
        ),
    ],
)
def test_what_is_said_of_a_failure(tmp_path, status, result, line) -> None:
    if result:
        (tmp_path / RESULT).write_text(json.dumps(result))
    how = {"no_result": "killed?", "again": "add --resume"}
    with pytest.raises(RunError) as failed:
        flower.judge(tmp_path, status, **how, log=Path("there"))
    assert str(failed.value) == line
    (tmp_path / CONFIG).write_text("{}")
    with pytest.raises(RunError) as failed:
        flower.judge(tmp_path, status, **how)
    kept = line.replace("; log: there", "") + " What arrived is kept: add --resume"
    assert str(failed.value) == kept


def test_a_run_that_completed(tmp_path) -> None:
    (tmp_path / RESULT).write_text(json.dumps(COMPLETED))
    flower.judge(tmp_path, "finished:completed", no_result="", again="")
    flower.judge(tmp_path, "running N/A", no_result="", again="")  # contributors are still at work


def test_events_come_once_and_whole(tmp_path) -> None:
    path, early = tmp_path / PROGRESS, Events(tmp_path)
    assert list(early.new()) == []
    path.write_text('{"line": "a"}\n{"line": "b"}\n{"li')
    late = Events(tmp_path)
    assert [event["line"] for event in early.new()] == ["a", "b"]
    assert list(late.new()) == []
    with path.open("a") as file:
        file.write('ne": "c"}\n')
    assert list(early.new()) == list(late.new()) == [{"line": "c"}]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no folder that nobody can write into")
def test_a_folder_without_permission_is_named(tmp_path) -> None:
    with pytest.raises(RunError, match=r"cannot write into /proc \(.*\), where the run directory "):
        check_writable(Path("/proc/runs/demo"))
    check_writable(tmp_path / "runs" / "demo")
    assert list(tmp_path.iterdir()) == []


WORKER = "\x1b[36m(ClientAppActor pid=7)\x1b[0m "
TRACEBACK = (
    "{p}Traceback (most recent call last):\n{p}  File 'x', line 1, in f\n{p}    f()\n{p}{e}\n"
)


@pytest.mark.parametrize(
    ("log", "error"),
    [
        ("INFO : all is well\n", ""),
        (TRACEBACK.format(p="", e="OSError: path too long"), "OSError: path too long"),
        (
            "\x1b[91mERROR \x1b[0m:     " + TRACEBACK.format(p="", e="KeyError: 'a'"),
            "KeyError: 'a'",
        ),
        (TRACEBACK.format(p=WORKER, e="ray.Dead: killed"), "ray.Dead: killed"),
        (
            TRACEBACK.format(p="", e="ValueError: an older one")
            + TRACEBACK.format(p="", e="OSError: the cause")
            + f"\n{flower._FROM[0]}\n\n"
            + TRACEBACK.format(p="", e="RuntimeError: it crashed.")
            + f"\n{flower._FROM[1]}\n\n"
            + TRACEBACK.format(p="", e="RuntimeError: it ends."),
            "OSError: the cause",
        ),
        (
            "(A pid=3) Traceback (most recent call last): [repeated 2x across cluster]\n"
            "(A pid=3)   File 'x', line 1, in f\n(A pid=3) ValueError: twice\n",
            "ValueError: twice",
        ),
        (
            "Traceback (most recent call last):\n(A pid=3) INFO: a worker's\nINFO :      Flower's\n"
            "  File 'x', line 1, in f\nValueError: between others' lines\n",
            "ValueError: between others' lines",
        ),
        (
            "  + Exception Group Traceback (most recent call last):\n  |   File 'x', line 1, in f\n"
            "  | ExceptionGroup: some (1 sub-exception)\n  +-+---------------- 1 ----------------\n"
            "    | Traceback (most recent call last):\n    |   File 'x', line 2, in g\n"
            "    | KeyError: 'inner'\n    +------------------------------------\n",
            "KeyError: 'inner'",
        ),
    ],
)
def test_the_last_error_of_a_log_is_its_cause(tmp_path, log, error) -> None:
    path = tmp_path / "flower.log"
    path.write_text(f"begin\n{log}\nthe end\n")
    assert flower.last_error(path) == error
    assert flower.last_error(tmp_path / "none") == ""


def test_a_long_folder_for_temporary_files_gives_way_to_a_short_one(tmp_path, monkeypatch) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with scratch.scratch() as folder:
        assert folder.parent == Path("/tmp")
        deepest = len(f"{folder}/ray/session_{'2026-11-27_12-00-00_123456_1234567'}/sockets/x")
        assert deepest < 107
    assert not folder.exists()
    with scratch.scratch(long) as folder:  # of a cluster
        assert folder.parent == long
    monkeypatch.setattr(scratch, "_SHORT", ())
    words = rf"{long}, has a path of \d+ bytes; Ray's sockets need one of at most 2\d: set TMPDIR"
    with pytest.raises(RunError, match=words), scratch.scratch():
        pass


def test_a_long_wait_says_so_again_and_again(tmp_path, monkeypatch) -> None:
    now = 0.0
    monkeypatch.setattr(events.time, "monotonic", lambda: now)
    new = Events(tmp_path, "Flower to start")

    def lines(after: float) -> list[str]:
        nonlocal now
        now += after
        return [event["line"] for event in new.new()]

    assert lines(after=10) == []
    assert lines(after=12) == ["still waiting for Flower to start, 22 s"]
    assert lines(after=19) == []
    Journal(tmp_path).say("asking", waits="Ray")
    assert lines(after=9) == ["asking"]
    assert new.waiting == "Ray, 0 s"
    assert lines(after=20) == ["still waiting for Ray, 20 s"]
    assert lines(after=20) == ["still waiting for Ray, 40 s"]
    Journal(tmp_path).say("ready")
    assert lines(after=1) == ["ready"]
    assert lines(after=99) == []
    assert new.waiting == ""


def test_what_the_kernel_killed_is_a_number() -> None:
    assert killed_for_memory() >= 0


def test_an_error_of_the_run_before_is_not_quoted_for_this_one(tmp_path, monkeypatch) -> None:
    """A resumed run's log goes behind that of the run before, which may hold its errors."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOG).write_text(TRACEBACK.format(p="", e="OSError: of the run before"))
    written = ["\x1b[92mINFO \x1b[0m: fine\n", TRACEBACK.format(p="", e="KeyError: 'of this run'")]

    def run(*given) -> str:
        given[-1].write(written.pop(0))
        return "finished:failed", "Ray to start its workers, 61 s"

    monkeypatch.setattr(simulate, "_run", run)
    killed = iter([3, 3, 3, 5])
    monkeypatch.setattr(simulate, "killed_for_memory", lambda: next(killed))
    config = Config(run_dir=str(tmp_path / "run"))
    for words in (
        r"waiting for Ray to start its workers, 61 s; the log has no error \(Flower says",
        "is KeyError: 'of this run'; meanwhile the kernel killed 2 processes here for lack of mem",
    ):
        with pytest.raises(RunError, match=words):
            simulate.simulate(config, 1, Mock(cluster=False), print, again="")
    assert (tmp_path / "run" / LOG).read_text().splitlines()[4] == "INFO : fine"  # no colours
