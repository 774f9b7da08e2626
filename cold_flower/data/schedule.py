"""Which contributors an iteration asks (paper, section 4.1: 8 of 35 at random)."""

import random
from collections.abc import Sequence

from cold_flower.config import ASYNCHRONOUS, Config
from cold_flower.errors import ConfigError
from cold_flower.seeds import derive


def cohort(
    seen: Sequence[str], iteration: int, *, size: int, schedule: str, seed: int
) -> list[str]:
    """Return the sorted names to ask in an iteration; depends on nothing but its arguments.

    Args:
        seen: the contributors that may train, in any order.
        iteration: the one to make, from 1.
        size: how many; 0 means all.
        schedule: ``random`` draws each iteration anew; ``round-robin`` takes turns in an
            order drawn once, so that all contribute equally often; ``asynchronous`` names all,
            of whom ``size`` are at work at any time.
        seed: the run's.

    Raises:
        ConfigError: more asked than there are.
    """
    names = sorted(seen)
    if not names:  # a drop box alone: see `cold_flower.data.plan`
        return names
    if size > len(names):
        default = " (its default)" if size == Config().contributors_per_iteration else ""
        raise ConfigError(
            f"contributors-per-iteration is {size}{default}, but only {len(names)} contributors "
            "are seen; 0 asks all of them"
        )
    if size in (0, len(names)) or schedule == ASYNCHRONOUS:
        return names
    if schedule == "random":
        return sorted(random.Random(derive(seed, iteration, "cohort")).sample(names, size))
    random.Random(derive(seed, "round-robin")).shuffle(names)
    start = (iteration - 1) * size
    return sorted(names[(start + i) % len(names)] for i in range(size))


def evaluated(iteration: int, *, every: int, last: int) -> bool:
    """Return whether an iteration's base is evaluated: the first and the last always are."""
    return iteration % every == 0 or iteration == last
