"""Did it train? What is said where a recipe trains too little, and only there."""

import json

import pytest

from cold_flower.reporting import trained
from cold_flower.reporting.trained import Recipe
from cold_flower.repository.bases import Repository
from cold_flower.repository.provenance import was_fused


def findings(contributions, scores, recipe=Recipe()):  # noqa: B008 - frozen
    return trained.findings(contributions, scores, recipe)


def counts(contributions, scores, recipe=Recipe()):  # noqa: B008 - frozen
    return trained.counts(contributions, scores, recipe)


def below(scores, recipe=Recipe()):  # noqa: B008 - frozen
    return trained.below(scores, recipe)


def contribution(name, dev, majority, *, iteration=1, improving=0, stopped="epochs"):
    return {
        "contributor": name, "iteration": iteration, "dev_start": 0.1, "dev_accuracy": dev,
        "dev_majority": majority, "improving": improving, "stopped": stopped,
    }  # fmt: skip


def score(task, protocol, value, *, iteration=0, **facts):
    return {
        "iteration": iteration, "task": task, "protocol": protocol, "group": "seen",
        "metric": "accuracy", "value": value, "n_test": 400, **facts,
    }  # fmt: skip


def test_contributors_at_their_largest_class_are_counted_and_named() -> None:
    rows = [contribution(f"t{i}", 0.5, 0.5 if i < 5 else 0.4) for i in range(8)]
    (said,) = findings(rows, [])
    assert said == (
        "5 of 8 contributors ended no better than their largest class (t0, t1, t2, t3, t4): raise "
        "finetune.learning-rate or finetune.max-epochs"
    )
    assert counts(rows, []) == {
        "contributors": 8,
        "contributors-no-better-than-largest-class": 5,
        "contributors-still-improving": 0,
    }
    assert findings(rows[1:], []) != []  # four of seven
    assert findings(rows[2:], []) == []  # three of six may be hard tasks: counted, not said
    assert counts(rows[2:], [])["contributors-no-better-than-largest-class"] == 3


def test_where_no_contribution_says_whether_it_trained_that_is_said() -> None:
    silent = {"contributor": "a", "iteration": 1}
    (said,) = findings([silent, {**silent, "contributor": "b"}], [])
    assert said.startswith("no contribution says whether it trained (a site with few dev rows,")
    assert findings([silent, contribution("b", 0.8, 0.5)], []) == []
    assert findings([], []) == []


def test_a_contributors_last_finetuning_counts() -> None:
    early = [contribution(f"t{i}", 0.3, 0.5) for i in range(4)]
    late = [contribution(f"t{i}", 0.8, 0.5, iteration=2) for i in range(4)]
    assert findings(early, []) and findings(early + late, []) == []


@pytest.mark.parametrize(("stopped", "said"), [("epochs", True), ("early", False), ("time", False)])
def test_still_improving_is_said_of_those_whose_epochs_were_over(stopped, said) -> None:
    rows = [contribution(f"t{i}", 0.8, 0.5, improving=i < 7, stopped=stopped) for i in range(8)]
    lines = findings(rows, [])
    assert [line[:78] for line in lines] == (
        ["7 of 8 contributors were still improving when finetune.max-epochs ended them ("]
        if said
        else []
    )
    rows[0] |= {"improving": 0}
    assert findings(rows, []) == []  # six of eight may be chance: one run in seven


@pytest.mark.parametrize(("size", "said"), [(1, False), (4, False), (5, True)])
def test_still_improving_is_not_said_of_so_few_that_it_may_be_chance(size, said) -> None:
    """One of one is in every second run, four of four in one of 16, five of five in one of 32."""
    rows = [contribution(f"t{i}", 0.8, 0.5, improving=1) for i in range(size)]
    assert bool(findings(rows, [])) is said
    facts = {k: v for k, v in rows[0].items() if k.startswith(("dev", "st", "im"))}
    scores = [score(f"t{i}", "finetuned", 0.5, **facts) for i in range(size)]
    assert bool(findings([], scores)) is said


@pytest.mark.parametrize(
    ("improving", "of", "said"), [(18, 24, False), (19, 24, True), (1600, 2000, True)]
)
def test_three_quarters_of_many_are_still_improving(improving, of, said) -> None:
    rows = [contribution(f"t{i}", 0.8, 0.5, improving=i < improving) for i in range(of)]
    assert bool(findings(rows, [])) is said


def test_finetuned_below_another_protocol_by_more_than_an_error() -> None:
    scores = [score("a", "finetuned", 0.5), score("a", "frozen", 0.53)]  # the error is 0.035
    scores += [
        score("b", "finetuned", 0.5),
        score("b", "frozen", 0.54),
        score("b", "few-shot", 0.6),
    ]
    scores += [score("c", "finetuned", 0.7), score("c", "frozen", 0.5)]
    assert below(scores) == {"frozen": ["b"], "few-shot": ["b"]}
    (said,) = findings([], scores)
    assert said == (
        "finetuned is below few-shot or frozen on 1 of 3 tasks (b): the recipe trains too little"
    )
    later = [{**row, "iteration": 1} for row in scores]  # of a fused base probing may be the best
    assert findings([], later) == []
    assert counts([], scores) == {
        "tasks-finetuned-below-few-shot": 1,
        "tasks-finetuned-below-frozen": 1,
    }


def test_what_finetuning_saw_is_said_and_decides_whether_it_is_compared() -> None:
    scores = [score("a", "finetuned", 0.5), score("a", "frozen", 0.6), score("a", "few-shot", 0.7)]
    (said,) = findings([], scores, Recipe(max_examples=400))
    assert said.startswith("finetuned on at most 400 examples is below few-shot or frozen on 1 of")
    for silent in (Recipe(max_examples=100), Recipe(32, few_shot=64), Recipe(fused=True)):
        assert findings([], scores, silent) == [] and counts([], scores, silent) == {}
    assert below(scores, Recipe(max_examples=101)) != {}
    read = Recipe.of({"finetune.max-examples": 40, "few-shot.examples": 8}, {"fused": True})
    assert read == Recipe(40, 8, True)
    assert not Recipe.of({"finetune.max-examples": 0, "few-shot.examples": 8}, {}).fused


def test_a_fused_base_is_known_wherever_it_begins_again(in_process, folders, tmp_path) -> None:
    """A base of a run, one that a run began with again, and what `cold-flower fuse` wrote."""
    from cold_flower.commands import api

    pretrained = folders("roberta", "RobertaForMaskedLM")
    keys = {
        "tasks": "travel,music", "unseen": "", "iterations": 1, "finetune.max-epochs": 1,
        "finetune.max-examples": 200, "evaluate.protocols": "frozen", "probe.epochs": 1,
        "contributors-per-iteration": 0, "evaluate.max-test-examples": 100,
    }  # fmt: skip

    def start_of(run):
        return Repository(run.folder).manifest(0)["fused"]

    def scored(model, name):
        settings = {"tasks": "travel,music", "probe.epochs": 1, "evaluate.max-test-examples": 100}
        return api.evaluate(
            model, suite="demo", protocols="frozen", settings=settings, run_dir=tmp_path / name
        )

    run = api.simulate("demo", {**keys, "base-model": str(pretrained)}, run_dir=tmp_path / "run")
    assert not start_of(run) and not start_of(scored(run.base(0), "start"))
    again = scored(run.latest, "again")
    assert start_of(again) and start_of(scored(again.latest, "and-again"))
    fused = api.fuse("average", base=run.base(0), models=[run.base(1)], out=tmp_path / "fused")
    offline = scored(fused, "offline")
    assert start_of(offline)
    rows = [{**row, "value": 0.1} for row in offline.scores]
    rows = [{**row, "protocol": "finetuned"} for row in rows] + [{**r, "value": 0.9} for r in rows]
    offline.__dict__["scores"] = rows
    assert offline.findings == []
    run.__dict__["scores"] = rows
    assert [line[:50] for line in run.findings if "below frozen" in line] == [
        "finetuned on at most 200 examples is below frozen "
    ]


def test_a_folder_that_says_nothing_was_not_fused(tmp_path) -> None:
    assert not was_fused("roberta-base") and not was_fused(str(tmp_path))
    (tmp_path / "manifest.json").write_text("[1]")
    (tmp_path / "README.md").write_text("---\ntags: [x]\n---\n# of cold-fusion\n")
    assert not was_fused(str(tmp_path))
    (tmp_path / "README.md").write_text("no front matter, cold-fusion")
    assert not was_fused(str(tmp_path))


def test_a_correlation_has_an_error_too() -> None:
    rows = [score("s", "finetuned", 0.8), score("s", "frozen", 0.8001)]
    assert below([{**row, "metric": "pearson"} for row in rows]) == {}


def test_evaluations_speak_too_where_nobody_contributes() -> None:
    facts = {
        k: v for k, v in contribution("x", 0.5, 0.5).items() if k.startswith(("dev", "st", "im"))
    }
    scores = [score(task, "finetuned", 0.5, **facts) for task in "abc"]
    assert findings([], scores)[0].startswith(
        "3 of 3 finetuned evaluations of base 0 ended no better than their largest class (a, b, c)"
    )


def test_who_says_nothing_is_not_counted() -> None:
    """A site with a trainer of its own may not know."""
    partly = {"contributor": "x", "dev_accuracy": 0.5, "dev_majority": 0.9}
    assert counts([partly], []) == {}
    assert findings([partly, contribution("y", 0.8, 0.5)], []) == []


def test_a_run_of_a_recipe_that_hardly_trains_says_so(in_process, tmp_path, capsys) -> None:
    """The whole way: contributors, journal, result.json, report, the command's last lines."""
    from cold_flower.commands import api
    from cold_flower.commands.simulate import show

    keys = {
        "tasks": "travel,music", "unseen": "", "iterations": 1, "finetune.learning-rate": 1e-6,
        "finetune.max-epochs": 1, "finetune.max-examples": 40, "evaluate.protocols": "finetuned",
        "contributors-per-iteration": 0, "evaluate.max-test-examples": 40,
    }  # fmt: skip
    run = api.simulate("demo", keys, run_dir=tmp_path / "run")
    told = json.loads((run.folder / "result.json").read_text())["trained"]
    assert told["contributors"] == told["evaluations"] == 2
    assert told["contributors-no-better-than-largest-class"] == 2
    (first, *_) = run.findings
    assert first.startswith("2 of 2 contributors ended no better than their largest class (music,")
    show(run)
    assert f"WARNING: {first}\n" in capsys.readouterr().out
    page = (run.folder / "report.html").read_text()
    assert first in page and "<h2>Did it train?</h2>" in page
    assert page.index(first) < page.index("<h2>Scores</h2>")
