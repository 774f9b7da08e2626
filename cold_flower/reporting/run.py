"""A run as a notebook or a script wants it: scores, gains, bases, a table (docs/api.md)."""

import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from cold_flower.config import ALL_PROTOCOLS
from cold_flower.errors import ConfigError, RunError
from cold_flower.reporting import html as page
from cold_flower.reporting import markup
from cold_flower.reporting.runs import RunDirectory, configuration
from cold_flower.reporting.statistics import mean_and_sem, paired, pick
from cold_flower.reporting.tables import Cells, gain_cells, points, score_cells, table_of
from cold_flower.repository.bases import Repository
from strategies.names import unknown

if TYPE_CHECKING:
    import pandas

COLUMNS = ("iteration", "task", "protocol", "group", "metric", "value", "n_test", "seed", "base")


@dataclass(frozen=True)
class Gain:
    """By how much scores rose, paired by task; in the scores' own unit (0.01 is a point)."""

    mean: float
    """Unweighted, over tasks (paper, section 4.4)."""
    sem: float
    """Standard error of the mean over tasks; NaN for a single task."""
    n: int
    """How many tasks."""
    by_task: Mapping[str, float]

    def __str__(self) -> str:
        tasks = f"{self.n} task{'' if self.n == 1 else 's'}"
        return f"{points(self.mean, self.sem, sign='+')} points ({tasks})"


@dataclass(frozen=True)
class Run(RunDirectory):
    """A run that lies on the disk; what it reads it keeps, so open it again if it goes on."""

    against: RunDirectory | None = None
    """Compare with the start of that run instead of this run's own (`cold_flower.evaluate`)."""

    @property
    def latest(self) -> Path:
        """Return the folder of the newest base, for ``AutoModel.from_pretrained``.

        Raises:
            RunError: nothing is published yet.
        """
        head = Repository(self.folder).latest()
        if head is None:
            raise RunError(f"{self.folder}: no base is published yet")
        return self.base(head)

    def base(self, iteration: int) -> Path:
        """Return the folder of one base; 0 is the starting model.

        Raises:
            RunError: there is no such iteration, or its weights were not kept.
        """
        return Repository(self.folder).with_weights(iteration)

    def gains(self, protocol: str, group: str = "", iteration: int | None = None) -> Gain:
        """Return the gain over the start, paired by task.

        Args:
            protocol: ``frozen``, ``finetuned`` or ``few-shot``; ``ema-frozen`` and so on.
            group: ``seen`` or ``unseen``; empty is both.
            iteration: whose base; by default the last one that was evaluated.

        Raises:
            ConfigError: no such protocol or group.
            RunError: no task was scored before and after.
        """
        if protocol not in ALL_PROTOCOLS:
            raise ConfigError(unknown("protocol", protocol, ALL_PROTOCOLS))
        if group not in ("", "seen", "unseen"):
            raise ConfigError(unknown("group", group, ("seen", "unseen")))
        wanted = {"protocol": protocol} | ({"group": group} if group else {})
        if self.against:
            iteration, before = 0, pick(self.against.scores, iteration=0, protocol=protocol)
        else:
            before = pick(self.scores, iteration=0, **wanted)
        if iteration is None:
            iteration = max((row["iteration"] for row in self.scores), default=0)
        by_task = paired(before, pick(self.scores, iteration=iteration, **wanted))
        if not by_task or (iteration == 0 and not self.against):
            scored = sorted({row["iteration"] for row in pick(self.scores, **wanted)})
            raise RunError(
                f"{self.folder}: no gain of iteration {iteration} over the start under {protocol}"
                f"{f' on {group} tasks' if group else ''}; scored so are the iterations {scored}"
            )
        mean, sem = mean_and_sem([*by_task.values()])
        return Gain(mean, sem, len(by_task), by_task)

    def to_pandas(self) -> "pandas.DataFrame":
        """Return the scores as a DataFrame, a row for each base, task and protocol."""
        import pandas

        return pandas.DataFrame(self.scores, columns=list(COLUMNS))

    def table(self) -> Table:
        """Return the mean scores in points, drawn as at the end of ``cold-flower simulate``."""
        return table_of(self._cells(), self._title)

    def report(self, out: str | Path | None = None) -> Path:
        """Write ``report.html`` and its figures, by default into the run; return its path.

        Args:
            out: another folder, or a file that ends in .html, for the page alone.

        Raises:
            RunError: the run has no scores yet; or it cannot be written there.
        """
        return page.write([self.folder], Path(out).expanduser() if out else self.folder)[0]

    def _cells(self) -> Cells:
        if self.against:
            return gain_cells(self.against.scores, self.scores)
        return score_cells(self.scores, trained=self.config["iterations"] > 0)

    @property
    def _title(self) -> str:
        name = f"{self.config['experiment']}, seed {self.config['seed']}"
        if self.against:
            return f"gain of {self.config['base-model']} over {self.against.folder}, in points"
        return f"{name}: mean test score, in points"

    def __repr__(self) -> str:
        head = Repository(self.folder).latest()
        of = f"{head or 0} of {self.config['iterations']} iterations"
        here = self.folder.is_relative_to(Path.cwd())
        where = self.folder.relative_to(Path.cwd()) if here else self.folder
        return f"<Run {self.config['experiment']}, {of}, in {where}>"

    def _repr_html_(self) -> str:
        """Show the table where a notebook shows the last value of a cell."""
        cells = self._cells()
        table = markup.table(cells.head, [*cells.lines, *cells.totals])
        return f"<p>{html.escape(self._title)}</p>{table}"


def open_run(path: str | Path) -> Run:
    """Open a run directory, of a run that goes on, too.

    Raises:
        RunError: the folder holds no run.
    """
    folder = Path(path).expanduser().resolve()
    return Run(folder, configuration(folder))
