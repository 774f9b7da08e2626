"""The `cold-flower` command."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from cold_flower.commands import listings
from cold_flower.commands import site as site_cli
from cold_flower.errors import ColdFlowerError, ConfigError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""ColD Fusion on Flower: evolve a pretrained language model without sharing data.

    Every iteration, contributors take the base, finetune it on their own data and send it
    back; the mean of what returns is the next base.

    Begin with `cold-flower simulate demo`: the whole loop in 90 seconds, with nothing to
    download.""",
)


@app.command()
def simulate(
    experiment: str,
    set: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key; may be repeated."),
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Where the run goes (default: runs/NAME-TIME).")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --run-dir.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything; print configuration, cohorts, cost."),
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

    * `cold-flower simulate mine.toml --gpus-per-contributor 0.25`: four share a GPU
    """
    from cold_flower.runtime import experiments, runner, sweep

    settings = experiments.parse_settings(set or [])
    sharing = runner.Sharing(cpus_per_contributor, gpus_per_contributor, fake_gpus)
    if axes := sweep.parse(sweep_over or []):
        folder = run_dir or Path("runs") / Path(experiment).stem
        planned = list(sweep.cells(experiment, settings, axes, folder))
        if dry_run:
            for cell in planned:
                typer.echo(f"{cell.name}: {'done' if cell.done else 'to do'}")
            return
        again = "the same command goes on"
        _stoppable(lambda: sweep.run(planned, lambda c: runner.run(c, sharing, again), typer.echo))
        return
    folder = (run_dir or experiments.fresh(experiment)).resolve()
    settings |= {"run-dir": str(folder), "resume": resume}
    config = experiments.configure(experiment, settings)
    if dry_run:
        runner.show(config, sharing)
    else:
        _stoppable(lambda: runner.run(config, sharing))


@app.command()
def evaluate(
    model: str,
    suite: Annotated[str, typer.Option(help="A built-in suite, or the path of a suite file.")],
    protocols: Annotated[str, typer.Option(help="Comma-separated.")] = "frozen,finetuned",
    against: Annotated[
        Path | None, typer.Option(help="A run to compare with: the gain on each task.")
    ] = None,
    set: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key; may be repeated."),
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Where the scores go (default: runs/evaluate-MODEL).")
    ] = None,
) -> None:
    """Score any checkpoint on the tasks of a suite; the same command goes on after a stop.

    MODEL is a transformers folder or a model of the hub, such as the last base of a run.

    Examples:
    * `cold-flower evaluate roberta-base --suite paper --run-dir runs/start`

    * `cold-flower evaluate runs/mine/iterations/latest --suite paper --against runs/start`
    """
    from cold_flower.reporting.runs import scores
    from cold_flower.reporting.tables import console, gain_table
    from cold_flower.repository.journal import CONFIG
    from cold_flower.runtime import experiments, runner

    folder = run_dir or Path("runs") / f"evaluate-{model.strip('/').replace('/', '-')}"
    there = suite if not suite.endswith(".toml") else str(Path(suite).resolve())
    given = {
        "experiment": "evaluate",
        "suite": there,
        "base-model": model,
        "evaluate.protocols": protocols,
        "iterations": 0,
        "contributors-per-iteration": 0,
        **experiments.parse_settings(set or []),
        "run-dir": str(folder.resolve()),
        "resume": (folder / CONFIG).exists(),
    }
    before = scores(against) if against else []
    if against and not before:
        raise ConfigError(f"--against {against}: no scores there")
    config = experiments.merge(given)
    _stoppable(lambda: runner.run(config, runner.Sharing(), "the same command goes on"))
    if against:
        title = f"gain of {model} over {against}, in points"
        console().print(gain_table(before, scores(folder), title))


@app.command()
def report(
    run: list[Path],
    out: Annotated[
        Path | None, typer.Option(help="Where it goes (default: into the run, or report/).")
    ] = None,
) -> None:
    """Write report.html and figures of finished runs; a folder of runs stands for all in it.

    Runs that differ in their seed alone are one condition: mean and SD over seeds. Conditions are
    drawn against each other, baselines as dashed levels.

    Examples:
    * `cold-flower report runs/mine`

    * `cold-flower report runs/five-seeds runs/multitask --out compared`
    """
    from cold_flower.reporting import html
    from cold_flower.runtime import experiments

    folder = out or (run[0] if len(run) == 1 else Path("report"))
    typer.echo(html.write(run, folder, experiments.about))


@app.command()
def log(run: Path) -> None:
    """Draw a run's lineage: a line for each iteration, the newest first.

    `*` marks the lineage of the latest base, `x` what a rollback left behind.
    """
    from cold_flower.commands import history

    for line in history.log(run):
        typer.echo(line)


@app.command()
def rollback(run: Path, iteration: int) -> None:
    """Make an earlier ITERATION the latest base of a finished or stopped run; delete nothing.

    The next iteration gets the next free number and has that one as its parent.

    Examples:
    * `cold-flower rollback runs/mine 3`, then
    `cold-flower simulate demo --run-dir runs/mine --set iterations=8 --resume`
    """
    from cold_flower.commands import history

    typer.echo(history.rollback(run, iteration))


def _stoppable(work: Callable[[], None]) -> None:
    """Turn a stop by Ctrl-C or a signal into the exit code that shells expect."""
    from cold_flower.runtime.processes import Stopped

    try:
        work()
    except Stopped as stopped:
        raise typer.Exit(128 + stopped.signum) from None


for listing in (listings.experiments, listings.keys, listings.suites, listings.rules):
    app.command()(listing)


@app.command()
def fuse(
    rule: str,
    model: list[str],
    base: Annotated[str, typer.Option(help="What the models were finetuned from.")],
    out: Annotated[Path, typer.Option(help="The folder to write; it must not exist.")],
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="An option of the rule; may be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option(help="For rules that draw, such as dare.")] = 0,
) -> None:
    """Fuse finetuned models that lie on a disk: transformers folders, or models of the hub.

    RULE is one of `cold-flower rules`, each MODEL a finetuned copy of the base. Their bodies
    are fused; heads, tokenizer and configuration are the base's. Nothing is known of the models'
    examples: each counts as one; weighted_average takes weights by name.

    Examples:
    * `cold-flower fuse average --base roberta-base --out fused runs/a runs/b runs/c`

    * `cold-flower fuse ties --option density=0.3 --base ./base --out ./fused ./a ./b`
    """
    from cold_flower.commands import offline
    from cold_flower.models.folder import Folder
    from cold_flower.runtime.processes import stoppable
    from strategies.fusion import load

    chosen = offline.parse_options(option or [])
    combine = load(rule, **chosen)
    theta, models = Folder(base), [Folder(name) for name in model]
    card = offline.card(rule, chosen, base, model, seed)

    def work() -> None:
        with stoppable():
            for key in offline.fuse(combine, theta, models, out, card, seed):
                typer.echo(f"{key}: not in every model, left as the base's")

    _stoppable(work)
    typer.echo(f"{len(models)} models fused by {rule}: {out}")


app.add_typer(site_cli.app, name="site")
app.command()(site_cli.deploy)


def main() -> None:
    """Run the command; report errors the user can mend in one line."""
    from strategies.errors import StrategyError

    try:
        app(standalone_mode=True)
    except (ColdFlowerError, StrategyError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
