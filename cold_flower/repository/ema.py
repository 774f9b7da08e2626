"""The moving average of the bases, kept beside each.

ema_i = decay * ema_(i-1) + (1 - decay) * base_i, and ema_0 is the starting model. For merging over
time, what to begin with and an average to deploy matter more than the rule (Dziadzio et al., arXiv
2412.06712). Contributors go on from the plain base.
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from cold_flower.models.folder import WEIGHTS
from cold_flower.repository.publish import replace_body
from strategies.fusion import Weights

FOLDER = "ema"  # in that of a base: loads as the base does


@dataclass(frozen=True)
class Average(Mapping[str, Tensor]):
    """The next average, made a tensor at a time as it is read."""

    old: Weights
    new: Weights
    decay: float

    def __getitem__(self, name: str) -> Tensor:
        old, new = self.old.get(name), self.new.get(name)
        if not new.is_floating_point():
            return new
        # Taken so, a base that does not change leaves the average as it is, to the bit.
        return (old.float() + (1 - self.decay) * (new.float() - old.float())).to(new.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.new.keys())

    def __len__(self) -> int:
        return len(self.new.keys())


def write(
    folder: Path,
    beside: Iterable[Path],
    base: Weights,
    average: Average,
    names: Sequence[str],
    prefix: str,
) -> str:
    """Write an average as a model of its own; return the sha256 of its body.

    Args:
        folder: of the base, whose files are there.
        beside: its files that the average has, too: configuration and tokenizer.
        base: all tensors of the base's file.
        average: to be written in place of the body.
        names: of the body, in the order of the file.
        prefix: what stands before them in the file.
    """
    (folder / FOLDER).mkdir()
    for file in beside:
        shutil.copy2(file, folder / FOLDER)
    return replace_body(base, folder / FOLDER / WEIGHTS, Weights(average), names, prefix)
