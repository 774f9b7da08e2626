"""A start that several runs have in common: one publishes and scores it, the others take it over.

What is random follows (seed, iteration, contributor, purpose). So runs that differ in nothing that
bears on the scores of the start would all measure the same ones.
"""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from cold_flower.config import Config
from cold_flower.identity import made_with
from cold_flower.repository.bases import Repository
from cold_flower.repository.journal import CONFIG, SCORES, Journal

# What bears on a run only after its start was scored, or on no score at all.
_LATER = (
    *("experiment", "run-dir", "resume", "log", "explicit", "recipe", "keep-iterations"),
    "keep-contributions",
    *("iterations", "contributors-per-iteration", "schedule", "quorum", "transport"),
    *("baseline", "sampling", "loss-scaling", "finetune.head", "finetune.proximal-mu"),
    *("evaluate.every", "wait.nodes", "wait.replies"),
)
_LATER_ROOMS = ("fusion.", "screen.", "gate.")


def sharing(config: Config, finished: Iterable[Config]) -> Path | None:
    """Return the run, of those that are finished, whose start and its scores are this run's, too.

    None where there is none, or it ran with other code or libraries.
    """
    mine = _bearing(config)
    for other in finished:
        folder = Path(other.run_dir)
        if _bearing(other) == mine and _made_with(folder) == made_with():
            return folder
    return None


def take_over(config: Config, source: Path) -> None:
    """Begin a new run with the start of another one, and its scores.

    The files of the start become links where the disk has them: neither run changes them.

    Raises:
        RunError: something lies in the run's directory.
    """
    run_dir = Path(config.run_dir)
    journal = Journal(run_dir)
    # A baseline first scores its start in a run without iterations, then it trains.
    journal.open(replace(config, iterations=0) if config.baseline else config, made_with())
    try:
        Repository(run_dir).take_over_start(Repository(source))
        rows = Journal(source).rows(SCORES)
        journal.append(SCORES, [row for row in rows if row["iteration"] == 0])
        journal.say(f"the start and its scores are those of {source}")
    finally:
        journal.unlock()


def _bearing(config: Config) -> dict[str, object]:
    return {
        key: value
        for key, value in config.flat().items()
        if key not in _LATER and not key.startswith(_LATER_ROOMS)
    }


def _made_with(run_dir: Path) -> dict[str, str]:
    kept = json.loads((run_dir / CONFIG).read_text())
    return {key: kept.get(key, "") for key in made_with()}
