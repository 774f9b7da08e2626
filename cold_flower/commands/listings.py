"""Commands that say what there is: experiments, keys, suites, rules."""

import json
from pathlib import Path
from typing import Annotated

import typer

from cold_flower.errors import ConfigError
from strategies.errors import FusionError
from strategies.names import unknown

WIDTH = 180  # characters of a table in a file


def experiments(
    name: Annotated[str, typer.Argument(metavar="[NAME]", show_default=False)] = "",
) -> None:
    """List the experiments, shipped and in this folder (or NAME alone, its whole text).

    Examples:
    * `cold-flower experiments`

    * `cold-flower experiments multitask_small`: what it shows, and its keys
    """
    from rich import box
    from rich.table import Table

    from cold_flower.reporting import catalogue
    from cold_flower.reporting.tables import console

    every = [*catalogue.shipped(), *catalogue.yours(Path())]
    if name:
        by_name = {experiment.name: experiment for experiment in every}
        if name not in by_name:
            raise ConfigError(unknown("experiment", name, [*by_name]))
        typer.echo(by_name[name].path.read_text(), nl=False)
        return
    table = Table(box=box.SIMPLE_HEAD, expand=True)
    table.add_column("experiment", no_wrap=True)
    for column, ratio in (("what", 3), ("time", 2)):  # a line each: NAME shows all of it
        table.add_column(column, ratio=ratio, no_wrap=True, overflow="ellipsis")
    table.add_column("", no_wrap=True)
    for experiment in every:
        whose = "shipped" if experiment.shipped else "yours"
        table.add_row(experiment.name, experiment.what, experiment.time, whose)
    out = console()
    out.width = out.width if out.is_terminal else WIDTH
    out.print(table, highlight=False)
    from cold_flower.runtime import mistaken

    for line in mistaken.broken(Path()):
        typer.echo(f"left out: {line}", err=True)


def keys(
    word: Annotated[str, typer.Argument(metavar="[WORD]", show_default=False)] = "",
) -> None:
    """Explain the keys of an experiment and of --set (those with WORD in their name)."""
    from cold_flower.config import describe
    from cold_flower.keys import unknown_key

    known = describe()
    wanted = word.lower().replace("_", "-")
    chosen = [key for key in known if wanted in key]
    if not chosen:
        raise ConfigError(unknown_key(word, known))
    for key in chosen:
        default, metadata = known[key]
        choices = f" ({' | '.join(c or 'nothing' for c in metadata['choices'])})"
        tail = choices if metadata["choices"] else ""
        typer.echo(f"{key} = {json.dumps(default)}\n    {metadata['help']}{tail}")


def suites(
    name: Annotated[str, typer.Argument(metavar="[NAME]", show_default=False)] = "",
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Read all data of NAME; compare with what it states."),
    ] = False,
    base_model: Annotated[
        str,
        typer.Option(help="With --verify: also say how this model's tokenizer reads the texts."),
    ] = "",
    prepare: Annotated[
        bool,
        typer.Option("--prepare", help="Write all data of NAME as files, for use offline."),
    ] = False,
    out: Annotated[Path | None, typer.Option(help="With --prepare: the folder.")] = None,
    tasks: Annotated[str, typer.Option(help="With --prepare: only these, such as cb,rte.")] = "",
) -> None:
    """List the built-in suites (or NAME alone: a suite, or the path of a suite file).

    Examples:
    * `cold-flower suites --verify paper`: downloads its 36 datasets

    * `cold-flower suites --verify suite.toml --base-model roberta-base`

    * `cold-flower suites --prepare paper --out paper`: for a machine without a network
    """
    from cold_flower.commands import prepare as preparation
    from cold_flower.commands import verify as verification
    from cold_flower.config import split
    from cold_flower.data.suite import load_suite, suite_names

    if base_model and not verify:
        raise ConfigError("--base-model is for --verify SUITE")
    if verify and prepare:
        raise ConfigError("--verify and --prepare are two commands: prepare first, then verify")
    if (out or tasks) and not prepare:
        raise ConfigError(f"--{'out' if out else 'tasks'} is for --prepare SUITE")
    if (verify or prepare) and not name:
        option = "--verify" if verify else "--prepare"
        raise ConfigError(f"{option} expects a suite: {', '.join(suite_names())}, or a file")
    if verify:
        if not verification.report(load_suite(name), base_model):
            raise typer.Exit(1)
        return
    if prepare:
        if not out:
            raise ConfigError("--prepare expects a folder to write: --out DIR")
        if not preparation.prepare(name, out, split(tasks)):
            raise typer.Exit(1)
        return
    for each in [name] if name else suite_names():
        suite = load_suite(each)
        typer.echo(f"{each}: {len(suite.tasks)} tasks: {', '.join(suite.tasks)}")


def rules(
    name: Annotated[str, typer.Argument(metavar="[NAME]", show_default=False)] = "",
) -> None:
    """Explain the fusion rules (or NAME alone): options, source, when to use which."""
    from strategies import fusion

    if name and name not in fusion.names():
        raise ConfigError(unknown("fusion rule", name, fusion.names()))
    if name:
        typer.echo(fusion.explain(name) + "\n")
        return
    for rule in fusion.names():
        try:
            typer.echo(fusion.explain(rule) + "\n")
        except FusionError as error:  # a file that somebody is writing hides no other
            typer.echo(f"left out: {error}", err=True)
