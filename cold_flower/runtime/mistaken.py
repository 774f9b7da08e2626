"""TOML files that are taken for experiments and are none, or not yet: what to say of them."""

import shlex
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from cold_flower import toml
from cold_flower.config import describe
from cold_flower.errors import ConfigError
from strategies.names import nearest

# By the table that an experiment does not have: which file it is of, and where that goes.
OTHERS = {
    "tasks": "a suite file: --set suite={} gives it to an experiment, or name it in an experiment "
    "file",
    "task": "a site file: `cold-flower site check {}` rehearses it; an experiment names its sites "
    "in sites.allow",
    "recipe": "a recipe: its table goes into a suite file",
}
LIKE = 0.8  # what is so near to a key is a slip of it (`difflib`)


def check(path: Path, table: Mapping[str, Any]) -> None:
    """Check that the file of an experiment says something, and is no other file of ours.

    Args:
        path: of the file.
        table: what it holds.

    Raises:
        ConfigError: it is empty, a suite, a site's own settings or a recipe.
    """
    if not table:
        raise ConfigError(
            f"experiment {path} says nothing: expected keys, such as iterations = 4 "
            "(`cold-flower keys`)"
        )
    if other := _other(table):
        raise ConfigError(f"{path} is {OTHERS[other].format(shlex.quote(str(path.resolve())))}")


def broken(folder: Path) -> Iterator[str]:
    """Say of each file in a folder that is nearly an experiment why it is none.

    Of one that cannot be read nobody knows. Of a suite or another tool's file nothing is said.
    """
    known = [*describe()]
    for path in sorted(folder.glob("*.toml")):
        try:
            table = toml.read(path, "experiment", ConfigError)
        except ConfigError as error:
            yield str(error).removeprefix("experiment ")
            continue
        keys = toml.flatten(table)
        wrong = [key for key in keys if key not in known]
        foreign = [key for key in wrong if not get_close_matches(key, known, 1, LIKE)]
        if wrong and not _other(table) and 2 * len(foreign) < len(keys):
            yield f"{path}: unknown key {wrong[0]!r}.{nearest(wrong[0], known)}"


def _other(table: Mapping[str, Any]) -> str:
    """Return the table of `OTHERS` that is there, or nothing."""
    return next((name for name in OTHERS if isinstance(table.get(name), dict)), "")
