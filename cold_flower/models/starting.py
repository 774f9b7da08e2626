"""The starting model: what iteration 0 publishes."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.utils.tqdm import enable_progress_bars
from torch import Tensor
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging

from cold_flower.errors import ModelError, sentence
from cold_flower.models.base import TEXT_TO_TEXT, Base
from cold_flower.models.body import State, body_of, load_body, prefix_of
from cold_flower.seeds import derive, seeded
from strategies.fusion import is_finite


def starting_model(base: Base, seed: int) -> tuple[Any, dict[str, Tensor]]:
    """Load the starting model as its own class, and the body that contributors start from.

    A body may have tensors that the checkpoint lacks, such as BERT's pooler beside an MLM head.
    They are drawn from the seed once, here, so that all contributors start from the same.

    Raises:
        ModelError: the weights cannot be loaded; the checkpoint lacks more of the body than a
            pooler; NaN or infinity. By name.
    """
    with seeded(derive(seed, "starting-model")), _quiet():
        if base.name == "demo":
            model: Any = transformers.RobertaForMaskedLM(base.config)
            classifier = AutoModelForSequenceClassification.from_config(base.config)
            load_body(classifier, {**body_of(classifier), **body_of(model)})
            return model, body_of(classifier)
        architecture = (base.config.architectures or [""])[0]
        class_name = TEXT_TO_TEXT[0] if base.text_to_text else architecture
        own_class = getattr(transformers, class_name, transformers.AutoModel)
        options = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
        try:
            model, loaded = own_class.from_pretrained(base.place, **options)
            holder = model  # of the body
            if not base.text_to_text:
                holder, loaded = AutoModelForSequenceClassification.from_pretrained(
                    base.place, **options
                )
        except Exception as error:  # a broken file may raise anything
            raise ModelError(
                f"base-model {base.name!r}: weights cannot be loaded from safetensors: "
                f"{sentence(error)}"
            ) from error
    body = body_of(holder)
    _check_whole(base, holder, body, loaded["missing_keys"])
    for name, tensor in {**model.state_dict(), **body}.items():
        if not is_finite(tensor):
            raise ModelError(
                f"base-model {base.name!r}: tensor {name} holds NaN or infinity. Take another "
                "copy of the model, or one from before its training diverged."
            )
    return model, body


@contextmanager
def _quiet() -> Iterator[None]:
    """Have the library not list the tensors that are drawn; show no bar but a download's."""
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if bar:
        logging.disable_progress_bar()
        enable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def _check_whole(base: Base, model: Any, body: State, missing: Collection[str]) -> None:
    """Check that the body is the checkpoint's: what is drawn in its place is no base model."""
    lacking = [key for key in body if prefix_of(model) + key in missing and "pooler" not in key]
    if lacking:
        raise ModelError(
            f"base-model {base.name!r}: its weights lack {len(lacking)} of the model's "
            f"{len(body)} tensors, such as {lacking[0]}. Expected are the names that "
            f"{type(model).__name__}.save_pretrained gives them, and the layers of config.json."
        )


def save_starting_model(model: Any, base: Base, folder: Path) -> None:
    """Write the starting model and its tokenizer as a transformers folder."""
    model.save_pretrained(folder, max_shard_size="1000GB")  # one file: shards are not read here
    base.tokenizer.save_pretrained(folder)
