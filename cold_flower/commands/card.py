"""`cold-flower card`: write a base's model card into its folder."""

from pathlib import Path

from cold_flower.errors import RunError
from cold_flower.reporting.card import card as text_of
from cold_flower.reporting.runs import RunDirectory, configuration
from cold_flower.repository.bases import Repository
from cold_flower.repository.provenance import CARD
from cold_flower.repository.publish import replace_text


def card(
    run_dir: str | Path,
    iteration: int | None = None,
    *,
    licence: str = "",
    contributors: bool = True,
) -> Path:
    """Write the model card of one base, README.md in its folder; return its path.

    Args:
        run_dir: of the run.
        iteration: whose base; None is the latest.
        licence: of the base; empty is that of the starting model's card, if it names one.
        contributors: whether to name them; else they are counted.

    Raises:
        RunError: no run, no such base, or one without weights.
    """
    folder = Path(run_dir).resolve()
    run, repository = RunDirectory(folder, configuration(folder)), Repository(folder)
    chosen = repository.latest() if iteration is None else iteration
    if chosen is None:
        raise RunError(f"{run_dir}: no base is published yet")
    path = repository.with_weights(chosen) / CARD
    replace_text(path, text_of(run, chosen, licence=licence, contributors=contributors))
    return path
