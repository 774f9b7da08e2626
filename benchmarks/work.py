"""What a finetuning benchmark works on; random work needs torch and transformers alone."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, RobertaConfig

from cold_flower.config import Config
from cold_flower.data.encode import Encoded
from cold_flower.models.base import Base
from cold_flower.models.body import body_of
from cold_flower.models.classifier import classifier
from cold_flower.models.starting import starting_model

ROBERTA = {"max_position_embeddings": 514, "type_vocab_size": 1}
SHAPES: dict[str, dict[str, int]] = {
    "RoBERTa-base": {"vocab_size": 50_265, **ROBERTA},
    "tiny RoBERTa": {
        "vocab_size": 1_000,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        **ROBERTA,
    },
}
MNLI = (3.55, 0.47)
"""Mean and deviation of the logarithm of the tokens of MNLI's pairs: log-normal, the mean 39. So
were 20,000 training pairs with BERT's uncased tokenizer: quartiles 26, 36, 49, 99 % below 99, 0.3 %
above 128."""


@dataclass(frozen=True)
class Work:
    """What is learnt, from what."""

    model: Callable[..., Any]
    """Makes it anew; ``plain=True`` as the library does."""
    train: Encoded
    test: Encoded | None


def real(task: str, examples: int) -> Work:
    """Return a dataset and the encoder it is for."""
    from cold_flower.contributors.contributor import Contributor  # needs flwr
    from cold_flower.data.plan import resolve

    keys: dict[str, Any] = {
        "tasks": task,
        "contributors-per-iteration": 0,
        "finetune.max-examples": examples,
        "finetune.max-dev-examples": 100,
    }
    if folder := os.environ.get("COLD_FLOWER_REAL"):
        keys["suite"] = f"{folder}/data/suite.toml"
        keys["base-model"] = f"{folder}/models/minilm"
    os.environ["COLD_FLOWER_HOME"] = tempfile.mkdtemp()
    contributor = Contributor(resolve(Config.from_flat(keys)), 0)
    data = contributor.splits()
    _, body = starting_model(contributor.base, 0)
    model = partial(classifier, contributor.base, body, labels=data.labels, kind=data.kind, seed=0)
    return Work(model, data.train, data.test)


def random(examples: int, tokens: int = 0, shape: str = "RoBERTa-base") -> Work:
    """Return random tokens and a RoBERTa of random weights.

    Args:
        examples: how many.
        tokens: of each; 0 = as MNLI's.
        shape: one of `SHAPES`.
    """
    config = RobertaConfig(**SHAPES[shape])
    base = Base("random", config, None, "")
    generator = torch.Generator().manual_seed(0)
    drawn = torch.empty(examples).log_normal_(*MNLI, generator=generator)
    lengths = torch.full((examples,), tokens) if tokens else drawn.long().clamp(5, 250)
    starts = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    words = (4, config.vocab_size)
    ids = torch.randint(*words, (int(starts[-1]),), generator=generator, dtype=torch.int32)
    labels = torch.randint(3, (examples,), generator=generator)
    data = Encoded(ids, torch.empty(0, dtype=torch.uint8), starts, labels, padding=1)
    torch.manual_seed(0)
    body = body_of(AutoModelForSequenceClassification.from_config(config))
    model = partial(classifier, base, body, labels="abc", kind="classification", seed=0)
    return Work(model, data, None)
