"""Which Flower strategy fuses: ours with a fusion rule, or one that the user names."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from flwr.serverapp.strategy import Strategy

from cold_flower.config import Config, Fusion, split
from cold_flower.errors import ConfigError
from cold_flower.repository.bases import Repository
from cold_flower.seeds import derive
from cold_flower.server import stock
from strategies.cold_fusion import ColDFusion
from strategies.errors import FusionError
from strategies.fusion import Rule, load
from strategies.gate import Gate
from strategies.inbox import Inbox
from strategies.screening import Screen
from strategies.stages import Stages, staged


def strategy(
    config: Config,
    inbox: Inbox,
    repository: Repository,
    gate: Gate | None,
    say: Callable[..., object],
    measured: Callable[[float], object],
) -> Strategy:
    """Return ColDFusion with the chosen rule and stages, or the Flower strategy that is named.

    Args:
        config: the run's.
        inbox: of its contributions.
        repository: of its bases.
        gate: validates each candidate, if there is one.
        say: takes a line, ``done`` and ``of`` (tensors), while a fuse takes long.
        measured: takes the L2 norm of the rule's own update, where ``fusion.norm`` is set.

    Raises:
        ConfigError: ``fusion.strategy`` names no Flower strategy that can fuse here.
        FusionError: no such rule or option.
    """
    check(config)
    if config.fusion.strategy:
        return stock.stock_strategy(config)
    fuse = rule(
        config,
        repository,
        before=repository.state,
        after=lambda: inbox.state,
        measured=measured,
    )
    return ColDFusion(fuse, inbox=inbox, draws=partial(draws, config), gate=gate, say=say)


def draws(config: Config, iteration: int) -> int:
    """Return the seed of a rule that draws: with one for all, what it drops is dropped for ever."""
    return derive(config.seed, iteration, "fuse")


def rule(
    config: Config,
    repository: Repository,
    *,
    before: Callable[[], Path | None],
    after: Callable[[], Path],
    measured: Callable[[float], object] = lambda size: None,
) -> Rule:
    """Return the run's fusion rule with its stages; for the other arguments see `staged`."""
    return staged(
        load(config.fusion.rule, **config.rule_options()),
        stages(config),
        start=lambda: repository.body(0),
        before=before,
        after=after,
        measured=measured,
    )


def check(config: Config) -> None:
    """Check the ``fusion.*``, ``screen.*`` and ``gate.*`` keys.

    Raises:
        ConfigError, FusionError: naming what is wrong.
    """
    screen(config)
    if not config.fusion.strategy:
        load(config.fusion.rule, **config.rule_options())
        stages(config)
        return
    stock.check(config)
    if config.gate.protocol:
        raise ConfigError("gate.protocol needs a fusion rule: a Flower strategy fuses only once")
    chosen = config.fusion
    plain = Fusion(strategy=chosen.strategy, options=chosen.options, ema=chosen.ema)
    names = [field.name for field in fields(Fusion)]
    if beside := [n for n in names if getattr(chosen, n) != getattr(plain, n)]:
        keys = ", ".join(f"fusion.{name.replace('_', '-')}" for name in beside)
        raise ConfigError(f"fusion.strategy replaces rule and stages: leave {keys} alone")


def needed(config: Config) -> tuple[str, Sequence[str]]:
    """Return what the rule needs beside bodies: a statistic of the data, or "", and metrics."""
    if config.fusion.strategy:
        return "", ()
    rule: Any = load(config.fusion.rule, **config.rule_options())
    return rule.statistic, rule.metrics


def least(config: Config) -> int:
    """Return how many contributions the rule or strategy needs."""
    if config.fusion.strategy:
        return stock.min_contributions(config)
    rule: Any = load(config.fusion.rule, **config.rule_options())
    return int(rule.min_contributions)


def screen(config: Config) -> Screen | None:
    """Return what judges contributions; None if nothing but their form is checked.

    Raises:
        FusionError: a check that is not known.
    """
    chosen = config.screen
    checks = tuple(split(chosen.checks))
    screen = Screen(checks, norm=chosen.norm, cosine=chosen.cosine, similarity=chosen.similarity)
    return screen if checks else None


def stages(config: Config) -> Stages:
    """Return the stages around the rule; each is a key of ``fusion``.

    Raises:
        ConfigError: an option out of its range.
    """
    options = {field.name: getattr(config.fusion, field.name) for field in fields(Stages)}
    try:
        return Stages(**options)
    except FusionError as error:  # it begins with the option's name
        raise ConfigError(f"fusion.{error}") from error
