"""The report of runs, made of run directories as a server leaves them."""

import json
import re
from pathlib import Path

import pytest
import torch

from cold_flower.config import Config
from cold_flower.errors import RunError
from cold_flower.models.starting import save_starting_model, starting_model
from cold_flower.reporting import html
from cold_flower.reporting.conditions import conditions
from cold_flower.reporting.figures import LEAST_SPAN, all_figures, beside_the_paper, compare
from cold_flower.reporting.runs import find
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
            manifest |= {"step-norm": 1.0, "length": 0.5}
            manifest |= {"own-length": 3.25} if iteration == 2 else {}
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


def seen_in(folders):
    """Return the conditions that folders hold."""
    return conditions(find(folders)[0])[0]


def text_of(page: str) -> str:
    return re.sub(r"<[^>]+>", " ", re.sub(r'src="[^"]+"', "", page))


def test_seeds_are_one_condition_and_the_figures_are_files(make, tmp_path) -> None:
    for seed, level in ((0, 0.1), (1, 0.2)):
        make(f"seed={seed}", level, seed=seed)
    (one,) = seen_in([tmp_path / "runs"])
    assert (one.label, len(one.runs), one.last) == ("", 2, 2)
    page = html.write([tmp_path / "runs"], tmp_path / "out")[0].read_text()
    text = text_of(page)
    assert "frozen, seen" in text
    assert "80.00 ± 14.14" in text  # 0.7 and 0.9
    assert "+30.00 ± 10.00" in text  # the gain of mnli: 0.2 and 0.4
    assert "rte 12.3% 50.0%" in " ".join(text.split())  # tokens unknown, texts cut
    assert {p.name for p in (tmp_path / "out" / "figures").iterdir()} >= {
        "curves.png", "curves.svg", "gains-frozen.png", "beside-the-paper.png",
    }  # fmt: skip
    assert page.count('<div class="figure"') == 4 and "<img" not in page
    named = re.findall(r' id="([^"]*)"', page)
    assert len(set(named)) == len(named) > 0
    assert {*re.findall(r'(?:href="|url\()#([^")]*)', page)} <= {*named}
    assert 'src="http' not in page
    assert not re.search(r"<(script [^>]*src|link|iframe)|url\((?!#)|fetch\(", page)


def test_a_report_says_what_was_run_and_how_it_differs_from_what_is_shipped(make, tmp_path) -> None:
    shipped = experiments.configure("demo", {}).flat()
    keys = {key.replace(".", "__").replace("-", "_"): value for key, value in shipped.items()}
    folder = make("a", 0.1, **{**keys, "iterations": 3, "probe__epochs": 9})
    text = " ".join(text_of(html.write([folder], tmp_path / "out")[0].read_text()).split())
    assert (
        "tasks scored: 1 seen and 1 unseen; iterations: 3; suite: demo; base model: demo." in text
    )
    assert (
        "The experiment demo as shipped; here iterations = 3 (shipped: 2), probe.epochs = 9 "
        "(shipped: 15). Its own words: ColD Fusion on the embedded demo: 8 seen and 4 unseen"
        in text
    )
    same = make("b", 0.1, **keys)
    text = " ".join(text_of(html.write([same], tmp_path / "out")[0].read_text()).split())
    assert "The experiment demo as shipped. Its own words" in text
    text = text_of(html.write([make("c", 0.1)], tmp_path / "out")[0].read_text())
    assert "as shipped" not in text  # an experiment of the user's own


def test_a_mean_of_some_tasks_says_so(make, tmp_path) -> None:
    """A run that was stopped amid its last evaluation."""
    run = make("mine", 0.1)
    journal = Journal(run)
    more = [
        {**row, "task": "qnli", "value": 0.9}
        for row in journal.rows(SCORES)
        if row["task"] == "mnli" and row["iteration"] < 2
    ]
    journal.append(SCORES, more)
    page = html.write([run], tmp_path / "out")[0].read_text()
    assert "frozen, seen<td>1 of 2<td>50.00<td>70.00<td>+20.00" in page  # of mnli alone


def test_seeds_that_were_made_otherwise_are_no_silent_mean(make, tmp_path) -> None:
    runs = [make(f"seed={seed}", 0.1, seed=seed) for seed in (0, 1)]

    def said(*facts: dict[str, str]) -> bool:
        for run, of_run in zip(runs, facts, strict=True):
            file = run / "config.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | of_run))
        page = html.write(runs, tmp_path / "out")[0].read_text()
        return "not all of its runs were made with the same suite file, versions." in page

    alike = {"versions": "x", "suite file": "a", "code": "c"}
    assert not said(alike, alike)
    assert said(alike, {"versions": "y", "suite file": "b"})


def test_the_lineage_says_how_long_each_step_was(make, tmp_path) -> None:
    text = text_of(html.write([make("a", 0.1)], tmp_path / "out")[0].read_text())
    assert re.search(r"norm of one\s+step\s+length\s+sha256\s+0\s+the start\s+\w{12}\s", text)
    assert re.search(r"1\s+0\s+average\s+mnli, \S+ \(refused\)\s+2\s+1\s+0\.50\s+\w{12}", text)
    assert re.search(r"1\s+0\.50 \(its own 3\.25\)\s+\w{12}", text)


def test_conditions_are_set_against_the_first_one(make, tmp_path) -> None:
    for seed in (0, 1):
        make(f"a{seed}", 0.1, seed=seed)
        make(f"b{seed}", 0.2 if seed else 0.15, seed=seed, fusion__rule="ties")
    page = text_of(html.write([tmp_path / "runs"], tmp_path / "out")[0].read_text())
    (row,) = re.findall(r"fusion.rule = ties\s+frozen, seen\s+(1 tasks.*?)\s+fusion", page, re.S)
    # At iteration 2: 10 and 20 points; of one task, so over seeds alone: t of one degree, times 5.
    assert " ".join(row.split()) == "1 tasks, 2 seed(s) +15.0 ± 63.5"
    assert "Against fusion.rule = average" in page
    alone = text_of(html.write([tmp_path / "runs" / "a0"], tmp_path / "out")[0].read_text())
    assert "Against" not in alone


def test_published_numbers_stand_beside_the_run(make, tmp_path) -> None:
    page = html.write([make("a", 0.1)], tmp_path / "out")[0].read_text()
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
    labels = {c.label: c.is_level for c in seen_in([tmp_path / "runs"])}
    assert labels == {
        "contributors-per-iteration = 2": False,
        "contributors-per-iteration = 5": False,
        "multitask": True,
    }
    html.write([tmp_path / "runs"], tmp_path / "out")
    names = {p.stem for p in (tmp_path / "out" / "figures").iterdir()}
    assert {"compare-frozen-seen", "compare-finetuned-unseen"} <= names
    curves = {f"curves-contributors-per-iteration={n}" for n in (2, 5)}
    assert {name for name in names if name.startswith("curves")} == curves


def test_experiments_are_told_apart_by_their_names(make, tmp_path) -> None:
    for name, size in (("main", 2), ("fused_once", 0)):
        make(name, 0.1, experiment=name, contributors_per_iteration=size)
    assert {c.label for c in seen_in([tmp_path / "runs"])} == {"main", "fused_once"}


def test_names_from_the_wire_are_text(make, tmp_path) -> None:
    page = html.write([make("a", 0.1)], tmp_path / "out")[0].read_text()
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
    (one,) = seen_in([make("a", 0.0001)])
    low, high = compare([one], "seen", "frozen").axes[0].get_ylim()
    assert (high - low, (high + low) / 2) == (pytest.approx(LEAST_SPAN), pytest.approx(50.01))


def test_the_papers_curve_stands_beside_real_tasks(make) -> None:
    (one,) = seen_in([make("a", 0.1)])
    papers, ours = (line.get_ydata() for line in beside_the_paper(one).axes[0].lines[:2])
    assert ours == pytest.approx([0.0, 10.0, 20.0])
    assert papers[0] == 0
    assert 1.5 < papers[-1] < 2.5
    assert "beside-the-paper" in all_figures([one])
    (others,) = seen_in([make("b", 0.1, seen="reviews")])
    assert "beside-the-paper" not in all_figures([others])


def test_a_run_counts_once_and_a_seed_counts_once(make, tmp_path) -> None:
    first = make("a", 0.1, seed=0)
    link = tmp_path / "link"
    link.symlink_to(first)
    runs, left_out = find([first, first, link, tmp_path / "runs"])
    assert ([run.folder for run in runs], left_out) == ([first], [])
    copy, other = make("copy", 0.1, seed=0), make("other", 0.3, seed=0)
    came = (copy / SCORES).read_text().splitlines()
    (copy / SCORES).write_text("\n".join(came[::-1]) + "\n")
    longer = make("longer", 0.2, seed=1)
    Journal(longer).append(SCORES, [{**Journal(longer).rows(SCORES)[-1], "task": "more"}])
    make("shorter", 0.2, seed=1)
    ((one,), left_out) = conditions(find([tmp_path / "runs"])[0])
    assert [run.folder for run in one.runs] == [first, longer]
    assert left_out == [
        f"{copy}: seed 0 occurs twice, the same scores are in {first}, which counts",
        f"{other}: seed 0 occurs twice, other scores are in {first}, which counts",
        f"{tmp_path / 'runs' / 'shorter'}: seed 1 occurs twice, other scores are in {longer}, "
        "which counts",
    ]
    done = cold_flower("report", str(first), str(copy), "--out", "out", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr == f"left out: {left_out[0]}\n"
    page = text_of((tmp_path / "out" / "report.html").read_text())
    assert "1 seed(s)" in page and f"left out: {left_out[0]}" in page
    assert "± 0.00" not in page.split("Scores")[1].split("Figures")[0]


def test_what_is_no_run_or_has_no_scores_is_left_out_and_named(make, tmp_path) -> None:
    runs = make("a", 0.1).parent
    begun = Journal(runs / "begun")
    begun.open(Config(), {})
    begun.unlock()
    (runs / "notes").mkdir()
    (runs / "figures").mkdir()  # of an earlier report
    (runs / "broken").mkdir()
    (runs / "broken" / "config.json").write_text("{")
    done = cold_flower("report", "runs", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        "left out: runs/begun: no scores yet, nothing to report",
        "left out: runs/broken holds no run (no readable config.json)",
        "left out: runs/notes holds no run (no readable config.json)",
    ]
    assert (runs / "report.html").exists()
    for given in (["runs/begun"], ["runs/begun", "runs/notes"], ["runs/a", "runs/typo"]):
        done = cold_flower("report", *given, "--out", "none", cwd=tmp_path)
        assert done.returncode == 1 and given[-1] in done.stderr
        assert not (tmp_path / "none").exists()


def test_figures_of_an_earlier_report_go_away_and_others_stay(make, tmp_path) -> None:
    first, second = make("a", 0.1, seed=0), make("b", 0.2, contributors_per_iteration=2)
    out = tmp_path / "out"
    html.write([first, second], out)
    assert (out / "figures" / "compare-frozen-seen.png").exists()
    mine = out / "figures" / "mine.png"
    mine.write_bytes(b"")
    html.write([first], out)
    left = {path.stem for path in (out / "figures").iterdir()}
    somebodys = b'<div class="figure" role="img" aria-label="mine">\xff'
    (out / "report.html").write_bytes(somebodys)
    html.write([first], out)
    assert mine.exists()
    assert left == {"curves", "gains-frozen", "gains-finetuned", "beside-the-paper", "mine"}


@pytest.mark.filterwarnings("error")
def test_labels_name_what_matters_and_fit_the_figure(make, tmp_path) -> None:
    """A path by its end, never what a run wrote or how long it waited."""
    for number, name in enumerate(("one", "two")):
        make(
            name, 0.1, base_model=f"/a/long/path/of/models/{name}/minilm", keep_iterations=number,
            transport=("message", "shared-dir")[number], log="", wait__replies=9.0 + number,
            evaluate__every=1 + number,
        )  # fmt: skip
    found = seen_in([tmp_path / "runs"])
    assert [c.label for c in found] == [f"base-model = {n}/minilm" for n in ("one", "two")]
    tasks = ",".join(f"a-task-of-a-rather-long-name-{i}" for i in range(12))
    make("three", 0.2, base_model="/b/minilm", tasks=tasks, gate__protocol="frozen", **{
        "fusion__rule": "ties", "fusion__options": "{density = 0.5, scale = 1.0}",
    })  # fmt: skip
    long = seen_in([tmp_path / "runs"])
    assert 'gate.protocol = ""' in long[0].label and tasks in long[1].label
    figures = all_figures(long)
    names = [name for name in figures if name.startswith("curves")]
    assert len(names) == 3 and max(map(len, names)) < 120
    for name, figure in figures.items():
        figure.savefig(tmp_path / "figure.png", dpi=150)
        panels = figure.axes
        assert len(panels) == (4 if name == "differences" else 1)  # one for each score
        for ax in panels:
            inside = ax.get_window_extent()
            assert inside.width > 400 / len(panels) and inside.height > 50, name


def test_baselines_of_one_kind_are_told_apart_and_one_iteration_is_a_curve(make, tmp_path) -> None:
    union = {"baseline": "multitask", "iterations": 1}
    make("x", 0.1, **union)
    make("y", 0.2, **union, sampling="balanced")
    make("fusing", 0.1, iterations=1)
    make("scored", 0.1, iterations=0, base_model="/m/scored", experiment="evaluate")
    assert {c.label: c.is_level for c in seen_in([tmp_path / "runs"])} == {
        "multitask, sampling = proportional": True,
        "multitask, sampling = balanced": True,
        "base-model = demo, iterations = 1": False,
        "base-model = scored, iterations = 0": True,
    }


def test_no_two_conditions_have_one_label(make, tmp_path) -> None:
    for name, experiment, iterations in (("a", "x", 1), ("b", "y", 1), ("c", "x", 2)):
        make(name, 0.1, experiment=experiment, iterations=iterations)
    labels = [c.label for c in seen_in([tmp_path / "runs"])]
    assert labels == ["x: iterations = 1", "y: iterations = 1", "x: iterations = 2"]


def test_a_protocol_that_only_one_seed_has_is_shown(make, tmp_path) -> None:
    make("a", 0.1, seed=0)
    more = make("b", 0.2, seed=1, evaluate__protocols="frozen,finetuned,few-shot")
    journal = Journal(more)
    rows = [{**row, "protocol": "few-shot"} for row in journal.rows(SCORES) if row["task"] == "rte"]
    journal.append(SCORES, [row for row in rows if row["protocol"] == "few-shot"])
    page = text_of(html.write([tmp_path / "runs"], tmp_path / "out")[0].read_text())
    assert "few-shot, unseen" in page and "nan" not in page


def test_a_report_goes_into_one_file_or_a_folder_and_says_where_it_cannot(make, tmp_path) -> None:
    folder = make("a", 0.1)
    done = cold_flower("report", str(folder), "--out", "new/deep/x.html", cwd=tmp_path)
    assert done.stdout.startswith("new/deep/x.html\n")
    assert [path.name for path in (tmp_path / "new" / "deep").iterdir()] == ["x.html"]
    assert (tmp_path / "new" / "deep" / "x.html").read_text().count('class="figure"') == 4
    assert cold_flower("report", str(folder), "--out", "more/folders", cwd=tmp_path).returncode == 0
    assert (tmp_path / "more" / "folders" / "figures" / "curves.svg").exists()
    (tmp_path / "file").write_text("mine")
    for out in ("file", "file/x.html", "file/deep", "/proc/report", "/proc/x.html"):
        done = cold_flower("report", str(folder), "--out", out, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"error: cannot write the report {out}")
        assert "name another folder, or a file that ends in .html, with --out" in done.stderr
    assert (tmp_path / "file").read_text() == "mine"
