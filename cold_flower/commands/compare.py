"""`cold-flower compare`: fusion rules, stages or other keys against the plain mean."""

from pathlib import Path
from typing import Annotated

import typer

from cold_flower.commands.options import Settings, exit_code_of_a_stop
from cold_flower.config import split


def compare(
    experiment: str,
    rules: Annotated[
        str, typer.Option(help="Comma-separated (cold-flower rules), beside the plain mean.")
    ] = "",
    stages: Annotated[
        str, typer.Option(help="Of the plain mean, comma-separated: momentum=0.5,clip=median.")
    ] = "",
    variant: Annotated[
        list[str] | None,
        typer.Option(metavar="'KEY=VALUE; KEY=VALUE'", help="Any other keys; may be repeated."),
    ] = None,
    seeds: Annotated[str, typer.Option(help="FIRST..LAST, or comma-separated.")] = "0..2",
    equal_length: Annotated[
        bool,
        typer.Option(
            "--equal-length", help="Make what a rule adds to the base as long as the mean."
        ),
    ] = False,
    set: Settings = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Where the runs go (default: runs/compare-EXPERIMENT).")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything; print what each run would cost.")
    ] = False,
) -> None:
    """Compare fusion rules with the plain mean: same cohorts, data and draws, several seeds.

    EXPERIMENT is run for the plain mean and each variant, with each seed; the same command again
    runs only what is not done. Prints gains over the start with errors over tasks and over seeds,
    the difference from the plain mean, paired by task and seed, with its 95 % interval, and what
    each took; report.html draws it. "better" is said only where the interval leaves 0 out.

    A rule may take longer steps than the mean, and look better by that alone: `--equal-length`.

    Examples:
    * `cold-flower compare demo --rules ties,median --seeds 0..2`

    * `cold-flower compare demo --rules ties --stages momentum=0.5 --equal-length`

    * `cold-flower compare demo --variant 'finetune.head=keep' --variant 'iterations=1;
    contributors-per-iteration=0'`
    """
    from cold_flower.runtime import experiments

    settings = experiments.parse_settings(set or [])  # a typo is said before torch is loaded
    from cold_flower.reporting.tables import console
    from cold_flower.runtime import compare as comparing
    from cold_flower.runtime import runner

    others = [comparing.parse(text) for text in variant or []]
    compared = comparing.variants(split(rules), split(stages), others, equal_length=equal_length)
    each = comparing.parse_seeds(seeds)
    planned = comparing.plan(experiment, compared, each, settings, run_dir)
    if dry_run:
        runner.show_cells(planned.cells, runner.Sharing())
        return
    with exit_code_of_a_stop():
        found = comparing.run(planned, runner.Sharing(), typer.echo, "the same command goes on")
    for table in (found.table(), found.cost_table()):
        console().print(table)
    for line in found.doubts:
        typer.echo(f"WARNING: {line}")
    typer.echo(f"the report: {found.report()}")
