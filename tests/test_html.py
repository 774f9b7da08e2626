"""The report of runs, made of run directories as a server leaves them."""

import re
from pathlib import Path

import pytest
import torch

from cold_flower.config import Config
from cold_flower.errors import RunError
from cold_flower.models.starting import save_starting_model, starting_model
from cold_flower.reporting import html
from cold_flower.reporting.figures import LEAST_SPAN, all_figures, beside_the_paper, compare
from cold_flower.reporting.runs import conditions, find
from cold_flower.repository.bases import Repository
from cold_flower.repository.journal import CONTRIBUTIONS, SCORES, Journal
from cold_flower.runtime import experiments
from strategies.fusion import Weights
from tests.test_cli import cold_flower


@pytest.fixture
def make(tmp_path, tiny):
    """Return a function that writes a run of one seed, its scores made up."""
    model, body = starting_model(tiny, seed=0)

    def write(name: str, level: float, *, iterations: int = 2, seen: str = "mnli", **keys) -> Path:
        flat = {key.replace("__", ".").replace("_", "-"): value for key, value in keys.items()}
        config = Config.from_flat({"experiment": "trial", "iterations": iterations, **flat})
        folder = tmp_path / "runs" / name
        journal = Journal(folder)
        journal.open(config, {})
        journal.unlock()
        repository = Repository(folder)
        repository.create(lambda to: save_starting_model(model, tiny, to), body, "roberta.", {})
        contributors = [
            {"name": n, "verdict": v, "diff-norm": 2.0}
            for n, v in (("mnli", "accepted"), ("<b>", "refused"))
        ]
        for iteration in range(1, iterations + 1):
            moved = Weights({k: t + iteration for k, t in body.items()})
            manifest = {"rule": "average", "contributors": contributors}
            repository.publish(iteration, iteration - 1, moved, manifest)
        journal.append(
            SCORES,
            [
                {
                    "iteration": i, "task": task, "protocol": protocol, "group": group,
                    "metric": "accuracy", "value": start + level * i, "n_test": 100,
                    "seed": config.seed, "base": str(i),
                }
                for i in range(iterations + 1)
                for task, group, start in ((seen, "seen", 0.5), ("rte", "unseen", 0.25))
                for protocol in ("frozen", "finetuned")
            ],
        )  # fmt: skip
        journal.append(CONTRIBUTIONS, [{"iteration": 1, "contributor": "mnli"}] * 2)
        journal.say("ready", iterations=iterations)
        journal.say("read", read={"rte": {"unknown": 0.123, "cut": 0.5}})
        return folder

    return write


def text_of(page: str) -> str:
    return re.sub(r"<[^>]+>", " ", re.sub(r'src="[^"]+"', "", page))


def test_seeds_are_one_condition_and_the_figures_are_files(make, tmp_path) -> None:
    for seed, level in ((0, 0.1), (1, 0.2)):
        make(f"seed={seed}", level, seed=seed)
    (one,) = conditions(find([tmp_path / "runs"]))
    assert (one.label, len(one.runs), one.last) == ("", 2, 2)
    page = html.write([tmp_path / "runs"], tmp_path / "out").read_text()
    text = text_of(page)
    assert "frozen, seen" in text
    assert "80.00 ± 14.14" in text  # 0.7 and 0.9
    assert "+30.00 ± 10.00" in text  # the gain of mnli: 0.2 and 0.4
    assert "rte 12.3% 50.0%" in " ".join(text.split())  # tokens unknown, texts cut
    assert {p.name for p in (tmp_path / "out" / "figures").iterdir()} >= {
        "curves.png", "curves.svg", "gains-frozen.png", "beside-the-paper.png",
    }  # fmt: skip
    assert page.count("<img") == 4
    assert 'src="http' not in page
    assert not re.search(r"<(script|link)", page)


def test_a_report_says_what_was_run_and_how_it_differs_from_what_is_shipped(make, tmp_path) -> None:
    shipped = experiments.configure("demo", {}).flat()
    keys = {key.replace(".", "__").replace("-", "_"): value for key, value in shipped.items()}
    folder = make("a", 0.1, **{**keys, "iterations": 3, "probe__epochs": 9})
    text = " ".join(text_of(html.write([folder], tmp_path / "out").read_text()).split())
    assert (
        "tasks scored: 1 seen and 1 unseen; iterations: 3; suite: demo; base model: demo." in text
    )
    assert (
        "The experiment demo as shipped; here iterations = 3 (shipped: 2), probe.epochs = 9 "
        "(shipped: 15). Its own words: ColD Fusion on the embedded demo: 8 seen and 4 unseen"
        in text
    )
    same = make("b", 0.1, **keys)
    text = " ".join(text_of(html.write([same], tmp_path / "out").read_text()).split())
    assert "The experiment demo as shipped. Its own words" in text
    text = text_of(html.write([make("c", 0.1)], tmp_path / "out").read_text())
    assert "as shipped" not in text  # an experiment of the user's own


def test_published_numbers_stand_beside_the_run(make, tmp_path) -> None:
    page = html.write([make("a", 0.1)], tmp_path / "out").read_text()
    row = text_of(page).split("Beside the paper's Table 1")[1]
    # MNLI: ColD 87.14 over 87.11; MUPPET's printed cell is Twitter Sentiment's.
    assert re.search(
        r"MNLI\s+nearly\s+\+20\.0 ± \d\.\d\s+\+0\.03\s+\+0\.15\s+\+5\.93\s+-0\.04", row
    )
    assert "text says +2.33 on average and -1.73 at worst, its table +2.50 and -1.15" in row


def test_conditions_are_labelled_by_what_differs(make, tmp_path) -> None:
    make("two", 0.1, contributors_per_iteration=2)
    make("five", 0.2, contributors_per_iteration=5)
    make("union", 0.3, iterations=1, contributors_per_iteration=2, baseline="multitask")
    labels = {c.label: c.is_baseline for c in conditions(find([tmp_path / "runs"]))}
    assert labels == {
        "iterations = 2, contributors-per-iteration = 2": False,
        "iterations = 2, contributors-per-iteration = 5": False,
        "multitask": True,
    }
    html.write([tmp_path / "runs"], tmp_path / "out")
    names = {p.stem for p in (tmp_path / "out" / "figures").iterdir()}
    assert {"compare-frozen-seen", "compare-finetuned-unseen"} <= names
    curves = {f"curves-iterations=2,contributors-per-iteration={n}" for n in (2, 5)}
    assert {name for name in names if name.startswith("curves")} == curves


def test_experiments_are_told_apart_by_their_names(make, tmp_path) -> None:
    for name, size in (("main", 2), ("fused_once", 0)):
        make(name, 0.1, experiment=name, contributors_per_iteration=size)
    assert {c.label for c in conditions(find([tmp_path / "runs"]))} == {"main", "fused_once"}


def test_names_from_the_wire_are_text(make, tmp_path) -> None:
    page = html.write([make("a", 0.1)], tmp_path / "out").read_text()
    assert "<b>" not in page
    assert "&lt;b&gt; (refused)" in page


def test_the_command(make, tmp_path) -> None:
    folder = make("a", 0.1)
    before = torch.tensor([p.stat().st_mtime_ns for p in (folder / "iterations").rglob("*")])
    done = cold_flower("report", str(folder), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (folder / "report.html").exists()
    after = torch.tensor([p.stat().st_mtime_ns for p in (folder / "iterations").rglob("*")])
    assert torch.equal(before, after)
    done = cold_flower("report", "nowhere", cwd=tmp_path)
    assert done.returncode == 1
    assert "nowhere holds no run" in done.stderr


def test_a_run_without_scores(tmp_path) -> None:
    journal = Journal(tmp_path / "run")
    journal.open(Config(), {})
    journal.unlock()
    with pytest.raises(RunError, match="no scores yet"):
        find([tmp_path / "run"])


def test_noise_does_not_fill_the_axis(make) -> None:
    (one,) = conditions(find([make("a", 0.0001)]))
    low, high = compare([one], "seen", "frozen").axes[0].get_ylim()
    assert (high - low, (high + low) / 2) == (pytest.approx(LEAST_SPAN), pytest.approx(50.01))


def test_the_papers_curve_stands_beside_real_tasks(make) -> None:
    (one,) = conditions(find([make("a", 0.1)]))
    papers, ours = (line.get_ydata() for line in beside_the_paper(one).axes[0].lines[:2])
    assert ours == pytest.approx([0.0, 10.0, 20.0])
    assert papers[0] == 0
    assert 1.5 < papers[-1] < 2.5
    assert "beside-the-paper" in all_figures([one])
    (others,) = conditions(find([make("b", 0.1, seen="reviews")]))
    assert "beside-the-paper" not in all_figures([others])
