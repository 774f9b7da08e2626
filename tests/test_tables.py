"""From scores to the table."""

from rich.console import Console

from cold_flower.reporting.tables import gain_cells, partly, score_cells, summary, table_of


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


def test_the_table_shows_points_and_the_gain() -> None:
    console = Console(width=100, record=True)
    console.print(table_of(score_cells(ROWS), "a run"))
    text = console.export_text()
    assert "2 seen" in text
    assert "40.0" in text
    assert "60.0" in text
    assert text.split("gain")[1].split() == ["+20.0", "-10.0", "±", "SEM", "10.0"]
    assert max(map(len, text.splitlines())) <= 80


def test_one_task_has_no_standard_error() -> None:
    console = Console(width=100, record=True)
    console.print(table_of(score_cells([row for row in ROWS if row["task"] == "a"]), "a run"))
    text = console.export_text()
    assert "+10.0" in text
    assert "SEM" not in text


def test_a_summary_in_one_line() -> None:
    assert summary(ROWS, 0) == "frozen seen 40.0, frozen unseen 40.0"
    assert summary(ROWS, 2) == "frozen seen 60.0 (+20.0), frozen unseen 30.0 (-10.0)"


def test_a_gain_over_fewer_tasks_than_its_mean_says_so() -> None:
    came = [row for row in ROWS if (row["iteration"], row["task"]) != (0, "b")]
    assert summary(came, 2) == "frozen seen 60.0 (+10.0 on 1), frozen unseen 30.0 (-10.0)"


def test_a_gain_table_pairs_tasks() -> None:
    about = {"group": "seen", "metric": "accuracy", "n_test": 100, "iteration": 0}
    before = [{**about, "task": t, "protocol": "frozen", "value": 0.5} for t in ("a", "b", "c")]
    after = [
        {**about, "task": "a", "protocol": "frozen", "value": 0.6},
        {**about, "task": "b", "protocol": "frozen", "value": 0.9},
        {**about, "task": "z", "protocol": "frozen", "value": 0.1},
    ]
    console = Console(width=100, record=True)
    console.print(table_of(gain_cells(before, after), "a gain"))
    text = console.export_text()
    assert "+10.0 ± 7.0" in text  # sqrt(0.25 + 0.24) / 10
    assert "+40.0 ± 5.8" in text
    assert "z" not in text.split("gain ± SE")[1]
    assert "+25.00 ± 15.00" in text


def test_what_was_not_measured_is_blank() -> None:
    """A protocol that an iteration was not scored under; an error that a metric or one task lacks."""
    few = [*ROWS, {**ROWS[0], "protocol": "finetuned"}]
    assert [line[1] for line in score_cells(ROWS[:-2]).lines] == ["40.0", "60.0 (1 of 2)"]
    assert summary(few, 2) == "frozen seen 60.0 (+20.0), frozen unseen 30.0 (-10.0)"
    assert summary(few, 1) == ""
    assert summary(ROWS[:-2], 2) == "frozen seen 60.0 (1 of 2) (+10.0)"
    assert score_cells(ROWS[:-2]).totals[0][1] == "+10.0 (1 of 2)"
    about = {"group": "seen", "metric": "pearson", "n_test": 100, "iteration": 0}
    before = [{**about, "task": "a", "protocol": "frozen", "value": 0.5}]
    after = [{**about, "task": "a", "protocol": "frozen", "value": 0.75}]
    cells = gain_cells(before, after)
    assert cells.lines == [["a", "75.0", "+25.0"]]
    assert cells.totals == [["mean", "", "+25.00"]]


def test_a_mean_of_some_says_of_how_many_it_is() -> None:
    whole, start = ROWS[:2], ROWS[:1]
    assert partly([whole], [whole]) == ("", "")
    assert partly([start], [whole]) == ("1 of 2", "")
    assert partly([start, whole], [whole, whole]) == ("1 of 2", "")  # the least
    assert partly([whole, []], [whole, whole]) == ("", "1 of 2 seeds")
    assert partly([start, start], [start, start]) == ("", "")  # each seed has all of its own
    assert partly([[], []], [whole, []]) == ("0 of 2", "")
