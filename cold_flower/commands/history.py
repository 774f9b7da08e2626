"""A run's lineage: drawn as a tree, and rolled back (paper, section 9: "backtracking")."""

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cold_flower.reporting.runs import every_score
from cold_flower.reporting.tables import step_length, summary
from cold_flower.repository.bases import Repository
from cold_flower.repository.journal import Journal, load_config
from cold_flower.repository.manifests import fused, rejected


def log(run_dir: Path) -> Iterator[str]:
    """Yield a line for each iteration, the newest first.

    ``*`` marks the lineage, ``x`` what a rollback left behind; ``from`` names the parent.

    Raises:
        RunError: the folder holds no run.
    """
    trained = load_config(run_dir)["iterations"] > 0
    repository = Repository(run_dir)
    lineage, latest = set(repository.lineage()), repository.latest()
    rows = every_score(run_dir)
    for number in reversed(repository.numbers()):
        found = repository.manifest(number)
        parts = [f"from {found['parent']:04d}"] if number else [str(found.get("base-model", ""))]
        if number:
            parts.append(_made(found))
        if scores := summary(rows, number, trained=trained):
            parts.append(scores)
        mark = "*" if number in lineage else "| x"
        head = " (latest)" if number == latest else ""
        yield f"{mark} {number:04d}{head}  {found['time'][:16]}  {'; '.join(parts)}"


def _made(found: dict[str, Any]) -> str:
    """Say how an iteration was made."""
    verdicts = [row["verdict"] for row in found.get("contributors", [])]
    counts = [f"{verdicts.count(v)} {v}" for v in dict.fromkeys(sorted(verdicts))]
    if rejected(found):
        return f"rejected by the gate ({found['gate']['reason']}), {', '.join(counts)}"
    made = f"{found.get('rule', '')}, {', '.join(counts)}" if counts else str(found.get("rule"))
    if replay := found.get("replay"):
        quality = "exact" if replay["exact"] else "an approximation"
        made = f"replays {replay['of']:04d} without {replay['without']} ({quality}), {made}"
    length = step_length(found.get("length"), found.get("own-length"))
    return f"{made}, length {length}" if length else made


def rollback(run_dir: Path, iteration: int) -> str:
    """Make an earlier iteration the head; return what to tell the user.

    Raises:
        RunError: no run, no such iteration, or the run is at work.
    """
    config = load_config(run_dir)
    repository = Repository(run_dir)
    with Journal(run_dir).locked():
        repository.recover()
        before = repository.latest()
        repository.rollback(iteration)
        left = Journal(run_dir).left()
        held = sorted({*left} & {row["name"] for one in repository.line() for row in fused(one)})
    said = how_to_go_on(run_dir, repository, before or 0, config["iterations"])
    if held:
        said += (
            f"\nWARNING: base {iteration} holds what {', '.join(held)} gave before leaving: "
            f"cold-flower leave {shlex.quote(str(run_dir))} {held[0]} makes it again without"
        )
    return said


def how_to_go_on(run_dir: Path, repository: Repository, before: int, iterations: int) -> str:
    """Say what the head is now, and how a run of so many iterations goes on from it."""
    following = repository.numbers()[-1] + 1
    return (
        f"latest is {repository.latest():04d} (was {before:04d}); nothing is deleted. The next "
        f"iteration is {following:04d}: {resume(run_dir, max(following, iterations))}"
    )


def resume(run_dir: Path, iterations: int) -> str:
    """Return what continues a run up to so many iterations, to be pasted into a shell."""
    return f"--resume --run-dir {shlex.quote(str(run_dir))} --set iterations={iterations}"
