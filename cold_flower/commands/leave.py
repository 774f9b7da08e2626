"""A contributor leaves a run for good: refused from now on, and taken out of what was fused.

The lineage is made again without it from kept contributions, as new iterations: a number is used
once, and nothing is deleted. The first is exact: its base never held the contribution. In those
after it the others had finetuned from a base that did, so what they add is that of another base:
their differences are fused, and the result is an approximation.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cold_flower.commands.history import how_to_go_on, resume
from cold_flower.config import Config
from cold_flower.data.plan import plan
from cold_flower.errors import RunError
from cold_flower.identity import timestamp
from cold_flower.reporting.runs import configuration
from cold_flower.repository import leaving
from cold_flower.repository.bases import Repository
from cold_flower.repository.dropbox import Dropbox, folder_of
from cold_flower.repository.journal import LEFT, Journal
from cold_flower.repository.kept import Kept, accepted
from cold_flower.repository.manifests import rejected
from cold_flower.server.participants import names_of
from cold_flower.server.replay import Replay
from strategies.contributions import INCOMING
from strategies.names import unknown


def leave(run_dir: str | Path, name: str, *, say: Callable[[str], object] = print) -> None:
    """Have a contributor leave a run for good; a second call goes on after a stop.

    Args:
        run_dir: of a run that ended, or was stopped.
        name: the contributor's.
        say: takes a line for each thing that is done, or cannot be.

    Raises:
        RunError: no run, or it is at work; no such contributor, the only one, or it left before.
    """
    for line in _leave(Path(run_dir), name):
        say(line)


def _leave(run_dir: Path, name: str) -> Iterator[str]:
    config = Config.from_flat(configuration(run_dir))
    journal, repository = Journal(run_dir), Repository(run_dir)
    with journal.locked():
        repository.recover()
        names = _names(config, repository, journal)
        if name not in names:
            raise RunError(unknown(f"contributor of {run_dir}", name, sorted(names)))
        leaving.check(journal, repository, but=name)
        if config.keep_contributions and (there := repository.numbers()):  # a crash cut it off
            Kept(run_dir).take(there[-1], config.keep_contributions)
        rows = [row for row in journal.rows(LEFT) if row["contributor"] == name]
        gone = {*journal.left(), name}
        first, chain = _took_part(repository, name)
        # Again, where a rollback brought back what it gave, or what stood in the way may be gone.
        if rows and not (chain and leaving.ended(repository, rows[-1])):
            row = rows[-1]
            remaining = leaving.remaining(run_dir, repository, row)
        else:
            reasons = list(_obstacles(config, run_dir, chain, gone)) if chain else []
            if rows and reasons:
                raise RunError(f"{leaving.already(run_dir, rows[-1])}; still {reasons[0]}")
            onto = repository.manifest(first)["parent"] if chain and not reasons else None
            remaining = [i for i in chain if {*accepted(repository, i)} - gone]
            row = {
                "contributor": name,
                "head": repository.latest(),
                "onto": onto,
                "replays": remaining if onto is not None else [],
                "newest": repository.numbers()[-1],
                "time": timestamp(),
            }
            journal.append(LEFT, [row])
            yield f"{name} left {run_dir}: it is refused from now on, and its task is not scored"
            yield from reasons
            if config.baseline and repository.latest():
                yield "the bases after the start were trained on its data, too: nothing is replayed"
            elif not chain:
                yield "it took part in no iteration of the lineage: there is nothing to replay"
            elif reasons:
                yield (
                    f"nothing is replayed: the bases from iteration {first} on still hold what it "
                    "contributed"
                )
            if not config.sites.allow:
                yield from _too_few(config, gone)
            if onto is not None and len(remaining) < len(chain):
                alone = ", ".join(str(i) for i in chain if i not in remaining)
                yield f"made of its contribution alone, and left out: iteration {alone}"
        if row["onto"] is None:
            return
        yield from _replay(config, run_dir, row, remaining, gone)


def _replay(
    config: Config, run_dir: Path, row: dict[str, Any], remaining: list[int], gone: set[str]
) -> Iterator[str]:
    """Make iterations again without who left."""
    replay, name = Replay(config, run_dir), row["contributor"]
    repository = replay.repository
    if repository.latest() == row["head"]:
        repository.rollback(row["onto"])
    # What had arrived was made from a base that is left behind, and its number is used now.
    shutil.rmtree(run_dir / INCOMING, ignore_errors=True)
    box = Dropbox(folder_of(config, run_dir))
    if back := box.give_back(row["newest"], gone):
        yield f"drop box: {', '.join(back)} was taken for what was being made, and waits again"
    for iteration in remaining:
        parent = repository.latest()
        number, exact = replay.publish(iteration, name, gone)
        quality = (
            "exact"
            if exact
            else "an approximation: the others had finetuned from a base that held its contribution"
        )
        yield f"iteration {iteration} without {name} is {number:04d}, from {parent:04d}: {quality}"
    yield how_to_go_on(run_dir, repository, row["head"], config.iterations)
    yield (
        "the new bases have no scores yet: "
        f"{resume(run_dir, max(repository.numbers()[-1], config.iterations))} has the last scored"
    )


def _names(config: Config, repository: Repository, journal: Journal) -> set[str]:
    """Return who may contribute, or has."""
    fused = {name for i in repository.numbers() for name in accepted(repository, i)}
    return names_of(config, journal) | fused


def _took_part(repository: Repository, name: str) -> tuple[int, list[int]]:
    """Return the first iteration of the lineage that holds a contribution, and all from there on.

    What the gate rejected holds none.
    """
    manifests = repository.line()[1:]
    lineage = [one["iteration"] for one in manifests if not rejected(one)]
    first = next((i for i in lineage if name in accepted(repository, i)), 0)
    return first, [i for i in lineage if first and i >= first]


def _obstacles(config: Config, run_dir: Path, chain: list[int], gone: set[str]) -> Iterator[str]:
    """Say, a line each, what cannot be made again, and why."""
    try:
        replay = Replay(config, run_dir)
    except RunError as error:
        yield f"no iteration can be replayed: {error}"
        return
    repository, kept = replay.repository, replay.kept
    onto = repository.manifest(chain[0])["parent"]
    for iteration in chain:
        try:
            others = [one for one in kept.contributions(iteration) if one.name not in gone]
            for base in (onto, kept.made_from(iteration)):
                repository.with_weights(base)
            kept.onto(onto, others)  # an old contribution may have begun from a base before these
        except RunError as error:
            yield f"iteration {iteration} cannot be replayed: {error}"
            continue
        if others and len(others) < replay.least:
            yield (
                f"iteration {iteration} cannot be replayed: {config.fusion.rule} needs "
                f"{replay.least} contributions, {len(others)} remain"
            )


def _too_few(config: Config, gone: set[str]) -> Iterator[str]:
    """Say it where too few contributors of a simulation stay for another iteration."""
    staying = len(plan(config).without(gone).seen)
    if staying < (needed := max(1, config.quorum)):
        yield f"WARNING: this run cannot go on: {staying} contributors stay, of {needed} (quorum)"
