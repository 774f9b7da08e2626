"""What a command says is the way out: it can be pasted, and fits what was given by mistake."""

import shlex
from pathlib import Path

import pytest

import cold_flower
from cold_flower.commands import history
from cold_flower.config import Config
from cold_flower.errors import ConfigError, RunError
from cold_flower.repository.journal import Journal
from cold_flower.runtime import deploy, mistaken, runner
from cold_flower.runtime.processes import Stopped
from strategies import fusion
from tests.test_cli import cold_flower as command

ODD = "ü s/rün 1"
SUITE = "[tasks.music]\nsource = 'files'\npath = 'x'\n\n[recipe]\nfinetune.max-length = 64\n"


@pytest.fixture
def begun(tmp_path) -> Config:
    """Return the configuration of a run that has begun, in a folder with spaces."""
    config = Config.from_flat({"run-dir": str(tmp_path / ODD), "sites.allow": "*"})
    journal = Journal(Path(config.run_dir))
    journal.open(config, {})
    journal.unlock()
    return config


def pasted(text: object) -> list[str]:
    """Return what a shell makes of the command at a text's end."""
    return shlex.split("--resume" + str(text).rpartition("--resume")[2])


def test_how_a_run_is_resumed_can_be_pasted(begun, monkeypatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(runner, "_is_left", lambda config: True)
    monkeypatch.setattr(runner, "prepare", lambda *_: None)
    monkeypatch.setattr(runner, "_run", lambda ready, started, again, opened: said.append(again))
    runner.run(begun, runner.Sharing())
    assert pasted(said[0]) == ["--resume", "--run-dir", begun.run_dir]
    going_on = history.resume(Path(begun.run_dir), 3)
    assert pasted(going_on) == ["--resume", "--run-dir", begun.run_dir, "--set", "iterations=3"]


def test_how_a_run_with_sites_is_resumed_can_be_pasted(begun, monkeypatch) -> None:
    def stop(*_: object) -> str:
        raise Stopped(2)

    said: list[str] = []
    monkeypatch.setattr(deploy, "check_new", lambda folder: None)
    monkeypatch.setattr(deploy, "stage", lambda folder, config: folder)
    monkeypatch.setattr(deploy, "fab_sha256", lambda app: "f")
    monkeypatch.setattr(deploy, "_submit", lambda *_: "1")
    monkeypatch.setattr(deploy, "flwr", lambda *_: {})
    monkeypatch.setattr(deploy, "_follow", stop)
    with pytest.raises(Stopped):
        deploy.deploy(begun, "", said.append)
    assert pasted(said[-1]) == ["--resume", "--run-dir", begun.run_dir]
    monkeypatch.setattr(deploy, "_follow", lambda *_: "finished:stopped")
    with pytest.raises(RunError) as failed:
        deploy.deploy(begun, "", said.append)
    assert pasted(failed.value) == ["--resume", "--run-dir", begun.run_dir]


def test_how_a_new_site_goes_on_can_be_pasted(tmp_path) -> None:
    (tmp_path / "ü s").mkdir()
    done = command("site", "init", "clinic-a", "ü s/site.toml", cwd=tmp_path)
    assert shlex.split(done.stdout)[-3:] == ["site", "check", "ü s/site.toml"]


def test_a_file_that_is_no_experiment_is_named_with_its_place(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("suite.toml").write_text(SUITE)
    Path("recipe.toml").write_text("[recipe]\nfinetune.max-length = 64\n")
    Path("empty.toml").write_text("# What I will try.\n")
    assert command("site", "init", "clinic-a", cwd=tmp_path).returncode == 0
    for name, words in (
        ("suite", f"suite.toml is a suite file: --set suite={tmp_path}/suite.toml gives it to"),
        ("site", f"site.toml is a site file: `cold-flower site check {tmp_path}/site.toml`"),
        ("recipe", "recipe.toml is a recipe: its table goes into a suite file"),
        ("empty", "experiment empty.toml says nothing: expected keys, such as iterations = 4"),
    ):
        for given in (
            ["simulate", "--dry-run"], ["simulate", "--dry-run", "--sweep", "seed=0,1"],
            ["compare", "--rules", "ties", "--dry-run"], ["deploy"],
        ):  # fmt: skip
            done = command(*given, f"{name}.toml", cwd=tmp_path)
            assert (done.returncode, done.stdout) == (1, "")
            assert f"error: {words}" in done.stderr
        with pytest.raises(ConfigError, match=f"{name}.toml"):
            cold_flower.compare(Path(f"{name}.toml"), rules=["ties"])
    assert not Path("runs").exists()


def test_your_own_broken_experiments_are_listed_with_what_is_wrong(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "dup": "iterations = 1\niterations = 2",
        "empty": "",
        "good": "iterations = 1",
        "mostly": "iterations = 1\nseed = 2\ncolour = 'red'",
        "pyproject": "[project]\nname = 'x'\nversion = '1'\n[tool.ruff]\nline-length = 100",
        "recipe": "[recipe]\nfinetune.max-length = 64",
        "site": 'name = "a"\nbase-model = "b"\n[task]\nsource = "files"',
        "suite": SUITE,
        "typo": "iteratons = 1",
    }.items():
        Path(f"{name}.toml").write_text(text + "\n")
    dup, mostly, typo = mistaken.broken(Path())
    assert dup.startswith("dup.toml is not TOML: Cannot overwrite a value")
    assert mostly.startswith("mostly.toml: unknown key 'colour'.")
    assert typo.startswith("typo.toml: unknown key 'iteratons'. Did you mean 'iterations'")
    done = command("experiments", cwd=tmp_path)
    assert done.returncode == 0
    assert "good.toml" in done.stdout
    assert done.stderr.splitlines() == [f"left out: {line}" for line in (dup, mostly, typo)]


@pytest.mark.parametrize("text", ["def broken(:", "import nothing_of_that_name", "x = 1"])
def test_a_broken_rule_hides_no_other(tmp_path, monkeypatch, text) -> None:
    (tmp_path / "broken.py").write_text(text + "\n")
    monkeypatch.setattr(fusion, "__path__", [*fusion.__path__, str(tmp_path)])
    every = command("rules", cwd=tmp_path)
    assert every.returncode == 0
    assert every.stdout.count("Options:") == len(fusion.names()) - 1
    alone = command("rules", "broken", cwd=tmp_path)
    assert (alone.returncode, alone.stdout) == (1, "")
    said = "fusion rule 'broken' cannot be loaded: "
    assert every.stderr.startswith(f"left out: {said}") and every.stderr.count("\n") == 1
    assert alone.stderr.startswith(f"error: {said}") and alone.stderr.count("\n") == 1
