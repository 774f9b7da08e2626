"""What an experiment would do and cost, before it does (``--dry-run``)."""

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
    cohorts = _cohorts(config, checked)
    made = Table("iteration", "contributors", title="Cohorts", **_STYLE)
    for iteration, names in enumerate(cohorts, start=1):
        made.add_row(str(iteration), ", ".join(names))
    yield made
    yield f"Evaluated at {len(checked.plan.evaluated)}: {', '.join(checked.plan.evaluated)}"
    yield _cost(config, checked, cohorts, 4 * parameters, allocation, footprint)
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


def _cohorts(config: Config, checked: Checked) -> list[list[str]]:
    size = config.contributors_per_iteration
    return [
        cohort(checked.plan.seen, i, size=size, schedule=config.schedule, seed=config.seed)
        for i in range(1, config.iterations + 1)
    ]


def _cost(
    config: Config,
    checked: Checked,
    cohorts: list[list[str]],
    body: int,
    allocation: Allocation,
    footprint: float,
) -> Table:
    train, test, last = checked.train, checked.test, config.iterations
    epochs, few = config.finetune.max_epochs, config.few_shot
    every = config.evaluate.every
    evaluations = sum(evaluated(i, every=every, last=last) for i in range(last + 1))
    finetunes = sum(map(len, cohorts))
    trained = epochs * sum(train[name] for names in cohorts for name in names)
    passes = {
        "finetuned": epochs * sum(train[n] for n in checked.plan.evaluated),
        "few-shot": few.draws * few.epochs * few.examples * len(checked.plan.evaluated),
        "frozen": 0,  # the body runs forward only
    }
    scored = sum(train[n] + test[n] for n in checked.plan.evaluated)
    protocols = config.protocols()
    asked = evaluations * len(checked.plan.evaluated) * len(protocols)  # a message each
    made = Table("cost", "at most", "", title="Cost", **_STYLE)
    made.add_row(
        "contributions", f"{finetunes:,}", f"{trained:,} training examples, repeats counted"
    )
    made.add_row(
        "evaluations",
        f"{asked:,}",
        f"{evaluations * sum(passes[p] for p in protocols):,} training examples; "
        f"{evaluations * scored:,} forward",
    )
    if config.gate.protocol:
        validated = len(checked.plan.seen) * (last + 1)
        most = last * config.gate.budget
        note = f"and for each further candidate {len(checked.plan.seen)}; at most {most} of those"
        made.add_row("validations", f"{validated:,}", note)
        asked += len(checked.plan.seen) * (last + 1 + most)
    made.add_row("messages", _bytes(body * (2 * finetunes + asked)), f"{_bytes(body)} a body")
    state = len(stages(config).memory) if not config.fusion.strategy else 0
    stored = (last + 1) + last * state + max(map(len, cohorts), default=0)
    made.add_row("disk", _bytes(body * stored), "bodies of the bases, optimizer, inbox")
    workers = allocation.workers
    made.add_row(
        "memory",
        _bytes(workers * footprint + 6 * body),
        f"{workers} x {_bytes(footprint)} at work, six bodies at the server; estimated",
    )
    return made


def _bytes(number: float) -> str:
    return f"{number / GB:,.1f} GB" if number >= GB else f"{number / 1e6:,.1f} MB"
