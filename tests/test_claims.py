"""The paper's claims, computed from the scores that are kept."""

import math
from pathlib import Path

import pytest

from benchmarks import claims, results, rules, science, tried
from benchmarks.claims import Claim
from cold_flower.reporting.paired import Difference
from cold_flower.repository.journal import RESULT, SCORES, Journal
from tests.test_html import make  # noqa: F401 - a fixture


def test_verdicts() -> None:
    def of(mean: float, half: float) -> Difference:
        return Difference(mean, half / 1.959964, 1e9, 12, 3)

    def verdict(one: Difference | None, *, equal: bool = False) -> str:
        return Claim("what", "there", one, equal).verdict

    assert verdict(of(0.03, 0.02)) == "yes"
    assert verdict(of(-0.03, 0.02)) == "no"
    assert verdict(of(0.01, 0.02)) == "undecided: 2.0 points would have shown"
    assert verdict(Difference(0.03, 0.001, 11.0, 12, 1)) == "undecided"  # of one seed
    assert verdict(of(0.03, math.nan)) == "undecided"
    assert verdict(None) == "not run"
    assert verdict(of(0.01, 0.02), equal=True) == "no difference seen"
    assert verdict(of(0.03, 0.02), equal=True) == "no"
    assert Claim("Fig. 4", "+6.73", of(0.03, 0.02)).line == (
        "| Fig. 4 | +6.73 | +3.0 ± 2.0 | 12, 3 | yes |"
    )
    assert Claim("Fig. 4", "+6.73", None).line == "| Fig. 4 | +6.73 |  |  | not run |"


def test_steadier_is_a_smaller_spread_over_seeds() -> None:
    """Of two tasks: 20 and 6 points of spread against 10 and 2, so by 10 and 4: 7 on average."""
    ours = {0: {"a": 0.5, "b": 0.30}, 1: {"a": 0.6, "b": 0.32}, 2: {"a": 0.7, "b": 0.34}}
    theirs = {0: {"a": 0.1, "b": 0.24}, 1: {"a": 0.3, "b": 0.30}, 2: {"a": 0.5, "b": 0.36}}
    found = claims.steadier(ours, theirs)
    assert (found.mean, found.error) == (pytest.approx(0.07), pytest.approx(0.03))
    assert (found.degrees, found.tasks, found.seeds) == (1, 2, 3)


def end(run: Path) -> Path:
    Journal(run).write(RESULT, {"status": "completed", "iterations": 2, "cause": ""})
    return run


def test_scores_are_kept_and_read_again(make, tmp_path, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setattr(science, "SCIENCE", tmp_path / "science")
    for seed in (0, 1):
        make(f"seed={seed}", 0.1 * (seed + 1), seed=seed, fusion__rule="ties")
    make("average", 0.1, seed=0)
    for run in (tmp_path / "runs").iterdir():
        end(run)
    make("at-work", 0.1, seed=5)
    file = science.keep("trial", [tmp_path / "runs"])
    assert str(tmp_path) not in file.read_text()
    runs = science.load("trial")
    assert len(runs) == 3
    ties = science.select(runs, "ties", fusion__rule="ties", iterations=2)
    assert [run.config["seed"] for run in ties.runs] == [0, 1]
    for run in ties.runs:
        rows = Journal(tmp_path / "runs" / f"seed={run.config['seed']}").rows(SCORES)
        assert [{k: row[k] for k in read} for row, read in zip(rows, run.scores, strict=True)] == [
            dict(read) for read in run.scores
        ]
    found = claims.gain(ties, "seen", "frozen", 2)
    assert found and found.mean == pytest.approx((0.2 + 0.4) / 2)
    with pytest.raises(ValueError, match="ties: seeds"):
        science.select(runs, "ties", fusion__rule="dare")
    with pytest.raises(ValueError, match=r"all: seeds \[0, 0, 1\]"):
        science.select(sorted(runs, key=lambda run: run.config["seed"]), "all")


def test_seeds_are_added_and_the_same_run_is_replaced(make, tmp_path, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setattr(science, "SCIENCE", tmp_path / "science")
    runs = {seed: end(make(f"seed={seed}", 0.1, seed=seed)) for seed in (0, 1)}
    science.keep("trial", [runs[0]])
    (tmp_path / "runs" / "seed=0").rename(tmp_path / "elsewhere")
    again = end(make("seed=0", 0.2, seed=0))
    science.keep("trial", [runs[1]])
    assert [run.config["seed"] for run in science.load("trial")] == [0, 1]
    science.keep("trial", [again])
    kept = science.load("trial")
    assert [run.config["seed"] for run in kept] == [0, 1]
    assert [run.scores[-1]["value"] for run in kept] == pytest.approx([0.65, 0.45])


def test_the_table_of_rules_shows_what_is_kept() -> None:
    said = rules.RULES.read_text().partition(rules.BEGIN)[2].partition(rules.END)[0]
    assert said.strip() == rules.table().strip()


def test_the_table_of_what_was_tried_shows_what_is_kept() -> None:
    said = results.PAGE.read_text().partition(tried.BEGIN)[2].partition(tried.END)[0]
    assert said.strip() == tried.table().strip()


def test_the_page_shows_what_is_kept() -> None:
    said = results.PAGE.read_text().partition(claims.BEGIN)[2].partition(claims.END)[0]
    assert said.strip() == claims.table().strip()
    first = claims.README.read_text().partition(claims.BEGIN)[2].partition(claims.END)[0]
    assert first.strip() == claims.first_table().strip()
