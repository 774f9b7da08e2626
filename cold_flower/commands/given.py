"""What a caller in Python hands over: lists of names or anything else, and keys with values."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cold_flower.config import split
from cold_flower.errors import ConfigError


def several(what: str, given: Any, of: str) -> list[Any]:
    """Return a list that was given; a single value is none, and a text would be its letters.

    Args:
        what: the argument, for the message.
        given: its value.
        of: what the list is of, for the message.

    Raises:
        ConfigError: it is no list.
    """
    if isinstance(given, str | Path | Mapping) or not isinstance(given, Iterable):
        raise ConfigError(f"{what} is a list of {of}, got {given!r}")
    return list(given)


def names(what: str, given: Any) -> list[str]:
    """Return names that were given as a list, or as a text with commas, as a key holds them.

    Raises:
        ConfigError: they are neither.
    """
    if isinstance(given, str):
        return split(given)
    return [str(name) for name in several(what, given, "names")]


def table(what: str, given: Any) -> dict[str, Any]:
    """Return names and values that were given, or nothing for None.

    Raises:
        ConfigError: it is no mapping.
    """
    if not isinstance(given, Mapping | None):
        raise ConfigError(f"{what} is a mapping of names to values, got {given!r}")
    return dict(given or {})
