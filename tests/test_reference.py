"""The published numbers say of themselves what the documents say of them."""

from collections import Counter
from statistics import mean

import pytest

from cold_flower.reporting import reference


def gains(name: str, column: str) -> dict[str, float]:
    """Return a column's gain over finetuning by dataset, where both have a number."""
    return {
        row["dataset"]: float(row[column]) - float(row["finetune"])
        for row in reference.read(name)
        if row[column] and row["finetune"]
    }


def test_table_1_as_printed() -> None:
    cold = gains("table1", "cold_fusion")
    assert len(cold) == 35
    assert mean(cold.values()) == pytest.approx(2.50, abs=0.005)  # not the text's +2.33
    signs = Counter((round(g, 2) > 0) - (round(g, 2) < 0) for g in cold.values())
    assert (signs[1], signs[0], signs[-1]) == (27, 1, 7)
    assert min(cold.values()) == pytest.approx(-1.15)
    assert mean(gains("table1", "multitask").values()) == pytest.approx(1.63, abs=0.005)


def test_muppet_with_its_cells_put_back() -> None:
    repaired = gains("table1_muppet_repaired", "muppet_repaired")
    assert len(repaired) == 34
    assert mean(repaired.values()) == pytest.approx(1.76, abs=0.005)
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
    later = mean(float(r["avg36"]) for r in clean if r["iteration"] == "9")
    assert later - 76.22 == pytest.approx(1.96, abs=0.01)
    gains_of = reference.released()
    assert mean(gains_of[9]) == pytest.approx(1.96, abs=0.01)
    assert len(gains_of[9]) == sum(r["iteration"] == "9" for r in clean) == 4
    assert min(gains_of) == 1
