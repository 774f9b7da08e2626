"""Run a fuse, whatever the rule: a tensor ahead, and with a line every ten seconds."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event, Thread

from torch import Tensor

EVERY = 10.0  # seconds

Fused = Iterator[tuple[str, Tensor]]


def ahead(items: Fused) -> Fused:
    """Yield items; while one is used, a thread makes the next. Nothing is made out of turn."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, items, None)
        while item := following.result():
            following = pool.submit(next, items, None)
            yield item


@contextmanager
def told(fuse: Callable[[], Fused], of: int, say: Callable[..., object]) -> Iterator[Fused]:
    """Yield a rule's tensors, in their order, and say meanwhile how many have passed.

    A thread says it, so a rule that first reads all models, or a large matrix, is not silent.
    Another makes the next tensor while one is used: copied, hashed, written.

    Args:
        fuse: begins; some rules read all models before they return.
        of: how many there will be.
        say: called with a line, and with ``done`` and ``of``.
    """
    done, over, started = 0, Event(), time.monotonic()

    def passing() -> Fused:
        nonlocal done
        for item in ahead(fuse()):
            yield item
            done += 1

    def tell() -> None:
        while not over.wait(EVERY):
            seconds = time.monotonic() - started
            say(f"fusing: {done} of {of} tensors, {seconds:.0f} s", done=done, of=of)

    thread = Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield passing()
    finally:
        over.set()
        thread.join()
