"""One command at a time for a run directory."""

import time

import pytest

from cold_flower.config import Config
from cold_flower.errors import RunError
from cold_flower.repository.journal import RESULT, Journal
from cold_flower.runtime import alone as module
from cold_flower.runtime import runner
from cold_flower.runtime.alone import alone


def test_a_second_command_waits_for_nothing_and_removes_nothing(tmp_path) -> None:
    """Not even before there is a directory; and what the first one leaves is a free place."""
    run = tmp_path / "runs" / "mine"
    with alone(run):
        said = r"another command is at work with .*mine: .*--run-dir"
        with pytest.raises(RunError, match=said), alone(run):
            pytest.fail("both")
        with alone(tmp_path / "runs" / "other"):
            pass
    with alone(run):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_server_of_another_command_counts_but_one_that_ends_is_waited_for(
    tmp_path, monkeypatch
) -> None:
    config = Config.from_flat({"run-dir": str(tmp_path / "run"), "iterations": 1})
    journal = Journal(tmp_path / "run")
    journal.open(config, {})  # locks it
    journal.write(RESULT, {"status": "failed", "iterations": 1, "cause": ""})
    resumed = Config.from_flat({**config.flat(), "resume": True})
    monkeypatch.setattr(module, "PATIENCE", 0)
    monkeypatch.setattr(runner, "check_start", lambda *_: None)
    monkeypatch.setattr(runner, "prepare", pytest.fail)
    with pytest.raises(RunError, match="another run is at work in"):
        runner.run(resumed, runner.Sharing())
    assert (tmp_path / "run" / RESULT).exists()
    monkeypatch.setattr(module, "PATIENCE", 10)
    monkeypatch.setattr(time, "sleep", lambda _: journal.unlock())
    with alone(tmp_path / "run"):
        pass
