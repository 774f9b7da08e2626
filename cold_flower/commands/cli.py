"""The `cold-flower` command: all its commands together, and how errors end it."""

import sys
from typing import Annotated

import typer

from cold_flower.commands import listings, runs, site
from cold_flower.commands.compare import compare
from cold_flower.commands.evaluate import evaluate
from cold_flower.commands.fuse import fuse
from cold_flower.commands.simulate import simulate
from cold_flower.commands.statistics import statistics
from cold_flower.commands.tune import tune
from cold_flower.errors import ColdFlowerError
from cold_flower.identity import __version__

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""ColD Fusion on Flower: evolve a pretrained language model without sharing data.

    Every iteration, contributors take the base, finetune it on their own data and send it
    back; the mean of what returns is the next base.

    Begin with `cold-flower simulate demo`: the whole loop in two minutes, with nothing to
    download.""",
    epilog="""Exit codes: 0 completed; 1 an error, said in one line; 2 a wrong command line;
    128 + the signal when stopped (Ctrl-C: 130).""",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"cold-flower {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None: ...


for command in (
    simulate, compare, evaluate, tune, fuse, statistics, runs.report, runs.log, runs.rollback,
    runs.card, runs.publish, runs.contribute, runs.leave, runs.worth, listings.experiments,
    listings.keys, listings.suites, listings.rules, site.deploy,
):  # fmt: skip
    app.command()(command)
app.add_typer(site.app, name="site")


def main() -> None:
    """Run the command; report errors the user can mend in one line."""
    from strategies.errors import StrategyError

    try:
        app(standalone_mode=True)
    except (ColdFlowerError, StrategyError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
