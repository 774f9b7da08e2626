"""Many runs of one experiment: a cell for each combination of values, none run twice."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cold_flower.config import Config, describe
from cold_flower.data.facts import facts
from cold_flower.data.plan import naming_the_recipe
from cold_flower.errors import ColdFlowerError, ConfigError, RunError
from cold_flower.keys import Scalar, checked, unknown_key
from cold_flower.repository.bases import Repository
from cold_flower.repository.journal import CONFIG, check_new, check_same, others
from cold_flower.repository.start import check_start
from cold_flower.runtime import experiments, shared_start
from cold_flower.runtime.flower import completed
from cold_flower.runtime.writable import check_writable
from cold_flower.server.strategy import needed
from strategies.errors import StrategyError

MOST = 10_000  # values of a key
PER_RUN = ("seed", "run-dir", "resume")  # keys that make no condition


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    name: str
    """``seed=0,iterations=4``: also its folder's name."""
    config: Config
    done: bool


def parse(axes: Sequence[str]) -> dict[str, list[Scalar]]:
    """Parse ``key=0..4`` or ``key=2,4,8`` into the values of each key, each of them once.

    A text may also be empty: ``fusion.clip=,median``.

    Raises:
        ConfigError: no such key or value, no values, or a key twice.
    """
    known, parsed = describe(), dict[str, list[Scalar]]()
    for axis in axes:
        key, found, text = axis.partition("=")
        if key not in known:
            raise ConfigError(unknown_key(key, known))
        first, dots, last = text.partition("..")
        if dots and first.strip().isdigit() and last.strip().isdigit():
            among = range(int(first), int(last) + 1)
            parts = [str(value) for value in among] if len(among) <= MOST else []
        else:
            parts = text.split(",") if text or isinstance(known[key][0], str) else []
        if not found or not parts or key in parsed:
            raise ConfigError(
                "--sweep expects key=first..last or key=a,b,c, each key once and at most "
                f"{MOST:,} values; got {axis!r}"
            )
        if key in ("run-dir", "resume"):
            raise ConfigError(f"--sweep cannot vary {key}: each run has a folder in --run-dir")
        given = [experiments.parse_settings([f"{key}={part}"])[key] for part in parts]
        parsed[key] = list(dict.fromkeys(checked(key, value, *known[key]) for value in given))
    return parsed


def cells(
    experiment: str, settings: Mapping[str, Any], axes: Mapping[str, Sequence[Scalar]], folder: Path
) -> Iterator[Cell]:
    """Yield the cells: those that are finished, that can go on, and that are new.

    Raises:
        ConfigError, RunError: a key that is also set, a value that is not valid, or another run in
            a cell's folder.
    """
    for key in axes.keys() & settings.keys():
        raise ConfigError(f"{key} is both set (--set) and varied (--sweep): leave one of them out")
    names, boxes = set[str](), set[str]()
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        name = ",".join(f"{key}={_text(value)}" for key, value in chosen.items()).replace("/", "_")
        if name in names:
            raise ConfigError(f"--sweep: two runs would lie in one folder, {folder / name}")
        names.add(name)
        run_dir = (folder / name).resolve()
        begun = (run_dir / CONFIG).exists()
        config = experiments.configure(
            experiment, {**settings, **chosen, "run-dir": str(run_dir), "resume": begun}
        )
        if config.dropbox in boxes:
            raise ConfigError(
                f"--sweep: two runs would share dropbox = {config.dropbox}, which is one run's: "
                "vary it, too, or leave it out (each run directory has a box)"
            )
        boxes |= {config.dropbox} - {""}
        with naming_the_recipe(config):
            if begun:
                check_same(run_dir, config)
                check_start(Repository(run_dir), config.base_model)
            else:
                check_new(run_dir)
            experiments.check_keys(config)  # a typo is found before the first cell's hours
        yield Cell(name, config, begun and completed(run_dir, config.iterations))


def _text(value: Scalar) -> str:
    """Write a value as TOML does, a text without its quotes; one value is always written alike."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def run(
    planned: Sequence[Cell], start: Callable[[Config], None], say: Callable[[str], object]
) -> None:
    """Run the cells that are not done, one after the other; a failed one stops no other.

    What several cells have in common is computed once (`cold_flower.runtime.shared_start`).

    Raises:
        RunError: naming the cells that failed; or nothing can be written where they are to go,
            or data or model of a later one do not fit, before the first begins.
    """
    if to_do := [cell for cell in planned if not cell.done]:
        check_writable(Path(to_do[0].config.run_dir))
        _check_later(to_do)
    failed = []
    finished: list[Config] = []  # by this command: an earlier one may have had other devices
    for number, cell in enumerate(planned, start=1):
        config, where = cell.config, f"{number}/{len(planned)} {cell.name}"
        if cell.done:
            other = others(Path(config.run_dir), facts(config))
            but = f", with other {', '.join(other)}" if other else ""
            say(f"{where}: done before{but}")
            continue
        say(f"{where}: {'goes on' if cell.config.resume else 'begins'}")
        try:
            if not config.resume and (source := shared_start.sharing(config, finished)):
                say(f"{where}: {shared_start.take_over(config, source)}")
                config = replace(config, resume=True)
            start(config)
            if not cell.config.resume:
                finished.append(cell.config)
        except (ColdFlowerError, StrategyError, OSError) as error:
            say(f"{where}: failed: {error}")
            failed.append(cell.name)
    if failed:
        raise RunError(
            f"{len(failed)} of {len(planned)} cells failed: {', '.join(failed)}; the same command "
            "runs these again"
        )


def _check_later(to_do: Sequence[Cell]) -> None:
    """Check data and model of every further condition, which would else fail hours later."""
    seen = [_needs(to_do[0].config)]
    for cell in to_do[1:]:
        if (needs := _needs(cell.config)) not in seen:
            seen.append(needs)
            try:
                with naming_the_recipe(cell.config):
                    experiments.check(cell.config)
            except (ColdFlowerError, StrategyError) as error:
                raise RunError(f"nothing was started, for {cell.name} cannot: {error}") from error


def _needs(config: Config) -> Mapping[str, Any]:
    """Return what data and model are checked for; of fusion they have to know the statistic."""
    own = (*PER_RUN, *(key for key in config.flat() if key.startswith("fusion.")))
    keys = {key: value for key, value in config.flat().items() if key not in own}
    return {**keys, "statistic": needed(config)[0]}
