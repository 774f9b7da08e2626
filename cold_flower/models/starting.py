"""The starting model: what iteration 0 publishes."""

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from cold_flower.errors import ModelError
from cold_flower.models.base import TEXT_TO_TEXT, Base
from cold_flower.models.body import body_of, load_body
from cold_flower.models.tokenizer import first_line
from cold_flower.seeds import derive, seeded


def starting_model(base: Base, seed: int) -> tuple[Any, dict[str, Tensor]]:
    """Load the starting model as its own class, and the body that contributors start from.

    A body may have tensors that the checkpoint lacks, such as BERT's pooler beside an MLM head.
    They are drawn from the seed once, here, so that all contributors start from the same.

    Raises:
        ModelError: the weights cannot be loaded.
    """
    with seeded(derive(seed, "starting-model")):
        if base.name == "demo":
            model: Any = transformers.RobertaForMaskedLM(base.config)
            classifier = AutoModelForSequenceClassification.from_config(base.config)
            load_body(classifier, {**body_of(classifier), **body_of(model)})
            return model, body_of(classifier)
        architecture = (base.config.architectures or [""])[0]
        class_name = TEXT_TO_TEXT[0] if base.text_to_text else architecture
        own_class = getattr(transformers, class_name, transformers.AutoModel)
        options = {"dtype": torch.float32, "use_safetensors": True}
        try:
            model = own_class.from_pretrained(base.name, **options)
            if base.text_to_text:
                return model, body_of(model)
            classifier = AutoModelForSequenceClassification.from_pretrained(base.name, **options)
        except Exception as error:  # a broken file may raise anything
            raise ModelError(
                f"base-model {base.name!r}: weights cannot be loaded from safetensors: "
                f"{first_line(error)}"
            ) from error
    return model, body_of(classifier)


def save_starting_model(model: Any, base: Base, folder: Path) -> None:
    """Write the starting model and its tokenizer as a transformers folder."""
    model.save_pretrained(folder, max_shard_size="1000GB")  # one file: shards are not read here
    base.tokenizer.save_pretrained(folder)
