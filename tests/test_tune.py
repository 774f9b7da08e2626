"""Finding a recipe: who goes on to the next tasks, what is chosen and why, and that it resumes."""

import tomllib
from collections import Counter

import pytest
from safetensors.torch import load_file, save_file

import cold_flower
from cold_flower.commands import cli
from cold_flower.config import Config
from cold_flower.data import sources
from cold_flower.data.suite import load_suite
from cold_flower.errors import ColdFlowerError, ConfigError, RunError
from cold_flower.repository.journal import Journal
from cold_flower.runtime import tune as module
from cold_flower.runtime.tune import Candidate, tune

TASKS = ("travel", "music", "kitchen", "garden")
SMALL = {
    "finetune.max-examples": 24, "finetune.dev-examples": 12, "few-shot.examples": 12,
    "few-shot.draws": 1, "finetune.precision": "fp32",
}  # fmt: skip
GRIDS = {
    "finetuned": ((1e-6, 1e-3), (1, 2)), "frozen": ((1e-3, 1e-2), (5,)),
    "few-shot": ((1e-3,), (2,)),
}  # fmt: skip


@pytest.fixture
def scores(request, monkeypatch, hopeless):
    """Let a table say what a trial scores; return what was asked for, in order."""
    asked = []
    stopped = getattr(request, "param", "epochs")

    def score(self, candidate, task):
        asked.append((candidate.learning_rate, candidate.epochs, task))
        dev = {1.0: 0.5, 2.0: 0.6, 3.0: 0.7, 4.0: 0.7}[candidate.learning_rate]
        dev += TASKS.index(task) / 100 if task in TASKS else 0
        dev = 0.4 if task in hopeless else dev
        return {"dev": dev, "majority": 0.45, "n-dev": 10_000, "improving": 1, "stopped": stopped}

    monkeypatch.setattr(module._Trials, "_score", score)
    return asked


@pytest.fixture
def hopeless():
    """Tasks that nobody learns."""
    return set()


def search(tmp_path, rates=(1.0, 2.0, 3.0, 4.0), epochs=(3,), keys=None, **options):
    place = {"run-dir": str(tmp_path / "run"), "resume": (tmp_path / "run").exists()}
    config = Config.from_flat({**SMALL, **place, **(keys or {})})
    options = {"tasks": TASKS, "say": lambda line: None} | options
    return tune(config, protocols=["finetuned"], grids={"finetuned": (rates, epochs)}, **options)


def test_the_better_half_goes_on_to_twice_as_many_tasks(tmp_path, scores) -> None:
    tuned = search(tmp_path)
    assert [pair for pair in scores if pair[0] in (1.0, 2.0)] == [
        (rate, 3, task) for rate in (1.0, 2.0) for task in TASKS[:2]
    ]
    assert [pair[2] for pair in scores if pair[0] == 3.0] == list(TASKS)
    choice = tuned.choices["finetuned"]
    assert [one.candidate.learning_rate for one in choice.tried] == [3.0, 4.0, 2.0, 1.0]
    assert choice.tried[0].mean(TASKS) == pytest.approx(0.715)
    assert tuned.recipe == {"finetune.learning-rate": 3.0, "finetune.max-epochs": 3}
    assert list(choice.reasons) == [
        "learning rate 3, 3 epochs: mean dev 71.5 on travel, music, kitchen, garden, the best of 4",
        "0.0 ± 0.0 points above the next, learning rate 4, 3 epochs",
        "at the edge of what was tried: another number of epochs may be better",
    ]
    assert not tuned.unfinished


def test_tasks_double_from_rung_to_rung(tmp_path, scores) -> None:
    search(tmp_path, epochs=(3, 4), tasks=(*TASKS, "weather", "sports", "office", "cinema"))
    tried = Counter(pair[:2] for pair in scores)
    assert {tried[rate, epochs] for rate in (1.0, 2.0) for epochs in (3, 4)} == {2}
    assert {tried[rate, 4] for rate in (3.0, 4.0)} == {4}
    assert {tried[rate, 3] for rate in (3.0, 4.0)} == {8}  # the last two: all of them


def test_a_task_that_nobody_learns_does_not_count(tmp_path, scores, hopeless) -> None:
    hopeless.add("music")
    choice = search(tmp_path).choices["finetuned"]
    assert list(choice.tasks) == ["travel", "kitchen", "garden"]
    assert choice.tried[0].mean(choice.tasks) == pytest.approx(0.7 + 0.05 / 3)
    assert choice.reasons[-1] == ("music did not count: none was better than its largest class")
    hopeless.update(TASKS)
    (tmp_path / "all").mkdir()
    choice = search(tmp_path / "all").choices["finetuned"]
    assert list(choice.tasks) == list(TASKS)
    assert choice.reasons[-1] == (
        "no better than the largest class on travel, music, kitchen, garden"
    )


def test_of_equals_the_one_with_fewer_epochs(tmp_path, scores) -> None:
    tuned = search(tmp_path, rates=(3.0,), epochs=(9, 3))
    assert tuned.recipe["finetune.max-epochs"] == 3


@pytest.mark.parametrize("scores", ["time", "early"], indirect=True)
def test_more_epochs_are_no_help_to_what_ended_before(tmp_path, scores) -> None:
    assert not any(
        "at the edge" in reason for reason in search(tmp_path).choices["finetuned"].reasons
    )


def test_a_key_that_is_tried_may_change_and_data_that_changed_are_tried_anew(
    tmp_path, scores, monkeypatch
) -> None:
    search(tmp_path)
    before = len(scores)
    search(tmp_path, keys={"finetune.learning-rate": 0.3, "probe.epochs": 7})  # a pasted recipe
    assert len(scores) == before
    with pytest.raises(RunError, match=r"changed finetune\.batch-size"):
        search(tmp_path, keys={"finetune.batch-size": 3})
    stamp = sources.stamp
    monkeypatch.setattr(
        sources, "stamp", lambda task: ["new"] if task.name == "music" else stamp(task)
    )
    search(tmp_path)
    assert scores[before:] == [(rate, 3, "music") for rate in (1.0, 2.0, 3.0, 4.0)]


def test_nothing_is_tried_twice_and_more_can_be_tried(tmp_path, scores) -> None:
    search(tmp_path)
    before = len(scores)
    assert before == 4 * 2 + 2 * 2
    search(tmp_path)
    assert len(scores) == before
    search(tmp_path, rates=(1.0, 2.0, 3.0, 4.0), epochs=(3, 4))
    assert {pair[1] for pair in scores[before:]} == {4}


def test_with_other_weights_in_the_base_models_folder_all_is_tried_again(
    tmp_path, scores, folders
) -> None:
    folder = folders("roberta", "RobertaForMaskedLM")

    def tries():
        keys = {"run-dir": str(tmp_path / "run"), "resume": (tmp_path / "run").exists()}
        config = Config.from_flat({**SMALL, **keys, "base-model": str(folder)})
        before, grid = len(scores), {"finetuned": ((1.0,), (3,))}
        tune(config, protocols=["finetuned"], tasks=TASKS, grids=grid, say=lambda line: None)
        return len(scores) - before

    assert (tries(), tries()) == (4, 0)
    weights = load_file(folder / "model.safetensors")
    weights["roberta.embeddings.LayerNorm.bias"] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert (tries(), tries()) == (4, 0)


def test_a_budget_ends_it_between_trials(tmp_path, scores, monkeypatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with pytest.raises(RunError, match="before every candidate was tried on travel, music: the sa"):
        search(tmp_path, budget=4)
    tuned = search(tmp_path, budget=24)  # through the first rung, and no further
    assert list(tuned.unfinished) == ["finetuned"]
    assert list(tuned.choices["finetuned"].tasks) == ["travel", "music"]
    assert "did not count" not in tuned.toml()  # tasks of the rung that was cut off
    assert search(tmp_path).choices["finetuned"].tasks == list(TASKS)


def test_tasks_are_drawn_from_those_that_contribute(tmp_path, scores) -> None:
    search(tmp_path, tasks=("music", "travel"))
    drawn = {
        seed: module._tasks(module.plan(Config.from_flat({"unseen": "music"})), (), seed)
        for seed in range(5)
    }
    assert drawn[0] == module._tasks(module.plan(Config.from_flat({"unseen": "music"})), (), 0)
    assert all(len(set(tasks)) == 4 and "music" not in tasks for tasks in drawn.values())
    assert len({tuple(tasks) for tasks in drawn.values()}) > 1
    with pytest.raises(ConfigError, match="unknown task 'musik'. Did you mean 'music'"):
        search(tmp_path, tasks=("musik",))


def test_a_recipe_for_all_protocols_from_real_trials(tmp_path, own_home) -> None:
    """What trains beats what does not; the recipe can be put into a suite file."""
    config = Config.from_flat({**SMALL, "run-dir": str(tmp_path / "run")})
    lines = []
    tuned = tune(config, tasks=["travel"], grids=GRIDS, say=lines.append)
    assert set(tuned.recipe) == {
        *("finetune.learning-rate", "finetune.max-epochs", "probe.learning-rate"),
        *("probe.epochs", "few-shot.learning-rate", "few-shot.epochs"),
    }
    assert tuned.recipe["few-shot.epochs"] == 2
    assert len(lines) == 4 + 2 + 1
    rows = Journal(tmp_path / "run").rows(module.TRIALS)
    trained = [row for row in rows if row["protocol"] == "finetuned"]
    assert all({"dev-start", "dev-majority", "improving"} <= row.keys() for row in trained)
    pasted = (tmp_path / "suite.toml").write_text(
        tuned.toml() + '[tasks.a]\nsource = "demo"\ntext = ["text"]\nlabel = "label"\n'
        'splits = { train = "train", test = "test" }\n'
    )
    assert pasted and dict(load_suite(str(tmp_path / "suite.toml")).recipe) == tuned.recipe
    Config.from_flat(tuned.recipe)  # every key is known


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"base-model": "/nowhere"}, "base-model '/nowhere' cannot be loaded"),
        ({"few-shot.examples": 999}, "few-shot.examples is 999, but it has 24 training examples"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_written(tmp_path, keys, words) -> None:
    config = Config.from_flat({**SMALL, "run-dir": str(tmp_path / "run"), **keys})
    with pytest.raises(ColdFlowerError, match=words):
        tune(config, tasks=["travel"])
    assert not (tmp_path / "run").exists()


def test_few_shot_has_a_learning_rate_of_its_own() -> None:
    assert Candidate("few-shot", 1e-3, 5).settings == {
        "few-shot.learning-rate": 1e-3,
        "few-shot.epochs": 5,
    }


def test_the_command_prints_a_table_and_a_recipe(tmp_path, monkeypatch, capsys, scores) -> None:
    monkeypatch.chdir(tmp_path)
    command = "tune --suite demo --base-model demo --tasks travel,music --protocols finetuned"
    cli.app(f"{command} --learning-rates 1,3 --epochs 2".split(), standalone_mode=False)
    said = capsys.readouterr().out
    assert "finetuned: dev scores in points" in said
    written = tomllib.loads((tmp_path / "runs" / "tune-demo" / "recipe.toml").read_text())
    assert written["recipe"]["finetune"] == {"learning-rate": 3.0, "max-epochs": 2}
    for words, wrong in (
        ("--learning-rates is a list of numbers above 0", "--learning-rates fast"),
        ("--epochs is a list of numbers above 0, such as 3,10; got '0'", "--epochs 0"),
        ("unknown protocol 'frosen'", "--protocols frosen"),
        ("for finetuned, which is not asked", "--protocols frozen --epochs 5"),
        ("needs a protocol, and no task twice", "--tasks travel,travel"),
    ):
        with pytest.raises(ConfigError, match=words):
            cli.app(f"{command} {wrong}".split(), standalone_mode=False)


def test_the_function_says_what_the_command_says(tmp_path, scores) -> None:
    tuned = cold_flower.tune(
        suite="demo", base_model="demo", tasks=["travel"], protocols=["finetuned"],
        learning_rates=[1.0, 4.0], epochs=[7], run_dir=tmp_path / "t", say=lambda line: None,
    )  # fmt: skip
    assert tuned.recipe == {"finetune.learning-rate": 4.0, "finetune.max-epochs": 7}
