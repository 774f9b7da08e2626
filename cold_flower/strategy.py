"""Which Flower strategy fuses: ours with a fusion rule, or one that the user names."""

import importlib

from flwr.serverapp.strategy import Strategy

from cold_flower.config import Config
from cold_flower.errors import ConfigError
from strategies.cold_fusion import ColDFusion
from strategies.fusion import load
from strategies.inbox import Inbox


def strategy(config: Config, inbox: Inbox) -> Strategy:
    """Return ColDFusion with the chosen rule, or the Flower strategy that is named.

    Raises:
        ConfigError: ``fusion.strategy`` names no Flower strategy.
        FusionError: no such rule or option.
    """
    if not config.fusion.strategy:
        rule = load(config.fusion.rule, **config.rule_options())
        return ColDFusion(rule, inbox=inbox, seed=config.seed)
    return stock_strategy(config)


def stock_strategy(config: Config) -> Strategy:
    """Build the Flower strategy that ``fusion.strategy`` names; it trains the cohort.

    Evaluation is ours (`_Run.after_round`), so the strategy's own is switched off.

    Raises:
        ConfigError: it cannot be imported, or does not take FedAvg's arguments.
    """
    name = config.fusion.strategy
    module, _, attribute = name.partition(":")
    try:
        kind = getattr(importlib.import_module(module), attribute)
        made = kind(
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
    if not isinstance(made, Strategy):
        raise ConfigError(f"fusion.strategy {name!r} is no flwr.serverapp.strategy.Strategy")
    return made
