"""From scores to the table."""

import math

import pytest
from rich.console import Console

from cold_flower.report import gains, mean_and_sem, summary, table


def rows(values):
    return [
        {"iteration": i, "task": t, "group": g, "protocol": "frozen", "value": v}
        for (i, t, g), v in values.items()
    ]


ROWS = rows(
    {
        (0, "a", "seen"): 0.5,
        (0, "b", "seen"): 0.3,
        (0, "c", "unseen"): 0.4,
        (2, "a", "seen"): 0.6,
        (2, "b", "seen"): 0.6,
        (2, "c", "unseen"): 0.3,
    }
)


def test_mean_and_standard_error_by_hand() -> None:
    assert mean_and_sem([0.1, 0.3]) == pytest.approx((0.2, 0.1))
    assert math.isnan(mean_and_sem([0.5])[1])


def test_gains_are_paired_by_task() -> None:
    assert gains(ROWS, "seen", "frozen", 2) == pytest.approx([0.1, 0.3])


def test_the_table_shows_points_and_the_gain() -> None:
    console = Console(width=100, record=True)
    console.print(table(ROWS, "a run"))
    text = console.export_text()
    assert "2 seen" in text
    assert "40.0" in text
    assert "60.0" in text
    assert text.split("gain")[1].split() == ["+20.0", "-10.0", "±", "SEM", "10.0", "nan"]
    assert max(map(len, text.splitlines())) <= 80


def test_one_task_has_no_standard_error() -> None:
    console = Console(width=100, record=True)
    console.print(table([row for row in ROWS if row["task"] == "a"], "a run"))
    text = console.export_text()
    assert "+10.0" in text
    assert "SEM" not in text


def test_a_summary_in_one_line() -> None:
    assert summary(ROWS, 0) == "frozen seen 40.0, frozen unseen 40.0"
    assert summary(ROWS, 2) == "frozen seen 60.0 (+20.0), frozen unseen 30.0 (-10.0)"
