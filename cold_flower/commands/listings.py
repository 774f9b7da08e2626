"""Commands that say what there is: experiments, keys, suites, rules."""

import json
from typing import Annotated

import typer

from cold_flower.errors import ConfigError


def experiments() -> None:
    """List the shipped experiments: what each reproduces, on what, in about how long."""
    from cold_flower.runtime import experiments as shipped

    for name in shipped.names():
        typer.echo(f"{name}\n    {shipped.about(name)}")


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


def suites(
    name: Annotated[str, typer.Argument(metavar="[NAME]", show_default=False)] = "",
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Read all data of NAME; compare with what it states."),
    ] = False,
) -> None:
    """List the built-in suites (or NAME alone: a suite, or the path of a suite file).

    Examples:
    * `cold-flower suites --verify paper`: downloads its 36 datasets

    * `cold-flower suites --verify suite.toml`
    """
    from cold_flower.commands import verify as verification
    from cold_flower.data.suite import load_suite, suite_names

    if verify:
        if not name:
            raise ConfigError(f"--verify expects a suite: {', '.join(suite_names())}, or a file")
        if not verification.report(load_suite(name)):
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
    from strategies.names import unknown

    if name and name not in fusion.names():
        raise ConfigError(unknown("fusion rule", name, fusion.names()))
    for rule in [name] if name else fusion.names():
        typer.echo(fusion.explain(rule) + "\n")
