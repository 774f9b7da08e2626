"""The starting model: what iteration 0 publishes."""

import warnings
from collections.abc import Collection, Iterator, Mapping
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
from cold_flower.models.folder import QUANTISED, Folder, is_unread_name
from cold_flower.seeds import derive, seeded
from strategies.fusion import is_finite


def starting_model(base: Base, seed: int) -> tuple[Any, dict[str, Tensor]]:
    """Load the starting model as its own class, and the body that contributors start from.

    A body may have tensors that the checkpoint lacks, such as BERT's pooler beside an MLM head.
    They are drawn from the seed once, here, so that all contributors start from the same.

    Warns of tensors outside the body that no base will hold, because transformers lacks the class.

    Raises:
        ModelError: the weights cannot be loaded; the checkpoint lacks more of the body than a
            pooler, or has more of it than the model reads; a shape is not that of config.json;
            integers for weights; NaN or infinity. By name.
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
        options["ignore_mismatched_sizes"] = True  # they are named below
        try:
            model, loaded = own_class.from_pretrained(base.place, **options)
            holder, unread = model, loaded["unexpected_keys"]  # the holder is of the body
            other = loaded["mismatched_keys"]
            if not base.text_to_text:
                holder, loaded = AutoModelForSequenceClassification.from_pretrained(
                    base.place, **options
                )
                other |= loaded["mismatched_keys"]
        except Exception as error:  # a broken file may raise anything
            raise ModelError(
                f"base-model {base.name!r}: weights cannot be loaded from safetensors: "
                f"{sentence(error)} Expected is what model.save_pretrained(folder) writes."
            ) from error
    if other:
        key, stored, wanted = min(other)
        raise ModelError(
            f"base-model {base.name!r}: {key} is {list(stored)} in its weights, by config.json "
            f"{list(wanted)}. Take the config.json that belongs to the weights."
        )
    body = body_of(holder)
    _check_whole(base, holder, body, loaded)
    _check_floating(base)
    if architecture and own_class is transformers.AutoModel:
        _warn_of_lost(base, model, unread)
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


def _check_whole(
    base: Base, model: Any, body: State, loaded: Mapping[str, Collection[str]]
) -> None:
    """Check that the body is the checkpoint's: what is drawn or dropped makes another model.

    Args:
        base: where the weights come from.
        model: holds the body.
        body: as it was loaded.
        loaded: what the library says of loading the model.
    """
    prefix, missing = prefix_of(model), loaded["missing_keys"]
    lacking = [key for key in body if prefix + key in missing and "pooler" not in key]
    if lacking:
        raise ModelError(
            f"base-model {base.name!r}: its weights lack {len(lacking)} of the model's "
            f"{len(body)} tensors, such as {lacking[0]}. Expected are the names that "
            f"{type(model).__name__}.save_pretrained gives them, and the layers of config.json."
        )
    # The names of a bare model, which have no prefix, begin with the body's own parts.
    begins = (*filter(None, [prefix]), *{f"{key.partition('.')[0]}." for key in body})
    dropped = [
        key
        for key in sorted(loaded["unexpected_keys"])
        if key.startswith(begins) and "pooler" not in key and not is_unread_name(key)
    ]
    if dropped:
        raise ModelError(
            f"base-model {base.name!r}: its weights hold more of the body than "
            f"{type(model).__name__} reads, {len(dropped)} of their tensors, such as {dropped[0]}. "
            "Without them it is another model. Expected are the layers of config.json, and what "
            "this version of transformers has (relative positions of BERT it has no more)."
        )


def _check_floating(base: Base) -> None:
    """Check that a folder's weights are numbers, not steps of a scale that lies elsewhere."""
    if not Path(base.place).is_dir():
        return
    for key, (kind, _) in Folder(base.place).template.items():
        if key.endswith((".weight", ".bias")) and not kind.is_floating_point:
            raise ModelError(f"base-model {base.name!r}: {key} is {kind}: {QUANTISED}")


def _warn_of_lost(base: Base, model: Any, unread: Collection[str]) -> None:
    """Name what no published base will hold: the head of a class that transformers lacks."""
    lost = sorted(key for key in unread if not is_unread_name(key))
    if lost:
        kind = type(model).__name__
        warnings.warn(
            f"base-model {base.name!r} is of class {base.config.architectures[0]}, which "
            f"transformers does not have: outside the body, {len(lost)} of its tensors are not in "
            f"what is published, such as {lost[0]}. If a class of transformers reads them, name "
            f"it in config.json (architectures); if they may go, name {kind} there.",
            stacklevel=2,
        )


def save_starting_model(model: Any, base: Base, folder: Path) -> None:
    """Write the starting model and its tokenizer as a transformers folder."""
    model.save_pretrained(folder, max_shard_size="1000GB")  # one file: shards are not read here
    base.tokenizer.save_pretrained(folder)
