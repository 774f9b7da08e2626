"""A condition's scores in the report: their means, and task by task."""

import html
from collections.abc import Iterable, Sequence

from cold_flower.reporting.conditions import Condition
from cold_flower.reporting.markup import Cell, table
from cold_flower.reporting.statistics import (
    Row,
    curve,
    ends,
    mean_and_sem,
    mean_gain,
    pick,
    task_gains,
)
from cold_flower.reporting.tables import columns, partly, points


def scores_table(condition: Condition, *, with_label: bool) -> Iterable[str]:
    """Yield the mean scores at the start and at the end, a line per protocol and group.

    A line is of the same tasks and seeds throughout (`ends`), and says of how many.
    """
    if with_label:
        yield f"<h3>{html.escape(condition.label)}</h3>"
    rows: list[list[Cell]] = []
    last = condition.last
    for group, protocol in columns(condition.rows):
        kept = ends(condition.scores, group, protocol, last)
        means = curve(kept, group, protocol)
        gain = points(*mean_gain(kept, group, protocol, last), digits=2, sign="+")
        rows.append(
            [
                f"{protocol}, {group}",
                _how_many(
                    kept, [pick(s, group=group, protocol=protocol) for s in condition.scores]
                ),
                *(points(*means[i], digits=2) if i in means else "" for i in (0, last)),
                gain if last else "",
            ]
        )
    head = ["", "tasks", "start ± SD", f"iteration {last} ± SD", "gain ± SEM"]
    yield table(head, rows)


def _how_many(kept: Sequence[Sequence[Row]], of: Sequence[Sequence[Row]]) -> str:
    """Say how many tasks a seed's mean is of, and of how many seeds it is where some have none."""
    tasks, seeds = partly(kept, of)
    sizes = sorted({len({row["task"] for row in rows}) for rows in of if rows})
    whole = " to ".join(map(str, sizes[:1] + sizes[1:][-1:]))
    return (tasks or whole) + (f" ({seeds})" if seeds else "")


def tasks_table(condition: Condition) -> Iterable[str]:
    """Yield the gain of each task under each protocol (Table 1 of the run).

    A task that is seen with one seed and unseen with another has a line of each, and it says with
    how many seeds; a score of fewer says of how many it is.
    """
    protocols = list(dict.fromkeys(protocol for _, protocol in columns(condition.rows)))
    gains = {p: task_gains(condition.scores, p, condition.last) for p in protocols}
    rows: list[list[Cell]] = []
    for task, group in sorted({(row["task"], row["group"]) for row in condition.rows}):
        by_seed = [pick(scores, task=task, group=group) for scores in condition.scores]
        by_seed = [of_seed for of_seed in by_seed if of_seed]
        cells: list[Cell] = [task, group, len(by_seed), by_seed[0][0]["n_test"]]
        for protocol in protocols:
            last = [
                row["value"]
                for of_seed in by_seed
                for row in pick(of_seed, protocol=protocol, iteration=condition.last)
            ]
            some = f" ({len(last)} of {len(by_seed)})" if 0 < len(last) < len(by_seed) else ""
            own = gains[protocol].get((group, task))
            cells.append(points(mean_and_sem(last)[0]) + some)
            cells.append(points(*own, sign="+") if own else "")
        rows.append(cells)
    head = ["task", "group", "seeds", "n test"]
    for protocol in protocols:
        head += [protocol, "gain ± SE"]
    if condition.label:
        yield f"<h3>{html.escape(condition.label)}</h3>"
    yield table(head, rows)
