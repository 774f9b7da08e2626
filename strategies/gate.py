"""The gate: a candidate becomes the next base only if the contributors' scores do not fall.

The paper wishes for "regularly evaluating" and "backtracking when a harmful update was
done" (section 9). The scores come from the contributors' own validation data, through a
function that the caller gives; nothing here knows how.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from flwr.app import ArrayRecord

from strategies.errors import FusionError, RunStopped

ROUNDING = 1e-9  # of the difference of two scores

Scores = Mapping[str, float]
"""Validation score by contributor."""


@dataclass(frozen=True)
class Judgement:
    """What the gate decided about an iteration."""

    accepted: bool
    reason: str
    """Why the whole cohort's candidate was not good enough; empty if it was."""
    left_out: tuple[str, ...] = ()
    """Whose contributions are not in what was accepted."""
    before: Scores = field(default_factory=dict)
    after: Scores = field(default_factory=dict)
    """Of what was accepted, or of the best candidate."""
    candidates: int = 1
    """How many were validated."""


def fall(
    before: Scores, after: Scores, tolerance: float, task_tolerance: float, voters: int = 0
) -> str:
    """Say how a candidate is worse than the base; empty if it is not.

    Args:
        before: the base's scores.
        after: the candidate's, of the same contributors.
        tolerance: by how much the mean may fall.
        task_tolerance: by how much any single score may fall.
        voters: how many were to score both, if more than did score either.
    """
    voters = max(voters, len(before.keys() | after.keys()))
    lost = {name: before[name] - after[name] for name in sorted(before.keys() & after.keys())}
    if not lost or 2 * len(lost) < voters:  # at sites of their own, some may not answer
        return f"{len(lost)} of {voters} contributors could validate it"
    mean = fmean(lost.values())
    if mean > tolerance + ROUNDING:
        return f"the mean falls by {mean:.4f} (tolerance {tolerance:g})"
    worst = max(lost, key=lambda name: lost[name])
    if lost[worst] > task_tolerance + ROUNDING:
        return f"{worst} falls by {lost[worst]:.4f} (tolerance {task_tolerance:g})"
    return ""


def _better(one: Scores, other: Scores) -> bool:
    """Compare means over the contributors that scored both."""
    both = one.keys() & other.keys()
    return bool(both) and sum(one[name] - other[name] for name in both) > 0


class Gate:
    """Validates candidates, and looks for the contribution that does harm.

    If the candidate of the whole cohort fails, contributions are left out one at a time, the
    likeliest first; one whose absence makes the mean better stays out. That goes on until a
    candidate passes or the budget is spent.

    Args:
        validate: scores a candidate; costs an evaluation at every contributor.
        before: returns the scores of the present base.
        tolerance: by how much the mean may fall, in units of the score.
        task_tolerance: by how much any single score may fall.
        budget: how many further candidates may be validated.
        voters: returns how many contributors are to score each candidate.
    """

    def __init__(
        self,
        validate: Callable[[ArrayRecord], Scores],
        before: Callable[[], Scores],
        *,
        tolerance: float,
        task_tolerance: float,
        budget: int,
        voters: Callable[[], int] = lambda: 0,
    ) -> None:
        self._validate = validate
        self._before = before
        self._limits = (tolerance, task_tolerance)
        self._voters = voters
        self._budget = budget
        self._silent = False  # whether too few could score the last iteration's base
        self.judgement: Judgement | None = None
        """Of the last iteration."""

    def choose(
        self,
        cohort: Sequence[str],
        make: Callable[[Sequence[str]], ArrayRecord],
        suspects: Callable[[], Sequence[str]],
        least: int = 1,
    ) -> ArrayRecord | None:
        """Return the candidate that passes; None if the base should stay.

        Args:
            cohort: whose contributions there are.
            make: fuses what these contributed.
            suspects: orders the cohort, the likeliest to do harm first.
            least: how many contributions ``make`` needs.

        Raises:
            RunStopped: too few could score the present base, twice in a row.
        """
        before, voters = self._before(), self._voters()
        if 2 * len(before) < voters:
            self._unanswered(f"{len(before)} of {voters}", before)
            return None
        self._silent = False
        kept = list(cohort)
        candidate: ArrayRecord | None
        candidate = make(kept)
        best = after = self._validate(candidate)
        reason = first = fall(before, after, *self._limits, voters)
        tried = 1
        for name in suspects() if reason else ():
            if not reason or tried > self._budget or len(kept) <= least:
                break
            candidate = None  # never two of them in memory
            without = [other for other in kept if other != name]
            try:
                candidate = make(without)
            except FusionError:  # the rule cannot fuse these alone
                continue
            after = self._validate(candidate)
            tried += 1
            reason = fall(before, after, *self._limits, voters)
            if not reason or _better(after, best):
                kept, best = without, after
        self.judgement = Judgement(
            accepted=not reason,
            reason=first,
            left_out=() if reason else tuple(name for name in cohort if name not in kept),
            before=before,
            after=best,
            candidates=tried,
        )
        return None if reason else candidate

    def _unanswered(self, who: str, before: Scores) -> None:
        """Leave the base as it is where too few could score it: once, they may be away."""
        reason = f"{who} contributors could validate the present base, and half have to"
        if self._silent:
            raise RunStopped(
                f"the gate: for the second time {reason}. Why each could not is said above (a site "
                "needs limits.min-test-examples dev rows)"
            )
        self._silent = True
        self.judgement = Judgement(False, reason, before=before, candidates=0)
