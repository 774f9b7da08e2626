"""`cold-flower simulate`: run an experiment here, once or for each value of some keys."""

import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cold_flower.commands.options import Resume, RunDir, Settings, exit_code_of_a_stop
from cold_flower.errors import ConfigError

if TYPE_CHECKING:
    from cold_flower.reporting.run import Run
    from cold_flower.reporting.runs import RunDirectory


def simulate(
    experiment: Annotated[str, typer.Argument()] = "",
    set: Settings = None,
    run_dir: RunDir = None,
    resume: Resume = False,
    replay: Annotated[
        Path | None,
        typer.Option(help="Instead of EXPERIMENT: repeat this run, as its contributions came."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check everything; print configuration, cohorts, cost (of a sweep: each run's).",
        ),
    ] = False,
    sweep_over: Annotated[
        list[str] | None,
        typer.Option(
            "--sweep",
            metavar="KEY=0..4",
            help="Run once for each value (or KEY=a,b,c); what is done is not run again.",
        ),
    ] = None,
    cpus_per_contributor: Annotated[
        int | None, typer.Option(help="Cores for each contributor at work (default: chosen).")
    ] = None,
    gpus_per_contributor: Annotated[
        float | None,
        typer.Option(help="Fraction of a GPU for each; 0 = none (default: by memory)."),
    ] = None,
    fake_gpus: Annotated[
        int, typer.Option(min=0, help="Pretend so many GPUs: shows the mapping without any.")
    ] = 0,
    opened: Annotated[
        bool, typer.Option("--open", help="Open report.html in a browser: it follows the run.")
    ] = False,
) -> None:
    """Run an experiment on this machine: contributors share its cores and GPUs.

    EXPERIMENT is a shipped one (`cold-flower experiments`) or the path of a .toml file.

    Everything is checked before anything starts. Ctrl-C stops all that was started and keeps
    what arrived; `--resume` goes on. The exit code is 0 only if the run completed.

    The keys of `--set` and their meaning: `cold-flower keys`.

    Examples:
    * `cold-flower simulate demo`

    * `cold-flower simulate demo --set seed=1 --set iterations=4 --run-dir runs/mine`

    * `cold-flower simulate demo --run-dir runs/mine --set seed=1 --set iterations=6 --resume`

    * `cold-flower simulate multitask_small --set suite=/data/suite.toml --dry-run`

    * `cold-flower simulate demo --sweep seed=0..4 --run-dir runs/five`

    * `cold-flower simulate --replay runs/mine --run-dir runs/again`

    * `cold-flower simulate mine.toml --gpus-per-contributor 0.25`: four share a GPU
    """
    if bool(experiment) == bool(replay):
        raise typer.BadParameter("name an EXPERIMENT, or a run to repeat (--replay RUN)")
    from cold_flower.runtime import experiments

    settings = experiments.parse_settings(set or [])  # a typo is said before torch is loaded
    from cold_flower.commands import running
    from cold_flower.runtime import runner, sweep

    sharing = runner.Sharing(cpus_per_contributor, gpus_per_contributor, fake_gpus)
    if axes := sweep.parse(sweep_over or []):
        if replay:
            raise ConfigError("--replay repeats one run: leave --sweep out")
        if opened:
            raise ConfigError("--open is for a single run: each of a sweep has a report.html")
        if resume or "resume" in settings:
            raise ConfigError(
                "--resume is for a single run: leave it out, a sweep goes on where it was stopped"
            )
        folder = run_dir or Path(settings.get("run-dir") or Path("runs") / Path(experiment).stem)
        planned = list(sweep.cells(experiment, settings, axes, folder))
        if dry_run:
            runner.show_cells(planned, sharing)
            return
        again = "the same command goes on"
        with exit_code_of_a_stop():
            sweep.run(planned, lambda cell: show(running.run(cell, sharing, again)), typer.echo)
        return
    config = running.configure(experiment, settings, run_dir, resume, replay)
    if dry_run:
        runner.show(config, sharing)
        return
    look = (lambda page: webbrowser.open(page.as_uri())) if opened else None
    with exit_code_of_a_stop():
        show(running.run(config, sharing, opened=look))


def warn(run: "RunDirectory", *, named: bool = False) -> None:
    """Print what shows that a run's recipe trains too little; ``named``: and which run it is."""
    for line in run.findings:
        typer.echo(f"WARNING: {f'{run.folder.name}: ' if named else ''}{line}")


def show(run: "Run") -> None:
    """Print a finished run's table, and where its last base and its report lie."""
    from cold_flower.reporting.live import REPORT
    from cold_flower.reporting.tables import console

    if run.scores:  # evaluate.protocols may be empty
        console().print(run.table())
    warn(run)
    typer.echo(f"the last base: {run.folder}/iterations/latest")
    if (run.folder / REPORT).exists():
        typer.echo(f"the report: {run.folder / REPORT}")
