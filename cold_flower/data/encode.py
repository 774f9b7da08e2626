"""Tokenised examples, and the batches made of them."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

ROUNDING = 1e-12  # of numbers that are all the same


@dataclass(frozen=True)
class Encoded:
    """Tokenised examples of any length, flat: example i is ``ids[starts[i]:starts[i+1]]``."""

    ids: Tensor
    """int32 [tokens]"""
    types: Tensor
    """uint8 [tokens]: 1 in the second text of a pair. Empty where the model does not ask for it."""
    starts: Tensor
    """int64 [examples + 1]"""
    labels: Tensor
    """int64 [examples], or float32 for regression"""
    padding: int = 0
    """The token that fills up shorter examples of a batch."""
    unknown: float = 0.0
    """Share of the tokens that the tokenizer has no word for, when these were made."""
    cut: float = 0.0
    """Share of the examples that were longer, when these were made."""

    def __len__(self) -> int:
        return len(self.labels)

    def lengths(self) -> Tensor:
        """Return tokens per example, int64 [examples], on the CPU."""
        return self.starts.diff()

    def to(self, device: torch.device) -> "Encoded":
        """Return a copy that makes its batches on a device; ``starts`` stay on the CPU."""
        moved = {key: getattr(self, key).to(device) for key in ("ids", "types", "labels")}
        return replace(self, **moved)

    def take(self, indices: Sequence[int]) -> "Encoded":
        """Return these examples in this order."""
        spans = [slice(int(self.starts[i]), int(self.starts[i + 1])) for i in indices]
        lengths = torch.tensor([0, *(s.stop - s.start for s in spans)])
        return replace(
            self,
            ids=torch.cat([self.ids[s] for s in spans]),
            types=torch.cat([self.types[s] for s in spans]) if len(self.types) else self.types,
            starts=lengths.cumsum(0),
            labels=self.labels[torch.tensor(list(indices))],
        )

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Return these examples as a model's keyword arguments, padded to the longest of them.

        The batch is made where the tokens are, and nothing here waits for a GPU: the starts and
        ends, which the CPU knows, go there in one small copy, and all else follows from them.
        """
        rows, device = torch.tensor(indices), self.ids.device
        spans = torch.stack([self.starts[rows], self.starts[rows + 1]])  # [2, examples]
        longest = int((spans[1] - spans[0]).max())
        starts, ends = spans.to(device, non_blocking=True)
        places = starts[:, None] + torch.arange(longest, device=device)  # [examples, longest]
        is_token = places < ends[:, None]
        places.clamp_(max=len(self.ids) - 1)
        inputs = {
            "input_ids": self.ids[places].long().masked_fill_(~is_token, self.padding),
            "attention_mask": is_token.long(),
        }
        if len(self.types):
            inputs["token_type_ids"] = self.types[places].long().masked_fill_(~is_token, 0)
        return inputs

    def labels_of(self, indices: Sequence[int]) -> Tensor:
        """Return these examples' labels, where the tokens are."""
        return self.labels[self.index_tensor(indices)]

    def index_tensor(self, indices: Sequence[int]) -> Tensor:
        """Return indices as a tensor where the tokens are, int64."""
        return torch.tensor(indices).to(self.ids.device, non_blocking=True)


@dataclass(frozen=True)
class EncodedSplits:
    """A contributor's tokenised data."""

    train: Encoded
    dev: Encoded
    test: Encoded
    labels: tuple[str, ...]
    """Class names; one empty name for regression."""
    kind: str
    metric: str


def concatenate(parts: Sequence[Encoded]) -> Encoded:
    """Join tokenised examples of one task."""
    lengths = torch.cat([part.lengths() for part in parts])
    return Encoded(
        ids=torch.cat([part.ids for part in parts]),
        types=torch.cat([part.types for part in parts]),
        starts=torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]),
        labels=torch.cat([part.labels for part in parts]),
        padding=parts[0].padding,
    )


def standardised(train: Sequence[float], *others: Sequence[float]) -> list[list[float]]:
    """Return a regression's numbers with mean 0 and deviation 1 in ``train``.

    Their correlation with a model's outputs stays. Without, the loss of years or prices is so large
    that a recipe for classifiers learns nothing but their mean.
    """
    mean = statistics.fmean(train)
    deviation = statistics.pstdev(train, mean)
    scale = 1 / deviation if deviation > ROUNDING * max(map(abs, train)) else 0.0
    return [[(number - mean) * scale for number in part] for part in (train, *others)]


def encode(
    tokenizer: Any,
    texts: Sequence[tuple[str, ...]],
    labels: Sequence[int] | Sequence[float],
    *,
    max_length: int,
) -> Encoded:
    """Tokenise examples of one or two texts each, cut to ``max_length`` tokens."""
    sides = [list(side) for side in zip(*texts, strict=True)]
    # The tokenizer's own limit counts, too: the model has no positions beyond it.
    limit = min(max_length, tokenizer.model_max_length)
    output = tokenizer(*sides, truncation=True, max_length=limit, return_attention_mask=False)
    ids, types = output["input_ids"], output.get("token_type_ids", [])
    flat = torch.tensor([token for example in ids for token in example], dtype=torch.int32)
    # A tokenizer in Python does not say what it cut: of those that are full, some were not.
    cut = [bool(e.overflowing) for e in output.encodings or ()] or [len(e) >= limit for e in ids]
    unknown = -1 if tokenizer.unk_token_id is None else tokenizer.unk_token_id
    return Encoded(
        ids=flat,
        types=torch.tensor([kind for example in types for kind in example], dtype=torch.uint8),
        starts=torch.tensor([0, *map(len, ids)]).cumsum(0),
        labels=torch.tensor(
            list(labels), dtype=torch.float32 if isinstance(labels[0], float) else torch.int64
        ),
        padding=int(tokenizer.pad_token_id or 0),
        unknown=float((flat == unknown).float().mean()),
        cut=sum(cut) / len(cut),
    )


def training_batches(
    lengths: Tensor, size: int, generator: torch.Generator, *, pool: int = 32
) -> Iterator[list[int]]:
    """Yield one epoch's batches of indices: in random order, each of examples of similar length.

    The shuffled examples are cut into pools of ``pool`` batches. Each pool is sorted by length and
    cut into batches, then all batches are shuffled. So there is little padding, and every epoch
    has other batches.
    """
    order = torch.randperm(len(lengths), generator=generator)
    batches = []
    for chunk in order.split(size * pool):
        batches += list(chunk[lengths[chunk].argsort(stable=True)].split(size))
    for i in torch.randperm(len(batches), generator=generator).tolist():
        yield batches[i].tolist()


def sorted_batches(lengths: Tensor, size: int) -> Iterator[list[int]]:
    """Yield batches of indices, sorted by length: for a pass without training."""
    for chunk in lengths.argsort(stable=True).split(size):
        yield chunk.tolist()
