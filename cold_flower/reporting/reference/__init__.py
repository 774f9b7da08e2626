"""Published numbers to compare with, in points (100 times accuracy): a TOML file for each table.

- ``table1``: Table 1 of the paper as printed (35 datasets), and how the paper's text disagrees
  with it. The cells of its MUPPET column are in the wrong rows: for 20 of them, score times
  test size is no integer, and each of these fits another dataset.
- ``table1_muppet_repaired``: that column with each cell in the row that it fits (34 of 35).
- ``model_card``: the released model ibm/ColD-Fusion, 36 datasets.
- ``leaderboard_cold_rows``, ``leaderboard_cold_bert_rows``: released iterations, from
  IBM/model-recycling (Apache-2.0). Rows whose columns are scrambled there are marked.
- ``test_set_sizes_inferred``: sizes of the test sets, from the granularity of the scores.

TOML, because a Flower app leaves out .csv files.
"""

import tomllib
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
Row = dict[str, float | str]
"""A table's row by column name; an empty cell is an empty text."""


def read(name: str) -> list[Row]:
    """Return a table's rows."""
    table = _table(name)
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


def said() -> dict[str, dict[str, float]]:
    """Return what Table 1 says ColD Fusion gains, under ``table``, and what the ``text`` says."""
    says: dict[str, dict[str, float]] = _table("table1")["says"]
    return says


def released() -> dict[int, list[float]]:
    """Return the released models' gains over RoBERTa-base, by iteration, one for each seed.

    A gain is the mean over the 36 datasets after finetuning. Rows with scrambled columns are
    left out.
    """
    card = read("model_card")
    start = sum(float(row["implied_roberta_base"]) for row in card) / len(card)
    by_iteration: dict[int, list[float]] = {}
    for row in read("leaderboard_cold_rows"):
        if row["iteration"] != "" and row["columns_clean"] == "yes":
            gain = float(row["avg36"]) - start
            by_iteration.setdefault(int(row["iteration"]), []).append(gain)
    return by_iteration


def _table(name: str) -> dict[str, Any]:
    return tomllib.loads((FOLDER / f"{name}.toml").read_text())
