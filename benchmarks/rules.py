"""Which rule when: each fusion rule against the plain mean on real data, at equal length.

Everything is computed from benchmarks/results/science/rules.json; `python -m benchmarks.rules`
writes the table of docs/fusion-rules.md, and a test keeps the page equal to it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.results import PAGE, write
from benchmarks.science import load, rows, select
from cold_flower.reporting.conditions import Condition
from cold_flower.reporting.paired import Difference, difference, gain
from cold_flower.reporting.runs import RunDirectory

NAME = "rules"
RULES = PAGE.with_name("fusion-rules.md")
BEGIN, END = "<!-- written by benchmarks/rules.py -->", "<!-- end of the rules -->"
PLAIN = "average"
GROUPS = ("seen", "unseen")
HEADER = (
    "| rule | its own step | frozen, seen: above the mean, 95 % | frozen, unseen | |",
    "|---|---|---|---|---|",
)


def table() -> str:
    """Return a line for each rule, the best on seen tasks first, as Markdown."""
    runs, kept = load(NAME), rows(NAME)
    mean = select(runs, PLAIN, fusion__rule=PLAIN)
    lines = []
    for rule in sorted({str(run.config["fusion.rule"]) for run in runs} - {PLAIN}):
        seen, unseen = (_against(runs, rule, mean, group) for group in GROUPS)
        found = dict(zip(GROUPS, (seen, unseen), strict=True))
        said = [f"{one.verdict} on {group}" for group, one in found.items() if one.verdict]
        line = f"| {rule} | {_own(kept, rule)} | {seen} | {unseen} | {', '.join(said)} |"
        lines.append((seen.mean, line))
    plain = [gain(mean, group, "frozen", mean.last) for group in GROUPS]
    first = f"| {PLAIN}, over the start | 1.0 | {plain[0]} | {plain[1]} | |"
    return "\n".join([*HEADER, first, *(line for _, line in sorted(lines, reverse=True))]) + "\n"


def _own(kept: Sequence[Mapping[str, Any]], rule: str) -> str:
    """Return how long the rule's own steps are, in the plain mean's."""
    lengths = [
        length
        for run in kept
        if run["config"].get("fusion.rule") == rule
        for length in run["own-lengths"]
    ]
    return f"{sum(lengths) / len(lengths):.1f}" if lengths else ""


def _against(runs: Sequence[RunDirectory], rule: str, mean: Condition, group: str) -> Difference:
    found = difference(select(runs, rule, fusion__rule=rule), mean, group, "frozen")
    assert found is not None  # every run of the comparison has scored the same tasks
    return found


if __name__ == "__main__":
    write(BEGIN, table(), END, RULES)
