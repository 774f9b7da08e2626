"""What a key of the configuration may hold: declared by its field, checked when it is read."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import Field, field, fields, is_dataclass, replace
from difflib import SequenceMatcher
from typing import Any, TypeVar

from cold_flower.errors import ConfigError
from strategies.names import unknown

Scalar = bool | int | float | str
T = TypeVar("T")
LARGEST = 2**63 - 1  # Flower's whole numbers have 64 bit


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
        least: the smallest valid number; a default below it is valid, too, and means something of
            its own ("0 = never").
        most: the largest valid number.
    """
    limits = {"least": least, "most": most}
    return field(default=default, metadata={"help": help, "choices": choices, **limits})


def unknown_key(name: str, known: Iterable[str]) -> str:
    """Say that there is no such key, which was meant, and what its group has, the nearest first."""

    def likeness(key: str) -> float:
        names = (key, key.rpartition(".")[2])  # the group may have been left out
        return max(SequenceMatcher(None, name.lower(), one).ratio() for one in names)

    near = sorted(known, key=likeness, reverse=True)
    meant = [key for key in near[:3] if likeness(key) >= 0.6]
    groups = {key.rpartition(".")[0] for key in near}
    group = name.partition(".")[0] if "." in name else ""
    if group not in groups or not group:
        group = meant[0].rpartition(".")[0] if meant else ""
    listed = ", ".join(key for key in near if key.rpartition(".")[0] == group)
    of = f"Keys of {group}" if group else "Keys without a group"
    asked = f" Did you mean {' or '.join(map(repr, meant))}?" if meant else ""
    return f"unknown config key {name!r}.{asked} {of}: {listed}. `cold-flower keys` explains all."


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
    if isinstance(value, int | float) and value != default:
        least, most = metadata["least"], metadata["most"]
        if kind is int:
            most = min(most, LARGEST)
        if not least <= value <= most or value == math.inf:
            special = f"{default:g} or " if default < least else ""
            upper = f" and at most {most:,}" if most < LARGEST or value > most else ""
            raise ConfigError(f"{name} is {special}at least {least:,}{upper}, got {value}")
    return value


def declared(config: Any) -> Iterator[tuple[str, "Field[Any]", Scalar]]:
    """Yield every key with its field and its value in a configuration, those of groups, too."""
    for outer in fields(config):
        name, value = outer.name.replace("_", "-"), getattr(config, outer.name)
        if is_dataclass(value):
            yield from ((f"{name}.{inner}", field, v) for inner, field, v in declared(value))
        elif outer.metadata:  # what has none is no key
            yield name, outer, value


def built(kind: type[T], values: Mapping[str, Scalar]) -> T:
    """Return a configuration with these values, by key; the rest keeps its default."""
    groups: dict[str, dict[str, Any]] = {"": {}}
    for name, value in values.items():
        group, _, key = name.replace("-", "_").rpartition(".")
        groups.setdefault(group, {})[key] = value
    made: Any = kind()
    own = groups.pop("")
    whole: T = replace(
        made, **own, **{k: replace(getattr(made, k), **v) for k, v in groups.items()}
    )
    return whole
