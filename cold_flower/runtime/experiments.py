"""An experiment before it runs: find it, merge its keys, check everything it needs."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cold_flower import toml
from cold_flower.config import ASYNCHRONOUS, Config, Gating, Sites, describe, split
from cold_flower.data.plan import Plan, plan, resolve
from cold_flower.data.schedule import cohort
from cold_flower.data.splits import check_few_shot, load_splits
from cold_flower.errors import ConfigError
from cold_flower.keys import unknown_key
from cold_flower.reporting import catalogue, trackers
from cold_flower.repository.arrivals import Replayed
from cold_flower.repository.journal import Journal
from cold_flower.runtime import mistaken
from strategies.names import absolute, unknown

# Keys, and groups of them, that are about contributions: without any they do nothing.
_OF_CONTRIBUTIONS = (
    *("finetune.proximal-mu", "finetune.head", "fusion.", "screen.", "gate.protocol"),
    *("attacks", "quorum", "late", "dropbox", "keep-contributions"),
)
# By key: the check that reads it.
_OF_CHECK = {"screen.norm": "norm", "screen.cosine": "cosine", "screen.similarity": "random"}


def fresh(experiment: str) -> Path:
    """Return where a run goes that is given no directory: ``runs/NAME-TIME``."""
    return Path("runs") / f"{Path(experiment).stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def read(name: str) -> dict[str, Any]:
    """Return an experiment's keys, flat.

    Raises:
        ConfigError: no such experiment, not TOML, or another file of ours.
    """
    path = Path(name) if name.endswith(".toml") else catalogue.folder() / f"{name}.toml"
    if not name.endswith(".toml") and name not in catalogue.names():
        raise ConfigError(unknown("experiment", name, catalogue.names()) + " Or give a .toml file.")
    table = toml.read(path, "experiment", ConfigError)
    mistaken.check(path, table)
    return {"experiment": path.stem, **toml.flatten(table)}


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
            raise ConfigError(unknown_key(key, known))
        if isinstance(known[key][0], str):
            settings[key] = text.strip().strip("\"'")
        else:
            try:
                settings[key] = toml.value(text)
            except ValueError:
                settings[key] = text  # Config says what was expected
    return settings


def configure(name: str, settings: Mapping[str, Any]) -> Config:
    """Merge defaults, the suite's recipe, the experiment and ``--set``, in that order.

    Raises:
        ConfigError, TaskError: a wrong key or value, an unknown suite.
    """
    return merge({**read(name), **settings})


def merge(given: Mapping[str, Any]) -> Config:
    """Merge defaults, the suite's recipe and the keys that are given, in that order.

    Raises:
        ConfigError, TaskError: a wrong key or value, an unknown suite.
    """
    config = Config.from_flat(given)
    if config.suite.endswith(".toml") and not Path(config.suite).is_absolute():
        raise ConfigError(f"suite {config.suite!r}: give the absolute path of the file")
    if Path(config.base_model).is_dir():  # the run works in a directory of its own
        config = replace(config, base_model=str(Path(config.base_model).resolve()))
    if config.dropbox:
        config = replace(config, dropbox=str(Path(config.dropbox).resolve()))
    # A key that was set stays, even where it was set to its default.
    resolved = resolve(config, given)
    fusion = replace(  # a rule or strategy of one's own may be in a file
        resolved.fusion,
        rule=absolute(resolved.fusion.rule),
        strategy=absolute(resolved.fusion.strategy),
    )
    return replace(resolved, fusion=fusion, recipe=False)


@dataclass(frozen=True)
class Checked:
    """An experiment that can start."""

    plan: Plan
    train: Mapping[str, int]
    """Training examples by contributor."""
    test: Mapping[str, int]
    """Test examples by contributor."""


def check_keys(config: Config) -> Plan:
    """Check what needs neither data nor model; return who takes part.

    Raises:
        ColdFlowerError, FusionError: the first thing that is wrong.
    """
    from cold_flower.server import drops, turns

    drops.check(config)
    if config.sites != Sites():
        raise ConfigError(
            "sites.allow and sites.minimum are for `cold-flower deploy`: in a simulation the "
            "contributors are the suite's. Leave them out here (--set sites.allow='' --set "
            "sites.minimum=1)"
        )
    if config.replay:
        Replayed(Path(config.replay), config.iterations)
    whole = plan(config)
    asked = cohort(
        whole.seen,
        1,
        size=config.contributors_per_iteration,
        schedule=config.schedule,
        seed=config.seed,
    )
    if config.resume and (left := Journal(Path(config.run_dir)).left()):
        asked = asked[: len(whole.without(left).seen)]  # those who stay, if they are fewer
        if not asked and whole.seen:
            raise ConfigError(f"nobody is left to contribute: {', '.join(left)} left this run")
    turns.check(config)
    given = config.quorum or len(asked)
    if config.schedule == ASYNCHRONOUS:
        given = turns.size(config, len(asked))
        if given > len(asked) and whole.seen and not config.dropbox:
            raise ConfigError(
                f"buffer is {given}, but there are {len(asked)} contributors, and each counts once "
                "in an iteration. If a drop box is to fill it, set dropbox"
            )
    check_strategy(config, given)
    if config.quorum > (len(asked) or given):
        raise ConfigError(
            f"quorum is {config.quorum}, but an iteration asks {len(asked)} contributors"
        )
    _check_baseline(config)
    if config.attacks:
        from cold_flower.contributors import attacks

        attacks.check(config, whole)
    return whole


def _check_baseline(config: Config) -> None:
    baseline = config.baseline
    if not baseline and config.sampling != Config().sampling:
        raise ConfigError(
            f"sampling = {config.sampling!r} is about the batches of a baseline, but baseline is "
            "empty: leave it alone"
        )
    if config.loss_scaling and baseline != "multitask":
        raise ConfigError(
            f"loss-scaling = {config.loss_scaling!r} weighs the tasks of baseline = 'multitask', "
            f"but baseline is {baseline!r}: leave it alone"
        )
    if not baseline:
        return
    wanted = "centralised" if config.partition.kind == "shards" else "multitask"
    if baseline != wanted or config.iterations != 1:
        raise ConfigError(
            f"baseline = {baseline!r} with partition.kind = {config.partition.kind!r} and "
            f"iterations = {config.iterations}: expected {wanted!r} and iterations = 1, "
            "for what is trained on the union becomes iteration 1"
        )
    values, usual = config.flat(), Config().flat()
    for key in ("finetune.proximal-mu", "finetune.head", "fusion.ema"):
        if values[key] != usual[key]:
            raise ConfigError(
                f"{key} = {values[key]!r} is about contributions and the bases made of them, but "
                f"baseline = {baseline!r} makes no contributions: leave it alone"
            )


def check_strategy(config: Config, least: int) -> None:
    """Check what is fused, scored and tracked.

    Args:
        config: resolved.
        least: so few contributions may an iteration have.

    Raises:
        ColdFlowerError, FusionError: the first thing that is wrong.
    """
    from cold_flower.server.strategy import check as check_fusion
    from cold_flower.server.strategy import least as least_of

    config.protocols()
    check_fusion(config)
    trackers.check(config)
    what = f"rule {config.fusion.rule}"
    if config.fusion.strategy:
        what = f"strategy {config.fusion.strategy}"
    if (needed := least_of(config)) > least:
        raise ConfigError(
            f"fusion {what} needs {needed} contributions with these "
            f"options, but an iteration may have {least} (contributors-per-iteration, quorum)"
        )


def check(config: Config) -> Checked:
    """Check all that can be checked before anything starts.

    Raises:
        ColdFlowerError, FusionError: the first thing that is wrong.
    """
    from cold_flower.models import heads, text_to_text
    from cold_flower.models.base import load_base
    from cold_flower.models.starting import starting_model
    from cold_flower.server.strategy import needed

    whole = check_keys(config)
    base = load_base(config.base_model)
    heads.check(base, config.finetune.head)
    text_to_text.check_statistic(base, needed(config)[0])
    if not config.resume:  # a run that has begun has its own copy
        starting_model(base, config.seed)
    shards = config.partition.kind == "shards"
    loaded = {
        name: load_splits(whole.tasks[name], config, 0 if shards else None)
        for name in (whole.names[:1] if shards else whole.names)
    }
    for name, data in loaded.items():
        text_to_text.check(base, whole.tasks[name], data.labels)
    sizes = {name: loaded[whole.names[0] if shards else name] for name in whole.names}
    train = {name: len(data.train) for name, data in sizes.items()}
    if any(protocol.endswith("few-shot") for protocol in config.protocols()):
        for name in whole.evaluated:
            check_few_shot(whole.tasks[name], config, train[name])
    return Checked(whole, train, {name: len(data.test) for name, data in sizes.items()})


def remarks(config: Config, checked: Checked) -> list[str]:
    """Say what will do something else than it seems to, or nothing."""
    from cold_flower.server import turns

    options, said = config.finetune, turns.remarks(config)
    if len(checked.plan.seen) == 1 and config.iterations and not config.baseline:
        said.append("a single contributor: its model is the next base, nothing is fused")
    if options.micro_batch_size > options.batch_size:
        said.append(
            f"finetune.micro-batch-size is {options.micro_batch_size}, but a batch has "
            f"{options.batch_size} examples (finetune.batch-size): these go at once"
        )
    most = max((checked.train[name] for name in checked.plan.seen), default=math.inf)
    if options.batch_size > most and config.iterations and not config.baseline:
        said.append(
            f"finetune.batch-size is {options.batch_size}, but no contributor has more than "
            f"{most} training examples: an epoch is a single step"
        )
    said.extend(_idle(config))
    if not config.gate.protocol and config.gate != Gating():
        said.append("there is no gate, so its keys do nothing: set gate.protocol, too")
    return [f"WARNING: {line}" for line in said]


def _idle(config: Config) -> Iterator[str]:
    """Say which keys were set and do nothing here.

    They are not refused, for the variants of an experiment have its keys, too. A recipe's are
    left out: they are the suite's and meant for any run.
    """
    values, defaults = config.flat(), Config().flat()
    chosen = [n for n in values if values[n] != defaults[n] and n not in config.of_recipe]
    if config.baseline or not config.iterations:
        for name in chosen:
            if name.startswith(_OF_CONTRIBUTIONS):
                yield f"{name} is about contributions, and there are none here: it does nothing"
        for name in ("contributors-per-iteration", "schedule"):
            if config.baseline and name in chosen and values[name]:  # 0 is all
                yield f"{name} does nothing: a baseline trains on the data of all who contribute"
    else:
        checks = split(config.screen.checks)
        for name, check in _OF_CHECK.items():
            if name in chosen and check not in checks:
                yield f"{name} does nothing: screen.checks leaves out {check}"
    ratio = "finetune.final-learning-rate-ratio"
    if ratio in chosen and config.finetune.schedule == "constant":
        yield f"{ratio} does nothing with finetune.schedule = constant"
