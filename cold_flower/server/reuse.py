"""A contribution as the evaluation of its base (``evaluate.reuse``): whether it can be.

To score a base under ``finetuned``, a contributor finetunes it on its own data (section 4.3). That
is what its next contribution does, too. So one finetuning does for both, if both have the same
draws: in section 5.1 of the paper that is 8 of 43 an iteration, in section 5.2 24 of 60.
"""

from cold_flower.config import Config, Finetune
from cold_flower.errors import ConfigError
from cold_flower.server.stock import proximal_mu

REUSED = "finetuned"
"""The protocol."""


def check(config: Config) -> None:
    """Check that ``evaluate.reuse``, if it is set, can be.

    Raises:
        ConfigError: a contribution would not be what the finetuned protocol does.
    """
    if not config.evaluate.reuse:
        return
    keys = {
        "finetune.head": config.finetune.head != Finetune().head,
        "partition.fresh": config.partition.fresh,
        "finetune.proximal-mu or fusion.strategy": proximal_mu(config) > 0,
        "attacks": bool(config.attacks),
        "baseline": bool(config.baseline),
    }
    if other := [key for key, differs in keys.items() if differs]:
        raise ConfigError(
            f"evaluate.reuse takes a contribution for the {REUSED} evaluation of its base; with "
            f"{other[0]} as set here it is not: leave one of the two alone"
        )
    if config.gate.protocol:
        raise ConfigError(
            "evaluate.reuse gives contributions the same draws at every iteration, so that what "
            "the gate rejected once would come again: leave it, or gate.protocol, alone"
        )
    if REUSED not in config.protocols():
        raise ConfigError(
            f"evaluate.reuse is about the protocol {REUSED}, which evaluate.protocols = "
            f"{config.evaluate.protocols!r} does not ask for"
        )
