"""What was tried so that few-shot on unseen tasks rises more than with the plain mean.

Everything is computed from benchmarks/results/science/few.json, of the runs of one comparison;
`python -m benchmarks.tried` writes the table of docs/results.md, and a test keeps it equal.
"""

from typing import Any

from benchmarks.results import write
from benchmarks.science import load, select
from cold_flower.reporting.paired import difference, gain

NAME = "few"
BEGIN, END = "<!-- written by benchmarks/tried.py -->", "<!-- end of what was tried -->"
SCORE = ("unseen", "few-shot")
HEADER = (
    "| contributors and fusion | few-shot, unseen: gain, 95 % | above the plain mean, 95 % | |",
    "|---|---|---|---|",
)
PLAIN: dict[str, Any] = {"finetune__head": "fresh", "fusion__norm": "", "iterations": 3}
TRIED: dict[str, dict[str, Any]] = {
    "a head that the probe has trained (LP-FT)": {"finetune__head": "probe"},
    "steps of twice the mean's length": {"fusion__norm": "2"},
}


def table() -> str:
    """Return a line for each that has runs, as Markdown."""
    runs = load(NAME)
    mean = select(runs, "plain mean", **PLAIN)
    own = gain(mean, *SCORE, mean.last)
    lines = [f"| plain mean, three iterations of four epochs | {own} | | |"]
    for what, keys in TRIED.items():
        other = select(runs, what, **{**PLAIN, **keys})
        found = difference(other, mean, *SCORE)
        assert found is not None  # every run of the comparison has scored the same tasks
        verdict = found.verdict or "no difference seen"
        lines.append(f"| {what} | {gain(other, *SCORE, other.last)} | {found} | {verdict} |")
    return "\n".join([*HEADER, *lines]) + "\n"


if __name__ == "__main__":
    write(BEGIN, table(), END)
