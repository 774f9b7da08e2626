"""What an experiment would do and cost, before it does (``--dry-run``)."""

import itertools
import json
from collections.abc import Iterator
from typing import Any

from rich import box
from rich.table import Table

from cold_flower.config import Config
from cold_flower.data.schedule import cohort, evaluated
from cold_flower.runtime.experiments import Checked
from cold_flower.runtime.resources import GB, Allocation
from cold_flower.runtime.resources import describe as say_allocation
from cold_flower.server.strategy import stages


def preview(
    config: Config, checked: Checked, allocation: Allocation, *, parameters: int, footprint: float
) -> Iterator[str | Table]:
    """Yield what to print: the configuration, the cohorts, the cost.

    Args:
        config: resolved.
        checked: the plan, and how many examples each contributor has.
        allocation: how this machine is shared.
        parameters: of the body.
        footprint: bytes of one finetuning.
    """
    yield _configuration(config)
    cohorts = [
        cohort(
            checked.plan.seen,
            iteration,
            size=config.contributors_per_iteration,
            schedule=config.schedule,
            seed=config.seed,
        )
        for iteration in range(1, config.iterations + 1)
    ]
    listed = Table("iteration", "contributors", title="Cohorts", **_STYLE)
    first = 1
    for names, same in itertools.groupby(cohorts):  # a line for all that ask the same
        last = first + len(list(same)) - 1
        listed.add_row(f"{first} to {last}" if last > first else str(first), ", ".join(names))
        first = last + 1
    yield listed
    evaluating = checked.plan.evaluated
    yield f"{len(evaluating)} contributors evaluate: {', '.join(evaluating)}"
    yield _cost(config, checked, cohorts, 4 * parameters, allocation.workers, footprint)
    yield say_allocation(allocation)


_STYLE: dict[str, Any] = {"title_justify": "left", "box": box.SIMPLE_HEAD}


def _configuration(config: Config) -> str:
    """Write the configuration as an experiment file would have it."""
    defaults = Config().flat()
    lines = ["# The configuration, as an experiment file:"]
    for key, value in config.flat().items():
        default = "" if value == defaults[key] else f"  # default: {json.dumps(defaults[key])}"
        lines.append(f"{key} = {json.dumps(value)}{default}")
    return "\n".join(lines) + "\n"


def _cost(
    config: Config,
    checked: Checked,
    cohorts: list[list[str]],
    body: int,
    workers: int,
    footprint: float,
) -> Table:
    """Count what a run takes at most; ``body`` and ``footprint`` are bytes."""
    plan, last = checked.plan, config.iterations
    table = Table("cost", "at most", "", title="Cost", **_STYLE)

    contributions = sum(len(names) for names in cohorts)
    trained = sum(checked.train[name] for names in cohorts for name in names)
    trained *= config.finetune.max_epochs
    table.add_row(
        "contributions", f"{contributions:,}", f"{trained:,} training examples, repeats counted"
    )

    every = config.evaluate.every
    bases = sum(evaluated(iteration, every=every, last=last) for iteration in range(last + 1))
    evaluations = bases * len(plan.evaluated) * len(config.protocols())
    trained, forward = _evaluation(config, checked)
    table.add_row(
        "evaluations",
        f"{evaluations:,}",
        f"{bases * trained:,} training examples; {bases * forward:,} forward",
    )

    bodies = 2 * contributions + evaluations  # sent: there and back, or there alone
    if config.gate.protocol:
        seen = len(plan.seen)
        validations = seen * (last + 1)
        candidates = last * config.gate.budget
        table.add_row(
            "validations",
            f"{validations:,}",
            f"and for each further candidate {seen}; at most {candidates} of those",
        )
        bodies += validations + seen * candidates
    table.add_row("messages", _bytes(body * bodies), f"{_bytes(body)} a body")

    optimizer = 0 if config.fusion.strategy else len(stages(config).memory)  # bodies, each time
    bodies = (last + 1) + last * optimizer + max(map(len, cohorts), default=0)
    table.add_row("disk", _bytes(body * bodies), "bodies of the bases, optimizer, inbox")

    table.add_row(
        "memory",
        _bytes(workers * footprint + 6 * body),
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
    return sum(trained[protocol] for protocol in config.protocols()), train + test


def _bytes(number: float) -> str:
    return f"{number / GB:,.1f} GB" if number >= GB else f"{number / 1e6:,.1f} MB"
