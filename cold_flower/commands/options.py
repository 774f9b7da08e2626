"""Options that several commands have, and how a stop becomes an exit code."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key; may be repeated."),
]
RunDir = Annotated[Path | None, typer.Option(help="Where the run goes (default: runs/NAME-TIME).")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --run-dir.")]


@contextmanager
def exit_code_of_a_stop() -> Iterator[None]:
    """Turn a stop by Ctrl-C or a signal into the exit code that shells expect."""
    from cold_flower.runtime.processes import Stopped

    try:
        yield
    except Stopped as stopped:
        raise typer.Exit(128 + stopped.signum) from None
