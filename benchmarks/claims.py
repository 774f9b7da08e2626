"""The paper's claims, and what our runs say of each: tables of docs/results.md and README.md.

Everything is computed from benchmarks/results/science/*.json; `python -m benchmarks.claims` writes
the tables, and a test keeps the pages equal to them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.results import PAGE, write
from benchmarks.science import SCIENCE, load, select
from benchmarks.tried import PLAIN
from cold_flower.reporting.conditions import Condition
from cold_flower.reporting.paired import (
    Difference,
    ScoresOf,
    above,
    apart,
    gain,
    paired,
    scores_at,
)

README = PAGE.parents[1] / "README.md"
BEGIN, END = "<!-- written by benchmarks/claims.py -->", "<!-- end of the claims -->"
HEADER = ("| the paper | there | here, 95 % | tasks, seeds | holds |", "|---|---|---|---|---|")


@dataclass(frozen=True)
class Claim:
    """An ordering that the paper reports."""

    what: str
    there: str
    """The paper's figure, or what it says."""
    ours: Difference | None
    """How far ours lies on the side that the paper has it."""
    equal: bool = False
    """The paper has no difference."""

    @property
    def verdict(self) -> str:
        """Return whether it holds: ``undecided`` where the interval has room for either.

        ``not run`` where there is nothing.
        """
        one = self.ours
        if one is None:
            return "not run"
        if one.seeds < 3 or not one.half >= 0:  # one seed proves nothing, nor do two
            return "undecided"
        if self.equal:
            return "no difference seen" if abs(one.mean) <= one.half else "no"
        if abs(one.mean) <= one.half:
            return f"undecided: {100 * one.half:.1f} points would have shown"
        return "yes" if one.mean > 0 else "no"

    @property
    def line(self) -> str:
        """Return the row of a Markdown table."""
        one = self.ours
        size = f"{one.tasks}, {one.seeds}" if one else ""
        ours = str(one) if one else ""
        return f"| {self.what} | {self.there} | {ours} | {size} | {self.verdict} |"


def _compared() -> tuple[Condition, Condition, Condition]:
    """Return the main experiment, the same fused once, and multitask training on the union."""
    runs = load("main")
    return (
        select(runs, "ColD", iterations=4),
        select(runs, "fused", iterations=1, baseline=""),
        select(runs, "multitask", baseline="multitask"),
    )


def _main() -> Iterator[Claim]:
    """Section 5.1, Fig. 2, and the baselines of section 4.2."""
    cold, fused, union = _compared()
    for protocol, there in (("finetuned", "+2.33, +2.50"), ("frozen", "rises")):
        yield Claim(f"Fig. 2: {protocol} rises", there, gain(cold, "seen", protocol, 4))
    for protocol, there in (("finetuned", "+2.33 against +0.92"), ("frozen", "far above")):
        for iteration, work in ((2, "equal work"), (4, "more iterations")):
            what = f"{protocol}: ColD Fusion above fusing once, {work}"
            yield Claim(what, there, _above(cold, iteration, fused, protocol))
    for protocol, there in (("finetuned", "+2.33 against +1.62"), ("frozen", "above")):
        for iteration, work in ((2, "equal work"), (4, "more iterations")):
            what = f"{protocol}: ColD Fusion above multitask, {work}"
            yield Claim(what, there, _above(cold, iteration, union, protocol))


def _above(one: Condition, iteration: int, baseline: Condition, protocol: str) -> Difference | None:
    ours = scores_at(one, iteration, "seen", protocol)
    return above(ours, scores_at(baseline, 1, "seen", protocol))


def _unseen() -> Iterator[Claim]:
    """Sections 5.2 and 5.3, Fig. 3 and 4."""
    cold = select(load("unseen"), "ColD")
    last = cold.last

    def of(group: str, protocol: str) -> Difference:
        found = gain(cold, group, protocol, last)
        assert found
        return found

    yield Claim("Fig. 3: finetuned, unseen rises", "as seen", of("unseen", "finetuned"))
    yield Claim(
        "Fig. 3: finetuned, seen as unseen",
        "equal",
        apart(of("seen", "finetuned"), of("unseen", "finetuned")),
        equal=True,
    )
    yield Claim(
        "Fig. 3: frozen, seen far above unseen",
        "far above",
        apart(of("seen", "frozen"), of("unseen", "frozen")),
    )
    yield Claim("Fig. 3: frozen, unseen rises", "rises", of("unseen", "frozen"))
    yield Claim("Fig. 4: few-shot on unseen rises", "+6.73", of("unseen", "few-shot"))


def _many_unseen() -> Iterator[Claim]:
    """Section 5.3 over all real datasets that did not contribute: those 12, and 14 beside them."""
    mean, beside = select(load("few"), "plain mean", **PLAIN), load("few_more")

    def of(iteration: int, model: str) -> ScoresOf:
        own = scores_at(mean, iteration, "unseen", "few-shot")
        more = scores_at(select(beside, model, base_model=model), 0, "seen", "few-shot")
        return {seed: {**more[seed], **own[seed]} for seed in own}

    ours = above(of(3, "0003"), of(0, "minilm"))
    yield Claim("Fig. 4: the same, on all 26 tasks at hand", "+6.73", ours)


def _fresh() -> Iterator[Claim]:
    """Section 6, Fig. 6a: shards of MNLI with fresh examples in every iteration."""
    cold = select(load("6a"), "ColD")
    for protocol in ("frozen", "finetuned"):
        yield Claim(f"Fig. 6a: {protocol} rises", "rises", gain(cold, "seen", protocol, cold.last))
    frozen, finetuned = (scores_at(cold, cold.last, "seen", p) for p in ("frozen", "finetuned"))
    yield Claim("Fig. 6a: frozen ends above finetuned", "above", above(frozen, finetuned))


def _in_one_place() -> Iterator[Claim]:
    """Section 6, the dashed line of Fig. 6: five shards of MNLI trained on in one place."""
    union = select(load("central"), "centralised")
    yield Claim("Fig. 6, dashed line: frozen rises", "rises", gain(union, "seen", "frozen", 1))


def _shards() -> Iterator[Claim]:
    """Section 6, Fig. 6b to 6d: how much data, how many contributors, how it is divided."""
    few, many = ({"partition__shards": n} for n in (2, 5))
    for iteration in (1, 4):
        what = f"Fig. 6c: 5 contributors above 2, iteration {iteration}"
        yield Claim(what, "at every step", _apart("6c", many, few, iteration))
    union = scores_at(select(load("central"), "centralised"), 1, "seen", "frozen")
    ours = above(union, _scores("6c", many, 4)) if _kept("6c") else None
    yield Claim("Fig. 6c: training in one place above 5 contributors", "above", ours)
    large, small = ({"partition__examples": n} for n in (1000, 250))
    what = "Fig. 6b: 1,000 examples each above 250"
    yield Claim(what, "closer to one place", _apart("6b", large, small, 4))
    two, eight = ({"partition__shards": n} for n in (2, 8))
    what = "Fig. 6d: 4,000 examples of 2 contributors above those of 8, iteration 1"
    yield Claim(what, "each doubling costs 2 iterations", _apart("6d", two, eight, 1))
    what = "Fig. 6d: the same, iteration 4"
    yield Claim(what, "the same end", _apart("6d", two, eight, 4), equal=True)


def _how_many() -> Iterator[Claim]:
    """Section 5.4, Fig. 5, and App. E, Fig. 9: how many contribute, and of how many."""
    few, many = ({"contributors_per_iteration": n} for n in (2, 8))
    what = "Fig. 5: 8 of 18 contributors an iteration above 2"
    yield Claim(what, "hardly matters", _apart("contributors", many, few, 4), equal=True)
    what = "Fig. 5: the same, steadier: the spread over seeds is smaller by"
    yield Claim(what, "steadier", steadier(*(_scores("contributors", c, 4) for c in (many, few))))
    four, eight, all_but_two = ({"pool": n} for n in (4, 8, 16))
    yield Claim("Fig. 9: a pool of 4 above 8", "above", _apart("pools", four, eight, 4))
    what = "Fig. 9: a pool of 16 above 8"
    yield Claim(what, "far above", _apart("pools", all_but_two, eight, 4))


def _fixed() -> Iterator[Claim]:
    """App. F, Fig. 10: 100 examples of each dataset, of contributors and evaluations alike."""
    few = select(load("fixed"), "100 examples each")
    for protocol in ("finetuned", "frozen"):
        what = f"Fig. 10, 100 examples of each: {protocol} rises"
        yield Claim(what, "monotone", gain(few, "seen", protocol, few.last))
    whole, *_ = _compared()
    ours = above(*(scores_at(one, 4, "seen", "finetuned") for one in (whole, few)))
    yield Claim("Fig. 10: finetuned, 400 examples of each above 100", "above", ours)


def _kept(name: str) -> bool:
    return (SCIENCE / f"{name}.json").exists()


def _scores(name: str, keys: Mapping[str, int], iteration: int) -> ScoresOf:
    """Return the frozen scores of the runs with these keys, seen and unseen, by seed and task."""
    condition = select(load(name), name, **keys)
    seen, unseen = (scores_at(condition, iteration, g, "frozen") for g in ("seen", "unseen"))
    return {seed: {**seen[seed], **unseen[seed]} for seed in seen}


def _apart(
    name: str, one: Mapping[str, int], other: Mapping[str, int], iteration: int
) -> Difference | None:
    """Return by how much runs with some keys score above those with others; None without any."""
    if not _kept(name):
        return None
    return above(*(_scores(name, keys, iteration) for keys in (one, other)))


def steadier(ours: ScoresOf, theirs: ScoresOf) -> Difference:
    """Return by how much smaller ours' standard deviation over seeds is, in the mean of the tasks.

    Both have the same seeds, at least two, and tasks, which alone are the sample.
    """
    tasks, seeds = sorted(ours[min(ours)]), sorted(ours)
    values = np.array([[[scores[s][t] for s in seeds] for t in tasks] for scores in (ours, theirs)])
    own, others = values.std(axis=2, ddof=1)
    return replace(paired((others - own)[:, None]), seeds=len(seeds))


PARTS: Sequence[Callable[[], Iterator[Claim]]] = (
    *(_main, _unseen, _many_unseen, _fresh, _in_one_place),
    *(_shards, _how_many, _fixed),
)


def table() -> str:
    """Return every claim, as Markdown."""
    return "\n".join([*HEADER, *(claim.line for claims in PARTS for claim in claims())]) + "\n"


def first_table() -> str:
    """Return README's first table: gains on real data, as Markdown."""
    (cold, fused, union), unseen = _compared(), select(load("unseen"), "ColD")
    protocols = ("frozen", "finetuned", "few-shot")
    rows = {
        "4 iterations, over MiniLM": [gain(cold, "seen", p, 4) for p in protocols],
        "the same, over fusing once": [_above(cold, 4, fused, p) for p in protocols],
        "the same, over training on all data": [_above(cold, 4, union, p) for p in protocols],
        "tasks that nobody brought, over MiniLM": [
            gain(unseen, "unseen", p, unseen.last) for p in protocols
        ],
    }
    lines = [f"| {what} | {' | '.join(str(g or '') for g in row)} |" for what, row in rows.items()]
    head = ["| on real data | frozen | finetuned | few-shot |", "|---|---|---|---|"]
    return "\n".join([*head, *lines]) + "\n"


if __name__ == "__main__":
    write(BEGIN, table(), END)
    write(BEGIN, first_table(), END, README)
