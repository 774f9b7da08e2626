"""A contributor's tokenised data on its own disk: made once, read from then on.

It is a cache: what is gone is made again, from the same rows, into the same bytes.
"""

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import astuple
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from cold_flower.config import Config
from cold_flower.data import sources
from cold_flower.data.encode import Encoded, EncodedSplits, encode, standardised
from cold_flower.data.plan import plan
from cold_flower.data.splits import Splits
from cold_flower.data.task import Task
from cold_flower.identity import code_sha256
from cold_flower.models import text_to_text
from cold_flower.models.base import Base
from strategies.fusion import Weights, write_safetensors

IDLE = 256  # contributors without work whose tokenised data are kept
SPLITS = ("train", "dev", "test")
ENCODED = ("ids", "types", "starts", "labels")  # the tensors of an Encoded
FACTS = ("padding", "unknown", "cut")  # its numbers
_code = cache(code_sha256)  # of this process


def digest(task: Task, shard: int | None, config: Config, base: Base) -> str:
    """Return a short hash of all that tokenised data depend on: rows, draws, base model.

    Args:
        task: whose data.
        shard: of them, with ``partition.kind = "shards"``.
        config: the contributor's own.
        base: whose tokenizer cuts the texts.
    """
    options = config.finetune
    made_from = {
        "task": [str(value) for value in astuple(task)],
        "shard": shard,
        "seed": config.seed,
        "sizes": [
            options.max_examples,
            options.dev_examples,
            options.max_dev_examples,
            options.max_length,
            config.evaluate.max_test_examples,
            *astuple(config.partition),
        ],
        "base": base.sha256,
        # The base's fingerprint does not say where its tokenizer cuts texts.
        "cut": [base.tokenizer.model_max_length, base.tokenizer.truncation_side],
        "files": sources.stamp(task),
        "code": _code(),
    }
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:16]


def encoded(data: Splits, task: Task, config: Config, base: Base) -> EncodedSplits:
    """Tokenise a task's rows for a base model; numbers are standardised by the training rows'.

    Raises:
        TaskError: text to text, and a task that it cannot answer (`text_to_text.check`).
    """
    text_to_text.check(base, task, data.labels)
    parts = (data.train, data.dev, data.test)
    labels: list[list[Any]] = [rows.labels for rows in parts]
    if task.kind == "regression":
        labels = standardised(*labels)
    train, dev, test = (
        encode(base.tokenizer, rows.texts, own, max_length=config.finetune.max_length)
        for rows, own in zip(parts, labels, strict=True)
    )
    return EncodedSplits(train, dev, test, data.labels, task.kind, task.metric)


def save(data: EncodedSplits, path: Path) -> None:
    """Write a contributor's data, all of it or nothing."""
    tensors: dict[str, Tensor] = {}
    for name in SPLITS:
        rows = getattr(data, name)
        tensors |= {f"{name}.{key}": torch.tensor(getattr(rows, key)) for key in FACTS}
        tensors |= {f"{name}.{key}": getattr(rows, key) for key in ENCODED}
    template, labels = Weights(tensors).template(), {"labels": json.dumps(data.labels)}
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_safetensors(path, template, tensors.items(), labels)
    except FileNotFoundError:  # `prune` of another worker took the folder in between
        path.parent.mkdir(parents=True, exist_ok=True)
        write_safetensors(path, template, tensors.items(), labels)


def read(path: Path, task: Task) -> EncodedSplits | None:
    """Read a contributor's data; None if they are not there."""
    with suppress(OSError):  # not there, or not ours to touch
        os.utime(path)  # read last: `prune` goes by it
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no dict
            labels = tuple(json.loads(file.metadata()["labels"]))
    except FileNotFoundError:
        return None
    train, dev, test = (
        Encoded(
            **{key: tensors[f"{name}.{key}"] for key in ENCODED},
            **{key: tensors[f"{name}.{key}"].item() for key in FACTS},
        )
        for name in SPLITS
    )
    return EncodedSplits(train, dev, test, labels, task.kind, task.metric)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the files that were read last, and folders that are empty then.

    Args:
        folder: of all contributors of a simulation.
        keep: how many files stay.
    """
    read_at: list[tuple[int, Path]] = []
    for path in folder.glob("*/tokens-*.safetensors"):
        with suppress(FileNotFoundError):  # another worker prunes, too
            read_at.append((path.stat().st_mtime_ns, path))
    for _, path in sorted(read_at, reverse=True)[keep:]:
        path.unlink(missing_ok=True)
        with suppress(OSError):  # its heads are there, or a new file
            path.parent.rmdir()


def kept(config: Config) -> int:
    """Return how many contributors' tokens a simulation keeps: those at work each time, and more.

    With tens of thousands of contributors the rest would fill the disk; who takes part again
    after a long time tokenises again.
    """
    whole = plan(config)
    asked = config.contributors_per_iteration or len(whole.seen)
    return IDLE + len(whole.evaluated) + (len(whole.seen) if config.gate.protocol else asked)


def delete_others(path: Path) -> None:
    """Delete all of a site's tokens but those at ``path``: of data or keys as they were before.

    They may hold rows that have been withdrawn since.
    """
    for other in path.parent.glob("*tokens-*"):  # also what a write left that was cut off
        if other != path:
            other.unlink(missing_ok=True)
