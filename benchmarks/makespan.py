"""How long an evaluation of all 36 tasks takes, longest first, against what is possible at all.

    python -m benchmarks.makespan

Contributors are handed out in our order (`cold_flower.server.participants.longest_first`), each to
the worker that is free first, as Flower does. Work is the training examples of the paper's
datasets (their published sizes), once through, and ten times through but cut at a million,
where early stopping ends the large ones. The bound is the largest of the mean load, the longest
piece, and the two pieces that must share a worker.
"""

import heapq
import random
from collections.abc import Iterable

from benchmarks import results
from benchmarks.sizes import SIZES
from cold_flower.server.participants import longest_first
from strategies.participants import Member


def makespan(work: Iterable[float], workers: int) -> float:
    """Return when the last worker is done, each piece going to the one that is free first."""
    free = [0.0] * workers
    for piece in work:
        heapq.heappush(free, heapq.heappop(free) + piece)
    return max(free)


def main() -> None:
    """Print the ratios to the bound."""
    for name, work in (
        ("one epoch", SIZES),
        ("ten epochs, at most 1,000,000", {k: min(10 * n, 1_000_000) for k, n in SIZES.items()}),
    ):
        members = [Member(k, i, examples=n, tokens=n) for i, (k, n) in enumerate(work.items())]
        ours = [work[member.name] for member in longest_first(members)]
        chance = random.Random(0)
        for workers in (2, 4, 8, 16):
            # Of the largest workers + 1 pieces some worker has two.
            bound = max(sum(ours) / workers, max(ours), sum(ours[workers - 1 : workers + 1]))
            drawn = [makespan(chance.sample(ours, len(ours)), workers) for _ in range(1000)]
            figures = makespan(ours, workers) / bound, sum(drawn) / len(drawn) / bound
            what = f"makespan, 36 tasks, {name}, {workers} workers"
            print(
                f"{what}: longest first {figures[0]:.3f} of the bound, any order {figures[1]:.3f}"
            )
            results.keep(what, figures[0], "any order", figures[1], "of the bound")


if __name__ == "__main__":
    main()
