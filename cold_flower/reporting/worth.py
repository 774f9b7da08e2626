"""What an iteration's contributions were worth: a table, a figure, JSON."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.table import Table

from cold_flower.reporting import figure_files, figures
from cold_flower.reporting.paired import quantile
from cold_flower.reporting.tables import Cells, points, table_of


@dataclass(frozen=True)
class Worth:
    """Of one iteration; scores are in their own unit: 0.01 is a point."""

    iteration: int
    protocol: str
    split: str
    leave_one_out: Mapping[str, float]
    """By how much the mean score falls without it."""
    shapley: Mapping[str, float]
    """Shapley values, which share out ``whole - base``; empty where none could be had."""
    error: Mapping[str, float]
    """Standard error of these, from drawing orders alone."""
    orders: int
    """Drawn; 0 where all sets were scored."""
    truncated: float
    """Share of what was added in these that counted as 0 without being scored."""
    tolerance: float
    base: float
    """Mean score of the base that the iteration began with."""
    whole: float
    """Of what all contributions make."""
    sets: int
    """How many sets were scored."""

    def half(self, name: str) -> float:
        """Return half the 95 % interval of a Shapley value: 0 if exact, NaN of one order."""
        error = self.error[name]
        if not error or math.isnan(error):
            return error
        return quantile(self.orders - 1) * error

    @property
    def names(self) -> list[str]:
        """Return the contributors, the one that is worth most first."""
        by = self.shapley or self.leave_one_out
        return sorted(by, key=lambda name: (-by[name], name))

    @property
    def title(self) -> str:
        """Say what was measured."""
        return (
            f"iteration {self.iteration}: what each contribution is worth, in points of the mean "
            f"{self.protocol} score on {self.split}"
        )

    def table(self) -> Table:
        """Draw a line for each contributor."""
        head = ["", "leave-one-out"]
        alone = self.leave_one_out
        lines = [[name, points(alone[name], digits=2, sign="+")] for name in self.names]
        totals = [["together", points(sum(alone.values()), digits=2, sign="+")]]
        if self.shapley:
            head.append("Shapley" if not self.orders else "Shapley, 95 %")
            for line, name in zip(lines, self.names, strict=True):
                error = self.half(name) if self.orders else math.nan
                line.append(points(self.shapley[name], error, digits=2, sign="+"))
            totals[0].append(points(sum(self.shapley.values()), digits=2, sign="+"))
        return table_of(Cells(head, lines, totals), self.title)

    def figure(self) -> Figure:
        """Draw Shapley values as bars with their intervals, leave-one-out as rings."""
        bars = {name: (value, self.half(name)) for name, value in self.shapley.items()}
        rings = {name: self.leave_one_out[name] for name in self.names}
        label = (
            f"iteration {self.iteration}, {self.protocol} on {self.split}: worth in points; bars: "
            "Shapley, 95 %; rings: leave-one-out"
        )
        return figures.worth(bars, rings, self.protocol, label)

    def notes(self) -> list[str]:
        """Say, a sentence each, what the figures rest on."""
        gain = points(self.whole - self.base, digits=2, sign="+")
        said = [
            f"the base scores {points(self.base, digits=2)}, all contributions fused "
            f"{points(self.whole, digits=2)} ({gain}); {self.sets} sets were scored"
        ]
        if not self.shapley:
            said.append("no Shapley values: the budget ended before one order was valued")
        elif not self.orders:
            said.append("the Shapley values are exact: all sets were scored")
        else:
            said.append(
                f"Shapley values from {self.orders} orders; {100 * self.truncated:.0f} % of their "
                f"steps counted as 0, within {points(self.tolerance)} points of the whole. The "
                "interval is that of drawing orders alone: a larger --budget makes it smaller"
            )
        return said

    def write(self, folder: Path) -> list[Path]:
        """Write JSON and figure; return their paths."""
        name = f"{self.iteration:04d}-{self.protocol}-{self.split}"
        drawn = figure_files.drawn(self.figure(), ("svg", "png"))
        files: dict[str, bytes] = {"json": (json.dumps(self.plain(), indent=2) + "\n").encode()}
        paths = []
        for kind, data in (files | drawn).items():
            paths.append(folder / f"{name}.{kind}")
            paths[-1].write_bytes(data)
        return paths

    def plain(self) -> dict[str, Any]:
        """Return everything as JSON has it: what is not known (NaN) as null."""
        plain = {k.replace("_", "-"): v for k, v in asdict(self).items()}
        plain["interval"] = {name: self.half(name) for name in self.error}
        return {
            key: {k: None if math.isnan(v) else v for k, v in value.items()}
            if isinstance(value, dict)
            else value
            for key, value in plain.items()
        }
