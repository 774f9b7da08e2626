"""Commands about runs on the disk: `report`, `log`, `rollback`, `card`, `contribute`, and so on."""

from pathlib import Path
from typing import Annotated

import typer

from cold_flower.commands.options import exit_code_of_a_stop

# Of a model card.
Licence = Annotated[
    str, typer.Option(help="Of the base (default: what the starting model's card names).")
]
Named = Annotated[bool, typer.Option(help="Name the contributors on the card, or only count them.")]


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


def card(
    run: Path,
    iteration: Annotated[int | None, typer.Argument(help="Default: the latest.")] = None,
    licence: Licence = "",
    contributors: Named = True,
) -> None:
    """Write a base's model card: README.md in its folder, as the hub reads it.

    How to use the model, its scores and gains with their intervals, contributors, recipe, lineage,
    and what is not comparable; in YAML licence, base model, datasets and every score.

    Examples:
    * `cold-flower card runs/mine`

    * `cold-flower card runs/mine 3 --licence mit --no-contributors`
    """
    from cold_flower.commands.card import card

    typer.echo(card(run, iteration, licence=licence, contributors=contributors))


def publish(
    run: Path,
    to: Annotated[str, typer.Option(metavar="OWNER/NAME", help="The repository on the hub.")],
    iteration: Annotated[
        int | None, typer.Argument(help="Default: every base of the lineage.")
    ] = None,
    licence: Licence = "",
    contributors: Named = True,
    public: Annotated[bool, typer.Option(help="Everybody may see it (default: private).")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Send nothing; say what.")] = False,
) -> None:
    """Put a run's bases on the hub, each a revision with a tag: `owner/name@iteration-3`.

    Weights, configuration, tokenizer and a model card; no manifest, so nothing of a contributor but
    what the card says. The same command goes on after a stop.

    Examples:
    * `cold-flower publish runs/mine --to me/evolved --dry-run`

    * `cold-flower publish runs/mine 3 --to me/evolved --licence mit --public`
    """
    from cold_flower.commands.publish import publish

    with exit_code_of_a_stop():
        publish(
            run,
            iteration,
            to=to,
            licence=licence,
            contributors=contributors,
            public=public,
            dry_run=dry_run,
            say=typer.echo,
        )


def contribute(
    run: Path,
    model: Annotated[str, typer.Argument(help="A transformers folder, or a model of the hub.")],
    name: Annotated[str, typer.Option(help="Of the contribution.")],
    base: Annotated[
        int | None,
        typer.Option(help="The iteration that it was finetuned from (default: the nearest)."),
    ] = None,
    examples: Annotated[
        int, typer.Option(help="How many it was finetuned on; some rules ask.")
    ] = 0,
) -> None:
    """Put a finetuned MODEL into a run's drop box: the next iteration fuses it.

    Any head will do. It is checked as the run will check it: family, shapes, tokenizer, numbers,
    and which base of the run it was finetuned from. The box is a folder (`dropbox`, or
    `RUN/dropbox`): a model may also be copied there.

    Examples:
    * `cold-flower contribute runs/mine ./my-model --name alice`

    * `cold-flower contribute runs/mine ./my-model --name alice --base 2 --examples 5000`
    """
    from cold_flower.commands.contribute import contribute

    contribute(run, model, name=name, base=base, examples=examples, say=typer.echo)


def leave(run: Path, name: str) -> None:
    """Have contributor NAME leave a finished or stopped run for good; delete nothing.

    It is refused from now on. Where its contributions and those since are kept
    (`keep-contributions`), what was fused is made again without it, as new iterations: the first
    one exactly, those after it approximately, for the others had finetuned from bases that held
    it. What cannot be made again is said. The same command goes on after a stop.

    Examples:
    * `cold-flower leave runs/mine music`
    """
    from cold_flower.commands.leave import leave

    leave(run, name, say=typer.echo)


def worth(
    run: Path,
    iteration: Annotated[
        int | None, typer.Argument(help="Default: the newest whose contributions are kept.")
    ] = None,
    budget: Annotated[int, typer.Option(help="Sets of contributions to score, at most.")] = 100,
    tolerance: Annotated[
        float, typer.Option(help="An order ends so near to the score of all; 0.01 is a point.")
    ] = 0.005,
    protocol: Annotated[str, typer.Option(help="frozen, finetuned or few-shot.")] = "frozen",
    split: Annotated[str, typer.Option(help="dev, or test.")] = "dev",
) -> None:
    """Say what each contribution to an iteration was worth, in points of the mean score.

    Needs kept contributions (`keep-contributions`) and a simulation's data. Fuses sets of them
    with the run's own rule, scores each on the contributors' tasks, and prints what is lost
    without each, and the Shapley value with its interval. Table, figure and JSON go into
    `RUN/worth`; the same command goes on after a stop, and with a larger budget.

    Examples:
    * `cold-flower worth runs/mine`

    * `cold-flower worth runs/mine 2 --budget 256 --split test`
    """
    from cold_flower.commands.worth import worth
    from cold_flower.reporting.tables import console

    found = worth(
        run,
        iteration,
        budget=budget,
        tolerance=tolerance,
        protocol=protocol,
        split=split,
        say=typer.echo,
    )
    console().print(found.table())
    for line in found.notes():
        typer.echo(line)
