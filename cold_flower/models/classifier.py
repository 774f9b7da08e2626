"""A contributor's model: the body from a message, and a fresh head of its own."""

from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoModelForSequenceClassification
from transformers.initialization import no_init_weights

from cold_flower.models import cores, first_token, gpus
from cold_flower.models.base import Base
from cold_flower.models.body import State, load_body
from cold_flower.models.text_to_text import TextToText, label_tokens
from cold_flower.seeds import seeded


def classifier(
    base: Base,
    body: State,
    *,
    labels: Sequence[str],
    kind: str,
    seed: int,
    plain: bool = False,
) -> Any:
    """Return a sequence-classification model: this body, and a head drawn from the seed.

    Args:
        base: configuration and tokenizer.
        body: the weights.
        labels: the class names; regression has one. Text to text scores them word by word.
        kind: ``classification`` or ``regression``.
        seed: of the head; text to text has none.
        plain: return the library's model as it is, for training loops of others. Otherwise it
            is made faster, with the same outputs (`cores`, `gpus`, `first_token`).
    """
    model: Any
    if base.text_to_text:
        model = _text_to_text(base, body, labels)
    else:
        model = _with_fresh_head(base, labels, kind, seed)
    load_body(model, body)
    target = device()
    if not plain:
        if target.type == "cpu":
            cores.adapt(model)
        else:
            gpus.adapt(model)
        first_token.adapt(model)
    return model.to(target)


def _with_fresh_head(base: Base, labels: Sequence[str], kind: str, seed: int) -> Any:
    """Make a model whose head is drawn from the seed, and whose body is not initialised."""
    config = _copy(base.config)
    config.num_labels = len(labels)
    config.problem_type = "regression" if kind == "regression" else "single_label_classification"
    with no_init_weights():  # most of the time went into drawing a body that is replaced
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    for module in model.base_model.modules():
        module._is_hf_initialized = True  # so that init_weights leaves the body out
    with seeded(seed):
        model.init_weights()
    return model


def _text_to_text(base: Base, body: State, labels: Sequence[str]) -> TextToText:
    with no_init_weights():
        model = transformers.T5ForConditionalGeneration(_copy(base.config))
    model.tie_weights()
    # transformers makes every T5 with a tied head, whatever its config says, and unties it
    # where the checkpoint has a head of its own (T5 1.1): only the weights tell.
    if "lm_head.weight" in body:
        model.lm_head.weight = nn.Parameter(body["lm_head.weight"].clone())
    return TextToText(model, label_tokens(base.tokenizer, labels))


def _copy(config: Any) -> Any:
    return type(config).from_dict(config.to_dict())


def device() -> torch.device:
    """Return the GPU that this process sees, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
