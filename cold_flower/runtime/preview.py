"""What an experiment would do and cost, before it does (``--dry-run``)."""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from cold_flower.config import ASYNCHRONOUS, Config
from cold_flower.repository.dropbox import folder_of
from cold_flower.runtime.cost import Ahead, Cost, ahead, cohorts, cost
from cold_flower.runtime.experiments import Checked, remarks
from cold_flower.runtime.resources import GB, Allocation
from cold_flower.runtime.resources import describe as say_allocation
from cold_flower.server import turns


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
    for names, same in itertools.groupby(cohorts(config, checked, left)):  # a line for all alike
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


def _bytes(number: float) -> str:
    return f"{number / GB:,.1f} GB" if number >= GB else f"{number / 1e6:,.1f} MB"
