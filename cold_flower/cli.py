"""The `cold-flower` command."""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cold_flower.errors import ColdFlowerError

if TYPE_CHECKING:
    from rich.console import Console

    from cold_flower.config import Config
    from cold_flower.experiments import Checked
    from cold_flower.resources import Allocation

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

    * `cold-flower simulate mine.toml --gpus-per-contributor 0.25`: four share a GPU
    """
    from rich.console import Console

    from cold_flower import experiments, resources
    from cold_flower.journal import check_new, check_same
    from cold_flower.model import load_base

    settings = experiments.parse_settings(set or [])
    folder = run_dir or Path("runs") / f"{Path(experiment).stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = folder.resolve()
    settings |= {"run-dir": str(folder), "resume": resume}
    config = experiments.configure(experiment, settings)
    if resume:
        check_same(folder, config)
    elif not dry_run:
        check_new(folder)
    started = time.time()
    checked = experiments.check(config)
    base = load_base(config.base_model)
    footprint = resources.footprint(config, base)
    evaluated = len(checked.plan.evaluated) * len(config.protocols())
    allocation = resources.allocate(
        resources.this_machine(fake_gpus),
        contributors=max(config.contributors_per_iteration or len(checked.plan.seen), evaluated),
        footprint=footprint,
        cpus=cpus_per_contributor,
        gpus=gpus_per_contributor,
    )
    console = Console(soft_wrap=not sys.stdout.isatty())
    if dry_run:
        from cold_flower.preview import preview

        parameters = resources.parameters(base)
        for part in preview(
            config, checked, allocation, parameters=parameters, footprint=footprint
        ):
            console.print(part, highlight=False)
        return
    console.print(
        f"{config.experiment}: suite {config.suite}, base model {config.base_model}, "
        f"{config.iterations} iterations, seed {config.seed}; run directory {folder}\n"
        f"{resources.describe(allocation)}",
        highlight=False,
    )
    _run(config, checked, allocation, console, started)


def _run(
    config: "Config",
    checked: "Checked",
    allocation: "Allocation",
    console: "Console",
    started: float,
) -> None:
    from cold_flower.journal import CONFIG, SCORES, Journal
    from cold_flower.progress import Progress, clock, display, phases
    from cold_flower.report import table
    from cold_flower.simulate import Stopped, simulate

    folder = Path(config.run_dir)
    progress = Progress(started)
    try:
        with display(console, progress) as show:
            simulate(config, len(checked.plan.names), allocation, show)
    except Stopped as stopped:
        kept = f"what arrived is kept: add --resume --run-dir {folder}"
        kept = (
            kept if (folder / CONFIG).exists() else "the run had not begun, nothing is left of it"
        )
        print(f"stopped after {clock(time.time() - started)}; {kept}", file=sys.stderr)
        raise typer.Exit(128 + stopped.signum) from None
    title = f"{config.experiment}, seed {config.seed}: mean test score, in points"
    console.print(table(Journal(folder).rows(SCORES), title))
    console.print(f"{phases(progress, allocation.workers)}", highlight=False)
    console.print(f"the last base: {folder}/iterations/latest", highlight=False)


@app.command()
def experiments() -> None:
    """List the shipped experiments: what each reproduces, on what, in about how long."""
    from cold_flower import experiments as shipped

    for name in shipped.names():
        typer.echo(f"{name}\n    {shipped.about(name)}")


@app.command()
def keys(
    about: Annotated[str, typer.Argument(metavar="[WORD]", show_default=False)] = "",
) -> None:
    """Explain the keys of an experiment and of --set (those with WORD in their name)."""
    from cold_flower.config import describe

    for key, (default, metadata) in describe().items():
        if about in key:
            choices = f" ({' | '.join(c or 'nothing' for c in metadata['choices'])})"
            tail = choices if metadata["choices"] else ""
            typer.echo(f"{key} = {json.dumps(default)}\n    {metadata['help']}{tail}")


@app.command()
def suites() -> None:
    """List the built-in suites and their tasks."""
    from cold_flower.tasks import load_suite, suite_names

    for name in suite_names():
        suite = load_suite(name)
        typer.echo(f"{name}: {len(suite.tasks)} tasks: {', '.join(suite.tasks)}")


@app.command()
def rules() -> None:
    """List the fusion rules with their options and defaults."""
    import importlib

    from strategies import fusion

    for name in fusion.names():
        rule = importlib.import_module(f"strategies.fusion.{name}")
        options = {k: p.default for k, p in fusion.options(getattr(rule, name)).items()}
        typer.echo(f"{name:24} {(rule.__doc__ or '').splitlines()[0]} Options: {options or 'none'}")


def main() -> None:
    """Run the command; report errors the user can mend in one line."""
    from strategies.errors import StrategyError

    try:
        app(standalone_mode=True)
    except (ColdFlowerError, StrategyError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
