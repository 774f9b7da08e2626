"""Published numbers, as facts to compare with. Points, that is 100 times accuracy.

- ``table1.csv``: Table 1 of the paper as printed (35 datasets). Its MUPPET column stands on
  the wrong rows: score times test size is no integer for 20 of its cells, and each of the
  20 fits another dataset.
- ``table1_muppet_repaired.csv``: the cells put back where they fit (34 of 35).
- ``model_card.csv``: the released model ibm/ColD-Fusion, 36 datasets.
- ``leaderboard_cold_rows.csv``, ``leaderboard_cold_bert_rows.csv``: released iterations, from
  IBM/model-recycling (Apache-2.0). Rows whose columns are scrambled there are marked.
- ``test_set_sizes_inferred.csv``: test sets, from the granularity of the scores.
"""

import csv
from pathlib import Path

HERE = Path(__file__).parent
Row = dict[str, str]


def read(name: str) -> list[Row]:
    """Return a table's rows by column name."""
    with (HERE / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def gains(name: str, column: str, over: str = "finetune") -> dict[str, float]:
    """Return a column's gain over another by dataset, where both have a number."""
    return {
        row["dataset"]: float(row[column]) - float(row[over])
        for row in read(name)
        if row[column] and row[over]
    }


def released() -> dict[int, list[float]]:
    """Return the gains of the released models over RoBERTa-base by iteration, one a seed.

    Means over the 36 datasets after finetuning; rows with scrambled columns are left out.
    """
    card = read("model_card")
    start = sum(float(row["implied_roberta_base"]) for row in card) / len(card)
    found: dict[int, list[float]] = {}
    for row in read("leaderboard_cold_rows"):
        if row["iteration"] and row["columns_clean"] == "yes":
            found.setdefault(int(row["iteration"]), []).append(float(row["avg36"]) - start)
    return found
