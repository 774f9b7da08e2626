"""An experiment before it runs: find it, merge its keys, check everything it needs."""

import importlib.resources
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cold_flower import tasks
from cold_flower.config import Config, describe, flatten
from cold_flower.contributor import Plan, plan, resolve
from cold_flower.errors import ConfigError
from cold_flower.schedule import cohort
from strategies.names import unknown


def folder() -> Path:
    """Return where the shipped experiments lie."""
    return Path(str(importlib.resources.files("simulations")))


def names() -> list[str]:
    """List the shipped experiments."""
    return sorted(path.stem for path in folder().glob("*.toml"))


def read(name: str) -> dict[str, Any]:
    """Return an experiment's keys, flat.

    Raises:
        ConfigError: no such experiment, or not TOML.
    """
    path = Path(name) if name.endswith(".toml") else folder() / f"{name}.toml"
    if not name.endswith(".toml") and name not in names():
        raise ConfigError(unknown("experiment", name, names()) + " Or give a .toml file.")
    try:
        return {"experiment": path.stem, **flatten(tomllib.loads(path.read_text()))}
    except OSError as error:
        raise ConfigError(f"experiment {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"experiment {path} is not TOML: {error}") from error


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Parse ``key=value`` pairs; a value is TOML, or plain text where the key is a string.

    Raises:
        ConfigError: no ``=``, an unknown key, a value of another type.
    """
    known, settings = describe(), {}
    for pair in pairs:
        key, found, text = pair.partition("=")
        if not found:
            raise ConfigError(f"--set expects key=value, got {pair!r}")
        if key not in known:
            raise ConfigError(unknown("config key", key, list(known)))
        if isinstance(known[key][0], str):
            settings[key] = text.strip().strip("\"'")
        else:
            try:
                settings[key] = tomllib.loads(f"value = {text}")["value"]
            except tomllib.TOMLDecodeError:
                settings[key] = text  # Config says what was expected
    return settings


def configure(name: str, settings: dict[str, Any]) -> Config:
    """Merge defaults, the suite's recipe, the experiment and ``--set``, in that order.

    Raises:
        ConfigError, TaskError: a wrong key or value, an unknown suite.
    """
    given = {**read(name), **settings}
    config = Config.from_flat(given)
    if config.suite.endswith(".toml") and not Path(config.suite).is_absolute():
        raise ConfigError(f"suite {config.suite!r}: give the absolute path of the file")
    if Path(config.base_model).is_dir():  # the run works in a directory of its own
        given["base-model"] = str(Path(config.base_model).resolve())
    # A key that was set stays, even where it was set to its default.
    resolved = resolve(config).flat()
    return Config.from_flat({**resolved, **given, "recipe": False})


def check(config: Config) -> Plan:
    """Check all that can be checked before anything starts.

    Raises:
        ColdFlowerError, FusionError: the first thing that is wrong.
    """
    from cold_flower.model import load_base
    from cold_flower.server_app import stock_strategy
    from cold_flower.text_to_text import check as check_labels
    from strategies.fusion import load

    config.protocols()
    if config.fusion.strategy:
        stock_strategy(config)
    else:
        load(config.fusion.rule, **config.rule_options())
    whole = plan(config)
    asked = cohort(
        whole.seen,
        1,
        size=config.contributors_per_iteration,
        schedule=config.schedule,
        seed=config.seed,
    )
    if config.quorum > len(asked):
        raise ConfigError(
            f"quorum is {config.quorum}, but an iteration asks {len(asked)} contributors"
        )
    base = load_base(config.base_model)
    if config.partition.kind == "shards":
        task = whole.tasks[whole.names[0]]
        check_labels(base, task, tasks.load(task, config, 0).labels)
    else:
        for task in whole.tasks.values():
            check_labels(base, task, tasks.load(task, config).labels)
    return whole
