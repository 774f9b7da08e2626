"""Follow a run elsewhere: TensorBoard event files, or Weights & Biases (``log``).

Neither package is required; the scores are in the run directory in any case.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cold_flower.config import Config
from cold_flower.errors import ConfigError
from cold_flower.reporting.statistics import mean_and_sem

Row = Mapping[str, Any]


def check(config: Config) -> None:
    """Check that the package is there.

    Raises:
        ConfigError: with the command that installs it.
    """
    if config.log and importlib.util.find_spec(config.log) is None:
        raise ConfigError(
            f"log = {config.log!r}, but that package is not installed here: "
            f"pip install {config.log}, or leave log empty"
        )


class Tracker:
    """Logs a base's scores; without a place to log to it does nothing."""

    def __init__(
        self,
        log: Callable[[dict[str, float], int], object] = lambda values, step: None,
        close: Callable[[], object] = lambda: None,
    ) -> None:
        self._log = log
        self._close = close

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def log(self, iteration: int, scores: Sequence[Row], contributors: Sequence[Row]) -> None:
        """Log the scores of a base, and what its contributors sent."""
        if values := figures(scores, contributors):
            self._log(values, iteration)


def figures(scores: Sequence[Row], contributors: Sequence[Row]) -> dict[str, float]:
    """Name each figure ``protocol/task``, ``protocol/mean-group``, ``contribution/what/name``."""
    values: dict[str, float] = {}
    groups: dict[str, list[float]] = {}
    for row in scores:
        values[f"{row['protocol']}/{row['task']}"] = row["value"]
        groups.setdefault(f"{row['protocol']}/mean-{row['group']}", []).append(row["value"])
    values |= {name: mean_and_sem(found)[0] for name, found in groups.items()}
    for row in contributors:
        for what in ("diff-norm", "cosine", "train-loss", "dev-accuracy", "seconds"):
            if row.get(what) is not None:
                values[f"contribution/{what}/{row['name']}"] = row[what]
    return values


def open(config: Config, run_dir: Path, run: str) -> Tracker:
    """Open what ``log`` names; a resumed run goes on where it was."""
    if config.log == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(run_dir / "tensorboard")

        def scalars(values: dict[str, float], step: int) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)
            writer.flush()

        return Tracker(scalars, writer.close)
    if config.log == "wandb":
        import wandb

        session = wandb.init(
            project="cold-flower",
            name=run_dir.name,
            group=config.experiment,
            dir=run_dir,
            config=config.flat(),
            id=run,
            resume="allow",
        )
        return Tracker(lambda values, step: session.log(values, step=step), session.finish)
    return Tracker()
