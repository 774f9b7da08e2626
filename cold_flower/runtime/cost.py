"""What a run still has to do, and what that takes at most: counted before it begins."""

from dataclasses import dataclass
from pathlib import Path

from cold_flower.config import ASYNCHRONOUS, EMA, Config
from cold_flower.data.schedule import cohort, evaluated
from cold_flower.repository.bases import Repository
from cold_flower.repository.journal import SCORES, Journal
from cold_flower.runtime.experiments import Checked
from cold_flower.server import reuse, turns
from cold_flower.server.strategy import needed, stages
from cold_flower.training.statistics import EXAMPLES
from strategies.contributions import INCOMING, Store


@dataclass(frozen=True)
class Ahead:
    """What a run still has to do: all of it, or with ``resume`` what is not there."""

    iterations: range
    here: tuple[str, ...] = ()
    """Whose contributions to the first of these are in the inbox already."""
    base: int | None = 0
    """A base that is there, or the start, and is to be evaluated; None if it was."""

    @property
    def evaluated_bases(self) -> list[int]:
        """Return the base that is there if it is due, then those that come."""
        return [*([] if self.base is None else [self.base]), *self.iterations]


def ahead(config: Config, checked: Checked) -> Ahead:
    """Look at what lies in the run's directory; nothing is written."""
    repository = Repository(Path(config.run_dir))
    if not config.resume or not (numbers := repository.numbers()):
        return Ahead(range(1, config.iterations + 1))
    first, head = numbers[-1] + 1, repository.latest() or 0
    asked = {
        (checked.plan.tasks[name].name, protocol)
        for name in checked.plan.evaluated
        for protocol in config.protocols()
    }
    every, rows = config.evaluate.every, Journal(Path(config.run_dir)).rows(SCORES)
    known = {(row["task"], row["protocol"]) for row in rows if row["iteration"] == head}
    return Ahead(
        range(first, config.iterations + 1),
        tuple(Store(Path(config.run_dir) / INCOMING, first).names()),
        head if asked - known and evaluated(head, every=every, last=config.iterations) else None,
    )


@dataclass(frozen=True)
class Cost:
    """What a run takes at most; sizes are in bytes."""

    contributions: int = 0
    trained: int = 0
    """Training examples of these, or of a baseline, repeats counted."""
    probed: int = 0
    """Training examples that are run forward alone, once, to train these contributions' heads."""
    looked_at: int = 0
    """Training examples that these contributions' statistics are made of."""
    evaluations: int = 0
    trained_on: int = 0
    """Training examples of these."""
    forward: int = 0
    validations: int = 0
    candidates: int = 0
    """Further ones of the gate, each of which every contributor validates."""
    body: int = 0
    statistic: int = 0
    """Of one contribution, beside its body."""
    messages: int = 0
    disk: int = 0


def cost(
    config: Config, checked: Checked, left: Ahead, parameters: int, statistic: int = 0
) -> Cost:
    """Count what a run takes at most.

    Args:
        config: resolved.
        checked: the plan, and how many examples each contributor has.
        left: what there is to do.
        parameters: of the body.
        statistic: bytes of what the rule asks for beside a body.
    """
    plan, body, asked = checked.plan, 4 * parameters, cohorts(config, checked, left)
    contributions = sum(len(names) for names in asked)
    union = plan.seen if config.baseline and left.iterations else ()
    trained = sum(checked.train[name] for names in (*asked, union) for name in names)
    every, last = config.evaluate.every, config.iterations
    bases = sum(evaluated(base, every=every, last=last) for base in left.evaluated_bases)
    reused = _reused(config, checked, left) if reuse.applies(config) else []
    evaluations = bases * len(plan.evaluated) * len(config.protocols()) - len(reused)
    trained_on, forward = _evaluation(config, checked)
    saved = config.finetune.max_epochs * sum(checked.train[name] for name in reused)
    bodies = 2 * contributions + evaluations  # sent: there and back, or there alone
    validations = candidates = 0
    if config.gate.protocol and asked:
        validations = len(plan.seen) * (len(asked) + 1)
        candidates = len(asked) * config.gate.budget
        bodies += validations + len(plan.seen) * candidates
    optimizer = 0 if config.fusion.strategy else len(stages(config).memory)  # bodies, each time
    average = bool(config.fusion.ema)
    at_once = max(map(len, asked), default=0)
    given = at_once * (1 + min(config.keep_contributions, len(asked)))  # in the inbox, and kept
    kept = len(asked) * (1 + optimizer + average) + given
    kept += (left.iterations.start == 1) + bool(union)  # the start, and what is trained on all
    kind = needed(config)[0]
    most = EXAMPLES[kind.partition("-")[0]] if kind else 0
    return Cost(
        contributions=contributions,
        trained=trained * config.finetune.max_epochs,
        probed=trained if config.finetune.head == "probe" else 0,
        looked_at=sum(min(checked.train[name], most) for names in asked for name in names),
        evaluations=evaluations,
        trained_on=bases * trained_on - saved,
        forward=bases * forward,
        validations=validations,
        candidates=candidates,
        body=body,
        statistic=statistic,
        messages=body * bodies + statistic * contributions,
        disk=body * kept + statistic * given,
    )


def cohorts(config: Config, checked: Checked, left: Ahead) -> list[list[str]]:
    """Return whom each iteration that is left asks, or the largest that it may take."""
    if config.baseline:  # trains in one place
        return []
    if config.schedule == ASYNCHRONOUS:
        largest = sorted(checked.plan.seen, key=lambda name: -checked.train[name])
        return [largest[: turns.size(config, len(largest))] for _ in left.iterations]
    return [
        cohort(
            checked.plan.seen,
            iteration,
            size=min(config.contributors_per_iteration, len(checked.plan.seen)),  # some left
            schedule=config.schedule,
            seed=config.seed,
        )
        for iteration in left.iterations
    ]


def _reused(config: Config, checked: Checked, left: Ahead) -> list[str]:
    """Return whose contributions say a finetuned score, a name for each that they say."""
    every, last = config.evaluate.every, config.iterations
    bases = set(left.evaluated_bases)
    return [
        name
        for iteration, names in zip(left.iterations, cohorts(config, checked, left), strict=True)
        if iteration - 1 in bases and evaluated(iteration - 1, every=every, last=last)
        for name in names
        if name in checked.plan.evaluated
    ]


def _evaluation(config: Config, checked: Checked) -> tuple[int, int]:
    """Return how many examples scoring one base takes: to train on, and run forward alone."""
    names, few_shot = checked.plan.evaluated, config.few_shot
    train = sum(checked.train[name] for name in names)
    trained = {
        "finetuned": config.finetune.max_epochs * train,
        "few-shot": few_shot.draws * few_shot.epochs * few_shot.examples * len(names),
        "frozen": 0,
    }
    test = sum(checked.test[name] for name in names)
    asked = (protocol.removeprefix(EMA) for protocol in config.protocols())
    return sum(trained[protocol] for protocol in asked), train + test
