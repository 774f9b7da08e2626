"""From a configuration to a finished run: check, share the machine, run, show."""

import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from cold_flower.config import Config
from cold_flower.data.plan import naming_the_recipe
from cold_flower.models.base import load_base
from cold_flower.reporting import html
from cold_flower.reporting.display import display
from cold_flower.reporting.live import live
from cold_flower.reporting.progress import Event, Progress, clock, phases
from cold_flower.reporting.runs import every_score
from cold_flower.reporting.tables import console
from cold_flower.repository.bases import Repository
from cold_flower.repository.journal import CONFIG, Journal, check_new, check_same
from cold_flower.repository.start import check_start
from cold_flower.runtime import cluster, experiments, resources
from cold_flower.runtime.alone import alone
from cold_flower.runtime.cost import Cost, ahead, cost
from cold_flower.runtime.experiments import Checked
from cold_flower.runtime.flower import completed
from cold_flower.runtime.machine import this_machine
from cold_flower.runtime.preview import overview, preview
from cold_flower.runtime.processes import Stopped, stoppable
from cold_flower.runtime.simulate import simulate
from cold_flower.runtime.sweep import Cell
from cold_flower.runtime.writable import check_writable
from cold_flower.server.strategy import needed


@dataclass(frozen=True)
class Sharing:
    """What the user says about cores and GPUs; None leaves the choice to us."""

    cpus: int | None = None
    gpus: float | None = None
    fake_gpus: int = 0


@dataclass(frozen=True)
class Prepared:
    """A run that can start."""

    config: Config
    checked: Checked
    allocation: resources.Allocation
    parameters: int
    statistic: int
    footprint: float


def prepare(config: Config, sharing: Sharing) -> Prepared:
    """Check everything and decide how the machine is shared.

    Raises:
        ColdFlowerError, StrategyError: the first thing that is wrong.
    """
    checked = experiments.check(config)
    base = load_base(config.base_model)
    machine = this_machine(sharing.fake_gpus)
    cores = not machine.gpus or bool(machine.fake) or sharing.gpus == 0
    footprint = resources.footprint(config, base, bf16=machine.bf16, cores=cores)
    evaluations = len(checked.plan.evaluated) * len(config.protocols())
    cohort = config.contributors_per_iteration or len(checked.plan.seen)
    if address := cluster.address():
        nodes = cluster.nodes(address)
        allocation = cluster.allocate(address, nodes, cpus=sharing.cpus, gpus=sharing.gpus)
    else:
        allocation = resources.allocate(
            machine,
            contributors=max(cohort, evaluations),
            footprint=footprint,
            cpus=sharing.cpus,
            gpus=sharing.gpus,
        )
    return Prepared(
        config,
        checked,
        allocation,
        resources.parameters(base),
        resources.statistic(base, needed(config)[0]),
        footprint,
    )


def _work(ready: Prepared, take: Callable[[Event], None], again: str) -> None:
    """Do what a run is: a simulation; of a baseline its start, the training, its evaluation."""
    config, nodes = ready.config, len(ready.checked.plan.names)
    part = partial(
        simulate, contributors=nodes, allocation=ready.allocation, show=take, again=again
    )
    if not config.baseline:
        part(config)
        return
    journal, repository = Journal(Path(config.run_dir)), Repository(Path(config.run_dir))
    if not repository.latest():  # the start is to be published, or to be evaluated
        part(replace(config, iterations=0))
        from cold_flower.runtime import baselines  # trains here: transformers' models

        baselines.train(config, lambda line: take(journal.say(line)))
    part(replace(config, resume=True))


def show(config: Config, sharing: Sharing) -> None:
    """Print what a run would do and cost; write nothing.

    Raises:
        ColdFlowerError, StrategyError: what would stop the run before it starts.
    """
    with naming_the_recipe(config):
        if not _is_left(config):
            return
        ready = prepare(config, sharing)
    checked = ready.checked
    if config.resume and (left := Journal(Path(config.run_dir)).left()):
        checked = replace(checked, plan=checked.plan.without(left))
    parts = preview(
        config,
        checked,
        ready.allocation,
        parameters=ready.parameters,
        statistic=ready.statistic,
        footprint=ready.footprint,
    )
    for part in parts:
        console().print(part, highlight=False, markup=False)


def show_cells(planned: Sequence[Cell], sharing: Sharing) -> None:
    """Print what each cell of a sweep would cost, and all of them together; write nothing.

    Raises:
        ColdFlowerError, StrategyError: what would stop a cell before it starts.
    """
    lines = []
    for cell in planned:
        if cell.done:
            lines.append((cell.name, "done", Cost()))
            continue
        with naming_the_recipe(cell.config):
            ready = prepare(cell.config, sharing)
        left = ahead(cell.config, ready.checked)
        state = f"goes on at {left.iterations.start}" if cell.config.resume else "to do"
        one = cost(cell.config, ready.checked, left, ready.parameters, ready.statistic)
        lines.append((cell.name, state, one))
        for line in experiments.remarks(cell.config, ready.checked):
            console().print(f"{cell.name}: {line}", highlight=False, markup=False)
    console().print(overview(lines), highlight=False, markup=False)


def _is_left(config: Config) -> bool:
    """Check the run directory; return whether something is left to do, or say that nothing is.

    Raises:
        RunError: it is not empty, or it is to be resumed and another run lies there.
    """
    folder = Path(config.run_dir)
    if not config.resume:
        check_new(folder)
        return True
    check_same(folder, config)
    check_start(Repository(folder), config.base_model)
    if completed(folder, config.iterations):
        console().print(f"{folder} is complete: nothing is left to do", highlight=False)
        return False
    return True


def run(
    config: Config,
    sharing: Sharing,
    again: str = "",
    opened: Callable[[Path], object] | None = None,
) -> None:
    """Run to the end, showing progress; write the report into the run.

    Args:
        config: resolved.
        sharing: of the machine.
        again: how the user goes on after a stop or a failure; by default with --resume.
        opened: called once with the report, as soon as there is one.

    Raises:
        ColdFlowerError, StrategyError: what is wrong, before anything started; or why the
            run failed.
        Stopped: by Ctrl-C or a signal; where to go on has been said.
    """
    folder = Path(config.run_dir)
    again = again or f"add --resume --run-dir {shlex.quote(config.run_dir)}"
    started = time.time()
    with naming_the_recipe(config):
        if not _is_left(config):
            return
        check_writable(folder)
        with alone(folder):
            _run(prepare(config, sharing), started, again, opened)
    if every_score(folder):  # evaluate.protocols may be empty
        html.write([folder], folder)


def _run(
    ready: Prepared, started: float, again: str, opened: Callable[[Path], object] | None
) -> None:
    """Run what is prepared; ``started`` is when the command was."""
    config, folder = ready.config, Path(ready.config.run_dir)
    progress = Progress(started)
    try:
        with (
            live(config, progress, opened) as page,
            display(console(), progress) as show,
            stoppable(),
        ):

            def take(event: Event) -> None:
                show(event)
                page(event)

            def say(line: str) -> None:
                take({"time": time.time(), "line": line})

            say(introduction(ready))
            _work(ready, take, again)
            say(phases(progress, ready.allocation.workers))
    except Stopped as stop:
        begun = (folder / CONFIG).exists()
        kept = f"what arrived is kept: {again}"
        state = kept if begun else "the run had not begun, nothing is left of it"
        by = signal.Signals(stop.signum).name
        print(f"stopped by {by} after {clock(time.time() - started)}; {state}", file=sys.stderr)
        raise


def introduction(ready: Prepared) -> str:
    """Say what is about to run, where, and how the machine is shared."""
    config = ready.config
    work = (
        f"base model {config.base_model}, {config.iterations} iterations"
        if config.iterations
        else f"scoring {config.base_model} ({config.evaluate.protocols})"
    )
    lines = [
        f"{config.experiment}: suite {config.suite}, {work}, seed {config.seed}; "
        f"run directory {config.run_dir}",
        resources.describe(ready.allocation),
    ]
    return "\n".join([*lines, *experiments.remarks(config, ready.checked)])
