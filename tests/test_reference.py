"""The published numbers say of themselves what the documents say of them."""

from collections import Counter
from statistics import mean

import pytest

from cold_flower.config import Config
from cold_flower.reporting import reference
from cold_flower.runtime.bundle import stage

TABLES = {
    "leaderboard_cold_bert_rows": (30, 39),
    "leaderboard_cold_rows": (58, 41),
    "model_card": (36, 4),
    "table1": (35, 5),
    "table1_muppet_repaired": (35, 5),
    "test_set_sizes_inferred": (35, 2),
}
"""Rows and columns of each."""


def gains(name: str, column: str) -> dict[str, float]:
    """Return a column's gain over finetuning by dataset, where both have a number."""
    return {
        row["dataset"]: float(row[column]) - float(row["finetune"])
        for row in reference.read(name)
        if row[column] and row["finetune"]
    }


def test_table_1_as_printed() -> None:
    """It says of itself what follows from its rows; the paper's text says something else."""
    cold = gains("table1", "cold_fusion")
    assert len(cold) == 35
    rows = reference.read("table1")
    assert mean(float(row["finetune"]) for row in rows) == pytest.approx(75.58, abs=0.005)
    assert mean(float(row["cold_fusion"]) for row in rows) == pytest.approx(78.08, abs=0.005)
    signs = Counter((round(g, 2) > 0) - (round(g, 2) < 0) for g in cold.values())
    says = reference.said()
    assert says["table"] == {
        "gain": round(mean(cold.values()), 2),
        "better": signs[1],
        "equal": signs[0],
        "worse": signs[-1],
        "worst": round(min(cold.values()), 2),
        "multitask": round(mean(gains("table1", "multitask").values()), 2),
    }
    assert (says["table"]["gain"], signs[1], signs[0], signs[-1]) == (2.50, 27, 1, 7)
    assert says["text"] == {
        "gain": 2.33,
        "better-percent": 75,
        "worst": -1.73,
        "multitask": 1.62,
    }


def test_muppet_with_its_cells_put_back() -> None:
    repaired = gains("table1_muppet_repaired", "muppet_repaired")
    assert len(repaired) == 34
    assert mean(repaired.values()) == pytest.approx(1.76, abs=0.005)
    assert repaired["WNLI"] == min(repaired.values()) == pytest.approx(-15.77)
    assert min(gains("table1", "muppet").values()) < -35  # as printed
    for column, expected in (("cold_fusion", 2.55), ("multitask", 1.67)):
        same = {k: g for k, g in gains("table1", column).items() if k in repaired}
        assert mean(same.values()) == pytest.approx(expected, abs=0.005)
    printed = [r["muppet_as_printed"] for r in reference.read("table1_muppet_repaired")]
    assert printed == [r["muppet"] for r in reference.read("table1")]


def test_the_printed_muppet_cells_are_impossible() -> None:
    """A score is a whole number of right answers out of the test set."""
    sizes = {
        row["dataset"]: int(row["n_test_inferred_from_score_granularity"])
        for row in reference.read("test_set_sizes_inferred")
    }
    size = sizes["cb"]  # 56 examples
    possible = {round(100 * right / size, 2) for right in range(size + 1)}
    table = {row["dataset"]: row for row in reference.read("table1")}
    assert float(table["CB"]["muppet"]) in possible
    rte = {round(100 * right / sizes["rte"], 2) for right in range(sizes["rte"] + 1)}
    assert float(table["RTE"]["muppet"]) not in rte
    wnli = {round(100 * right / sizes["wnli"], 2) for right in range(sizes["wnli"] + 1)}
    assert float(table["RTE"]["muppet"]) in wnli


def test_the_released_models() -> None:
    card = reference.read("model_card")
    assert len(card) == 36
    assert mean(float(r["cold_fusion_score"]) for r in card) == pytest.approx(78.47, abs=0.01)
    clean = [r for r in reference.read("leaderboard_cold_rows") if r["columns_clean"] == "yes"]
    later = mean(float(r["avg36"]) for r in clean if r["iteration"] == 9)
    assert later - 76.22 == pytest.approx(1.96, abs=0.01)
    gains_of = reference.released()
    assert mean(gains_of[9]) == pytest.approx(1.96, abs=0.01)
    assert len(gains_of[9]) == sum(r["iteration"] == 9 for r in clean) == 4
    assert min(gains_of) == 1


@pytest.mark.parametrize("name", TABLES)
def test_every_table_is_whole(name) -> None:
    rows = reference.read(name)
    assert (len(rows), len(rows[0])) == TABLES[name]


def test_known_cells() -> None:
    """One of each table, as published; an empty cell is an empty text."""
    bert, cold = (reference.read(f"leaderboard_cold_{n}rows") for n in ("bert_", ""))
    assert (bert[5]["iteration"], bert[5]["avg36"]) == (5, 74.3685399674518)
    assert cold[0]["model"] == "ibm/ColD-Fusion-itr1-seed0"
    assert (cold[-1]["iteration"], cold[-1]["seed"]) == ("", "")
    assert cold[1]["columns_clean"] == "no (columns scrambled)"
    assert reference.read("model_card")[0]["cold_fusion_score"] == 85.8205
    assert reference.read("table1")[-1]["cold_fusion"] == 72.69
    put_back = {row["dataset"]: row for row in reference.read("table1_muppet_repaired")}
    assert put_back["DBPEDIA"]["muppet_repaired"] == ""
    assert put_back["WNLI"]["printed_cell_it_came_from"] == "RTE"
    assert reference.read("test_set_sizes_inferred")[5]["dataset"] == "cb"


def test_a_run_has_them_with_it(tmp_path) -> None:
    """A Flower app leaves out .csv files, so there are none."""
    bundled = stage(tmp_path, Config()) / "cold_flower" / "reporting" / "reference"
    assert {path.stem for path in bundled.glob("*.toml")} == TABLES.keys()
    assert not list(reference.FOLDER.parent.parent.rglob("*.csv"))
