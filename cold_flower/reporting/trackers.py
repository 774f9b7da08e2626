"""Send a run's scores to TensorBoard or Weights & Biases, too (``log``).

Neither package is required. The scores are in the run directory in any case.
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
    """Check that the package that ``log`` names is installed.

    Raises:
        ConfigError: with the command that installs it.
    """
    if config.log and importlib.util.find_spec(config.log) is None:
        raise ConfigError(
            f"log = {config.log!r}, but that package is not installed here: "
            f"pip install {config.log}, or leave log empty"
        )


class Tracker:
    """Logs the scores of bases. Made without arguments, it does nothing."""

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
        """Log the scores of a base, and the metrics of the contributions it was made of."""
        if values := named_values(scores, contributors):
            self._log(values, iteration)


def named_values(scores: Sequence[Row], contributors: Sequence[Row]) -> dict[str, float]:
    """Return values by the names under which they are logged.

    These are ``<protocol>/<task>``, ``<protocol>/mean-<group>`` and
    ``contribution/<metric>/<contributor>``.
    """
    values: dict[str, float] = {}
    groups: dict[str, list[float]] = {}
    for row in scores:
        values[f"{row['protocol']}/{row['task']}"] = row["value"]
        groups.setdefault(f"{row['protocol']}/mean-{row['group']}", []).append(row["value"])
    values |= {name: mean_and_sem(group)[0] for name, group in groups.items()}
    for row in contributors:
        for metric in ("diff-norm", "cosine", "train-loss", "dev-accuracy", "seconds"):
            if row.get(metric) is not None:
                values[f"contribution/{metric}/{row['name']}"] = row[metric]
    return values


def open(config: Config, run_dir: Path, run: str) -> Tracker:
    """Open what ``log`` names; a resumed run continues its earlier log.

    Args:
        config: the run's.
        run_dir: its directory, which holds TensorBoard's files.
        run: its id.
    """
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
