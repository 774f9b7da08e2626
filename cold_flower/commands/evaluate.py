"""`cold-flower evaluate`: score any checkpoint on the tasks of a suite."""

from pathlib import Path
from typing import Annotated

import typer

from cold_flower.commands.options import Settings, exit_code_of_a_stop


def evaluate(
    model: str,
    suite: Annotated[str, typer.Option(help="A built-in suite, or the path of a suite file.")],
    protocols: Annotated[str, typer.Option(help="Comma-separated.")] = "frozen,finetuned",
    against: Annotated[
        Path | None, typer.Option(help="A run to compare with: the gain on each task.")
    ] = None,
    set: Settings = None,
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
    from cold_flower.commands import api
    from cold_flower.commands.simulate import warn
    from cold_flower.reporting.tables import console
    from cold_flower.runtime import experiments

    settings = experiments.parse_settings(set or [])
    with exit_code_of_a_stop():
        run = api.evaluate(
            model,
            suite=suite,
            protocols=protocols,
            against=against,
            settings=settings,
            run_dir=run_dir,
            say=lambda line: typer.echo(f"WARNING: {line}"),
        )
    console().print(run.table())
    warn(run)
    typer.echo(f"the scores: {run.folder}")
