"""How a run's contributors take turns: all together, whoever is first, or as another run's did."""

import math

from cold_flower.config import ASYNCHRONOUS, Config
from cold_flower.errors import ConfigError
from strategies.turns import Buffered, Together, Turns


def check(config: Config) -> None:
    """Check ``schedule``, ``buffer``, ``staleness`` and ``late`` against the other keys.

    Raises:
        ConfigError: a key that would do nothing, or what cannot go together.
    """
    default = Config()
    asynchronous, late = config.schedule == ASYNCHRONOUS, bool(config.late)
    if not asynchronous:
        for key in ("buffer", "staleness"):
            dropped = key == "staleness" and config.dropbox
            if getattr(config, key) != getattr(default, key) and not dropped:
                raise ConfigError(
                    f"{key} is about schedule = {ASYNCHRONOUS!r}, but schedule is "
                    f"{config.schedule!r}: leave it alone"
                )
    if late and (asynchronous or not config.quorum):
        raise ConfigError(
            f"late = {config.late!r} is about an iteration that goes on without some of those it "
            + (
                f"asked; with schedule = {ASYNCHRONOUS!r} every contribution may come later"
                if asynchronous
                else "asked: set quorum, which says how many it can do with"
            )
        )
    if asynchronous and config.fusion.strategy:
        raise ConfigError(
            f"schedule = {ASYNCHRONOUS!r} is for fusion rules: fusion.strategy = "
            f"{config.fusion.strategy!r} takes what returns for a finetuned copy of the base that "
            "it sent last, and weighs nothing by its age"
        )
    if asynchronous and config.baseline:
        raise ConfigError(f"baseline = {config.baseline!r} has no contributions: leave schedule")


def size(config: Config, contributors: int) -> int:
    """Return how many contributions an asynchronous iteration takes (FedBuff's K).

    Args:
        config: the run's.
        contributors: how many there are.
    """
    at_once = config.contributors_per_iteration or contributors
    return config.buffer or config.quorum or math.ceil(at_once / 2)


def turns(config: Config, contributors: int, workers: int) -> Turns:
    """Return how this run's contributors take turns.

    Args:
        config: the run's.
        contributors: how many there are.
        workers: of the simulation; 0 where the contributors have machines of their own.
    """
    if config.schedule == ASYNCHRONOUS and not config.replay:
        at_once = config.contributors_per_iteration or contributors
        # What waits for a worker would begin from a base that is old by then.
        return Buffered(size(config, contributors), min(at_once, workers or at_once))
    # One more than there are workers: the next message waits where it is needed.
    return Together(workers + 1 if workers else 0)


def staleness(config: Config) -> int:
    """Return how many bases older than the last one a contribution may have begun from."""
    if config.schedule == ASYNCHRONOUS:
        return config.staleness
    return 1 if config.late else 0


def remarks(config: Config) -> list[str]:
    """Say what is unsafe."""
    memory = config.fusion.momentum or config.fusion.optimizer != "sgd"
    if config.schedule != ASYNCHRONOUS or not memory:
        return []
    return [
        "contributions that began from an older base act as momentum of their own: with "
        "fusion.momentum or fusion.optimizer = adam on top a run may diverge (arXiv 2401.09135)"
    ]
