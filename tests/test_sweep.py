"""Sweeps: every cell once."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cold_flower.data.facts import facts
from cold_flower.errors import ConfigError, RunError
from cold_flower.repository.journal import Journal
from cold_flower.runtime import sweep
from tests.test_cli import cold_flower

SUITE = """
[tasks.mine]
source = "files"
path = "."
text = ["text"]
label = "label"
splits = {train = "train", validation = "", test = "test"}
"""


def test_values_of_a_key() -> None:
    assert sweep.parse(["seed=0..2", "partition.shards=2,5"]) == {
        "seed": [0, 1, 2],
        "partition.shards": [2, 5],
    }
    for wrong in (["seed"], ["seed="], ["seed=4..2"], ["seed=1", "seed=2"], ["seed=0..10000"]):
        with pytest.raises(ConfigError, match="--sweep expects key=first..last"):
            sweep.parse(wrong)


def test_nothing_is_a_value_and_a_value_is_taken_once() -> None:
    assert sweep.parse(["fusion.clip=,median,", "fusion.rule="]) == {
        "fusion.clip": ["", "median"],
        "fusion.rule": [""],
    }
    assert sweep.parse(["finetune.learning-rate=1e-3,0.001, 2e-3,1"]) == {
        "finetune.learning-rate": [0.001, 0.002, 1.0]
    }
    assert sweep.parse(["seed=1,1,2"]) == {"seed": [1, 2]}
    with pytest.raises(ConfigError, match="seed is of type int .*got ''"):
        sweep.parse(["seed=1,,2"])
    for key in ("run-dir=a,b", "resume=true"):
        with pytest.raises(ConfigError, match="--sweep cannot vary"):
            sweep.parse([key])


SMALL = {
    "tasks": "music,travel",
    "contributors-per-iteration": 0,
    "evaluate.protocols": "frozen",
}


FEW_SHOT = {**SMALL, "evaluate.protocols": "few-shot"}


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
    empty, median = cells(tmp_path, "fusion.clip=,median")
    assert (empty.name, empty.config.fusion.clip) == ("fusion.clip=", "")
    assert (median.name, median.config.fusion.clip) == ("fusion.clip=median", "median")
    (rate,) = cells(tmp_path, "finetune.learning-rate=1e-3")  # found again, however it is written
    assert rate.name == "finetune.learning-rate=0.001"
    (flag, _) = cells(tmp_path, "recipe=true,false", **{"contributors-per-iteration": 0})
    assert flag.name == "recipe=true"


def test_what_cannot_be_swept(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"seed is both set \(--set\) and varied \(--sweep\)"):
        cells(tmp_path, "seed=0,1", seed=3)
    with pytest.raises(ConfigError, match="two runs would lie in one folder, .*base-model=a_b"):
        cells(tmp_path, "base-model=a/b,a_b")
    for resume in (("--resume",), ("--set", "resume=true")):
        done = cold_flower("simulate", "demo", "--sweep", "seed=0,1", *resume, cwd=tmp_path)
        assert done.returncode == 1
        assert done.stderr.startswith("error: --resume is for a single run: leave it out, a sweep")
    assert list(tmp_path.iterdir()) == []


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


def test_what_does_not_fit_a_later_condition_is_found_before_the_first_begins(tmp_path) -> None:
    planned = cells(tmp_path, "seed=0,1", "few-shot.examples=20,100000", **FEW_SHOT)
    with pytest.raises(
        RunError, match="^nothing was started, for seed=0,few-shot.examples=100000 cannot: "
    ):
        sweep.run(planned, pytest.fail, pytest.fail)


def test_each_condition_is_checked_once_and_the_first_by_its_run(tmp_path, monkeypatch) -> None:
    checked, started = [], []
    monkeypatch.setattr(sweep.experiments, "check", checked.append)
    monkeypatch.setattr(sweep.shared_start, "sharing", lambda *_: None)  # nothing really runs
    planned = cells(
        tmp_path, "seed=0,1", "few-shot.examples=20,30", "fusion.clip=,median", **FEW_SHOT
    )
    sweep.run(planned, started.append, lambda line: None)
    assert checked == [planned[2].config]
    assert [config.seed for config in started] == [0] * 4 + [1] * 4


def test_a_cell_that_was_done_with_other_code_says_so(tmp_path) -> None:
    """Code, data and files of the user's own are not in the keys that make a cell another run."""
    suite = tmp_path / "suite.toml"
    suite.write_text(SUITE)
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("text,label\na,0\nb,1\n")
    (cell,) = cells(tmp_path / "runs", "seed=0")
    own = replace(cell.config, suite=str(suite), unseen="")
    begin(replace(cell, config=own), "completed", 2)
    file = Path(own.run_dir) / "config.json"
    kept = json.loads(file.read_text())
    lines: list[str] = []
    for made in (facts(own), {"versions": "x"}):
        file.write_text(json.dumps(kept | made))
        sweep.run([replace(cell, config=own, done=True)], pytest.fail, lines.append)
    file.write_text(json.dumps(kept | facts(own)))
    (tmp_path / "test.csv").write_text("text,label\na,1\nb,0\n")  # as many bytes
    sweep.run([replace(cell, config=own, done=True)], pytest.fail, lines.append)
    file.write_text(json.dumps(kept | facts(own)))
    suite.write_text(SUITE + "# another")
    sweep.run([replace(cell, config=own, done=True)], pytest.fail, lines.append)
    said = "1/1 seed=0: done before"
    others = ("", ", with other versions", ", with other mine data", ", with other suite file")
    assert lines == [said + other for other in others]


def test_a_cell_of_another_run_is_refused(tmp_path) -> None:
    begin(cells(tmp_path, "seed=0,1")[0], "completed", 2)
    with pytest.raises(RunError, match="changed finetune.batch-size"):
        cells(tmp_path, "seed=0,1", **{"finetune.batch-size": 5})


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder that is read-only")
def test_a_folder_without_permission_is_named_once() -> None:
    with pytest.raises(RunError, match=r"cannot write into /proc .*--run-dir"):
        sweep.run(cells(Path("/proc/runs"), "seed=0..4"), pytest.fail, pytest.fail)


def test_the_command_shows_what_is_to_do_and_its_cost(tmp_path) -> None:
    first, second, _ = cells(tmp_path / "few", "iterations=1..3", **SMALL)
    begin(first, "completed", 1)
    begin(second, "failed", 0)
    for iteration in (0, 1):
        (tmp_path / "few" / second.name / "iterations" / f"{iteration:04d}").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    settings = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
    done = cold_flower(
        "simulate", "demo", "--sweep", "iterations=1..3", "--run-dir", "few", "--dry-run",
        *settings, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [line.split("  ") for line in done.stdout.splitlines()]
    shown = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    # Two contributors of 360 examples, 5 epochs; two bases of the second are left to evaluate.
    assert ["iterations=1", "done", "0", "0", "0", "0.0 MB", "0.0 MB"] in shown
    (goes_on,) = (line for line in shown if line[:1] == ["iterations=2"])
    assert goes_on[1:5] == ["goes on at 2", "2", "4", "3,600"]
    (to_do,) = (line for line in shown if line[:1] == ["iterations=3"])
    assert to_do[1:5] == ["to do", "6", "8", "10,800"]
    (together,) = (line for line in shown if line[:1] == ["together"])
    assert together[1:4] == ["8", "12", "14,400"]
    assert sorted(tmp_path.rglob("*")) == before
