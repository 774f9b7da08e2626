"""Read TOML that somebody wrote: a file, or a single value."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cold_flower.errors import ColdFlowerError


def read(path: Path, what: str, error: type[ColdFlowerError]) -> dict[str, Any]:
    """Read a TOML file.

    Args:
        path: the file.
        what: the file is, for the message: ``suite file``.
        error: the class to raise.

    Raises:
        ColdFlowerError: of that class; the file cannot be read, or is not TOML.
    """
    return parse(text_of(path, what, error), path, what, error)


def text_of(path: Path, what: str, error: type[ColdFlowerError]) -> str:
    """Return what a TOML file holds, for `parse`; the arguments are those of `read`."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as cause:
        raise error(f"{what} {path} cannot be read: {cause.strerror}") from cause
    except UnicodeDecodeError as cause:
        raise error(f"{what} {path} is not TOML: {cause}") from cause


def parse(text: str, path: Path, what: str, error: type[ColdFlowerError]) -> dict[str, Any]:
    """Parse the text of a TOML file; the other arguments are those of `read`."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as cause:
        raise error(f"{what} {path} is not TOML: {cause}") from cause


def value(text: str) -> Any:
    """Return the TOML value that a text is: ``3``, ``true``, ``{density = 0.5}``.

    Raises:
        ValueError: it is none.
    """
    table = tomllib.loads(f"value = {text}")
    if len(table) != 1:
        raise ValueError(f"expected one value, got {text!r}")
    return table["value"]


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested TOML tables into dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in table.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
