"""A report's section that sets conditions against the first one."""

import html
from collections.abc import Iterable, Sequence

from cold_flower.reporting.conditions import Condition
from cold_flower.reporting.markup import Cell, table
from cold_flower.reporting.paired import difference
from cold_flower.reporting.tables import columns


def differences(compared: Sequence[Condition]) -> Iterable[str]:
    """Yield how each condition's last scores differ from the first one's."""
    first, *others = compared
    rows: list[list[Cell]] = []
    for condition in others:
        for group, protocol in columns(condition.rows):
            if found := difference(condition, first, group, protocol):
                size = f"{found.tasks} tasks, {found.seeds} seed(s)"
                what = f"{protocol}, {group}"
                rows.append([condition.label, what, size, str(found), found.verdict])
    if rows:
        yield f"<h2>Against {html.escape(first.label)}</h2>"
        yield table(["", "", "paired", "points above it", ""], rows)
        yield (
            "<p class=note>Differences of the last scores, paired by task and seed, with a 95 % "
            "interval over tasks and seeds; with one seed it is over tasks alone, and speaks of no "
            "other seed. Better or worse is said where it leaves 0 out, of three seeds or more.</p>"
        )
