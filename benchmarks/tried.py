"""What was tried so that few-shot on unseen tasks rises more than with the plain mean.

Everything is computed from benchmarks/results/science/few.json, of the runs of one comparison;
`python -m benchmarks.tried` writes the table of docs/results.md, and a test keeps it equal.
"""

from typing import Any

from benchmarks.results import write
from benchmarks.science import load, select
from cold_flower.reporting.paired import above, gain, scores_at

NAME = "few"
BEGIN, END = "<!-- written by benchmarks/tried.py -->", "<!-- end of what was tried -->"
GROUP, PROTOCOL, AVERAGED = "unseen", "few-shot", "ema-few-shot"
HEADER = (
    "| contributors and fusion | few-shot, unseen: gain, 95 % | above the plain mean, 95 % "
    "| seeds | |",
    "|---|---|---|---|---|",
)
PLAIN: dict[str, Any] = {
    "contributors_per_iteration": 0,
    "finetune__head": "fresh",
    "finetune__max_epochs": 4,
    "finetune__max_examples": 400,
    "fusion__ema": 0.0,
    "fusion__momentum": 0.0,
    "fusion__norm": "",
    "iterations": 3,
    "schedule": "random",
}
TRIED: dict[str, dict[str, Any]] = {
    "a head that the probe has trained (LP-FT)": {"finetune__head": "probe"},
    "steps of twice the mean's length": {"fusion__norm": "2"},
    "six iterations of two epochs": {"finetune__max_epochs": 2, "iterations": 6},
    "six iterations of four of them, in turn": {
        "contributors_per_iteration": 4,
        "iterations": 6,
        "schedule": "round-robin",
    },
    "two contributors an iteration, 1,600 examples each": {
        "contributors_per_iteration": 2,
        "finetune__max_examples": 1600,
    },
    "heads that contributors keep": {"finetune__head": "keep"},
    "momentum of 0.5": {"fusion__momentum": 0.5},
    "the moving average of the bases, of 0.5": {"fusion__ema": 0.5},
}


def table() -> str:
    """Return a line for each that has runs, as Markdown; of one seed nothing is concluded."""
    runs = load(NAME)
    mean = select(runs, "plain mean", **PLAIN)
    plain = scores_at(mean, mean.last, GROUP, PROTOCOL)
    own = gain(mean, GROUP, PROTOCOL, mean.last)
    what = "plain mean, three iterations of four epochs, all eight"
    lines = [f"| {what} | {own} | | {len(mean.runs)} | |"]
    for what, keys in TRIED.items():
        other = select(runs, what, **{**PLAIN, **keys})
        scored = AVERAGED if "fusion__ema" in keys else PROTOCOL
        found = above(scores_at(other, other.last, GROUP, scored), plain)
        assert found is not None  # every run of the comparison has scored the same tasks
        verdict = found.verdict or ("no difference seen" if found.seeds > 1 else "undecided")
        own = gain(other, GROUP, scored, other.last)
        lines.append(f"| {what} | {own} | {found} | {found.seeds} | {verdict} |")
    return "\n".join([*HEADER, *lines]) + "\n"


if __name__ == "__main__":
    write(BEGIN, table(), END)
