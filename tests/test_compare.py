"""Conditions against the plain mean: the same start, paired, each run once."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

import cold_flower
from cold_flower.commands import history
from cold_flower.config import Config
from cold_flower.data.facts import facts
from cold_flower.errors import ColdFlowerError, ConfigError
from cold_flower.identity import ROOT
from cold_flower.reporting.comparison import comparison
from cold_flower.reporting.paired import paired
from cold_flower.repository.bases import Repository
from cold_flower.repository.journal import PROGRESS, SCORES, Journal
from cold_flower.repository.kept import Kept
from cold_flower.runtime import compare, shared_start
from tests.test_cli import cold_flower as cold_flower_command

SMALL = {
    "tasks": "travel,music,kitchen",
    "unseen": "kitchen",
    "iterations": 1,
    "contributors-per-iteration": 0,
    "finetune.max-examples": 120,
    "finetune.max-epochs": 5,
    "evaluate.max-test-examples": 40,
    "evaluate.protocols": "frozen,few-shot",
    "few-shot.examples": 16,
    "few-shot.epochs": 1,
    "few-shot.draws": 1,
}


def test_variants_differ_from_the_plain_mean_in_what_they_name() -> None:
    found = compare.variants(
        ["average", "ties", "median"],
        ["momentum=0.5", "clip = median"],
        [{"finetune.head": "keep", "fusion.rule": "ties"}],
        equal_length=True,
    )
    assert [variant.label for variant in found] == [
        "average",
        "ties, norm = mean",
        "median, norm = mean",
        "momentum = 0.5",
        "clip = median",
        "finetune.head = keep, fusion.rule = ties, norm = mean",
    ]
    assert found[0].settings == {"fusion.rule": "average", "fusion.strategy": ""}
    assert found[1].settings == {"fusion.rule": "ties", "fusion.norm": "mean"}
    assert found[3].settings == {"fusion.momentum": 0.5}
    assert found[4].folder == "clip=median"
    free = compare.variants(["ties"], [], [], equal_length=False)
    assert free[1].settings == {"fusion.rule": "ties"}
    with pytest.raises(ConfigError, match="no rule is named"):
        compare.variants([], ["momentum=0.5"], [], equal_length=True)
    assert compare.parse("fusion.rule=ties; fusion.options={density = 0.5};") == {
        "fusion.rule": "ties",
        "fusion.options": "{density = 0.5}",
    }


@pytest.mark.parametrize(
    ("rules", "stages", "others", "said"),
    [
        (["average"], [], [], "nothing to compare the plain mean with"),
        (["ties"], [], [{"fusion.rule": "ties"}], "'ties' and 'fusion.rule = ties' are the same"),
        ([], [], [{"seed": 3}], "seed cannot differ between what is compared"),
        ([], ["momentun=0.5"], [], "Did you mean 'fusion.momentum'"),
        ([], ["momentum"], [], "expects key=value"),
    ],
)
def test_what_cannot_be_compared(rules, stages, others, said) -> None:
    with pytest.raises(ConfigError, match=said):
        compare.variants(rules, stages, others, equal_length=False)


def test_wrong_things_are_said_before_anything_starts(tmp_path) -> None:
    for arguments, said in (
        (["--rules", "tise"], "Did you mean 'ties'"),
        (["--rules", "ties", "--set", "fusion.rule=dare"], "fusion.rule is both set for all"),
        (["--rules", "ties", "--seeds", "two"], "--seeds expects FIRST..LAST"),
        (["--rules", "ties", "--set", "seed=3"], "seed is not set for a comparison"),
        (["--rules", "ties", "--set", "run-dir=/x"], "run-dir is not set for a comparison"),
        (["--stages", "momentum=2"], "momentum is"),
    ):
        done = cold_flower_command("compare", "demo", *arguments, cwd=tmp_path)
        assert done.returncode == 1
        assert said in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_plain_mean_is_plain_whatever_the_experiment_has(tmp_path) -> None:
    experiment = tmp_path / "mine.toml"
    experiment.write_text('suite = "demo"\nfusion.momentum = 0.5\nfusion.rule = "ties"\n')
    variants = compare.variants(["median"], [], [], equal_length=False)
    settings = {"fusion.clip": "median"}  # what is set for all, all have
    planned = compare.plan(str(experiment), variants, [0], settings, tmp_path / "runs")
    fusions = [cell.config.fusion for cell in planned.cells]
    assert [(f.rule, f.momentum, f.clip) for f in fusions] == [
        ("average", 0.0, "median"),
        ("median", 0.0, "median"),
    ]
    other = {"fusion.strategy": "flwr.serverapp.strategy:FedMedian"}
    with pytest.raises(ConfigError, match="fusion.strategy is both set for all and what 'average'"):
        compare.plan("demo", variants, [0], other, tmp_path / "runs")
    for seeds in ([], [1, 1]):
        with pytest.raises(ConfigError, match="needs seeds, each once"):
            compare.plan("demo", variants, seeds, {}, tmp_path / "runs")


def test_a_baseline_takes_a_start_over_too(in_process, tmp_path) -> None:
    lines: list[str] = []
    found = cold_flower.compare(
        "demo",
        variants=[{"baseline": "multitask"}],
        seeds=[0],
        settings={**SMALL, "evaluate.protocols": "frozen"},
        run_dir=tmp_path,
        say=lines.append,
    )
    assert "its start and the scores of that are those of average/seed=0" in lines[-1]
    assert [cost.finetunings for cost in found.costs] == [2, 2]  # two datasets either way
    union = found.lines[1]
    assert (union.condition, union.iteration) == ("baseline = multitask", 1)
    assert union.difference and union.gain != 0


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    from tests.in_process import simulate

    folder = tmp_path_factory.mktemp("compared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cold_flower.runtime.runner.simulate", simulate)
        patch.setenv("COLUMNS", "200")

        def call(lines: list[str]):
            return cold_flower.compare(
                "demo",
                rules=["ties"],
                stages=["learning-rate=2"],
                seeds=[0, 1],
                equal_length=True,
                settings=SMALL,
                run_dir=folder,
                say=lines.append,
            )

        lines: list[str] = []
        found = call(lines)
        assert [line.split(": ")[-1] for line in lines] == [
            line for seed in (0, 1) for line in (
                "begins",
                "begins", f"its start and the scores of that are those of average/seed={seed}",
                "begins", f"its start and the scores of that are those of average/seed={seed}",
            )
        ]  # fmt: skip
        again: list[str] = []
        call(again)
        assert [line.split(": ")[-1] for line in again] == ["done before"] * 6
    return found


def test_a_start_that_was_taken_over_is_as_if_it_had_been_made_anew(
    compared, in_process, tmp_path
) -> None:
    alone = cold_flower.simulate(
        "demo", {**SMALL, "fusion.rule": "ties", "fusion.norm": "mean"}, run_dir=tmp_path / "alone"
    )
    taken = compared.folder / "ties,norm=mean" / "seed=0"
    for iteration in range(2):
        ours, theirs = (Repository(run).manifest(iteration) for run in (taken, alone.folder))
        assert ours["sha256"] == theirs["sha256"]
    values = [
        {(r["iteration"], r["task"], r["protocol"]): r["value"] for r in Journal(run).rows(SCORES)}
        for run in (taken, alone.folder)
    ]
    assert values[0] == values[1]
    assert len(values[0]) == 2 * 3 * 2
    said = [event["line"] for event in Journal(taken).rows(PROGRESS)]
    assert not any(line.startswith("evaluating 0") for line in said)
    weights = taken / "iterations" / "0000" / "model.safetensors"
    assert weights.samefile(compared.folder / "average/seed=0/iterations/0000/model.safetensors")
    assert alone.config["fusion.norm"] == "mean"


def test_gains_errors_and_differences_are_those_of_the_scores(compared) -> None:
    def gains(folder: str, seed: int) -> dict[str, float]:
        rows = Journal(compared.folder / folder / f"seed={seed}").rows(SCORES)
        frozen = {
            (r["iteration"], r["task"]): r["value"] for r in rows if r["protocol"] == "frozen"
        }
        return {task: frozen[1, task] - frozen[0, task] for task in ("travel", "music")}

    (line,) = (
        line
        for line in compared.lines
        if (line.condition, line.protocol, line.group) == ("learning-rate = 2", "frozen", "seen")
    )
    own = [gains("learning-rate=2", seed) for seed in (0, 1)]
    plain = [gains("average", seed) for seed in (0, 1)]
    by_seed = [(one["travel"] + one["music"]) / 2 for one in own]
    by_task = [(own[0][task] + own[1][task]) / 2 for task in ("travel", "music")]
    assert (line.tasks, line.seeds, line.iteration) == (2, 2, 1)
    assert 0.05 < line.gain < 0.9
    assert line.gain == pytest.approx(sum(by_seed) / 2)
    assert line.sem_seeds == pytest.approx(abs(by_seed[0] - by_seed[1]) / 2)
    assert line.sem_tasks == pytest.approx(abs(by_task[0] - by_task[1]) / 2)
    assert by_seed[0] != by_seed[1]
    differences = [[o[t] - p[t] for o, p in zip(own, plain, strict=True)] for t in own[0]]
    import numpy as np

    wanted = paired(np.array(differences))
    assert line.difference
    assert line.difference.mean == pytest.approx(wanted.mean)
    assert line.difference.half == pytest.approx(wanted.half)
    firsts = [line for line in compared.lines if line.condition == "average"]
    assert [line.difference for line in firsts] == [None] * 4  # two protocols, seen and unseen


def test_lengths_and_costs(compared) -> None:
    average, ties, doubled = compared.costs
    assert (average.length, ties.length) == (pytest.approx(1), pytest.approx(1, abs=1e-4))
    assert doubled.length == pytest.approx(2, abs=1e-4)
    runs = [compared.folder / f"ties,norm=mean/seed={seed}" for seed in (0, 1)]
    owns = [Repository(run).manifest(1)["own-length"] for run in runs]
    assert ties.own == pytest.approx(sum(owns) / 2)
    assert ties.own != pytest.approx(1, abs=0.01)
    assert average.own is doubled.own is None
    said = [event["line"] for event in Journal(runs[0]).rows(PROGRESS)]
    assert (
        f"iteration 1: the rule's own step is {owns[0]:.2f} times the plain mean's; "
        "with fusion.norm and what follows it the base moved 1.00"
    ) in said
    lineage = "".join(history.log(runs[0]))
    assert f"length 1.00 (its own {owns[0]:.2f})" in lineage
    assert [cost.finetunings for cost in compared.costs] == [2, 2, 2]
    assert all(cost.seconds > 0 for cost in compared.costs)
    assert any(
        doubt.startswith("learning-rate = 2: its steps are 2.00 times as long as those of average")
        for doubt in compared.doubts
    )
    assert not any(doubt.startswith("ties") and "length" in doubt for doubt in compared.doubts)


def test_with_a_gate_a_rules_own_step_may_be_another_candidates(in_process, tmp_path) -> None:
    keys = {"gate.protocol": "frozen", "fusion.rule": "median", "fusion.norm": "mean"}
    settings = {**SMALL, "evaluate.protocols": "frozen", **keys}
    run = cold_flower.simulate("demo", settings=settings, run_dir=tmp_path / "run")
    manifest = Repository(run.folder).manifest(1)
    assert manifest["gate"]
    assert "own-length" not in manifest


def test_what_is_printed_drawn_and_handed_to_pandas(compared, tmp_path) -> None:
    done = cold_flower_command(
        "compare", "demo", "--rules", "ties", "--stages", "learning-rate=2", "--seeds", "0..1",
        "--equal-length", "--run-dir", str(compared.folder),
        *(part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")),
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "demo: gain over the start in points, after 1 iterations; seed 0, 1" in done.stdout
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["frozen,", "2", "seen", "from"] in [line[:4] for line in lines]
    assert sum(line[:1] == ["average"] for line in lines) == 5  # four parts, and the cost
    page = (compared.folder / "report.html").read_text()
    assert "<h2>Against average</h2>" in page
    assert '<div class="figure" role="img" aria-label="differences"' in page
    frame = compared.to_pandas()
    assert list(frame["condition"].unique()) == [
        "average",
        "ties, norm = mean",
        "learning-rate = 2",
    ]
    assert frame[frame.condition == "average"]["half"].isna().all()
    assert "learning-rate = 2" in compared._repr_html_()
    assert not any(math.isnan(value) for value in frame["gain"])


def test_a_folder_of_another_comparison_is_not_mixed_in(compared, tmp_path) -> None:
    with pytest.raises(ColdFlowerError, match=r"cannot resume .*changed finetune.max-epochs"):
        cold_flower.compare(
            "demo",
            rules=["ties"],
            settings={**SMALL, "finetune.max-epochs": 2},
            run_dir=compared.folder,
        )


def test_other_code_scores_its_own_start(compared) -> None:
    planned = compare.plan(
        "demo", compare.variants(["median"], [], [], equal_length=False), [0], SMALL,
        compared.folder,
    )  # fmt: skip
    done, new = (cell.config for cell in planned.cells)
    assert shared_start.sharing(new, [done]) == done
    file = Path(done.run_dir) / "config.json"
    text = file.read_text()
    for change in ({"code": "other"}, {"versions": "v"}, {"resumed": [{"code": "other"}]}):
        file.write_text(json.dumps(json.loads(text) | change))
        assert shared_start.sharing(new, [done]) is None
    file.write_text(text)


def test_an_edited_suite_shares_nothing(compared, tmp_path) -> None:
    planned = compare.plan(
        "demo", compare.variants(["median"], [], [], equal_length=False), [0], SMALL,
        compared.folder,
    )  # fmt: skip
    suite = tmp_path / "suite.toml"
    text = (ROOT / "cold_flower" / "data" / "suites" / "demo.toml").read_text()
    suite.write_text(text)
    done, new = (replace(cell.config, suite=str(suite)) for cell in planned.cells)
    run = tmp_path / "run"
    Journal(run).open(replace(done, run_dir=str(run), resume=False), facts(done))
    done = replace(done, run_dir=str(run))
    assert shared_start.sharing(new, [done]) == done
    suite.write_text(text + "# another")
    assert shared_start.sharing(new, [done]) is None


def test_kept_contributions_are_finetuned_once_for_all_who_ask_for_the_same(tmp_path) -> None:
    """The third variant tells contributors something else; the last one asks for a statistic."""
    found = cold_flower.compare(
        "demo",
        rules=["median", "fisher"],
        variants=[{"finetune.head": "probe"}],
        seeds=[0],
        settings={**SMALL, "keep-contributions": 1, "evaluate.protocols": "frozen"},
        run_dir=tmp_path,
    )
    folders = ("average", "median", "finetune.head=probe", "fisher")
    runs = {name: tmp_path / name / "seed=0" for name in folders}
    asked, bases, bodies = {}, {}, {}
    for name, run in runs.items():
        lines = [event["line"] for event in Journal(run).rows(PROGRESS)]
        asked[name] = [line.split()[1] for line in lines if " finetuned in " in line]
        bases[name] = Repository(run).sha256(1)
        bodies[name] = (run / "contributions" / "0001" / "music.safetensors").stat()
    everybody = ["music", "travel"]
    assert [sorted(names) for names in asked.values()] == [everybody, [], everybody, everybody]
    assert bodies["median"].st_ino == bodies["average"].st_ino
    assert [cost.finetunings for cost in found.costs] == [2] * 4
    assert [doubt for doubt in found.doubts if "taken over" in doubt] == [
        "median: 2 of its contributions were finetuned in another run and taken over: its seconds "
        "are without them"
    ]
    # A run of its own makes the same base of them.
    alone = cold_flower.simulate(
        "demo",
        settings={**SMALL, "evaluate.protocols": "frozen", "fusion.rule": "median"},
        run_dir=tmp_path / "alone",
    )
    assert Repository(alone.folder).sha256(1) == bases["median"]


@pytest.mark.parametrize(
    ("keys", "others", "alike"),
    [
        ({}, {"fusion.rule": "median", "fusion.clip": "median", "iterations": 3}, True),
        ({}, {"fusion.rule": "regmean"}, False),
        ({"fusion.rule": "regmean"}, {"fusion.rule": "regmean"}, True),
        ({"finetune.head": "keep"}, {"finetune.head": "keep"}, False),
        ({"schedule": "asynchronous"}, {"schedule": "asynchronous"}, False),
        ({}, {"finetune.proximal-mu": 0.1}, False),
        ({}, {"contributors-per-iteration": 2}, False),
        (
            {"fusion.strategy": "mine.py:One", "fusion.options": "{mu0 = 0.1}"},
            {"fusion.strategy": "mine.py:One", "fusion.options": "{mu0 = 1.0}"},
            False,
        ),
    ],
)
def test_whose_contributions_are_the_same(keys, others, alike) -> None:
    one, other = (Config.from_flat(found) for found in (keys, others))
    assert shared_start._contributors_alike(one, other) is alike


def test_a_run_that_kept_nothing_lends_nothing(tmp_path) -> None:
    assert Kept(tmp_path / "run").lend(tmp_path / "incoming") == []
    assert not (tmp_path / "incoming").exists()


def test_an_open_comparison_needs_runs(tmp_path) -> None:
    with pytest.raises(ColdFlowerError, match="holds no run"):
        comparison(tmp_path, {"average": [tmp_path / "nowhere"]})
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(ColdFlowerError, match="holds no run"):
        comparison(tmp_path, {"average": [tmp_path]})
