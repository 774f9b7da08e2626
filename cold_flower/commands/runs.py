"""Commands about runs that lie on the disk: `report`, `log`, `rollback`."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: list[Path],
    out: Annotated[
        Path | None,
        typer.Option(help="A folder, or FILE.html alone (default: into the run, or report/)."),
    ] = None,
) -> None:
    """Write report.html and figures of finished runs; a folder of runs stands for all in it.

    Runs that differ in their seed alone are one condition: mean and SD over seeds, each once.
    Conditions are drawn against each other, baselines as dashed levels. What is no run or has no
    scores is left out, and said.

    Examples:
    * `cold-flower report runs/mine`

    * `cold-flower report runs/five-seeds runs/multitask --out compared`
    """
    from cold_flower.commands.simulate import warn
    from cold_flower.reporting import html
    from cold_flower.reporting.runs import find

    folder = out or (run[0] if len(run) == 1 else Path("report"))
    report, left_out = html.write(run, folder)
    for line in left_out:
        typer.echo(f"left out: {line}", err=True)
    typer.echo(report)
    found, _ = find(run)
    for one in found:
        warn(one, named=len(found) > 1)


def log(run: Path) -> None:
    """Draw a run's lineage: a line for each iteration, the newest first.

    `*` marks the lineage of the latest base, `x` what a rollback left behind.
    """
    from cold_flower.commands import history

    for line in history.log(run):
        typer.echo(line)


def rollback(run: Path, iteration: int) -> None:
    """Make an earlier ITERATION the latest base of a finished or stopped run; delete nothing.

    The next iteration gets the next free number and has that one as its parent.

    Examples:
    * `cold-flower rollback runs/mine 3`, then
    `cold-flower simulate demo --run-dir runs/mine --set iterations=8 --resume`
    """
    from cold_flower.commands import history

    typer.echo(history.rollback(run, iteration))
