"""Sweeps: every cell once."""

import json
from pathlib import Path

import pytest

from cold_flower.errors import ConfigError, RunError
from cold_flower.repository.journal import Journal
from cold_flower.runtime import sweep
from tests.test_cli import cold_flower


def test_values_of_a_key() -> None:
    assert sweep.parse(["seed=0..2", "partition.shards=2,5"]) == {
        "seed": ["0", "1", "2"],
        "partition.shards": ["2", "5"],
    }
    for wrong in (["seed"], ["seed="], ["seed=4..2"], ["seed=1", "seed=2"]):
        with pytest.raises(ConfigError, match="--sweep expects key=first..last"):
            sweep.parse(wrong)


def cells(folder: Path, *axes: str, **settings):
    return list(sweep.cells("demo", settings, sweep.parse(axes), folder))


def begin(cell: sweep.Cell, status: str, iterations: int) -> None:
    journal = Journal(Path(cell.config.run_dir))
    journal.open(cell.config, {})
    journal.unlock()
    journal.write("result.json", {"status": status, "iterations": iterations, "cause": ""})


def test_a_cell_for_each_combination(tmp_path) -> None:
    planned = cells(tmp_path, "seed=0,1", "fusion.clip=median,0.5")
    assert [cell.name for cell in planned] == [
        "seed=0,fusion.clip=median",
        "seed=0,fusion.clip=0.5",
        "seed=1,fusion.clip=median",
        "seed=1,fusion.clip=0.5",
    ]
    assert (planned[3].config.seed, planned[3].config.fusion.clip) == (1, "0.5")
    assert Path(planned[0].config.run_dir) == tmp_path / planned[0].name
    assert not any(cell.done or cell.config.resume for cell in planned)
    with pytest.raises(ConfigError, match="Did you mean 'seed'"):
        cells(tmp_path, "sed=1,2")


def test_finished_cells_are_not_run_again_and_begun_ones_go_on(tmp_path) -> None:
    first, second, third, fourth = cells(tmp_path, "seed=0..3")
    begin(first, "completed", 2)
    begin(second, "failed", 1)
    begin(third, "completed", 1)  # of two iterations: extended
    again = cells(tmp_path, "seed=0..3")
    assert [cell.done for cell in again] == [True, False, False, False]
    assert [cell.config.resume for cell in again] == [True, True, True, False]
    started, lines = [], []

    def start(config) -> None:
        started.append(config.seed)
        if config.seed == 2:
            raise RunError("boom")

    with pytest.raises(RunError, match="1 of 4 cells failed: seed=2; the same command"):
        sweep.run(again, start, lines.append)
    assert started == [1, 2, 3]
    assert lines[0] == "1/4 seed=0: done before"
    assert fourth.name == "seed=3"


def test_a_cell_of_another_run_is_refused(tmp_path) -> None:
    begin(cells(tmp_path, "seed=0,1")[0], "completed", 2)
    with pytest.raises(RunError, match="changed finetune.batch-size"):
        cells(tmp_path, "seed=0,1", **{"finetune.batch-size": 5})


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder that is read-only")
def test_a_folder_without_permission_is_named_once() -> None:
    with pytest.raises(RunError, match=r"cannot write into /proc .*--run-dir"):
        sweep.run(cells(Path("/proc/runs"), "seed=0..4"), pytest.fail, pytest.fail)


def test_the_command_shows_what_is_to_do(tmp_path) -> None:
    begin(cells(tmp_path / "five", "seed=0..1")[0], "completed", 2)
    done = cold_flower(
        "simulate", "demo", "--sweep", "seed=0..1", "--run-dir", "five", "--dry-run", cwd=tmp_path
    )
    assert done.stdout.splitlines() == ["seed=0: done", "seed=1: to do"]
    assert json.loads((tmp_path / "five/seed=0/result.json").read_text())["iterations"] == 2
