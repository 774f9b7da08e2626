"""The command line: what is wrong is said in one line, with a non-zero exit code."""

import io
import json
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from cold_flower.commands import cli
from cold_flower.config import Config
from cold_flower.errors import ConfigError, RunError
from cold_flower.reporting import catalogue
from cold_flower.repository.journal import Journal
from cold_flower.runtime import experiments
from cold_flower.runtime.machine import this_machine
from cold_flower.runtime.resources import allocate
from cold_flower.runtime.simulate import simulate
from cold_flower.toml import flatten
from tests.conftest import REAL, needs_real
from tests.test_tasks import suite, write

COLD_FLOWER = Path(sys.executable).parent / "cold-flower"


def cold_flower(*arguments: str, cwd: Path, timeout: int = 60) -> subprocess.CompletedProcess[str]:
    """Call the command within this process, where torch is imported already."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        deadline(timeout),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        patch.chdir(cwd)
        patch.setenv("COLUMNS", "200")
        patch.setattr(sys, "argv", ["cold-flower", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    code = ended.value.code
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


@contextmanager
def deadline(seconds: int) -> Iterator[None]:
    """Raise TimeoutError where the work takes longer."""

    def late(*_: object) -> None:
        raise TimeoutError(f"not within {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def gpt2(folder: Path) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]})
    )
    from cold_flower.models import demo as demo_model

    demo_model.tokenizer().save_pretrained(folder)
    return str(folder)


WRONG = {
    "a key": (["demo", "--set", "finetune.learning-rat=1"], "Did you mean 'finetune.learning-rate'"),
    "a value": (["demo", "--set", "seed=one"], "seed is of type int (default 0), got 'one'"),
    "no value": (["demo", "--set", "seed"], "--set expects key=value, got 'seed'"),
    "an experiment": (["dem"], "unknown experiment 'dem'. Did you mean 'demo'"),
    "an experiment file": (["nowhere.toml"], "experiment nowhere.toml cannot be read"),
    "a suite": (["demo", "--set", "suite=papr"], "unknown suite 'papr'. Did you mean 'paper'"),
    "a relative suite": (["demo", "--set", "suite=my.toml"], "give the absolute path"),
    "a task": (["demo", "--set", "tasks=wether"], "(suite demo) 'wether'. Did you mean 'weather'"),
    "a rule": (["demo", "--set", "fusion.rule=avrage"], "'avrage'. Did you mean 'average'"),
    "a rule's condition": (
        ["demo", "--set", "fusion.rule=krum", "--set", "fusion.options={byzantine = 3}"],
        "krum needs 9 contributions with these options, but an iteration may have 8",
    ),
    "an option out of range": (
        ["demo", "--set", "fusion.rule=ties", "--set", "fusion.options={density = 1.5}"],
        "density of fusion rule ties is a float in (0, 1], got 1.5",
    ),
    "a stage": (["demo", "--set", "fusion.momentum=1"], "fusion.momentum is at least 0 and below 1, got 1"),
    "a stage beside a strategy": (
        ["demo", "--set", "fusion.strategy=flwr.serverapp.strategy:FedAvg", "--set",
         "fusion.momentum=0.5"],
        "fusion.strategy replaces rule and stages",
    ),
    "an option": (["demo", "--set", "fusion.options={k = 1}"], "fusion rule average 'k'"),
    "a strategy": (
        ["demo", "--set", "fusion.strategy=flwr.serverapp.strategy:FedAgv"],
        "fusion.strategy 'flwr.serverapp.strategy:FedAgv' is not usable",
    ),
    "a protocol": (["demo", "--set", "evaluate.protocols=frozn"], "Did you mean 'frozen'"),
    "a quorum above the cohort": (
        ["demo", "--set", "quorum=9"],
        "quorum is 9, but an iteration asks 8 contributors",
    ),
    "too many contributors": (
        ["demo", "--set", "contributors-per-iteration=9"],
        "contributors-per-iteration is 9, but only 8 contributors are seen",
    ),
    "a default above what there is": (
        ["demo", "--set", "tasks=music,travel,market"],
        "contributors-per-iteration is 8 (its default), but only 3 contributors are seen",
    ),
    "sites in a simulation": (
        ["demo", "--set", "sites.minimum=5"],
        "sites.allow and sites.minimum are for `cold-flower deploy`",
    ),
    "sampling without a baseline": (
        ["demo", "--set", "sampling=balanced"],
        "sampling = 'balanced' is about the batches of a baseline",
    ),
    "a fold": (["demo", "--set", "folds=3", "--set", "unseen=", "--set", "fold=3"],
               "fold is 3, expected 0 to 2"),
    "a draw": (["demo", "--set", "few-shot.examples=361"],
               "few-shot.examples is 361, but it has 360 training examples"),
    "shards": (
        ["demo", "--set", "partition.kind=shards", "--set", "tasks=music", "--set", "unseen=",
         "--set", "partition.examples=50"],
        "10 shards of 50 need 500 training examples, there are 400",
    ),
    "a GPU that is not there": (["demo", "--gpus-per-contributor", "0.5"], "no GPU here"),
    "a GPU fraction": (["demo", "--fake-gpus", "2", "--gpus-per-contributor", "1.5"],
                       "a fraction from 0.01 to 1"),
    "cores": (["demo", "--cpus-per-contributor", "9999"], "expected 1 to"),
    "a place to log to": (["demo", "--set", "log=wandb"], "pip install wandb"),
    "a hub model without network": (
        ["demo", "--set", "base-model=no/such"],
        "base-model 'no/such' cannot be loaded",
    ),
    "a hub dataset without network": (
        ["demo", "--set", "suite=paper", "--set", "tasks=sst2,rte,cb", "--set",
         "contributors-per-iteration=0"],
        "hub dataset 'nyu-mll/glue' (subset 'sst2', split 'train') cannot be loaded",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_before_anything_starts(tmp_path, monkeypatch, capsys, case) -> None:
    arguments, words = WRONG[case]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cold-flower", "simulate", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert words in error
    assert list(tmp_path.iterdir()) == []  # nothing half-written


def test_wrong_data_and_a_wrong_model(tmp_path) -> None:
    for split in ("train", "test"):
        write(tmp_path / "data", ".csv", split=split)
    path = suite(tmp_path, label="lable")
    there = ["simulate", "demo", "--set", f"suite={path}", "--set", "contributors-per-iteration=1"]
    done = cold_flower(*there, cwd=tmp_path)
    assert "task mine" in done.stderr
    assert "no column 'lable' in" in done.stderr
    assert "first, second, label, score, word" in done.stderr
    model = gpt2(tmp_path / "gpt2")
    done = cold_flower("simulate", "demo", "--set", f"base-model={model}", cwd=tmp_path)
    assert "GPT2LMHeadModel" in done.stderr
    assert "Supported: albert, bert, camembert" in done.stderr
    assert done.returncode == 1


def test_a_run_directory_is_not_overwritten(tmp_path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("x")
    done = cold_flower("simulate", "demo", "--run-dir", "run", cwd=tmp_path)
    assert done.returncode == 1
    assert "exists: add --resume" in done.stderr
    done = cold_flower("simulate", "demo", "--run-dir", "run", "--resume", cwd=tmp_path)
    assert "holds no run" in done.stderr
    assert (tmp_path / "run" / "precious").read_text() == "x"


def test_a_resumed_run_is_the_same_run(tmp_path, monkeypatch, capsys) -> None:
    config = experiments.configure("demo", {})
    Journal(tmp_path / "run").open(config, {})
    monkeypatch.chdir(tmp_path)
    given = ["--run-dir", "run", "--resume", "--set", "finetune.batch-size=9"]
    monkeypatch.setattr(sys, "argv", ["cold-flower", "simulate", "demo", *given])
    with pytest.raises(SystemExit):
        cli.main()
    assert "changed finetune.batch-size (was 8, now 9)" in capsys.readouterr().err


def test_a_relative_base_model_is_found_by_the_run(tmp_path, monkeypatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    config = experiments.configure("demo", {"base-model": "mine"})
    assert config.base_model == str((tmp_path / "mine").resolve())


def test_an_environment_that_ray_cannot_use(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "prefix", "/home/ann/my project/.venv")
    config = experiments.configure("demo", {"run-dir": str(tmp_path / "run")})
    allocation = allocate(this_machine(), contributors=12, footprint=1e9)
    with pytest.raises(RunError, match="path has a space: '/home/ann/my project"):
        simulate(config, 12, allocation, print, "again")
    assert list(tmp_path.iterdir()) == []


def test_lists(tmp_path) -> None:
    for command, words in (
        ("rules", "average"),
        ("suites", "paper: 36 tasks"),
        ("experiments mnli_additional_data", "MNLI, 5 contributors with 5,000 fresh examples"),
        ("keys", "finetune.head = "),
        ("--help", "simulate demo"),
    ):
        done = cold_flower(*command.split(), cwd=tmp_path)
        assert done.returncode == 0
        assert words in done.stdout


def test_a_dry_run_shows_what_would_happen_and_leaves_nothing(tmp_path) -> None:
    done = cold_flower("simulate", "demo", "--dry-run", "--set", "seed=3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
    configuration = done.stdout.split("Cohorts")[0]
    table = flatten(tomllib.loads(configuration))
    assert table["seed"] == 3
    assert table.keys() == Config().flat().keys()
    for words in ("16 ", "28,800 training examples", "92 ", "0.4 MB a body", "2 contributors at"):
        assert words in done.stdout


def test_a_dry_run_says_whose_the_values_are_and_what_does_nothing(tmp_path) -> None:
    done = cold_flower(
        "simulate", "demo", "--dry-run", "--fake-gpus", "2", "--set", "tasks=music,market", "--set",
        "contributors-per-iteration=0", "--set", "finetune.batch-size=9", "--set",
        "finetune.micro-batch-size=10", "--set", "gate.budget=1", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for words in (
        "finetune.batch-size = 9  # default: 256\n",
        "probe.epochs = 15  # from the recipe of suite demo; default: 50\n",
        'unseen = ""\n',
        "in truth all contributors share this machine's ",
        "WARNING: finetune.micro-batch-size is 10, but a batch has 9 examples",
        "WARNING: there is no gate, so its keys do nothing",
    ):
        assert words in done.stdout
    assert re.search(r"1 to 2 +market, music *\n", done.stdout)


def test_a_dry_run_looks_at_the_run_directory_and_leaves_it_alone(tmp_path) -> None:
    given = ["simulate", "demo", "--run-dir", "run", "--set", "iterations=4", "--dry-run"]
    config = experiments.configure("demo", {"run-dir": str(tmp_path / "run")})
    journal = Journal(tmp_path / "run")
    journal.open(config, {})
    journal.unlock()
    for iteration in (0, 1, 2):
        (tmp_path / "run" / "iterations" / f"{iteration:04d}").mkdir(parents=True)
    (tmp_path / "run" / "iterations" / "latest").symlink_to("0002")
    (tmp_path / "run" / "incoming" / "0003").mkdir(parents=True)
    for name in ("music.safetensors", "music.sha256", "travel.safetensors"):  # travel's is cut off
        (tmp_path / "run" / "incoming" / "0003" / name).touch()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    done = cold_flower(*given, "--resume", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for words in (
        "run: iterations 3 to 4 would run; already here for iteration 3: music; scores of base 2",
        "contributions   16 ",  # two iterations of eight
        "evaluations     92 ",  # bases 2, 3, 4, twelve tasks, three protocols; 16 by contributions
    ):
        assert words in done.stdout
    assert re.search(r"3 to 4 +\w+, \w+, ", done.stdout)
    done = cold_flower(*given, cwd=tmp_path)
    assert "exists: add --resume" in done.stderr
    done = cold_flower(*given, "--resume", "--set", "probe.epochs=9", cwd=tmp_path)
    assert "changed probe.epochs (was 15, now 9)" in done.stderr
    done = cold_flower(*given, "--resume", "--set", "iterations=1", cwd=tmp_path)
    assert "with iterations = 1: it was to have 2" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    journal.write("result.json", {"status": "completed", "iterations": 4, "cause": ""})
    done = cold_flower(*given, "--resume", cwd=tmp_path)
    assert done.stdout.endswith("run is complete: nothing is left to do\n")


def test_where_a_run_goes_may_be_set_as_any_key(tmp_path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").touch()
    done = cold_flower("simulate", "demo", "--set", "run-dir=full", "--dry-run", cwd=tmp_path)
    assert f"run directory {tmp_path / 'full'} exists" in done.stderr
    done = cold_flower("simulate", "demo", "--set", "resume=true", "--dry-run", cwd=tmp_path)
    assert "resume continues a run, so it needs its directory" in done.stderr


def test_an_error_of_the_recipe_names_the_way_out(tmp_path) -> None:
    done = cold_flower(
        "simulate", "demo", "--set", "base-model=demo", "--set", "baseline=multitask", cwd=tmp_path
    )
    assert "iterations = 2: expected 'multitask' and iterations = 1" in done.stderr
    assert done.stderr.endswith(
        "(iterations is from the [recipe] of suite demo; --set iterations=... overrides it)\n"
    )


def test_every_shipped_experiment_is_valid_and_says_what_it_is() -> None:
    for name in catalogue.names():
        config = experiments.configure(name, {})
        assert config.experiment == name
        assert experiments.check_keys(config).seen
        text = (catalogue.folder() / f"{name}.toml").read_text()
        assert text.startswith("# ")


def test_a_setting_keeps_a_default_that_was_asked_for() -> None:
    recipe = experiments.configure("demo", {})
    assert recipe.finetune.batch_size == 8
    asked = experiments.configure("demo", experiments.parse_settings(["finetune.batch-size=256"]))
    assert asked.finetune.batch_size == 256
    with pytest.raises(ConfigError, match="finetune.batch-size is of type int"):
        experiments.configure("demo", experiments.parse_settings(["finetune.batch-size=many"]))


@needs_real
def test_real_small_fits_the_real_copies() -> None:
    given = [f"suite={REAL}/data/suite.toml", f"base-model={REAL}/models/minilm"]
    config = experiments.configure("real_small", experiments.parse_settings(given))
    whole = experiments.check(config).plan
    assert (len(whole.seen), len(whole.unseen)) == (24, 6)
