"""Checks on what comes back, before it is fused: pure functions, values in, reason out.

The paper asks for "a way to make sure no malicious or erroneous model was sent" and names
"the updates diff (too large diff / random weights)" (section 9). `Screen` looks at a whole cohort
at once, when everyone has answered, so that verdicts do not depend on who was first. The form of
each was checked before, whatever is screened (`strategies.form`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from strategies.diagnostics import Diagnosis
from strategies.errors import FusionError
from strategies.names import unknown

LIES = 4.0  # how much the steps it says to have taken may excuse a contributor's norm, at most
APART = 1.5  # how many spreads, and 8 / n more, a cohort's growth has to be from that of noise
FEW = 8  # the spread of fewer says little
LONGER = 2.0  # so many times the cohort's median steps, and growth is no sign of anything
AGREED = 0.05  # the median cosine from which on a cohort is said to pull together
LOSS = 1e4  # no training loss of a classifier is larger


@dataclass(frozen=True)
class Candidate:
    """One contribution, as screening sees it."""

    name: str
    sha256: str
    metrics: Mapping[str, float]
    """As the contributor reports them."""
    promised: int = 0
    """How many training examples it said to have when it joined; 0 if it was not asked."""
    history: Sequence[float] = ()
    """The norms of its earlier contributions that were accepted."""
    base: str = ""
    """Fingerprint of the base that it began from, if that is not the last one."""


@dataclass(frozen=True)
class Verdict:
    """What screening says of one contribution."""

    reason: str = ""
    """Why it is refused; empty if it is not."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """``diff-norm``; ``similarity``: the least cosine of a matrix with the base's;
    ``agreement``: the median of its cosines with the others; ``growth``: `Diagnosis.growth`."""


def duplicate(candidate: Candidate, earlier: Mapping[str, str]) -> str:
    """Find a copy: one vote a model. ``earlier``: names by sha256, in the order of names."""
    first = earlier.get(candidate.sha256, candidate.name)
    return f"the same weights as {first}" if first != candidate.name else ""


def unchanged(candidate: Candidate, base: str) -> str:
    """Find the base itself, sent back."""
    return "the base, unchanged" if candidate.sha256 == base else ""


def implausible(candidate: Candidate) -> str:
    """Find metrics that no training has, or more examples than were promised."""
    metrics = candidate.metrics
    limits = {key: (-1.0, 1.0) for key in ("dev-start", "dev-accuracy", "dev-majority")}
    limits |= {"train-loss": (0.0, LOSS), "improving": (0.0, 1.0)}
    limits |= {key: (0.0, math.inf) for key in ("seconds", "steps")}
    for key, (least, most) in limits.items():
        if key in metrics and not least <= metrics[key] <= most:
            return f"{key} is {metrics[key]:g}, expected {least:g} to {most:g}"
    examples = metrics.get("num-examples", 0)
    if candidate.promised and examples > candidate.promised:
        return f"num-examples is {examples:g}, it had {candidate.promised} when it joined"
    return ""


def too_far(norm: float, usual: float, steps: float, factor: float, whose: str) -> str:
    """Find an update much larger than is usual.

    Args:
        norm: of the update.
        usual: the median norm.
        steps: how many times as many steps it took as the median: a large dataset moves
            further, about with their root. Only so much is believed (`LIES`).
        factor: how far is too far.
        whose: the usual norm is.
    """
    limit = factor * usual * min(LIES, math.sqrt(max(1.0, steps)))
    if not usual or norm <= limit:
        return ""
    return f"its update has norm {norm:.3g}, more than {limit:.3g}: {whose} is {usual:.3g}"


def outgrown(growth: float, cohort: Sequence[float]) -> str:
    """Find an update turned around: its weights grew where the cohort's shrink, or the reverse.

    ``growth`` g of `Diagnosis.growth` is 2 - g turned around. A cohort's g lie close together, or
    far from each other: it depends on learning rate, length and decay. So nothing follows unless
    the cohort's median is far from the 1 of noise, in units of its spread towards it (1.4826 times
    the median deviation there: a standard deviation, were it normal): `APART` times, and more in a
    small cohort (`FEW` / n), whose spread is uncertain. Then what is on the other side, half as
    far away or more, is turned around.

    Args:
        growth: of the update.
        cohort: all that are compared, its own among them; fewer than `FEW` tell nothing.
    """
    if len(cohort) < FEW:
        return ""
    usual = median(cohort)
    side = math.copysign(1.0, 1 - usual)  # 1 where the cohort's is below noise
    apart = abs(1 - usual)
    spread = 1.4826 * median((g - usual) * side for g in cohort if (g - usual) * side >= 0)
    if apart <= (APART + FEW / len(cohort)) * spread or (growth - 1) * side < apart / 2:
        return ""
    return f"its weights grew by {growth:.2f} updates' squares, the cohort's by {usual:.2f}"


def opposed(agreement: float, least: float) -> str:
    """Find an update against the cohort: ``agreement`` is the median cosine with the others."""
    if agreement >= least:
        return ""
    return f"its update points away from the others': median cosine {agreement:.2f} < {least:.2g}"


def reinitialised(similarity: float, tensor: str, least: float) -> str:
    """Find random weights: finetuning turns no matrix far away from the base's."""
    if similarity >= least:
        return ""
    return f"{tensor} looks new: its cosine with the base's is {similarity:.2f} < {least:g}"


CHECKS = ("duplicate", "unchanged", "metrics", "random", "norm", "growth", "cosine")


@dataclass(frozen=True)
class Screen:
    """Judges an iteration's contributions together.

    Args:
        checks: of `CHECKS`; they are made in that order, and the first refusal is named.
        norm: refuse an update so many times the median norm of the cohort (of three or
            more; the cohort's figures are those of the contributions not refused so far),
            or of the contributor's own earlier ones.
        cosine: refuse an update whose median cosine with the others' is below; where the cohort
            pulls together (`AGREED`), also one that points half as far the other way; -1: neither.
        similarity: refuse weights with a matrix whose cosine with the base's is below.

    Raises:
        FusionError: a check that is not known.
    """

    checks: tuple[str, ...] = CHECKS
    norm: float = 6.0
    cosine: float = -0.2
    similarity: float = 0.25

    def __post_init__(self) -> None:
        for check in self.checks:
            if check not in CHECKS:
                raise FusionError(unknown("check", check, CHECKS))

    def __call__(
        self, sha256: str, given: Sequence[Candidate], measured: Diagnosis
    ) -> dict[str, Verdict]:
        """Judge contributions of the right form; return a verdict by name.

        Args:
            sha256: fingerprint of the base that they are added to.
            given: the contributions, by name.
            measured: what they measure, in that order.
        """
        reasons: dict[int, str] = {}
        for check in (check for check in CHECKS if check in self.checks):
            left = [i for i in range(len(given)) if i not in reasons]
            judge = self._judge(check, left, given, measured, sha256)
            reasons |= {i: f"{check}: {reason}" for i in left if (reason := judge(i))}
        left = [i for i in range(len(given)) if i not in reasons]
        return {
            candidate.name: Verdict(
                reasons.get(i, ""),
                {
                    "diff-norm": measured.norms[i],
                    "similarity": measured.least[i][0],
                    "growth": measured.growth[i],
                    "agreement": _agreement(measured, i, left),
                },
            )
            for i, candidate in enumerate(given)
        }

    def _judge(
        self,
        check: str,
        left: Sequence[int],
        given: Sequence[Candidate],
        measured: Diagnosis,
        sha256: str,
    ) -> Callable[[int], str]:
        """Return one check; what is usual is that of ``left``, those not refused before it."""
        many = len(left) > 2  # else there is no median to be compared with
        match check:
            case "duplicate":
                first = {given[i].sha256: given[i].name for i in reversed(left)}
                return lambda i: duplicate(given[i], first)
            case "unchanged":
                return lambda i: unchanged(given[i], given[i].base or sha256)
            case "metrics":
                return lambda i: implausible(given[i])
            case "random":
                return lambda i: reinitialised(*measured.least[i], self.similarity)
            case "norm":
                usual = median(measured.norms[i] for i in left) if many else 0.0
                longer = _longer(given, left)
                own = "the median of its own earlier ones"

                def far(i: int) -> str:
                    norm, earlier = measured.norms[i], median(given[i].history or [0.0])
                    of_all = too_far(norm, usual, longer[i], self.norm, "the cohort's median")
                    return of_all or too_far(norm, earlier, 1.0, self.norm, own)

                return far
            case "growth":
                cohort = [measured.growth[i] for i in left]
                longer = _longer(given, left)
                return lambda i: outgrown(measured.growth[i], cohort) if longer[i] <= LONGER else ""
        agreement = {i: _agreement(measured, i, left) for i in left}
        usual = median(agreement.values()) if many else 0.0
        agreed = usual >= AGREED and self.cosine > -1
        least = max(self.cosine, -usual / 2) if agreed else self.cosine
        return lambda i: opposed(agreement[i], least) if many else ""


def _longer(given: Sequence[Candidate], left: Sequence[int]) -> dict[int, float]:
    """Return how many times as many steps as the median each says to have taken.

    Who does not say it (a site with few dev examples) counts as usual.
    """
    stated = {i: given[i].metrics["steps"] for i in left if "steps" in given[i].metrics}
    usual = max(1.0, median(stated.values())) if stated else 1.0
    return {i: stated.get(i, usual) / usual for i in left}


def _agreement(measured: Diagnosis, i: int, others: Sequence[int]) -> float:
    """Return the median cosine of one with the others; 1 if there are none."""
    return median([measured.pairwise[i][j] for j in others if j != i] or [1.0])
