"""The starting model: what iteration 0 publishes."""

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from cold_flower.errors import ModelError
from cold_flower.models.base import TEXT_TO_TEXT, Base, first_line
from cold_flower.models.body import body_of, load_body
from cold_flower.seeds import derive, seeded


def starting_model(base: Base, seed: int) -> tuple[Any, dict[str, Tensor]]:
    """Load the starting model under its own class, and the body its contributors get.

    A tensor that the checkpoint lacks (BERT's pooler beside an MLM head) is drawn from
    the seed once, here, so that all contributors start from the same.
    """
    with seeded(derive(seed, "starting-model")):
        if base.name == "demo":
            model: Any = transformers.RobertaForMaskedLM(base.config)
            body = AutoModelForSequenceClassification.from_config(base.config)
            load_body(body, {**body_of(body), **body_of(model)})
            return model, body_of(body)
        named = (base.config.architectures or [""])[0]
        architecture = TEXT_TO_TEXT[0] if base.text_to_text else named
        own_class = getattr(transformers, architecture, transformers.AutoModel)
        quiet = {"dtype": torch.float32, "use_safetensors": True}
        try:
            model = own_class.from_pretrained(base.name, **quiet)
            if base.text_to_text:
                return model, body_of(model)
            classifier = AutoModelForSequenceClassification.from_pretrained(base.name, **quiet)
        except Exception as error:  # a broken file may raise anything
            raise ModelError(
                f"base-model {base.name!r}: weights cannot be loaded from safetensors: "
                f"{first_line(error)}"
            ) from error
    return model, body_of(classifier)


def save_starting_model(model: Any, base: Base, folder: Path) -> None:
    """Write the starting model and its tokenizer as a transformers folder."""
    model.save_pretrained(folder, max_shard_size="1000GB")
    base.tokenizer.save_pretrained(folder)
