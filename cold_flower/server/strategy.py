"""Which Flower strategy fuses: ours with a fusion rule, or one that the user names."""

from collections.abc import Callable, Iterable
from dataclasses import fields, replace

from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import Strategy

from cold_flower.config import Config, Fusion, split
from cold_flower.errors import ConfigError
from cold_flower.repository.bases import Repository
from strategies import records
from strategies.cold_fusion import ColDFusion
from strategies.errors import FusionError, Refused
from strategies.fusion import load
from strategies.gate import Gate
from strategies.inbox import Inbox
from strategies.names import import_attribute
from strategies.screening import Screen, finite
from strategies.stages import Stages, staged


def strategy(
    config: Config, inbox: Inbox, repository: Repository, gate: Gate | None = None
) -> Strategy:
    """Return ColDFusion with the chosen rule and stages, or the Flower strategy that is named.

    Raises:
        ConfigError: ``fusion.strategy`` names no Flower strategy.
        FusionError: no such rule or option.
    """
    check(config)
    if config.fusion.strategy:
        return stock_strategy(config)
    fuse = staged(
        load(config.fusion.rule, **config.rule_options()),
        stages(config),
        start=lambda: repository.body(0),
        before=repository.state,
        after=lambda: inbox.state,
    )
    return ColDFusion(fuse, inbox=inbox, seed=config.seed, gate=gate)


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
    stock_strategy(config)
    if config.gate.protocol:
        raise ConfigError("gate.protocol needs a fusion rule: a Flower strategy fuses only once")
    plain = replace(Fusion(), strategy=config.fusion.strategy, options=config.fusion.options)
    names = [field.name for field in fields(Fusion)]
    if beside := [n for n in names if getattr(config.fusion, n) != getattr(plain, n)]:
        keys = ", ".join(f"fusion.{name.replace('_', '-')}" for name in beside)
        raise ConfigError(f"fusion.strategy replaces rule and stages: leave {keys} alone")


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


def stock_strategy(config: Config) -> Strategy:
    """Build the Flower strategy that ``fusion.strategy`` names; it trains the cohort.

    Evaluation is ours (`Coordinator.after_round`), so the strategy's own is switched off.

    Raises:
        ConfigError: it cannot be imported, or does not take FedAvg's arguments.
    """
    name = config.fusion.strategy
    try:
        kind = import_attribute(name)
        if not (isinstance(kind, type) and issubclass(kind, Strategy)):
            raise TypeError("it is no flwr.serverapp.strategy.Strategy")
        in_float32: Callable[..., Strategy] = type(kind.__name__, (_InFloat32, kind), {})
        return in_float32(
            fraction_evaluate=0.0,
            min_train_nodes=1,
            min_available_nodes=1,
            **config.rule_options(),
        )
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"fusion.strategy {name!r} is not usable: {error}. Expected module:class, such as "
            "flwr.serverapp.strategy:FedAvg; its options go into fusion.options"
        ) from error


class _InFloat32(Strategy):
    """Put before a Flower strategy: FedAdam and others compute in 64 bit, a base has 32."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        # It is the Flower strategy's: this class is always put before one.
        arrays, metrics = super().aggregate_train(server_round, replies)  # type: ignore[safe-super]
        if arrays is None:
            return None, metrics
        body = ((key, tensor.float()) for key, tensor in records.unpack(arrays))
        try:
            return records.pack(finite(body)), metrics
        except Refused as error:
            raise FusionError(f"what {type(self).__name__} made: {error}") from error
