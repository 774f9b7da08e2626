"""A Flower strategy in place of rule and stages (``fusion.strategy``), run as ours is.

It trains the cohorts of the run and only fuses: what is evaluated, and when, is the coordinator's.
docs/fusion-rules.md lists which of Flower's work, and which are refused, and why.
"""

import inspect
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.app.exception import AppExitException
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from cold_flower.config import Config, describe
from cold_flower.errors import ConfigError
from cold_flower.keys import checked
from strategies import records
from strategies.errors import FusionError, Refused
from strategies.form import finite
from strategies.fusion import check_option
from strategies.names import import_attribute, unknown

# What Flower's strategies take and is decided here: cohorts, evaluation, the records' names.
_OURS: dict[str, Any] = {
    "min_train_nodes": 1,
    "min_available_nodes": 1,
    "train_loss_key": "train-loss",
}
_LEFT_ALONE = (
    *("fraction_train", "fraction_evaluate", "min_evaluate_nodes"),
    *("arrayrecord_key", "configrecord_key"),
)
_MU = "proximal_mu"  # FedProx's option
# Where FedAdam and its kin, FedAvgM, and the wrapper that adapts its clipping keep theirs.
_MEMORY = ("m_t", "momentum_vector", "clipped_count_stddev")

_TREES = "it fuses XGBoost's trees, and a body is tensors"
_MODS = (
    "it expects contributors that clip by a mod of Flower's, and ours have none: its noise would "
    "hide nothing"
)
_WRAPS = (
    "it wraps another strategy, which a key cannot name: give a class of your own that makes both "
    "(docs/fusion-rules.md)"
)
_REFUSED: dict[type[Strategy], str] = {
    flower.FedXgbBagging: _TREES,
    flower.FedXgbCyclic: _TREES,
    flower.DifferentialPrivacyClientSideFixedClipping: _MODS,
    flower.DifferentialPrivacyClientSideAdaptiveClipping: _MODS,
}
_WRAPPERS = (
    flower.DifferentialPrivacyServerSideFixedClipping,
    flower.DifferentialPrivacyServerSideAdaptiveClipping,
)


def stock_strategy(config: Config) -> Strategy:
    """Build the Flower strategy that ``fusion.strategy`` names; it trains the cohort.

    Raises:
        ConfigError: it cannot be imported, cannot fuse bodies, or an option is wrong or missing.
        FusionError: an option of another type.
    """
    name = config.fusion.strategy
    kind = _find(name)
    parameters = inspect.signature(kind).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    options = config.rule_options()
    valid = sorted(
        p.name
        for p in parameters.values()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and p.name not in (*_OURS, *_LEFT_ALONE)
        and not p.name.endswith("_fn")
    )
    for key, value in options.items():
        if key in _OURS or key in _LEFT_ALONE:
            raise ConfigError(
                f"option {key} of {kind.__name__} is cold-flower's own: "
                "contributors-per-iteration, schedule and evaluate.* say who trains and is scored"
            )
        if key in parameters:
            check_option(kind.__name__, parameters[key], value)
        elif not anything:
            raise ConfigError(unknown(f"option of {kind.__name__}", key, valid))
    ours = {key: value for key, value in _OURS.items() if key in parameters}
    if anything:
        ours |= {key: _OURS[key] for key in ("min_train_nodes", "min_available_nodes")}
    if _MU in parameters:
        ours[_MU] = _mu_of_fedprox(config)
    given = {**ours, **options}
    needed = [n for n in valid if parameters[n].default is inspect.Parameter.empty]
    if missing := [n for n in needed if n not in given]:
        example = ", ".join(f"{n} = ..." for n in missing)
        raise ConfigError(
            f"fusion.strategy {name!r} needs {', '.join(missing)}: "
            f"fusion.options = {{{example}}} (docs/fusion-rules.md)"
        )
    as_ours: type[Any] = type(kind.__name__, (_AsOurs, kind), {})
    try:
        strategy: Strategy = as_ours(**given)
    except Exception as error:  # somebody else's class
        raise ConfigError(f"fusion.strategy {name!r} cannot be made: {error}") from error
    return strategy


def check(config: Config) -> None:
    """Check that the strategy can be made; Flower's remarks are left for the run's own log.

    Raises:
        ConfigError, FusionError: naming what is wrong.
    """
    with _quiet():
        stock_strategy(config)


def min_contributions(config: Config) -> int:
    """Return how many contributions the strategy needs; with fewer, Bulyan fuses nothing."""
    with _quiet():
        made = stock_strategy(config)
    return 4 * made.num_malicious_nodes + 3 if isinstance(made, flower.Bulyan) else 1


def proximal_mu(config: Config) -> float:
    """Return mu of the contributors' finetuning: ``finetune.proximal-mu``, or FedProx's option.

    Raises:
        ConfigError: both are given and differ, or the option is no such number.
    """
    own, options = config.finetune.proximal_mu, config.rule_options()
    if not config.fusion.strategy or _MU not in options:
        return own
    given = float(checked(f"{_MU} in fusion.options", options[_MU], *_key()))
    if own and own != given:
        raise ConfigError(
            f"finetune.proximal-mu is {own:g}, but {_MU} in fusion.options is {given:g}: give one"
        )
    return given


def memory_lost(strategy: Strategy, first: int) -> str:
    """Return a warning where a run that goes on at ``first`` lacks what its strategy remembered."""
    name = type(strategy).__name__
    inner = getattr(strategy, "strategy", strategy)  # of a wrapper
    if first == 1 or not any(hasattr(one, kept) for one in (strategy, inner) for kept in _MEMORY):
        return ""
    return (
        f"WARNING: {name} keeps what it remembers in memory alone, so it starts anew at iteration "
        f"{first}: the bases differ from those of a run that was not stopped"
    )


def _key() -> tuple[Any, Any]:
    return describe()["finetune.proximal-mu"]


def _mu_of_fedprox(config: Config) -> float:
    mu = proximal_mu(config)
    if not mu and _MU not in config.rule_options():
        raise ConfigError(
            f"fusion.strategy {config.fusion.strategy!r} without a proximal term is FedAvg: set "
            "finetune.proximal-mu"
        )
    return mu


def _find(name: str) -> type[Strategy]:
    try:
        kind: Any = import_attribute(name)
    except ImportError as error:
        raise ConfigError(
            f"fusion.strategy {name!r} is not usable: {error}. Expected module:class, such as "
            "flwr.serverapp.strategy:FedAvg; its options go into fusion.options"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, Strategy)):
        raise ConfigError(
            f"fusion.strategy {name!r} is no flwr.serverapp.strategy.Strategy: expected such a "
            "class. A fusion rule is named by fusion.rule"
        )
    reasons = [reason for refused, reason in _REFUSED.items() if issubclass(kind, refused)]
    if kind in _WRAPPERS:
        reasons.append(_WRAPS)
    if reasons:
        raise ConfigError(f"fusion.strategy {name!r} cannot fuse here: {reasons[0]}")
    found: type[Strategy] = kind
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("flwr")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


class _AsOurs(Strategy):
    """Put before a Flower strategy: it evaluates nothing, and makes a base or says why not."""

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        return []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        name, given = type(self).__name__, list(replies)
        try:
            # It is the Flower strategy's: this class is always put before one.
            arrays, metrics = super().aggregate_train(server_round, given)  # type: ignore[safe-super]
        except AppExitException as error:
            raise FusionError(f"{name}: {error}") from error
        if arrays is None:  # Flower would go on with the old base
            raise FusionError(
                f"{name} made nothing of {len(given)} contributions; Flower's log may say why"
            )
        # FedAdam and others compute in 64 bit, a base has 32.
        body = ((key, tensor.float()) for key, tensor in records.unpack(arrays))
        try:
            return records.pack(finite(body)), metrics
        except Refused as error:
            raise FusionError(f"what {name} made: {error}") from error
