"""The model card of a base: README.md, as the hub reads it (`cold-flower card`).

What the YAML says follows the hub's own format; `huggingface_hub` writes it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from cold_flower.config import OF_A_RUN, Config
from cold_flower.data.suite import load_suite
from cold_flower.data.task import Task
from cold_flower.errors import TaskError
from cold_flower.identity import __version__
from cold_flower.reporting.conditions import Condition
from cold_flower.reporting.paired import gain
from cold_flower.reporting.runs import RunDirectory, every_score
from cold_flower.reporting.statistics import Row, pick
from cold_flower.reporting.tables import columns, points
from cold_flower.repository.bases import Repository
from cold_flower.repository.manifests import fused, rejected
from cold_flower.repository.provenance import TAG, licence_of

PAPER = "https://arxiv.org/abs/2212.01378"
# Where a run lies and how it went on: no part of its recipe.
_NOT_OF_THE_RECIPE = (
    *(*OF_A_RUN, "experiment", "suite", "base-model"),
    *("sites.allow", "sites.minimum", "keep-iterations", "keep-contributions", "iterations"),
)


@dataclass(frozen=True)
class _UpToBase(RunDirectory):
    """A run as it came to one base, which a rollback may have left behind."""

    lineage: Sequence[Mapping[str, Any]]
    """The manifests from the start to that base."""

    @cached_property
    def scores(self) -> list[Row]:
        """Return the scores along that lineage."""
        own = {manifest["iteration"] for manifest in self.lineage}
        return [row for row in every_score(self.folder) if row["iteration"] in own]


def card(
    run: RunDirectory,
    iteration: int,
    *,
    licence: str = "",
    contributors: bool = True,
    place: str = '"HERE"',
) -> str:
    """Write the card of one base.

    Args:
        run: whose base.
        iteration: which.
        licence: of the base; empty is that of the starting model's card, if it names one.
        contributors: whether to name them; else they are counted.
        place: what `from_pretrained` takes to load it.

    Raises:
        RunError: there is no such iteration.
    """
    lineage = Repository(run.folder).line(iteration)
    run = _UpToBase(run.folder, run.config, lineage)
    start = str(run.config["base-model"])
    named = licence or licence_of(Path(start))
    tasks = _tasks(run, lineage)
    data = ModelCardData(
        license=named or None,
        base_model=None if Path(start).is_dir() or start == "demo" else start,
        base_model_relation=None if Path(start).is_dir() or start == "demo" else "merge",
        datasets=sorted({t.path for t in tasks.values() if t.source == "hub"}) or None,
        metrics=sorted({row["metric"] for row in run.scores}) or None,
        library_name="transformers",
        tags=["merge", TAG],
        model_name=f"{run.config['experiment']}, base {iteration}",
        eval_results=list(_results(run.scores, iteration, tasks)) or None,
    )
    return f"---\n{data.to_yaml()}\n---\n" + "\n".join(
        _text(run, iteration, lineage, start, named, place, contributors=contributors)
    )


def _tasks(run: RunDirectory, lineage: Sequence[Mapping[str, Any]]) -> dict[str, Task]:
    """Return the tasks of the suite that scored, or that contributed; sites have no suite."""
    if run.config["sites.allow"]:
        return {}
    try:
        suite = load_suite(str(run.config["suite"]), int(run.config["seed"])).tasks
    except TaskError:  # it is not there any more
        return {}
    used = {row["task"] for row in run.scores}
    used |= {row["name"] for manifest in lineage for row in fused(manifest)}
    return {name: task for name, task in suite.items() if name in used}


def _results(scores: list[Row], iteration: int, tasks: Mapping[str, Task]) -> Iterator[EvalResult]:
    for row in pick(scores, iteration=iteration):
        task = tasks.get(row["task"])
        hub = task if task and task.source == "hub" else None
        yield EvalResult(
            task_type="text-classification",
            dataset_type=hub.path if hub else row["task"],
            dataset_name=row["task"],
            dataset_config=(hub.subset or None) if hub else None,
            # By the hub's own name; one that is carved out of another split has none there.
            dataset_split=(hub.splits["test"] or None) if hub else None,
            metric_type=row["metric"],
            metric_name=f"{row['metric']}, {row['protocol']}",
            metric_value=round(row["value"], 4),
        )


def _text(
    run: RunDirectory,
    iteration: int,
    lineage: Sequence[Mapping[str, Any]],
    start: str,
    licence: str,
    place: str,
    *,
    contributors: bool,
) -> Iterator[str]:
    name = Path(start).name if Path(start).is_dir() else start
    last = lineage[-1]
    yield f"# {run.config['experiment']}: base {iteration} of a ColD Fusion run\n"
    given = [row["name"] for manifest in lineage for row in fused(manifest)]
    made = sum(not rejected(manifest) for manifest in lineage[1:])
    how = (
        f"{made} iterations in which contributors finetuned the model on data that stayed theirs, "
        f"and their models were fused ({last.get('rule', 'the start itself')})"
    )
    if run.config["baseline"] and made:
        how = f"a baseline, trained in one place on all of their data ({run.config['baseline']})"
    yield f"{name}, evolved by [ColD Fusion]({PAPER}) with cold-flower {__version__}: {how}.\n"
    if iteration in Repository(run.folder).abandoned():
        yield ("**A rollback left this base behind**: the run's latest does not descend from it.\n")
    if not licence:
        yield (
            "**No licence is stated here**: the starting model's card names none. Whoever "
            "publishes this has to know it, and those of the data.\n"
        )
    yield "## Use\n"
    yield "A body to finetune; a head for your classes is drawn anew.\n"
    yield "```python"
    yield "from transformers import AutoModelForSequenceClassification, AutoTokenizer\n"
    yield f"model = AutoModelForSequenceClassification.from_pretrained({place}, num_labels=3)"
    yield f"tokenizer = AutoTokenizer.from_pretrained({place})"
    yield "```\n"
    yield from _gains(run, iteration)
    yield "## Contributors\n"
    if contributors:
        counted = {who: given.count(who) for who in sorted(given)}
        yield ", ".join(f"{who} ({times})" for who, times in counted.items()) or "None."
    else:
        yield f"{len(set(given))} contributors gave {len(given)} models; they are not named here."
    yield "\n## Recipe\n"
    yield "```toml"
    yield from _recipe(run.config)
    yield "```\n"
    yield "## Lineage\n"
    yield "| base | from | contributions | length | sha256 of the body |\n|---|---|---|---|---|"
    for one in lineage:
        length = f"{one['length']:.2f}" if one.get("length") else ""
        parent = "" if one["parent"] is None else one["parent"]
        number = len(fused(one)) or ""
        yield f"| {one['iteration']} | {parent} | {number} | {length} | `{one['sha256'][:16]}` |"
    yield ""


def _gains(run: RunDirectory, iteration: int) -> Iterator[str]:
    """Yield the table of scores and of gains over the start."""
    rows = pick(run.scores, iteration=iteration)
    if not rows:
        yield f"No score was measured at base {iteration}.\n"
        return
    yield "## Scores\n"
    yield (
        "Means over tasks in points; the gain is over the starting model, paired by task, ± its "
        "95 % interval over tasks. One seed: another run of the same recipe ends elsewhere.\n"
    )
    yield "| | tasks | score | gain |\n|---|---|---|---|"
    condition = Condition("", (run,))
    for group, protocol in columns(rows):
        values = [row["value"] for row in pick(rows, group=group, protocol=protocol)]
        picked = pick(run.scores, group=group, protocol=protocol)
        all_tasks = len({row["task"] for row in picked})
        of = f"{len(values)} of {all_tasks}" if len(values) < all_tasks else f"{all_tasks}"
        found = gain(condition, group, protocol, iteration) if iteration else None
        mean = points(fmean(values))
        some = f" ({found.tasks} of {all_tasks})" if found and found.tasks < len(values) else ""
        yield f"| {protocol}, {group} | {of} | {mean} | {found or ''}{some} |"
    seen = "data was trained on" if run.config["baseline"] else "contributor took part"
    yield (
        "\n**frozen**: a head is trained on the body's features. **finetuned**: all is trained. "
        f"**few-shot**: all is trained, on few examples. A **seen** task's {seen}.\n"
    )
    yield from _comparable(run)


def _comparable(run: RunDirectory) -> Iterator[str]:
    """Yield which tasks' scores are not comparable with published ones, as their suite says."""
    said = {
        name: task.comparable
        for name, task in _tasks(run, []).items()
        if task.comparable not in ("", "yes")
    }
    if said:
        listed = "; ".join(f"{name}: {why}" for name, why in sorted(said.items()))
        yield f"Comparable with published scores, as the suite says: {listed}.\n"
    most = run.config["evaluate.max-test-examples"]
    if most:
        yield f"Measured on at most {most} test examples of a task: not a published test score.\n"


def _recipe(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the keys that are not at their default, as TOML."""
    defaults = Config().flat()
    for key, value in config.items():
        if key not in _NOT_OF_THE_RECIPE and value != defaults.get(key):
            yield f"{key} = {json.dumps(value)}"
