"""The `cold-flower` command."""

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from cold_flower.errors import ColdFlowerError, RunError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="ColD Fusion on Flower: evolve a pretrained language model without sharing data.",
)


@app.command()
def simulate(
    experiment: Annotated[str, typer.Argument(help="A shipped experiment, or a .toml file.")],
    set: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key; may be repeated."),
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Where the run goes [default: runs/<name>-<time>].")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --run-dir.")
    ] = False,
) -> None:
    """Run an experiment on this machine, contributors mapped onto its cores.

    Examples:
      cold-flower simulate demo

      cold-flower simulate demo --set seed=1 --set iterations=4 --run-dir runs/mine

      cold-flower simulate demo --run-dir runs/mine --set iterations=6 --resume
    """
    from rich.console import Console

    from cold_flower import experiments
    from cold_flower.journal import SCORES, Journal, check_new, check_same
    from cold_flower.report import table
    from cold_flower.simulate import simulate as run

    settings = experiments.parse_settings(set or [])
    folder = run_dir or Path("runs") / f"{Path(experiment).stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    settings |= {"run-dir": str(folder.resolve()), "resume": resume}
    config = experiments.configure(experiment, settings)
    if resume:
        check_same(folder, config)
    else:
        check_new(folder)
    whole = experiments.check(config)
    console = Console(soft_wrap=not sys.stdout.isatty())
    console.print(
        f"{config.experiment}: suite {config.suite}, base model {config.base_model}, "
        f"{config.iterations} iterations, seed {config.seed}; run directory {folder.resolve()}",
        highlight=False,
    )
    try:
        run(
            config,
            len(whole.names),
            lambda line: console.print(line, highlight=False, markup=False),
        )
    except KeyboardInterrupt:
        raise RunError(
            f"interrupted; what arrived is kept: --resume --run-dir {folder.resolve()}"
        ) from None
    title = f"{config.experiment}, seed {config.seed}: mean test score, in points"
    console.print(table(Journal(folder).rows(SCORES), title))
    console.print(f"the last base: {folder.resolve()}/iterations/latest", highlight=False)


@app.command()
def experiments() -> None:
    """List the shipped experiments."""
    from cold_flower import experiments as shipped

    for name in shipped.names():
        first = (shipped.folder() / f"{name}.toml").read_text().splitlines()[0]
        typer.echo(f"{name:24} {first.lstrip('# ')}")


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
