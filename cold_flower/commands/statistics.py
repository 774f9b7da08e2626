"""`cold-flower statistics`: what a fusion rule needs of a model's data, for models on a disk."""

from pathlib import Path
from typing import Annotated

import typer

from cold_flower.commands.options import Settings, exit_code_of_a_stop


def statistics(
    model: str,
    suite: Annotated[str, typer.Option(help="A built-in suite, or the path of a suite file.")],
    task: Annotated[str, typer.Option(help="Of the suite: what MODEL was finetuned on.")],
    kind: Annotated[str, typer.Option(help="fisher, gram (for regmean) or gram-full.")],
    out: Annotated[Path, typer.Option(help="The folder to write; it must not exist.")],
    examples: Annotated[
        int, typer.Option(min=0, help="At most so many of train; 0: fisher 256, gram 1024.")
    ] = 0,
    set: Settings = None,
) -> None:
    """Compute what a fusion rule needs of the data of a finetuned model that lies on a disk.

    `cold-flower fuse fisher --statistics DIR ...` and `fuse regmean` take them, a folder for each
    model. In a run contributors compute them by themselves.

    Example:
    * `cold-flower statistics ./a --suite paper --task mnli --kind fisher --out ./a-fisher`
    """
    from cold_flower.commands import api
    from cold_flower.runtime import experiments

    settings = experiments.parse_settings(set or [])
    with exit_code_of_a_stop():
        folder = api.statistics(
            model, suite=suite, task=task, kind=kind, out=out, examples=examples, settings=settings
        )
    typer.echo(f"the {kind} of {model} on {task}: {folder}")
