"""Many runs of one experiment: a cell for each combination of values, none run twice."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cold_flower.config import Config
from cold_flower.errors import ColdFlowerError, ConfigError, RunError
from cold_flower.repository.bases import Repository
from cold_flower.repository.journal import CONFIG, check_same
from cold_flower.runtime import experiments
from cold_flower.runtime.flower import completed
from cold_flower.runtime.writable import check_writable
from strategies.errors import StrategyError


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    name: str
    """``seed=0,iterations=4``: also its folder's name."""
    config: Config
    done: bool


def parse(axes: Sequence[str]) -> dict[str, list[str]]:
    """Parse ``key=0..4`` or ``key=2,4,8`` into the values of each key.

    Raises:
        ConfigError: no values, or a key twice.
    """
    parsed: dict[str, list[str]] = {}
    for axis in axes:
        key, _, text = axis.partition("=")
        first, dots, last = text.partition("..")
        if dots and first.strip().isdigit() and last.strip().isdigit():
            values = [str(value) for value in range(int(first), int(last) + 1)]
        else:
            values = [value.strip() for value in text.split(",") if value.strip()]
        if not values or key in parsed:
            raise ConfigError(
                f"--sweep expects key=first..last or key=a,b,c, each key once; got {axis!r}"
            )
        parsed[key] = values
    return parsed


def cells(
    experiment: str, settings: Mapping[str, Any], axes: Mapping[str, Sequence[str]], folder: Path
) -> Iterator[Cell]:
    """Yield the cells: those that are finished, that can go on, and that are new.

    Raises:
        ConfigError, RunError: a value that is not valid, or another run in a cell's folder.
    """
    for values in itertools.product(*axes.values()):
        pairs = [f"{key}={value}" for key, value in zip(axes, values, strict=True)]
        name = ",".join(pairs).replace("/", "_")
        run_dir = (folder / name).resolve()
        begun = (run_dir / CONFIG).exists()
        chosen = {**settings, **experiments.parse_settings(pairs)}
        config = experiments.configure(
            experiment, {**chosen, "run-dir": str(run_dir), "resume": begun}
        )
        if begun:
            check_same(run_dir, config)
            Repository(run_dir).check_start(config.base_model)
        experiments.check_keys(config)  # a typo is found before the first cell's hours
        yield Cell(name, config, begun and completed(run_dir, config.iterations))


def run(
    planned: Sequence[Cell], start: Callable[[Config], None], say: Callable[[str], None]
) -> None:
    """Run the cells that are not done, one after the other; a failed one stops no other.

    Raises:
        RunError: naming the cells that failed; or nothing can be written where they are to go.
    """
    if to_do := [cell for cell in planned if not cell.done]:
        check_writable(Path(to_do[0].config.run_dir))
    failed = []
    for number, cell in enumerate(planned, start=1):
        where = f"{number}/{len(planned)} {cell.name}"
        if cell.done:
            say(f"{where}: done before")
            continue
        say(f"{where}: {'goes on' if cell.config.resume else 'begins'}")
        try:
            start(cell.config)
        except (ColdFlowerError, StrategyError, OSError) as error:
            say(f"{where}: failed: {error}")
            failed.append(cell.name)
    if failed:
        raise RunError(
            f"{len(failed)} of {len(planned)} cells failed: {', '.join(failed)}; the same command "
            "runs these again"
        )
