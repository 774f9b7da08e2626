"""What a report makes of scores that are not all there; see also test_html.py."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cold_flower.reporting.comparison import comparison
from cold_flower.reporting.conditions import Condition
from cold_flower.reporting.figures import all_figures, beside_the_paper, compare, curves, gains
from cold_flower.reporting.paired import gain
from cold_flower.reporting.runs import RunDirectory, configuration
from cold_flower.reporting.scored import scores_table, tasks_table
from cold_flower.reporting.statistics import Row
from cold_flower.repository.journal import CONTRIBUTIONS, SCORES, Journal
from tests.test_html import make  # noqa: F401 - a fixture


def keep(run: Path, wanted: Callable[[Row], bool]) -> None:
    """Leave in a run's scores what is wanted of them."""
    rows = [row for row in Journal(run).rows(SCORES) if wanted(row)]
    (run / SCORES).write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def add_task(run: Path, task: str, wanted: Callable[[Row], bool], group: str = "seen") -> None:
    """Give a run a further task, which scores 10 points above mnli's."""
    rows = [row for row in Journal(run).rows(SCORES) if row["task"] == "mnli" and wanted(row)]
    more = [{**row, "task": task, "group": group, "value": row["value"] + 0.1} for row in rows]
    Journal(run).append(SCORES, more)


def condition(*runs: Path) -> Condition:
    return Condition("", tuple(RunDirectory(run, configuration(run)) for run in runs))


def cells(page: object, name: str) -> list[str]:
    """Return the cells of a table's row beside its name."""
    (row,) = [row for row in "".join(page).split("<tr>") if f">{name}<" in f">{row}<"]  # type: ignore[call-overload]
    return re.findall(r"<td>([^<]*)", row)


def names_in(figure) -> list[str]:  # type: ignore[no-untyped-def]
    return [text.get_text() for text in figure.axes[0].texts]


def test_who_was_away_at_a_base_between_counts_at_both_ends(make) -> None:  # noqa: F811
    run = make("mine", 0.1)
    add_task(run, "qnli", lambda row: row["iteration"] != 1)
    own = cells(scores_table(condition(run), with_label=False), "frozen, seen")
    assert own == ["frozen, seen", "2", "55.00", "75.00", "+20.00 ± 0.00"]
    assert "frozen, seen (1 of 2 tasks)" in names_in(curves(condition(run)))  # as its base 1 has


def test_bases_that_have_no_task_in_common_are_drawn_nowhere_and_stop_nothing(make) -> None:  # noqa: F811
    run = make("mine", 0.1)
    keep(run, lambda row: (row["task"] == "mnli") == (row["iteration"] > 0))
    one = condition(run)
    own = cells(scores_table(one, with_label=False), "frozen, seen")
    assert own == ["frozen, seen", "1", "", "70.00", ""]
    both = [Condition(name, one.runs) for name in ("a", "b")]
    assert names_in(compare(both, "unseen", "frozen")) == ["a", "b"]
    keep(run, lambda row: (row["task"] == "mnli") == (row["iteration"] == 1))
    add_task(run, "qnli", lambda row: False)
    other = condition(run)
    Journal(run).append(SCORES, [{**other.rows[0], "group": "seen", "task": "x", "iteration": 2}])
    other = condition(run)
    assert all_figures([other]) and all_figures([Condition("a", other.runs), *both])
    assert names_in(beside_the_paper(other)) == ["the paper's, RoBERTa-base"]


def test_a_mean_over_some_seeds_says_so(make) -> None:  # noqa: F811
    """The second was stopped before its last base was finetuned, so it has no gain there."""
    runs = [make(f"seed={seed}", 0.1 * (seed + 1), seed=seed) for seed in (0, 1)]
    keep(runs[1], lambda row: (row["iteration"], row["protocol"]) != (2, "finetuned"))
    page = "".join(scores_table(condition(*runs), with_label=False))
    assert cells(page, "frozen, seen")[1:] == [
        "1", "50.00 ± 0.00", "80.00 ± 14.14", "+30.00 ± 10.00"
    ]  # fmt: skip
    own = cells(page, "finetuned, seen")
    assert own[1:4] == ["1 (1 of 2 seeds)", "50.00", "70.00"]  # both ends are of the first
    assert own[4].startswith("+20.00")
    tasks = cells(tasks_table(condition(*runs)), "mnli")
    assert "80.0" in tasks and "70.0 (1 of 2)" in tasks


def test_a_curve_ends_where_all_seeds_do(make) -> None:  # noqa: F811
    """The longer one alone has few-shot."""
    runs = [make(f"seed={n}", 0.1, seed=n, iterations=n + 1) for n in (0, 1)]
    rows = [row for row in Journal(runs[1]).rows(SCORES) if row["protocol"] == "frozen"]
    Journal(runs[1]).append(SCORES, [{**row, "protocol": "few-shot"} for row in rows])
    figure = curves(condition(*runs))
    assert max(x for line in figure.axes[0].lines for x in line.get_xdata()) == 1  # type: ignore[union-attr]
    assert "few-shot, seen (1 of 2 seeds)" in names_in(figure)


def test_a_task_of_two_groups_has_a_row_of_each_and_groups_have_their_own_mean(make) -> None:  # noqa: F811
    runs = [make(f"seed={seed}", 0.1, seed=seed) for seed in (0, 1, 2)]
    add_task(runs[2], "rte", lambda row: True)
    keep(runs[2], lambda row: (row["task"], row["group"]) != ("rte", "unseen"))
    page = "".join(tasks_table(condition(*runs)))
    found = [row for row in page.split("<tr>") if row.startswith("<td>rte")]
    assert [re.findall("<td>([^<]*)", row)[1:4] for row in found] == [
        ["seen", "1", "100"], ["unseen", "2", "100"]
    ]  # fmt: skip
    figure = gains(condition(*runs), "frozen")
    said = figure.axes[0].get_xlabel()
    assert "mean of seen +20.0 ± 0.0; dashed: mean of unseen +20.0" in said
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert {*labels} == {"mnli (seen)", "rte (seen)", "rte (unseen)"}


def test_a_comparisons_start_is_of_the_tasks_that_gained(make, tmp_path) -> None:  # noqa: F811
    run = make("mine", 0.1)
    add_task(run, "qnli", lambda row: row["iteration"] < 2)
    lines = comparison(tmp_path, {"one": [run]}).lines
    (line,) = (one for one in lines if (one.protocol, one.group) == ("frozen", "seen"))
    assert (line.tasks, line.start, line.gain) == (1, 0.5, pytest.approx(0.2))
    found = gain(condition(run), "seen", "frozen", 2)
    assert found and found.tasks == 1


def test_bodies_are_what_messages_carried(make) -> None:  # noqa: F811
    """Not what lay in a dropbox, what another run had finetuned, and what goes by reference."""

    def bodies(name: str, **keys: str) -> int:
        run = make(name, 0.1, **keys)  # two contributions
        journal = Journal(run)
        for phase in ("evaluate", "evaluate", "validate", "finetune"):
            journal.say("1/2", phase=phase, iteration=2, done=1, of=2, who="mnli frozen")
        journal.say("evaluating", phase="evaluate", iteration=2, done=0, of=2, asked=["mnli"])
        journal.append(CONTRIBUTIONS, [{"iteration": 2, "contributor": "x", "from": "dropbox"}])
        journal.say("its start is another run's", **{"taken-over": 1})
        return RunDirectory(run, configuration(run)).bodies

    assert bodies("mine") == 2 * (2 - 1) + 2 + 1
    assert bodies("by-reference", transport="shared-dir") == 1  # of the gate's candidate
