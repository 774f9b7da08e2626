"""A contributor's model: a body from a message, and a fresh head of its own."""

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
    """Return a sequence-classification model: this body, a fresh head from the seed.

    Args:
        base: shape and tokenizer.
        body: the weights.
        labels: class names, of which text to text makes its classes; one for regression.
        kind: ``classification`` or ``regression``.
        seed: of the head; text to text has none.
        plain: leave the library's model as it is, for the loops of others. Else it is made
            faster, with the same outputs: `cores`, `gpus`, `first_token`.
    """
    config = type(base.config).from_dict(base.config.to_dict())
    if base.text_to_text:
        model: Any = _text_to_text(config, body, label_tokens(base.tokenizer, labels))
    else:
        number = kind == "regression"
        config.num_labels = len(labels)
        config.problem_type = "regression" if number else "single_label_classification"
        with no_init_weights():  # drawing a body that is replaced took most of the time
            model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
        for module in model.base_model.modules():
            module._is_hf_initialized = True
        with seeded(seed):
            model.init_weights()  # of what is left: the head
    load_body(model, body)
    on = device()
    if not plain:
        (cores if on.type == "cpu" else gpus).adapt(model)
        first_token.adapt(model)
    return model.to(on)


def _text_to_text(config: Any, body: State, words: Sequence[Sequence[int]]) -> TextToText:
    with no_init_weights():
        model = transformers.T5ForConditionalGeneration(config)
    model.tie_weights()
    # transformers makes every T5 with a tied head, whatever its config says, and unties it
    # where the checkpoint has a head of its own (T5 1.1): only the weights tell.
    if "lm_head.weight" in body:
        model.lm_head.weight = nn.Parameter(body["lm_head.weight"].clone())
    return TextToText(model, words)


def device() -> torch.device:
    """Return the GPU that this process sees, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
