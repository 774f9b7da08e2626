"""Flower's command line, the judgement of a run, and where a run may write."""

import json
import os
from pathlib import Path

import pytest

from cold_flower.errors import RunError
from cold_flower.repository.journal import CONFIG, PROGRESS, RESULT
from cold_flower.runtime import flower
from cold_flower.runtime.events import Events
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
