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
from cold_flower.contributors.site import imported
from cold_flower.data.rows import Rows
from cold_flower.errors import SiteError


@dataclass(frozen=True)
class Job:
    """What a trainer gets: the base, the site's own data, the run's recipe."""

    model: Any
    """A transformers classifier: this iteration's base, and a fresh head. Yours to change."""
    body: Mapping[str, Tensor]
    """The base alone, by the names to send back; float32, on the CPU."""
    tokenizer: Any
    train: Rows
    dev: Rows
    labels: tuple[str, ...]
    """Class names; one empty name for regression."""
    options: Finetune
    """The run's recipe, the site's limits applied."""
    iteration: int
    seed: int


def train(name: str, beside: Path, job: Job) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Have a trainer work; return the body that fits the base, and its metrics.

    What it returns besides the body's tensors (a head, buffers) goes no further.

    Raises:
        SiteError: it cannot be imported, is no function, returned something else, or a body of
            another form, or a metric that is not finite.
    """
    trainer = imported(name, beside)
    if not callable(trainer):
        raise SiteError(f"trainer {name!r} is no function")
    outcome = trainer(job)
    if not (isinstance(outcome, tuple) and len(outcome) == 2):
        raise SiteError(
            f"trainer {name!r} returned {type(outcome).__name__}, expected (body, metrics)"
        )
    state, metrics = outcome
    body = {}
    for key, before in job.body.items():
        if key not in state:
            raise SiteError(f"trainer {name!r} returned no tensor {key!r}")
        after = state[key].detach().float().cpu()
        if after.shape != before.shape:
            raise SiteError(
                f"trainer {name!r}: {key} has shape {tuple(after.shape)}, the base has "
                f"{tuple(before.shape)}"
            )
        body[key] = after.contiguous()
    numbers = {str(key): float(value) for key, value in metrics.items()}
    for key, value in numbers.items():
        if not math.isfinite(value):
            raise SiteError(
                f"trainer {name!r} returned {key} = {value}, expected a finite number: did it "
                "diverge? A metric that is not known is left out"
            )
    return body, {"num-examples": len(job.train), **numbers}
