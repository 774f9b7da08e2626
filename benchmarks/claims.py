"""The paper's claims, and what our runs say of each: tables of docs/results.md and README.md.

Everything is computed from benchmarks/results/science/*.json; `python -m benchmarks.claims` writes
the tables, and a test keeps the pages equal to them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.results import PAGE, write
from benchmarks.science import SCIENCE, load, select
from cold_flower.reporting.conditions import Condition
from cold_flower.reporting.paired import Difference, above, apart, gain, scores_at

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
        """Return whether it holds: ``undecided`` where the interval has room for either."""
        one = self.ours
        if one is None or one.seeds < 2 or not one.half >= 0:  # one seed proves nothing
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
        ours = str(one) if one else "not run"
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


PARTS: Sequence[tuple[str, Callable[[], Iterator[Claim]]]] = (
    ("main", _main),
    ("unseen", _unseen),
    ("6a", _fresh),
    ("central", _in_one_place),
)


def table() -> str:
    """Return every claim whose runs are kept, as Markdown."""
    lines = [
        claim.line
        for name, claims in PARTS
        if (SCIENCE / f"{name}.json").exists()
        for claim in claims()
    ]
    return "\n".join([*HEADER, *lines]) + "\n" if lines else ""


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
