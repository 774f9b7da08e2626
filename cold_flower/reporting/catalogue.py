"""What experiments there are: those that are shipped, and yours in the current folder.

An experiment file opens with a comment: what it reproduces, a line ``# Time: ...``, and perhaps
what the paper found.
"""

import importlib.resources
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cold_flower import toml
from cold_flower.config import OF_A_RUN, Config, describe
from cold_flower.data.plan import resolve
from cold_flower.errors import ConfigError

TIME = "# Time: "
# Where and how often it runs, not what.
_INCIDENTAL = (*OF_A_RUN, "experiment", "seed")


@dataclass(frozen=True)
class Described:
    """An experiment file, by its opening comment."""

    path: Path
    what: str
    """The comment up to its line about the time."""
    time: str
    text: str
    """The whole comment, on one line."""
    shipped: bool

    @property
    def name(self) -> str:
        """Return how `cold-flower simulate` knows it."""
        return self.path.stem if self.shipped else self.path.name


def folder() -> Path:
    """Return where the shipped experiments lie."""
    return Path(str(importlib.resources.files("simulations")))


def names() -> list[str]:
    """List the shipped experiments."""
    return sorted(path.stem for path in folder().glob("*.toml"))


def shipped() -> list[Described]:
    """Describe the shipped experiments, by name."""
    return [_read(folder() / f"{name}.toml", True) for name in names()]


def yours(where: Path) -> list[Described]:
    """Describe the experiments of a folder: TOML files with nothing but configuration keys."""
    known = describe().keys()
    described = []
    for path in sorted(where.glob("*.toml")):
        try:
            keys = toml.flatten(toml.read(path, "experiment", ConfigError)).keys()
        except ConfigError:
            continue
        if keys and keys <= known:
            described.append(_read(path, False))
    return described


def about(name: str) -> str:
    """Return what a shipped experiment says of itself; nothing of any other."""
    return _read(folder() / f"{name}.toml", True).text if name in names() else ""


def changed(name: str, configs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Say how runs differ from a shipped experiment: ``iterations = 4 (shipped: 2)``.

    Args:
        name: the experiment's.
        configs: the runs', flat.
    """
    keys = toml.flatten(toml.read(folder() / f"{name}.toml", "experiment", ConfigError))
    shipped, runs, lines = resolve(Config.from_flat(keys), keys).flat(), [*configs], []
    for key, value in shipped.items():
        own = list(dict.fromkeys(run[key] for run in runs if key in run))
        if key not in _INCIDENTAL and own not in ([value], []):
            shown = " or ".join(map(json.dumps, own))
            lines.append(f"{key} = {shown} (shipped: {json.dumps(value)})")
    return lines


def _read(path: Path, shipped: bool) -> Described:
    comment: list[str] = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        comment.append(line)
    times = [i for i, line in enumerate(comment) if line.startswith(TIME)]
    what = comment[: times[0]] if times else comment
    time = comment[times[0]].removeprefix(TIME).rstrip(".") if times else ""
    return Described(path, _joined(what), time, _joined(comment), shipped)


def _joined(lines: list[str]) -> str:
    return " ".join(line.lstrip("# ") for line in lines)
