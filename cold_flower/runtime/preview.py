"""What an experiment would do and cost, before it does (``--dry-run``)."""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from cold_flower.config import ASYNCHRONOUS, EMA, Config
from cold_flower.data.schedule import cohort, evaluated
from cold_flower.repository.bases import Repository
from cold_flower.repository.dropbox import folder_of
from cold_flower.repository.journal import SCORES, Journal
from cold_flower.runtime.experiments import Checked, remarks
from cold_flower.runtime.resources import GB, Allocation
from cold_flower.runtime.resources import describe as say_allocation
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
    plan, body, cohorts = checked.plan, 4 * parameters, _cohorts(config, checked, left)
    contributions = sum(len(names) for names in cohorts)
    union = plan.seen if config.baseline and left.iterations else ()
    trained = sum(checked.train[name] for names in (*cohorts, union) for name in names)
    every, last = config.evaluate.every, config.iterations
    bases = sum(evaluated(base, every=every, last=last) for base in left.evaluated_bases)
    reused = _reused(config, checked, left) if reuse.applies(config) else []
    evaluations = bases * len(plan.evaluated) * len(config.protocols()) - len(reused)
    trained_on, forward = _evaluation(config, checked)
    saved = config.finetune.max_epochs * sum(checked.train[name] for name in reused)
    bodies = 2 * contributions + evaluations  # sent: there and back, or there alone
    validations = candidates = 0
    if config.gate.protocol and cohorts:
        validations = len(plan.seen) * (len(cohorts) + 1)
        candidates = len(cohorts) * config.gate.budget
        bodies += validations + len(plan.seen) * candidates
    optimizer = 0 if config.fusion.strategy else len(stages(config).memory)  # bodies, each time
    average = bool(config.fusion.ema)
    at_once = max(map(len, cohorts), default=0)
    given = at_once * (1 + min(config.keep_contributions, len(cohorts)))  # in the inbox, and kept
    kept = len(cohorts) * (1 + optimizer + average) + given
    kept += (left.iterations.start == 1) + bool(union)  # the start, and what is trained on all
    kind = needed(config)[0]
    most = EXAMPLES[kind.partition("-")[0]] if kind else 0
    return Cost(
        contributions,
        trained * config.finetune.max_epochs,
        trained if config.finetune.head == "probe" else 0,
        sum(min(checked.train[name], most) for names in cohorts for name in names),
        evaluations,
        bases * trained_on - saved,
        bases * forward,
        validations,
        candidates,
        body,
        statistic,
        body * bodies + statistic * contributions,
        body * kept + statistic * given,
    )


def preview(
    config: Config,
    checked: Checked,
    allocation: Allocation,
    *,
    parameters: int,
    statistic: int,
    footprint: float,
) -> Iterator[str | Table]:
    """Yield what to print: the configuration, the cohorts, the cost.

    Args:
        config: resolved; with ``resume``, of the run that lies in its directory.
        checked: the plan, and how many examples each contributor has.
        allocation: how this machine is shared.
        parameters: of the body.
        statistic: bytes of what the rule asks for beside a body.
        footprint: bytes of one finetuning.
    """
    left = ahead(config, checked)
    yield _configuration(config)
    if config.resume:
        yield _resumed(config, left)
    listed = Table("iteration", "contributors", title="Cohorts", **_STYLE)
    first = left.iterations.start
    for names, same in itertools.groupby(_cohorts(config, checked, left)):  # a line for all alike
        last = first + len(list(same)) - 1
        listed.add_row(f"{first} to {last}" if last > first else str(first), ", ".join(names))
        first = last + 1
    if config.baseline:
        yield f"Trained in one place, on all data of: {', '.join(sorted(checked.plan.seen))}"
    elif config.schedule == ASYNCHRONOUS:
        size = turns.size(config, len(checked.plan.seen))
        dropbox = folder_of(config, Path(config.run_dir))
        whose = ", ".join(sorted(checked.plan.seen)) or f"models in {dropbox}"
        yield f"An iteration takes the first {size} of: {whose}"
    else:
        yield listed
    evaluating = checked.plan.evaluated
    yield f"{len(evaluating)} contributors evaluate: {', '.join(evaluating)}"
    one = cost(config, checked, left, parameters, statistic)
    yield _costs(one, checked, allocation.workers, footprint)
    yield say_allocation(allocation)
    yield from remarks(config, checked)


def overview(costs: Iterable[tuple[str, str, Cost]]) -> Table:
    """Draw what the cells of a sweep cost: a line for each (name, state, cost), and their sum."""
    listed = list(costs)
    table = Table(title="Cost of the sweep, at most", **_STYLE)
    for column in ("run", ""):
        table.add_column(column, overflow="fold")  # 80 columns have to do
    for column in ("contri-\nbutions", "evalu-\nations", "examples", "messages", "disk"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, state, one in listed:
        table.add_row(name, state, *_figures([one]), end_section=name == listed[-1][0])
    table.add_row("together", "", *_figures([one for *_, one in listed]))
    return table


def _figures(costs: Sequence[Cost]) -> list[str]:
    counted = [
        sum(one.contributions for one in costs),
        sum(one.evaluations for one in costs),
        sum(one.trained + one.trained_on for one in costs),
    ]
    sizes = sum(one.messages for one in costs), sum(one.disk for one in costs)
    return [*(f"{number:,}" for number in counted), *map(_bytes, sizes)]


_STYLE: dict[str, Any] = {"title_justify": "left", "box": box.SIMPLE_HEAD}


def _cohorts(config: Config, checked: Checked, left: Ahead) -> list[list[str]]:
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
        for iteration, names in zip(left.iterations, _cohorts(config, checked, left), strict=True)
        if iteration - 1 in bases and evaluated(iteration - 1, every=every, last=last)
        for name in names
        if name in checked.plan.evaluated
    ]


def _resumed(config: Config, left: Ahead) -> str:
    """Say what of a run is there, and what is left."""
    first, here = left.iterations.start, ""
    if left.here:
        here = f"; already here for iteration {first}: {', '.join(left.here)}"
    if len(left.iterations):
        runs = f"iterations {first} to {left.iterations[-1]} would run"
    else:
        runs = "no iteration is left to run"
    base = "" if left.base is None else f"; scores of base {left.base} are missing"
    return f"resuming {config.run_dir}: {runs}{here}{base}"


def _configuration(config: Config) -> str:
    """Write the configuration as an experiment file would have it."""
    defaults = Config().flat()
    lines = ["# The configuration, as an experiment file:"]
    for key, value in config.flat().items():
        said = "" if value == defaults[key] else f"default: {json.dumps(defaults[key])}"
        if key in config.of_recipe:
            said = f"from the recipe of suite {config.suite}; {said}".removesuffix("; ")
        lines.append(f"{key} = {json.dumps(value)}" + (f"  # {said}" if said else ""))
    return "\n".join(lines) + "\n"


def _costs(one: Cost, checked: Checked, workers: int, footprint: float) -> Table:
    """Draw the cost of one run; ``footprint`` is the bytes of one finetuning."""
    table = Table("cost", "at most", "", title="Cost", **_STYLE)
    probed = f"; {one.probed:,} forward" if one.probed else ""
    in_one_place = one.trained and not one.contributions  # of a baseline
    table.add_row(
        "in one place" if in_one_place else "contributions",
        "" if in_one_place else f"{one.contributions:,}",
        f"{one.trained:,} training examples, repeats counted{probed}",
    )
    table.add_row(
        "evaluations",
        f"{one.evaluations:,}",
        f"{one.trained_on:,} training examples; {one.forward:,} forward",
    )
    if one.validations:
        table.add_row(
            "validations",
            f"{one.validations:,}",
            f"and for each further candidate {len(checked.plan.seen)}; at most {one.candidates} of "
            "those",
        )
    if one.statistic:
        table.add_row(
            "statistics",
            f"{one.contributions:,}",
            f"of {one.looked_at:,} training examples; {_bytes(one.statistic)} each, beside a body",
        )
    table.add_row("messages", _bytes(one.messages), f"{_bytes(one.body)} a body")
    table.add_row("disk", _bytes(one.disk), "bases, average, optimizer; inbox and kept, whole")
    table.add_row(
        "memory",
        _bytes(workers * footprint + 6 * one.body),
        f"{workers} x {_bytes(footprint)} at work, six bodies at the server; estimated",
    )
    return table


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


def _bytes(number: float) -> str:
    return f"{number / GB:,.1f} GB" if number >= GB else f"{number / 1e6:,.1f} MB"
