"""Conditions of one experiment, each with the same seeds, to be set against its plain mean."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cold_flower.config import Config
from cold_flower.errors import ConfigError
from cold_flower.keys import Scalar
from cold_flower.reporting.comparison import Comparison, comparison
from cold_flower.runtime import experiments, runner, sweep
from cold_flower.runtime.sweep import PER_RUN, Cell

PLAIN = "average"
_FUSION = {key: value for key, value in Config().flat().items() if key.startswith("fusion.")}
_NORM, _EQUAL = "fusion.norm", "mean"


@dataclass(frozen=True)
class Variant:
    """One of the conditions."""

    label: str
    settings: Mapping[str, Scalar]
    """The keys that make it. The rest of ``fusion`` is the plain mean's, whatever the experiment
    has."""

    @property
    def folder(self) -> str:
        """Return the name of its folder of runs."""
        return self.label.replace(" ", "").replace("/", "_")


def variants(
    rules: Sequence[str],
    stages: Sequence[str],
    others: Sequence[Mapping[str, Any]],
    *,
    equal_length: bool,
) -> list[Variant]:
    """Return the plain mean, then each rule, each stage of the plain mean, and each other variant.

    Args:
        rules: as ``fusion.rule`` takes them.
        stages: such as ``momentum=0.5``: keys of ``fusion`` without that word.
        others: any keys and their values.
        equal_length: give what each rule makes the length of the plain mean (``fusion.norm``).

    Raises:
        ConfigError: an unknown key, one that all have in common, the same variant twice, or none
            but the plain mean.
    """
    given: list[tuple[str, Mapping[str, Any]]] = [
        (rule, {"fusion.rule": rule}) for rule in dict.fromkeys(rules) if rule != PLAIN
    ]
    for stage in stages:
        key, found, value = (part.strip() for part in stage.partition("="))
        given.append(
            (f"{key} = {value}", experiments.parse_settings([f"fusion.{key}{found}{value}"]))
        )
    for other in others:
        given.append((", ".join(f"{key} = {value}" for key, value in other.items()), other))
    made = [Variant(PLAIN, {"fusion.rule": PLAIN, "fusion.strategy": ""})]
    for label, keys in given:
        for key in PER_RUN:
            if key in keys:
                raise ConfigError(f"{label!r}: {key} cannot differ between what is compared")
        # A stage of the plain mean makes it longer or shorter on purpose.
        of_rule = keys.get("fusion.rule", PLAIN) != PLAIN and not keys.get("fusion.strategy")
        if equal_length and of_rule and _NORM not in keys:
            label, keys = f"{label}, norm = {_EQUAL}", {**keys, _NORM: _EQUAL}
        made.append(Variant(label, keys))
    if len(made) == 1:
        raise ConfigError(
            "nothing to compare the plain mean with: name rules (--rules ties,median), stages "
            "(--stages momentum=0.5) or other keys (--variant 'finetune.head=keep')"
        )
    if equal_length and not any(variant.settings.get(_NORM) == _EQUAL for variant in made):
        raise ConfigError(
            "equal length is about what rules add to the base, and no rule is named: a stage of "
            "the plain mean keeps its own length"
        )
    for number, variant in enumerate(made):
        for earlier in made[:number]:
            if variant.settings == earlier.settings or variant.folder == earlier.folder:
                raise ConfigError(f"{earlier.label!r} and {variant.label!r} are the same variant")
    return made


def parse(text: str) -> dict[str, Any]:
    """Parse a variant: ``KEY=VALUE; KEY=VALUE``.

    Raises:
        ConfigError: an unknown key, no ``=``, a value of another type.
    """
    return experiments.parse_settings([part.strip() for part in text.split(";") if part.strip()])


@dataclass(frozen=True)
class Planned:
    """What is to be run, or was."""

    folder: Path
    variants: list[Variant]
    seeds: Sequence[Scalar]
    cells: list[Cell]
    """A run for each seed and variant, all variants of the first seed first: so what is there when
    it is stopped can be paired."""


def parse_seeds(text: str) -> list[Scalar]:
    """Parse ``0..2`` or ``0,3``.

    Raises:
        ConfigError: it is neither.
    """
    try:
        return sweep.parse([f"seed={text}"])["seed"]
    except ConfigError as error:
        raise ConfigError(
            f"--seeds expects FIRST..LAST or numbers with commas, got {text!r}"
        ) from error


def plan(
    experiment: str,
    compared: list[Variant],
    seeds: Sequence[Scalar],
    settings: Mapping[str, Any],
    folder: Path | None = None,
) -> Planned:
    """Check all runs that a comparison takes.

    Args:
        experiment: a shipped one, or a TOML file.
        compared: of `variants`.
        seeds: of each.
        settings: keys and values that all have in common.
        folder: where the runs go; by default ``runs/compare-EXPERIMENT``.

    Raises:
        ConfigError, RunError: as for a sweep; a key that is set and differs between variants.
    """
    for key in PER_RUN:
        if key in settings:
            raise ConfigError(
                f"{key} is not set for a comparison: --seeds and --run-dir are there, and the same "
                "command goes on (in Python: seeds, run_dir)"
            )
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"a comparison needs seeds, each once; got {[*seeds]}")
    folder = (folder or Path("runs") / f"compare-{Path(experiment).stem}").resolve()
    rows = []
    for variant in compared:
        for key in settings.keys() & variant.settings.keys():
            raise ConfigError(
                f"{key} is both set for all and what {variant.label!r} is about: leave one out"
            )
        keys = {**_FUSION, **settings, **variant.settings}
        runs = sweep.cells(experiment, keys, {"seed": seeds}, folder / variant.folder)
        rows.append([replace(run, name=f"{variant.label}, {run.name}") for run in runs])
    in_order = [run for of_seed in zip(*rows, strict=True) for run in of_seed]
    return Planned(folder, compared, seeds, in_order)


def run(
    planned: Planned, sharing: runner.Sharing, say: Callable[[str], object], again: str
) -> Comparison:
    """Run what is not done; return what came out.

    Args:
        planned: by `plan`.
        sharing: of the machine.
        say: takes a line for each run.
        again: how the user goes on after a stop.

    Raises:
        RunError: naming the runs that failed.
        Stopped: by Ctrl-C or a signal.
    """
    sweep.run(planned.cells, lambda config: runner.run(config, sharing, again), say)
    count, configs = len(planned.variants), [cell.config for cell in planned.cells]
    return comparison(
        planned.folder,
        {
            variant.label: [Path(config.run_dir) for config in configs[number::count]]
            for number, variant in enumerate(planned.variants)
        },
    )
