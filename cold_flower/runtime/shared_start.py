"""What several runs have in common: one computes it, the others take it over.

What is random follows (seed, iteration, contributor, purpose). So runs that differ in nothing that
bears on the scores of the start would all measure the same ones; and those that moreover differ in
nothing that a contributor is told would finetune the same contributions to iteration 1. These are
taken over where they were kept (``keep-contributions``).
"""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from cold_flower.config import ASYNCHRONOUS, NO_BEARING, Config
from cold_flower.data.facts import facts
from cold_flower.repository.bases import Repository
from cold_flower.repository.journal import CONFIG, RESUMED, SCORES, TAKEN_OVER, Journal
from cold_flower.repository.kept import Kept
from cold_flower.server.stock import proximal_mu
from cold_flower.server.strategy import needed
from strategies.contributions import INCOMING

# What bears on a run only after its start was scored, or on no score at all.
_LATER = (
    *(*NO_BEARING, "experiment", "iterations", "contributors-per-iteration", "schedule", "quorum"),
    *("baseline", "sampling", "loss-scaling", "finetune.head", "finetune.proximal-mu"),
)
_LATER_ROOMS = ("fusion.", "screen.", "gate.")
# What of these bears on the contributions to iteration 1; beside it what the rule asks for.
_TOLD = (
    *("contributors-per-iteration", "schedule", "quorum", "transport", "baseline"),
    *("finetune.head", "fusion.strategy", "wait.replies"),
)


def sharing(config: Config, finished: Iterable[Config]) -> Config | None:
    """Return the run, of those that are finished, that this run has most in common with.

    None where there is none whose start was scored as this one's is to be, with the same code,
    libraries, suite file and data.
    """
    mine, found = _bearing(config), None
    alike = [other for other in finished if _bearing(other) == mine]
    own = facts(config) if alike else {}
    made = {key: value for key, value in own.items() if not key.startswith(_LATER_ROOMS)}
    for other in alike:
        if _was_made_with(Path(other.run_dir), made) == made:
            if _contributors_alike(config, other):
                return other
            found = found or other
    return found


def take_over(config: Config, source: Config) -> str:
    """Begin a new run with what another one has in common with it; return what that is, in words.

    Files become links where the disk has them: neither run changes them.

    Raises:
        RunError: something lies in the run's directory.
    """
    run_dir, where = Path(config.run_dir), Path(source.run_dir)
    journal = Journal(run_dir)
    # A baseline first scores its start in a run without iterations, then it trains.
    begun = replace(config, iterations=0) if config.baseline else config
    journal.open(begun, facts(config))
    try:
        Repository(run_dir).take_over_start(Repository(where))
        rows = Journal(where).rows(SCORES)
        journal.append(SCORES, [row for row in rows if row["iteration"] == 0])
        said, names = "its start and the scores of that", list[str]()
        if _contributors_alike(config, source):
            names = Kept(where).lend(run_dir / INCOMING)
        if names:
            said += f", and the contributions to iteration 1 ({', '.join(names)}),"
        said += f" are those of {where.parent.name}/{where.name}"
        journal.say(said, **{TAKEN_OVER: len(names)})
        return said
    finally:
        journal.unlock()


def _contributors_alike(one: Config, other: Config) -> bool:
    """Return whether contributors of two runs with the same start cannot tell them apart.

    Not where they come as they are done, nor where each keeps a head of its own: that stays where
    it was trained.
    """
    apart = one.schedule == ASYNCHRONOUS or one.finetune.head == "keep"
    return not apart and _told(one) == _told(other)


def _told(config: Config) -> dict[str, object]:
    """Return what bears on the contributions to iteration 1, beside what bears on the start.

    A strategy of the user's own may tell contributors of any of its options.
    """
    keys = {key: value for key, value in config.flat().items() if key in _TOLD}
    options = config.fusion.options if config.fusion.strategy else ""
    return {
        **keys,
        "mu": proximal_mu(config),
        "options": options,
        "statistic": needed(config)[0],
    }


def _bearing(config: Config) -> dict[str, object]:
    return {
        key: value
        for key, value in config.flat().items()
        if key not in _LATER and not key.startswith(_LATER_ROOMS)
    }


def _was_made_with(run_dir: Path, keys: Iterable[str]) -> dict[str, str]:
    """Return what a run was made with; nothing of one that went on with something else."""
    kept = json.loads((run_dir / CONFIG).read_text())
    return {} if RESUMED in kept else {key: kept.get(key, "") for key in keys}
