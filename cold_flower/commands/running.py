"""From an experiment and settings to a configuration, and from that to a finished run.

The command line and the functions of `cold_flower.commands.api` begin here.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cold_flower.config import Config
from cold_flower.errors import ColdFlowerError, ConfigError
from cold_flower.reporting.run import Run, open_run
from cold_flower.reporting.runs import RunDirectory
from cold_flower.repository.journal import load_config
from cold_flower.runtime import experiments
from strategies.errors import StrategyError

AnyPath = str | Path


def configure(
    experiment: AnyPath,
    settings: Mapping[str, Any],
    run_dir: AnyPath | None = None,
    resume: bool = False,
    replay: AnyPath | None = None,
) -> Config:
    """Merge defaults, the suite's recipe, the experiment and the settings, in that order.

    Raises:
        ColdFlowerError: a wrong key or value, an unknown suite or experiment; ``resume``
            without a directory; an experiment and a run to repeat, or neither.
    """
    if bool(experiment) == bool(replay):
        raise ConfigError("name an experiment, or a run to repeat (--replay RUN); not both")
    if replay:
        before = load_config(absolute(replay))
        keys = {
            **before,
            "run-dir": "",
            "resume": False,
            "replay": str(absolute(replay)),
            **settings,
        }
        experiment = f"{before['experiment']}-replayed"
    else:
        keys = {**experiments.read(str(experiment)), **settings}
    where, go_on = run_dir or keys.get("run-dir"), resume or keys.get("resume", False)
    if go_on and not where:
        raise ConfigError("resume continues a run, so it needs its directory: --run-dir RUN")
    folder = absolute(where or experiments.fresh(str(experiment)))
    with one_kind_of_error():
        return experiments.merge({**keys, "run-dir": str(folder), "resume": go_on})


def run(
    config: Config,
    sharing: Any,
    again: str = "",
    *,
    against: RunDirectory | None = None,
    opened: Callable[[Path], object] | None = None,
) -> Run:
    """Run a configuration to the end.

    Args:
        config: resolved.
        sharing: a `cold_flower.runtime.runner.Sharing`.
        again: how the user goes on after a stop.
        against: what the result is compared with.
        opened: called once with report.html, as soon as there is one.

    Raises:
        ColdFlowerError: what is wrong, or why the run failed.
        KeyboardInterrupt: it was stopped.
    """
    from cold_flower.runtime import runner

    with one_kind_of_error():
        runner.run(config, sharing, again, opened)
        finished = open_run(config.run_dir)
    return Run(finished.folder, finished.config, against)


@contextmanager
def one_kind_of_error() -> Iterator[None]:
    """Turn what strategies/ and the disk complain of into our errors: users catch one kind."""
    try:
        yield
    except (StrategyError, OSError) as error:
        raise ColdFlowerError(str(error)) from error


def absolute(path: AnyPath) -> Path:
    """Return a path as a run keeps it, whatever folder is the current one later."""
    return Path(path).expanduser().resolve()


def suite_of(name: str) -> str:
    """Return a suite as a run names it: built in, or a file by its absolute path."""
    return str(Path(name).resolve()) if name.endswith(".toml") else name
