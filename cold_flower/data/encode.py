"""Tokenised examples and the batches made of them. Needs torch alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Encoded:
    """Tokenised examples of any length, flat: example i is ``ids[starts[i]:starts[i+1]]``."""

    ids: Tensor
    """int32 [tokens]"""
    types: Tensor
    """uint8 [tokens]: 1 in the second text of a pair, for models that want it; else empty."""
    starts: Tensor
    """int64 [examples + 1]"""
    labels: Tensor
    """int64 [examples], or float32 for regression"""
    padding: int = 0
    """The id that fills a batch up."""

    def __len__(self) -> int:
        return len(self.labels)

    def lengths(self) -> Tensor:
        """Return tokens per example, int64 [examples], on the CPU."""
        return self.starts.diff()

    def to(self, device: torch.device) -> "Encoded":
        """Return them with all but ``starts`` on a device, where batches are then made."""
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
        """Pad these examples to the longest of them: a model's keyword arguments.

        They are made where the tokens are, and nothing waits for a GPU: what is known on the CPU
        goes there in one small copy, and the tokens' places are computed, not searched.
        """
        rows, on = torch.tensor(indices), self.ids.device
        places = torch.stack([self.starts[rows], self.starts[rows + 1]])
        longest = int((places[1] - places[0]).max())
        starts, ends = places.to(on, non_blocking=True)
        tokens = starts[:, None] + torch.arange(longest, device=on)  # [examples, longest]
        there = tokens < ends[:, None]
        tokens.clamp_(max=len(self.ids) - 1)
        made = {
            "input_ids": self.ids[tokens].long().masked_fill_(~there, self.padding),
            "attention_mask": there.long(),
        }
        if len(self.types):
            made["token_type_ids"] = self.types[tokens].long().masked_fill_(~there, 0)
        return made

    def labels_of(self, indices: Sequence[int]) -> Tensor:
        """Return these examples' labels, where the tokens are."""
        return self.labels[self.rows(indices)]

    def rows(self, indices: Sequence[int]) -> Tensor:
        """Return indices as a tensor where the tokens are, int64."""
        return torch.tensor(indices).to(self.ids.device, non_blocking=True)


@dataclass(frozen=True)
class EncodedSplits:
    """One contributor's tokenised data."""

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


def encode(
    tokenizer: Any,
    texts: Sequence[tuple[str, ...]],
    labels: Sequence[int] | Sequence[float],
    *,
    max_length: int,
) -> Encoded:
    """Tokenise examples of one or two texts each, cut to ``max_length`` tokens."""
    sides = [list(side) for side in zip(*texts, strict=True)]
    # The tokenizer's own limit counts too: positions beyond it do not exist.
    limit = min(max_length, tokenizer.model_max_length)
    out = tokenizer(*sides, truncation=True, max_length=limit, return_attention_mask=False)
    rows = out["input_ids"]
    types = out.get("token_type_ids")
    flat = [token for row in rows for token in row]
    return Encoded(
        ids=torch.tensor(flat, dtype=torch.int32),
        types=torch.tensor([t for row in types or [] for t in row], dtype=torch.uint8),
        starts=torch.tensor([0, *map(len, rows)]).cumsum(0),
        labels=torch.tensor(
            list(labels), dtype=torch.float32 if isinstance(labels[0], float) else torch.int64
        ),
        padding=int(tokenizer.pad_token_id or 0),
    )


def training_batches(
    lengths: Tensor, size: int, generator: torch.Generator, *, pool: int = 32
) -> Iterator[list[int]]:
    """Yield one epoch's batches of indices, random but of similar lengths.

    Shuffle, sort each pool of ``pool`` batches by length, cut it into batches, shuffle
    the batches: padding stays small and every epoch differs.
    """
    order = torch.randperm(len(lengths), generator=generator)
    batches = []
    for chunk in order.split(size * pool):
        batches += list(chunk[lengths[chunk].argsort(stable=True)].split(size))
    for i in torch.randperm(len(batches), generator=generator).tolist():
        yield batches[i].tolist()


def sorted_batches(lengths: Tensor, size: int) -> Iterator[list[int]]:
    """Yield batches of indices by length: the order for a pass without training."""
    for chunk in lengths.argsort(stable=True).split(size):
        yield chunk.tolist()
