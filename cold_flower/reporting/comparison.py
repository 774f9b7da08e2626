"""Conditions set against the first of them: gains, their errors, what each condition cost."""

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from cold_flower.reporting import html as page
from cold_flower.reporting import markup
from cold_flower.reporting.conditions import Condition
from cold_flower.reporting.paired import Difference, difference
from cold_flower.reporting.runs import RunDirectory, configuration
from cold_flower.reporting.statistics import mean_and_sem, paired, pick
from cold_flower.reporting.tables import columns, points, step_length

if TYPE_CHECKING:
    import pandas

SAME_LENGTH = 0.1  # steps whose lengths differ by no more than this share count as equally long

_COSTS = ("", "step length", "finetunings", "seconds")


@dataclass(frozen=True)
class Line:
    """What a condition gained under one protocol on one group; 0.01 is a point."""

    condition: str
    protocol: str
    group: str
    tasks: int
    seeds: int
    iteration: int
    """Whose base was the last to be scored in every seed."""
    start: float
    gain: float
    """Over the start, a mean over tasks and seeds."""
    sem_tasks: float
    """Standard error over tasks, of each task's mean over seeds; NaN for one task."""
    sem_seeds: float
    """Standard error over seeds, of each seed's mean over tasks; NaN for one seed."""
    difference: Difference | None
    """From the first condition, paired by task and seed; None of the first itself."""


@dataclass(frozen=True)
class Cost:
    """What a condition took, a mean over its seeds."""

    condition: str
    length: float | None
    """Of a step, in the plain mean's (the manifest's ``length``); None where nothing is fused."""
    own: float | None
    """Of the rule's own step, where ``fusion.norm`` gave it another (``own-length``)."""
    finetunings: float
    """A baseline on a union counts as one for each dataset."""
    seconds: float
    """From asking for contributions to published bases; evaluations are left out."""


@dataclass(frozen=True)
class Comparison:
    """Conditions with the same seeds (docs/experiments.md)."""

    folder: Path
    conditions: tuple[Condition, ...]
    """The first is what the others are set against."""

    @cached_property
    def lines(self) -> list[Line]:
        """Return every condition's gain under each protocol, on each group."""
        first = self.conditions[0]
        found = []
        for group, protocol in columns([row for c in self.conditions for row in c.rows]):
            for condition in self.conditions:
                against = None
                if condition is not first:
                    against = difference(condition, first, group, protocol)
                if line := _line(condition, group, protocol, against):
                    found.append(line)
        return found

    @cached_property
    def costs(self) -> list[Cost]:
        """Return what each condition took."""
        return [_cost(condition) for condition in self.conditions]

    @property
    def doubts(self) -> list[str]:
        """Say, a sentence each, what besides its name may make a condition differ."""
        first, *others = self.costs
        said = []
        for other in others:
            if first.length and other.length and abs(other.length / first.length - 1) > SAME_LENGTH:
                said.append(
                    f"{other.condition}: its steps are {other.length / first.length:.2f} times as "
                    f"long as those of {first.condition}: a difference may be length alone"
                )
            if other.finetunings != first.finetunings:
                said.append(
                    f"{other.condition}: {other.finetunings:g} finetunings, {first.condition} "
                    f"{first.finetunings:g}: not the same work"
                )
        for group in ("seen", "unseen"):
            rows = [pick(scores, group=group) for scores in self.conditions[0].scores]
            of_seeds = [{row["task"] for row in of_seed} for of_seed in rows]
            if len(common := set.intersection(*of_seeds)) < max(map(len, of_seeds)):
                said.append(
                    f"the seeds have other {group} tasks: differences are over the {len(common)} "
                    "that all have"
                )
        for condition in self.conditions:
            if number := sum(run.progress.taken_over for run in condition.runs):
                said.append(
                    f"{condition.label}: {number} of its contributions were finetuned in another "
                    "run and taken over: its seconds are without them"
                )
            seeds_of: dict[str, list[str]] = {}
            for run in condition.runs:
                for finding in run.findings:
                    seeds_of.setdefault(finding, []).append(str(run.config["seed"]))
            for finding, seeds in seeds_of.items():
                said.append(f"{condition.label}, seed {', '.join(seeds)}: {finding}")
        return said

    def to_pandas(self) -> "pandas.DataFrame":
        """Return the lines as a DataFrame; the difference is its mean and half its interval."""
        import pandas

        rows = []
        for line in self.lines:
            row: dict[str, Any] = asdict(line)
            row["difference"] = line.difference.mean if line.difference else None
            row["half"] = line.difference.half if line.difference else None
            row["verdict"] = line.difference.verdict if line.difference else ""
            rows.append(row)
        return pandas.DataFrame(rows)

    def report(self, out: str | Path | None = None) -> Path:
        """Write ``report.html`` and its figures, by default into the folder; return its path.

        Raises:
            RunError: it cannot be written there.
        """
        where = Path(out).expanduser() if out else self.folder
        return page.write_conditions(self.conditions, where)

    def table(self) -> Table:
        """Draw the lines, a part for each protocol and group, and the costs."""
        first = self.conditions[0].label
        drawn = Table(title=self._title, title_justify="left", box=box.SIMPLE_HEAD)
        for name in ("", "gain", "± over\ntasks", "± over\nseeds", f"above {first},\n95 %", ""):
            drawn.add_column(name, justify="right" if name else "left")
        for head, lines in self._parts():
            drawn.add_row(*head, style="bold")
            for line in lines:
                cells = self._cells(line)
                drawn.add_row(f"  {cells[0]}", *cells[1:], end_section=line is lines[-1])
        return drawn

    def cost_table(self) -> Table:
        """Draw what each condition took, a mean over its seeds."""
        drawn = Table(title="Cost of a seed", title_justify="left", box=box.SIMPLE_HEAD)
        for name in _COSTS:
            drawn.add_column(name, justify="right" if name else "left")
        for cost in self.costs:
            drawn.add_row(*_cost_cells(cost))
        return drawn

    def _parts(self) -> Iterable[tuple[tuple[str, str], list[Line]]]:
        """Yield the lines of each protocol and group, headed by what they are and their start."""
        for pair in dict.fromkeys((line.protocol, line.group) for line in self.lines):
            lines = [line for line in self.lines if (line.protocol, line.group) == pair]
            one = lines[0]
            yield (f"{pair[0]}, {one.tasks} {pair[1]}", f"from {points(one.start)}"), lines

    def _cells(self, line: Line) -> list[str]:
        against, usual = line.difference, self.conditions[0].last
        after = "" if line.iteration == usual else f" (iteration {line.iteration})"
        return [
            line.condition + after,
            points(line.gain, sign="+"),
            points(line.sem_tasks),
            points(line.sem_seeds),
            str(against) if against else "",
            against.verdict if against else "",
        ]

    @property
    def _title(self) -> str:
        first = self.conditions[0]
        seeds = ", ".join(str(run.config["seed"]) for run in first.runs)
        return (
            f"{first.config['experiment']}: gain over the start in points, after "
            f"{first.last} iterations; seed {seeds}"
        )

    def __repr__(self) -> str:
        return f"<Comparison of {', '.join(c.label for c in self.conditions)}, in {self.folder}>"

    def _repr_html_(self) -> str:
        """Show the tables where a notebook shows the last value of a cell."""
        head = ["", "gain", "± over tasks", "± over seeds", f"above {self.conditions[0].label}", ""]
        rows: list[list[str]] = []
        for part, lines in self._parts():
            rows += [[*part, *[""] * 4], *map(self._cells, lines)]
        costs = markup.table(_COSTS, map(_cost_cells, self.costs))
        return f"<p>{html.escape(self._title)}</p>{markup.table(head, rows)}{costs}"


def comparison(folder: Path, runs: Mapping[str, Sequence[Path]]) -> Comparison:
    """Open runs that were made to be compared.

    Args:
        folder: where they lie, and where a report goes.
        runs: the directories of each condition's seeds, by its label; the first condition is what
            the others are set against.

    Raises:
        RunError: a directory holds no run.
    """
    opened = {
        label: tuple(RunDirectory(path, configuration(path)) for path in paths)
        for label, paths in runs.items()
    }
    return Comparison(folder, tuple(Condition(label, seeds) for label, seeds in opened.items()))


def _line(
    condition: Condition, group: str, protocol: str, against: Difference | None
) -> Line | None:
    """Return a condition's gains on one group; None where it was not scored so."""
    last, by_seed, starts = condition.last, [], []
    for rows in condition.scores:
        picked = pick(rows, group=group, protocol=protocol)
        start = pick(picked, iteration=0)
        if gained := paired(start, pick(picked, iteration=last)):
            by_seed.append(gained)
            starts += [row["value"] for row in start if row["task"] in gained]
    if not by_seed:
        return None
    names = dict.fromkeys(task for seed in by_seed for task in seed)
    tasks = {task: [seed[task] for seed in by_seed if task in seed] for task in names}
    return Line(
        condition.label,
        protocol,
        group,
        len(tasks),
        len(by_seed),
        last,
        fmean(starts),
        mean_and_sem([value for seed in by_seed for value in seed.values()])[0],
        mean_and_sem([fmean(values) for values in tasks.values()])[1],
        mean_and_sem([fmean(seed.values()) for seed in by_seed])[1],
        against,
    )


def _cost(condition: Condition) -> Cost:
    count = len(condition.runs)
    manifests = [manifest for run in condition.runs for manifest in run.manifests]
    lengths, own = (
        [manifest[key] for manifest in manifests if manifest.get(key)]
        for key in ("length", "own-length")
    )
    trained = sum(len(run.contributions) for run in condition.runs)
    trained += sum(manifest.get("datasets", 0) for manifest in manifests)
    spent = [run.progress.seconds for run in condition.runs]
    return Cost(
        condition.label,
        fmean(lengths) if lengths else None,
        fmean(own) if own else None,
        trained / count,
        sum(seconds["finetune"] + seconds["fuse"] for seconds in spent) / count,
    )


def _cost_cells(cost: Cost) -> list[str]:
    length = step_length(cost.length, cost.own)
    return [cost.condition, length, f"{cost.finetunings:g}", f"{cost.seconds:.0f}"]
