"""Published numbers to compare with, in points (100 times accuracy).

- ``table1.csv``: Table 1 of the paper as printed (35 datasets). The cells of its MUPPET column
  are in the wrong rows: for 20 of them, score times test size is no integer, and each of these
  fits another dataset.
- ``table1_muppet_repaired.csv``: that column with each cell in the row that it fits (34 of 35).
- ``model_card.csv``: the released model ibm/ColD-Fusion, 36 datasets.
- ``leaderboard_cold_rows.csv``, ``leaderboard_cold_bert_rows.csv``: released iterations, from
  IBM/model-recycling (Apache-2.0). Rows whose columns are scrambled there are marked.
- ``test_set_sizes_inferred.csv``: sizes of the test sets, from the granularity of the scores.
"""

import csv
from pathlib import Path

FOLDER = Path(__file__).parent
Row = dict[str, str]


def read(name: str) -> list[Row]:
    """Return a table's rows by column name."""
    with (FOLDER / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def released() -> dict[int, list[float]]:
    """Return the released models' gains over RoBERTa-base, by iteration, one for each seed.

    A gain is the mean over the 36 datasets after finetuning. Rows with scrambled columns are
    left out.
    """
    card = read("model_card")
    start = sum(float(row["implied_roberta_base"]) for row in card) / len(card)
    by_iteration: dict[int, list[float]] = {}
    for row in read("leaderboard_cold_rows"):
        if row["iteration"] and row["columns_clean"] == "yes":
            gain = float(row["avg36"]) - start
            by_iteration.setdefault(int(row["iteration"]), []).append(gain)
    return by_iteration
