"""Whether a model's scores can be set against those of a run's start; known before any is made."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from cold_flower.config import Config
from cold_flower.data.facts import facts
from cold_flower.data.plan import plan
from cold_flower.data.suite import load_suite
from cold_flower.data.task import Task
from cold_flower.errors import RunError, TaskError
from cold_flower.reporting.runs import RunDirectory
from cold_flower.reporting.statistics import pick
from cold_flower.reporting.tables import listed
from cold_flower.repository.journal import others

# What a score of one model depends on, beside the model and the task; some of it by protocol.
_ALWAYS = (
    *("seed", "partition.", "evaluate.max-test-examples", "finetune.precision"),
    *("finetune.max-length", "finetune.max-examples", "finetune.dev-examples"),
    "finetune.max-dev-examples",
)
_BY_PROTOCOL = {
    "frozen": ("probe.",),
    "finetuned": ("finetune.",),
    "few-shot": ("few-shot.", "finetune."),
}
_NEVER = ("finetune.micro-batch-size", "finetune.proximal-mu", "finetune.head")


def check(config: Config, other: RunDirectory) -> list[str]:
    """Check that there is something to compare; return what makes the comparison doubtful.

    Args:
        config: of the evaluation that is to come, resolved.
        other: the run whose start its scores are compared with.

    Raises:
        RunError: no task or no protocol in common; a task that is another one there; it is the
            same run.
        TaskError, ConfigError: a wrong suite or protocol.
    """
    if other.folder == Path(config.run_dir):
        raise RunError(f"{other.folder} is this evaluation itself: compare it with another run")
    whole = plan(config)
    here = {whole.tasks[name].name: whole.tasks[name] for name in whole.evaluated}
    start = pick(other.scores, iteration=0)
    there = {(row["task"], row["protocol"]) for row in start}
    tasks = sorted(here.keys() & {task for task, _ in there})
    protocols = [name for name in config.protocols() if any(name == p for _, p in there)]
    common = [(task, p) for task in tasks for p in protocols if (task, p) in there]
    if not common:
        kind, mine, theirs = "task", sorted(here), sorted({task for task, _ in there})
        if tasks:
            kind, mine = "protocol", config.protocols()
            theirs = sorted({protocol for task, protocol in there if task in here})
        raise RunError(
            f"{other.folder} cannot be compared with: no {kind} in common. Its start has scores of "
            f"{listed(theirs) or 'none'}, this would have of {listed(mine)}"
        )
    suite, said = str(other.config["suite"]), []
    if suite != config.suite:
        said.append(f"it was of suite {suite}, this is of {config.suite}")
        for task in _others(here, tasks, suite, int(other.config["seed"])):
            raise RunError(
                f"{other.folder} cannot be compared with: task {task!r} of its suite {suite} is "
                f"another one than that of {config.suite}"
            )
    if differing := others(other.folder, facts(config)):
        said.append(f"it was made with other {', '.join(differing)}")
    if keys := list(_differing(config, other, {protocol for _, protocol in common})):
        said.append(f"it was made with other settings: {', '.join(keys)}")
    return [f"compared with {other.folder}, but {line}" for line in said]


def _others(here: dict[str, Task], tasks: list[str], suite: str, seed: int) -> Iterator[str]:
    """Yield the tasks that are defined in another way there, as far as that suite can be read."""
    try:
        there = load_suite(suite, seed).tasks
    except TaskError:
        return
    for name in tasks:
        if name not in there or _meaning(there[name]) != _meaning(here[name]):
            yield name


def _meaning(task: Task) -> Task:
    """Return a task without what may differ between two places and seeds."""
    path = "" if task.source == "files" else task.path
    return replace(task, suite="", path=path, seed=0, paper_name="", comparable="", rows={})


def _differing(config: Config, other: RunDirectory, protocols: set[str]) -> Iterator[str]:
    asked = [start for protocol in protocols for start in _BY_PROTOCOL[protocol]]
    for key, value in config.flat().items():
        if key.startswith((*_ALWAYS, *asked)) and key not in _NEVER and other.config[key] != value:
            yield f"{key} = {other.config[key]!r} instead of {value!r}"
