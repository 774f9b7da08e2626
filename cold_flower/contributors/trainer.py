"""A site's own training loop in place of ours (paper, section 3: any optimisation will do).

``trainer = "my_site.train:finetune"`` in site.toml names a function that takes a `Job` and
returns the trained body and metrics. It is imported from beside site.toml, or as installed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from cold_flower.config import Finetune
from cold_flower.contributors.own_code import called, imported
from cold_flower.data.rows import Rows
from cold_flower.errors import SiteError
from strategies.errors import Refused
from strategies.fusion import is_finite
from strategies.fusion._statistics import check_form, prefix


@dataclass(frozen=True)
class Job:
    """What a trainer gets: the base, the site's own data, the run's recipe."""

    model: Any
    """A transformers classifier: this iteration's base, and a fresh head, which with
    ``finetune.head = probe`` was trained on it (with ``keep``: keeping one is yours). Yours to
    change."""
    body: Mapping[str, Tensor]
    """The base alone, by the names to send back; float32, on the CPU. Not to be written to: it may
    be the message's own bytes."""
    tokenizer: Any
    train: Rows
    dev: Rows
    labels: tuple[str, ...]
    """Class names; one empty name for regression."""
    options: Finetune
    """The run's recipe, the site's limits applied."""
    iteration: int
    seed: int
    statistic: str = ""
    """Of the training data, which the run's fusion rule needs beside the body (``fisher``,
    ``gram``, ``gram-full``: `cold_flower.training.statistics`); its tensors go among the body's,
    as ``fisher.NAME`` or ``gram.NAMES``."""


def train(name: str, beside: Path, job: Job) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Have a trainer work; return the body that fits the base, and its metrics.

    What it returns besides the body's tensors (a head, buffers) goes no further.

    Raises:
        SiteError: it cannot be imported, is no function, returned something else, a body of
            another form, or a number that is not finite.
        OwnCodeError: it raised anything itself.
    """
    trainer = imported(name, beside)
    if not callable(trainer):
        raise SiteError(f"trainer {name!r} is no function")
    match called(name, trainer, job, beside=beside):
        case (Mapping() as state, Mapping() as metrics):
            body = {key: _like(before, state, key, name) for key, before in job.body.items()}
            body |= _statistic(state, job, name)
            numbers = {str(key): _finite(key, value, name) for key, value in metrics.items()}
            return body, {"num-examples": len(job.train), **numbers}
        case outcome:
            parts = outcome if isinstance(outcome, tuple) else (outcome,)
            came = ", ".join(type(part).__name__ for part in parts)
            raise SiteError(
                f"trainer {name!r} returned {came}, expected (body, metrics): tensors by name, "
                "numbers by name"
            )


def _like(before: Tensor, state: Mapping[str, Any], key: str, name: str) -> Tensor:
    """Return a tensor of the trained body: of the base's shape, float32, on the CPU."""
    after = state.get(key)
    if not isinstance(after, Tensor):
        came = f", but {type(after).__name__}" if key in state else ""
        raise SiteError(f"trainer {name!r} returned no tensor {key!r}{came}")
    after = after.detach().float().cpu()
    if after.shape != before.shape:
        raise SiteError(
            f"trainer {name!r}: {key} has shape {tuple(after.shape)}, the base has "
            f"{tuple(before.shape)}"
        )
    if not is_finite(after):
        raise SiteError(f"trainer {name!r}: {key} holds NaN or infinity: did it diverge?")
    return after.contiguous()


def _statistic(state: Mapping[str, Any], job: Job, name: str) -> dict[str, Tensor]:
    """Return the tensors of the statistic that was asked for."""
    before = prefix(job.statistic)
    if not before:
        return {}
    found = {key: value for key, value in state.items() if key.startswith(before)}
    tensors = {k: v.detach().float().cpu() for k, v in found.items() if isinstance(v, Tensor)}
    form = {k.removeprefix(before): (v.dtype, tuple(v.shape)) for k, v in tensors.items()}
    body = {key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in job.body.items()}
    try:
        check_form(job.statistic, form, body)
    except Refused as reason:
        asked = f"asked for a statistic ({job.statistic})"
        raise SiteError(f"trainer {name!r}, {asked}: {reason}") from reason
    return {key: tensor.contiguous() for key, tensor in tensors.items()}


def _finite(key: object, value: Any, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise SiteError(
            f"trainer {name!r} returned {key} = {value}, expected a finite number: did it "
            "diverge? A metric that is not known is left out"
        )
    return number
