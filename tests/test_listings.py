"""What the command says there is: its version, completion, the experiments."""

import re

import pytest
from typer.testing import CliRunner

from cold_flower import __version__
from cold_flower.commands import cli
from cold_flower.errors import ConfigError
from cold_flower.reporting import catalogue, reference
from cold_flower.runtime import experiments, runner, sweep


def said(*arguments: str) -> str:
    done = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_version_and_completion() -> None:
    assert said("--version") == f"cold-flower {__version__}\n"
    assert "--install-completion" in said("--help")
    assert "2 a wrong command line" in said("--help")


@pytest.mark.parametrize("arguments", [["simulat"], ["simulate"], ["simulate", "demo", "--sed=1"]])
def test_a_wrong_command_line_has_exit_code_2(arguments) -> None:
    assert CliRunner().invoke(cli.app, arguments).exit_code == 2


def test_every_shipped_experiment_says_what_it_shows_and_how_long_it_takes() -> None:
    described = catalogue.shipped()
    assert [experiment.name for experiment in described] == catalogue.names()
    for experiment in described:
        assert experiment.time
        assert re.match("Section|App|ColD Fusion|The paper", experiment.what), experiment.name
        assert experiment.what.endswith(".")
        assert experiment.text.startswith(experiment.what)


FULL_SIZE = [name for name in catalogue.names() if not name.endswith("_small") and name != "demo"]


@pytest.mark.parametrize("name", FULL_SIZE)
def test_one_of_full_size_says_what_the_paper_found_and_what_it_does_not_say(name) -> None:
    lines = [line for line in said("experiments", name).splitlines() if line.startswith("#")]
    starts = ["# Time: ", "# The paper's outcome: ", "# Not in the paper's text: "]
    found = [line.startswith(tuple(starts)) and line.split(":")[0] + ": " for line in lines]
    # Only those where every value stands in the text have no third part.
    complete = {"multitask", "fused", "fixed_examples", "muppet", "mnli_centralised"}
    assert [start for start in found if start] == (starts[:2] if name in complete else starts)
    assert max(map(len, lines)) <= 100
    assert len(lines) <= 9


def test_a_header_and_its_keys_name_the_same_iterations() -> None:
    for described in catalogue.shipped():
        config = experiments.configure(described.name, {})
        for number in re.findall(r"(\d+) iterations(?! \(F)", described.what):
            assert int(number) == config.iterations, described.name
        # a sweep is one that the command takes
        for key, values in re.findall(r"--sweep ([\w.-]+)=([\d.,]*\d)", described.text):
            for value in sweep.parse([f"{key}={values}"])[key]:
                settings = experiments.parse_settings([f"{key}={value}"])
                experiments.check_keys(experiments.configure(described.name, settings))


def test_the_headers_figures_are_the_published_ones() -> None:
    text, table = reference.said()["text"], reference.said()["table"]
    about = catalogue.about("multitask")
    assert f"{text['gain']:+} on average, better on {text['better-percent']} %" in about
    assert f"{text['worst']:+} at worst." in about
    assert f"{table['gain']:+.2f}, {table['better']} of 35 better and one equal" in about
    assert f"{table['worst']:+} at worst." in about
    assert f"outcome: {text['multitask']:+}." in catalogue.about("multitask_baseline")
    muppet = catalogue.about("muppet")  # test_reference.py computes these
    assert "+1.76 on 34 datasets, and WNLI's -15.77 at worst" in muppet


@pytest.mark.parametrize("name", ["contributors", "fixed_examples", "pools"])
def test_what_the_paper_does_with_36_datasets_is_done_with_36(name) -> None:
    whole = experiments.check_keys(experiments.configure(name, {}))
    assert len(whole.names) == 36
    if name != "pools":
        assert len(whole.seen) == 36


def test_the_table_lists_shipped_experiments_and_yours(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(
        "# What I try.\n# Time: an hour.\n\niterations = 2\nfinetune.max-examples = 9\n"
    )
    (tmp_path / "suite.toml").write_text("[tasks.x]\npath = 'y'\n")  # no experiment
    (tmp_path / "broken.toml").write_text("= 3")
    lines = [line.split() for line in said("experiments").splitlines() if line.strip()]
    rows = {line[0]: line for line in lines}
    assert rows["demo"][-1] == "shipped"
    assert rows["mine.toml"] == ["mine.toml", "What", "I", "try.", "an", "hour", "yours"]
    assert not {"suite.toml", "broken.toml"} & rows.keys()
    assert said("experiments", "mine.toml") == (tmp_path / "mine.toml").read_text()
    assert said("experiments", "multitask").startswith("# Section 5.1")
    with pytest.raises(
        ConfigError, match="unknown experiment 'multitsk'. Did you mean 'multitask'"
    ):
        said("experiments", "multitsk")


def test_keys_with_a_word_and_none() -> None:
    assert "partition.shards = 10" in said("keys", "shards")
    assert "partition.shards = 10" in said("keys", "Partition.SHARDS")
    with pytest.raises(ConfigError, match="unknown config key 'shard5'.*'partition.shards'"):
        said("keys", "shard5")


def test_a_cohort_that_stays_the_same_is_one_line() -> None:
    shown = said(
        "simulate", "demo", "--dry-run", "--set", "contributors-per-iteration=0",
        "--set", "iterations=7", "--set", "tasks=travel,music", "--set", "unseen=market",
    )  # fmt: skip
    assert re.search(r"1 to 7 +music, travel *\n", shown)
    assert "3 contributors evaluate: travel, music, market" in shown


def test_with_a_pool_all_tasks_are_shown_as_evaluated() -> None:
    shown = said(
        "simulate", "demo", "--dry-run", "--set", "pool=2", "--set", "tasks=travel,music,market",
        "--set", "unseen=", "--set", "contributors-per-iteration=0", "--set", "iterations=1",
    )  # fmt: skip
    evaluating = re.search(r"3 contributors evaluate: (.*)", shown)
    assert evaluating
    pool = evaluating[1].split(", ")[:2]
    assert re.search(rf"1 +{', '.join(sorted(pool))} *\n", shown)


def test_t5_is_finetuned_as_t5_is() -> None:
    config = experiments.configure("t5", {})
    options = config.finetune
    assert (options.optimizer, options.schedule) == ("adafactor", "constant")
    assert (options.learning_rate, options.batch_size) == (4e-4, 256)
    assert (options.warmup_ratio, options.weight_decay) == (0, 0)
    assert "t5-base is an assumption" in catalogue.about("t5")


def test_what_a_run_says_first() -> None:
    def said_of(**keys) -> str:
        flat = {name.replace("_", "-"): value for name, value in keys.items()}
        config = experiments.configure("demo", {"contributors-per-iteration": 0, **flat})
        return runner.introduction(runner.prepare(config, runner.Sharing()))

    assert "base model demo, 2 iterations, seed 0" in said_of(tasks="travel,music")
    assert "WARNING" not in said_of(tasks="travel,music")
    assert "a single contributor" in said_of(tasks="travel")
    scoring = said_of(tasks="travel", iterations=0)
    assert "suite demo, scoring demo (frozen,finetuned,few-shot), seed 0" in scoring
    assert "WARNING" not in scoring


def test_about_an_experiment_that_is_not_shipped() -> None:
    assert catalogue.about("mine") == ""
    assert "+2.33 on average" in catalogue.about("multitask")
