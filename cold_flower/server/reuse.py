"""A contribution as the evaluation of its base (``evaluate.reuse``): whether it is.

To score a base under ``finetuned``, a contributor finetunes it on its own data (section 4.3). That
is what its next contribution does, too, with the same draws: so one finetuning does for both, and
what is published and scored is the same with and without. In section 5.1 of the paper it saves 8
finetunings of 43 an iteration, in section 5.2 24 of 60.
"""

from cold_flower.config import ASYNCHRONOUS, Config, Finetune
from cold_flower.server.stock import proximal_mu

REUSED = "finetuned"
"""The protocol."""


def applies(config: Config) -> bool:
    """Return whether contributions say the finetuned scores of the bases that they begin from."""
    otherwise = (
        config.finetune.head != Finetune().head,  # an evaluation's is fresh
        config.partition.fresh,  # an evaluation has examples of its own
        proximal_mu(config) > 0,
        config.schedule == ASYNCHRONOUS or config.late,  # some begin from an older base
        config.attacks,
        config.baseline,
    )
    return config.evaluate.reuse and REUSED in config.protocols() and not any(otherwise)
