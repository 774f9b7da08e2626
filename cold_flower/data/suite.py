"""Suites: TOML files of tasks (docs/suites.md). The built-in ones lie in ``suites/``."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cold_flower import toml
from cold_flower.data.task import Task
from cold_flower.errors import TaskError
from cold_flower.keys import Scalar
from strategies.names import unknown

FOLDER = Path(__file__).parent / "suites"


@dataclass(frozen=True, eq=False)
class Suite:
    """A set of tasks, and the configuration keys that fit them (its recipe).

    As long as its file stays the same, there is one object of it in a process.
    """

    name: str
    tasks: Mapping[str, Task]
    recipe: Mapping[str, Scalar]


def suite_names() -> list[str]:
    """List the built-in suites."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read_suite(name: str) -> dict[str, Any]:
    """Read the file of a suite as it stands; `load_suite` checks it, too.

    Raises:
        TaskError: no such suite, or not TOML.
    """
    return toml.read(_file(name), "suite file", TaskError)


def _file(name: str) -> Path:
    if name.endswith(".toml"):
        return Path(name)
    if name not in suite_names():
        raise TaskError(
            unknown("suite", name, suite_names()) + " A file is given as <absolute path>.toml."
        )
    return FOLDER / f"{name}.toml"


def load_suite(name: str | Path, seed: int = 0) -> Suite:
    """Load a built-in suite by name, or a user's by the path of its file.

    The file is read each time, for it may have changed, and parsed where it has: with thousands
    of tasks that takes a second, and every message to a contributor asks.

    Args:
        name: ``demo``, ``paper``, or a path that ends in ``.toml``.
        seed: the run's; the demo's rows are generated from it.

    Raises:
        TaskError: no such suite, not TOML, or an entry that is not as documented.
    """
    name = str(name)
    return _parsed(name, seed, toml.text_of(_file(name), "suite file", TaskError))


@functools.lru_cache(maxsize=4)
def _parsed(name: str, seed: int, text: str) -> Suite:
    table = toml.parse(text, _file(name), "suite file", TaskError)
    if extra := set(table) - {"tasks", "recipe"}:
        raise TaskError(f"suite {name}: {unknown('table', min(extra), ['recipe', 'tasks'])}")
    entries = table.get("tasks", {}).items()
    tasks = {key: Task.from_table(key, entry, name, seed) for key, entry in entries}
    if not tasks:
        raise TaskError(f"suite {name} has no [tasks.<name>] table")
    return Suite(name, tasks, toml.flatten(table.get("recipe", {})))
