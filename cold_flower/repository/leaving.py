"""How far the replay has come that somebody's leaving asks for (`cold_flower.commands.leave`).

A line of ``left.jsonl`` says which iterations are to be made again (``replays``), on which base
(``onto``; null where none is), and which were the latest and the newest then.
"""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cold_flower.errors import RunError
from cold_flower.repository.bases import Repository
from cold_flower.repository.journal import LEFT, Journal

Row = Mapping[str, Any]


def ended(repository: Repository, row: Row) -> bool:
    """Return whether nothing more follows from somebody's leaving."""
    return row["onto"] is None or _made(repository, row).keys() >= {*row["replays"]}


def remaining(run_dir: Path, repository: Repository, row: Row) -> list[int]:
    """Return what is still to be replayed for somebody who left before.

    Raises:
        RunError: nothing is; or the run went on meanwhile.
    """
    name, lineage = row["contributor"], {*repository.lineage()}
    # A rollback to where it began leaves behind what was made: then it is made anew.
    made = {of: i for of, i in _made(repository, row).items() if i in lineage}
    latest, left = repository.latest(), [i for i in row["replays"] if i not in made]
    begun = latest != row["head"]
    if row["onto"] is None or (begun and not left):
        raise RunError(already(run_dir, row))
    if begun and latest != max(made.values(), default=row["onto"]):
        raise RunError(
            f"{name} left {run_dir} already; its replay was stopped before iteration "
            f"{left[0]}, and the run went on from there: what is left cannot be added"
        )
    return left


def already(run_dir: Path, row: Row) -> str:
    """Say that somebody left before."""
    return f"{row['contributor']} left {run_dir} already ({row['time']}): it is refused since"


def check(journal: Journal, repository: Repository, but: str = "") -> None:
    """Check that no replay was cut off: what went on from its middle could not end it.

    Args:
        journal: of the run.
        repository: of its bases.
        but: whose is being ended now.

    Raises:
        RunError: one was, naming the way out.
    """
    run_dir = journal.run_dir
    for row in journal.rows(LEFT):
        if row["contributor"] == but or ended(repository, row):
            continue
        try:
            left = remaining(run_dir, repository, row)
        except RunError:  # it went on, or was rolled back, since
            continue
        name = row["contributor"]
        raise RunError(
            f"{name} was leaving, and that was cut off before iteration {left[0]} was made again. "
            f"It has to end first: cold-flower leave {shlex.quote(str(run_dir))} {name}"
        )


def _made(repository: Repository, row: Row) -> dict[int, int]:
    """Return by which iterations those that it asks for were replayed, last if more than once."""
    return {
        replay["of"]: number
        for number in repository.numbers()
        if number > row["newest"]
        and (replay := repository.manifest(number).get("replay"))
        and replay["without"] == row["contributor"]
    }
