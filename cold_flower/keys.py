"""What a key of the configuration may hold: declared by its field, checked when it is read."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Any

from cold_flower.errors import ConfigError
from strategies.names import nearest, unknown

Scalar = bool | int | float | str


def key(
    default: Scalar,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    least: float = 0,
    most: float = math.inf,
) -> Any:
    """Declare a key: the field of a dataclass, whose type is that of the default.

    Args:
        default: its value unless another is given.
        help: what it does, for ``cold-flower keys``.
        choices: the valid texts; empty allows any.
        least: the smallest valid number.
        most: the largest valid number.
    """
    limits = {"least": least, "most": most}
    return field(default=default, metadata={"help": help, "choices": choices, **limits})


def unknown_key(name: str, known: Iterable[str]) -> str:
    """Say that there is no such key, and which was meant; there are too many to list them."""
    return f"unknown config key {name!r}.{nearest(name, [*known])} `cold-flower keys` lists them."


def checked(name: str, value: Any, default: Scalar, metadata: Mapping[str, Any]) -> Scalar:
    """Return a value if its key may hold it; a whole number also for a float.

    Args:
        name: the key.
        value: as it was given.
        default: the key's own, which sets the type.
        metadata: what `key` declared.

    Raises:
        ConfigError: another type, none of the choices, or out of range.
    """
    kind = type(default)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind:
        hint = " (a list is one comma-separated string)" if isinstance(value, list) else ""
        raise ConfigError(
            f"{name} is of type {kind.__name__} (default {default!r}), got {value!r}{hint}"
        )
    if metadata["choices"] and value not in metadata["choices"]:
        raise ConfigError(unknown(f"value for {name}", str(value), metadata["choices"]))
    if isinstance(value, int | float):
        least, most = metadata["least"], metadata["most"]
        if not least <= value <= most or value == math.inf:
            upper = f" and at most {most}" if most < math.inf else ""
            raise ConfigError(f"{name} is at least {least}{upper}, got {value}")
    return value
