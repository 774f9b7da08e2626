"""`cold-flower tune`: find a recipe that trains."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich import box
from rich.table import Table

from cold_flower.commands.options import Settings, exit_code_of_a_stop
from cold_flower.config import PROTOCOLS, split
from cold_flower.errors import ConfigError

if TYPE_CHECKING:
    from cold_flower.runtime.candidates import Choice

RECIPE = "recipe.toml"
Number = TypeVar("Number", int, float)


def tune(
    suite: Annotated[str, typer.Option(help="A built-in suite, or the path of a suite file.")],
    base_model: Annotated[str, typer.Option(help="A folder, or a model of the hub.")],
    tasks: Annotated[
        str, typer.Option(help="To try on, comma-separated (default: four, drawn from the seed).")
    ] = "",
    budget: Annotated[
        float | None, typer.Option(min=0, help="Minutes; no trial begins after them.")
    ] = None,
    protocols: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(PROTOCOLS),
    learning_rates: Annotated[
        str, typer.Option(help="Of the finetuning to try (default: 3e-5 to 3e-3).")
    ] = "",
    epochs: Annotated[str, typer.Option(help="The same (default: 3,10).")] = "",
    set: Settings = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Where the trials are kept (default: runs/tune-SUITE).")
    ] = None,
) -> None:
    """Find learning rates and epochs that train: for finetuning, the probe and few-shot.

    All candidates are tried on two tasks, the better half on twice as many, and so on; scored on
    dev. Prints a table and a `[recipe]` to put into a suite file, with the reasons. The same
    command goes on after a stop, and with more candidates.

    Examples:
    * `cold-flower tune --suite demo --base-model demo --tasks travel,music`

    * `cold-flower tune --suite paper --base-model roberta-base --set finetune.max-examples=2000`
    """
    rates = _numbers("--learning-rates", learning_rates, float)
    passes = _numbers("--epochs", epochs, int)
    from cold_flower.commands import api
    from cold_flower.reporting.tables import console
    from cold_flower.runtime import experiments

    with exit_code_of_a_stop():
        try:
            tuned = api.tune(
                suite=suite,
                base_model=base_model,
                tasks=split(tasks),
                protocols=split(protocols),
                learning_rates=rates,
                epochs=passes,
                settings=experiments.parse_settings(set or []),
                run_dir=run_dir,
                say=typer.echo,
                **({} if budget is None else {"budget": budget}),
            )
        except KeyboardInterrupt:
            typer.echo("stopped; what was tried is kept: the same command goes on", err=True)
            raise
    for choice in tuned.choices.values():
        console().print(_table(choice))
    file = tuned.folder / RECIPE
    file.write_text(tuned.toml())
    typer.echo(tuned.toml())
    for protocol in tuned.unfinished:
        typer.echo(f"{protocol}: the budget ended before its last trial; the same command goes on")
    typer.echo(f"the recipe: {file}")


def _numbers(option: str, text: str, kind: Callable[[str], Number]) -> list[Number]:
    """Parse a list of numbers above 0.

    Raises:
        ConfigError: it is none.
    """
    try:
        numbers = [kind(part) for part in split(text)]
        if all(number > 0 for number in numbers):
            return numbers
    except ValueError:
        pass
    example = "1e-4,3e-4" if kind is float else "3,10"
    raise ConfigError(f"{option} is a list of numbers above 0, such as {example}; got {text!r}")


def _table(choice: "Choice") -> Table:
    """Draw a line per candidate, the best first."""
    drawn = Table(
        title=f"{choice.protocol}: dev scores in points",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for name in ("learning rate", "epochs", *choice.tasks, "mean", "no better", "improving"):
        drawn.add_column(name, justify="right", overflow="fold")  # a file is 80 columns wide
    for tried in choice.tried:
        scores = {task: f"{100 * row['dev']:.1f}" for task, row in tried.rows.items()}
        whole = scores.keys() >= {*choice.tasks}
        drawn.add_row(
            f"{tried.candidate.learning_rate:g}",
            str(tried.candidate.epochs),
            *(scores.get(task, "") for task in choice.tasks),
            f"{100 * tried.mean(choice.tasks):.1f}" if whole else "",
            str(len(tried.no_better)),
            str(len(tried.improving)) if choice.protocol == "finetuned" else "",
        )
    return drawn
