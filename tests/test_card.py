"""The model card of a base, as the hub's own library reads it."""

import json

import pytest
from huggingface_hub import ModelCard

import cold_flower
from cold_flower.errors import RunError
from cold_flower.repository.bases import Repository
from cold_flower.repository.journal import SCORES, Journal
from strategies.fusion import Weights
from tests.test_cli import cold_flower as command
from tests.test_html import make  # noqa: F401 - a fixture

PAPER = {"suite": "paper", "tasks": "mnli,rte", "unseen": "rte", "base_model": "org/model"}


def test_the_hub_reads_licence_base_model_datasets_and_every_score(make) -> None:  # noqa: F811
    run = make("mine", 0.1, **PAPER)
    path = cold_flower.card(run, licence="mit")
    assert path == run / "iterations" / "0002" / "README.md"
    data = ModelCard.load(path).data
    assert (data.license, data.base_model, data.base_model_relation) == (
        "mit", "org/model", "merge",
    )  # fmt: skip
    assert data.datasets == ["SetFit/mnli", "nyu-mll/glue"] or "nyu-mll/glue" in data.datasets
    assert data.metrics == ["accuracy"]
    found = {(one.dataset_name, one.metric_name): one.metric_value for one in data.eval_results}
    assert found == {
        ("mnli", "accuracy, frozen"): 0.7, ("mnli", "accuracy, finetuned"): 0.7,
        ("rte", "accuracy, frozen"): 0.45, ("rte", "accuracy, finetuned"): 0.45,
    }  # fmt: skip
    splits = {one.dataset_name: one.dataset_split for one in data.eval_results}
    assert splits["rte"] == "validation"  # what the suite scores is GLUE's
    unknown = make("other", 0.1, **{**PAPER, "suite": "/is/gone.toml"})
    results = ModelCard.load(cold_flower.card(unknown)).data.eval_results
    assert {one.dataset_split for one in results} == {None}


def test_a_test_split_that_is_carved_out_of_another_has_no_name(make) -> None:  # noqa: F811
    keys = {**PAPER, "tasks": "isear,rte"}
    path = cold_flower.card(make("mine", 0.1, seen="isear", **keys))
    splits = {o.dataset_name: o.dataset_split for o in ModelCard.load(path).data.eval_results}
    assert splits == {"isear": None, "rte": "validation"}


def test_a_mean_of_some_tasks_says_so_and_so_does_its_gain(make) -> None:  # noqa: F811
    """One came after the start, another one is gone."""
    run = make("mine", 0.1)
    rows = [row for row in Journal(run).rows(SCORES) if row["task"] == "mnli"]
    Journal(run).append(SCORES, [{**r, "task": "late"} for r in rows if r["iteration"] > 0])
    Journal(run).append(SCORES, [{**r, "task": "gone"} for r in rows if r["iteration"] < 2])
    assert "| frozen, seen | 2 of 3 | 70.0 | +20.0 (1 of 3) |" in cold_flower.card(run).read_text()


def test_gains_have_their_interval_over_tasks(make) -> None:  # noqa: F811
    """Two seen tasks that gain 10 and 20 points: 15 ± 12.706 * 5, Student's t of one degree."""
    run = make("mine", 0.05)
    row = {"task": "qnli", "protocol": "frozen", "group": "seen", "metric": "accuracy", "seed": 0}
    Journal(run).append(
        SCORES,
        [{**row, "iteration": i, "value": 0.5 + 0.1 * i, "n_test": 9, "base": ""} for i in (0, 2)],
    )
    text = cold_flower.card(run).read_text()
    assert "| frozen, seen | 2 | 65.0 | +15.0 ± 63.5 |" in text
    assert "| frozen, unseen | 1 | 35.0 | +10.0 |" in text  # one task leaves no interval
    assert "mnli (2)" in text
    assert "&lt;" not in text  # who was refused is not named
    assert "<b>" not in text


def test_what_is_not_known_or_not_allowed_is_not_claimed(make) -> None:  # noqa: F811
    run = make("mine", 0.1, evaluate__max_test_examples=50)
    text = cold_flower.card(run, contributors=False).read_text()
    assert "No licence is stated here" in text
    assert "base_model" not in text  # the demo's own, which is no model of the hub
    assert "1 contributors gave 2 models; they are not named here" in text
    assert "at most 50 test examples of a task: not a published test score" in text
    start = cold_flower.card(run, 0).read_text()
    assert "None." in start


def test_only_what_was_fused_counts_and_a_baselines_data_did_not_stay(make) -> None:  # noqa: F811
    run = make("mine", 0.1)
    repository, given = Repository(run), [{"name": "mnli", "verdict": "accepted"}]
    body = Weights(dict(repository.body(2).items()))
    manifest = {"contributors": given, "gate": {"accepted": False}}
    repository.publish(3, 2, body, manifest)
    text = cold_flower.card(run).read_text()
    assert ": 2 iterations in which contributors finetuned" in text
    assert "mnli (2)" in text
    union = make("union", 0.1, iterations=1, baseline="multitask")
    text = cold_flower.card(union).read_text()
    assert "a baseline, trained in one place on all of their data (multitask)" in text
    assert "A **seen** task's data was trained on." in text
    assert "stayed theirs" not in text


def test_the_start_has_its_models_licence_and_the_next_base_no_card(make, tmp_path) -> None:  # noqa: F811
    model = tmp_path / "model"
    model.mkdir()
    (model / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    run = make("mine", 0.1)
    config = json.loads((run / "config.json").read_text())
    config["config"]["base-model"] = str(model)
    (run / "config.json").write_text(json.dumps(config))
    assert ModelCard.load(cold_flower.card(run)).data.license == "apache-2.0"
    repository = Repository(run)
    repository.publish(3, 2, Weights(dict(repository.body(2).items())), {"contributors": []})
    assert not (repository.path(3) / "README.md").exists()  # it speaks of another base
    assert "No score was measured at base 3" in cold_flower.card(run).read_text()


def test_a_base_that_a_rollback_left_behind_has_its_own_lineages_scores(make) -> None:  # noqa: F811
    run = make("mine", 0.1)
    behind = "A rollback left this base behind"
    assert behind not in cold_flower.card(run, 2).read_text()
    repository = Repository(run)
    repository.rollback(1)
    repository.publish(3, 1, Weights(dict(repository.body(1).items())), {"contributors": []})
    row = {**Journal(run).rows(SCORES)[0], "iteration": 3, "task": "later"}
    Journal(run).append(SCORES, [row])
    path = cold_flower.card(run, 2)
    assert "| frozen, seen | 1 | 70.0 | +20.0 |" in path.read_text()  # and none of base 3
    assert behind in path.read_text()
    assert {one.metric_value for one in ModelCard.load(path).data.eval_results} == {0.7, 0.45}
    for number in (1, 3):
        assert behind not in cold_flower.card(run, number).read_text()


def test_the_command(make, tmp_path) -> None:  # noqa: F811
    run = make("mine", 0.1)
    done = command("card", str(run), "1", "--licence", "mit", "--no-contributors", cwd=tmp_path)
    assert done.stdout.strip() == str(run / "iterations" / "0001" / "README.md")
    wrong = command("card", str(run), "7", cwd=tmp_path)
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "no iteration 7" in wrong.stderr
    Repository(run).prune(1)
    with pytest.raises(RunError, match="has no weights any more"):
        cold_flower.card(run, 1)
