"""The time that a recipe gives (``finetune.max-seconds``), where several things share it."""

import math
import time
from dataclasses import replace

from cold_flower.config import LITTLE, Finetune


def deadline(options: Finetune) -> float:
    """Return when the recipe's time is up, of ``time.perf_counter``; infinity without a limit."""
    return time.perf_counter() + options.max_seconds if options.max_seconds else math.inf


def is_up(until: float) -> bool:
    """Return whether a deadline has passed."""
    return until < math.inf and time.perf_counter() >= until


def left(options: Finetune, until: float) -> Finetune:
    """Return the recipe with the time that is left until a deadline; without a limit, as it is."""
    if until == math.inf:
        return options
    return replace(options, max_seconds=max(until - time.perf_counter(), LITTLE))
