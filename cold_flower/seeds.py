"""Derive everything random from (seed, iteration, contributor, purpose), not from global state."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager


def derive(seed: int, *parts: str | int) -> int:
    """Return a 63-bit seed for a purpose; the same one for the same arguments, on any machine."""
    text = "\x1f".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def shuffled(size: int, seed: int, *purpose: str | int) -> list[int]:
    """Return the numbers 0 to ``size - 1`` in an order drawn for a purpose."""
    order = list(range(size))
    random.Random(derive(seed, *purpose)).shuffle(order)
    return order


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generators while the context lasts; then restore their state.

    For code that knows no other generator (dropout, initialisation).
    """
    import torch

    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield
