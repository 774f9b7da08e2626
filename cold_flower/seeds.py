"""Everything random is derived from (seed, iteration, contributor, purpose)."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager


def derive(seed: int, *parts: str | int) -> int:
    """Return a 63-bit seed for this purpose; equal inputs give equal seeds everywhere."""
    text = "\x1f".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def shuffled(size: int, seed: int, *purpose: str | int) -> list[int]:
    """Return 0 to ``size - 1`` in an order drawn for this purpose."""
    order = list(range(size))
    random.Random(derive(seed, *purpose)).shuffle(order)
    return order


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run torch code that only knows the global generator (dropout, initialisation).

    The generator's state is restored afterwards, so nothing outside depends on it.
    """
    import torch

    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
