"""A base model's shape and tokenizer; its weights arrive with each message."""

import functools
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from cold_flower.errors import ModelError
from cold_flower.models import demo
from cold_flower.models.families import PREFIXES

# T5 with its decoder and LM head: the class's name, and the name that old checkpoints give.
TEXT_TO_TEXT = ("T5ForConditionalGeneration", "T5WithLMHeadModel")


@dataclass(frozen=True)
class Base:
    """A base model without its weights."""

    name: str
    config: Any
    tokenizer: Any

    sha256: str
    """Fingerprint of shape and tokenizer: contributors must agree on both."""

    @property
    def text_to_text(self) -> bool:
        """Return whether a class is scored by its label's words instead of by a head."""
        return bool(self.config.model_type == "t5")


# Of a config: what does not change the model, but differs between copies of it.
_INCIDENTAL = ("transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype")


def _fingerprint(config: Any, tokenizer: Any) -> str:
    shape = {k: v for k, v in config.to_diff_dict().items() if k not in _INCIDENTAL}
    words = json.loads(tokenizer.backend_tokenizer.to_str())
    for setting in ("truncation", "padding"):  # of the last call, not of the tokenizer
        words.pop(setting, None)
    text = json.dumps([shape, words], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@functools.lru_cache(maxsize=4)
def load_base(name: str) -> Base:
    """Load config and tokenizer of a hub model, a folder, or the demo.

    Raises:
        ModelError: it cannot be read, or is of a family that is not supported.
    """
    if name == "demo":
        shape, words = demo.config(), demo.tokenizer()
        return Base(name, shape, words, _fingerprint(shape, words))
    config = _load(AutoConfig, name)
    if config.model_type not in PREFIXES:
        raise ModelError(
            f"base-model {name!r} is {config.architectures or config.model_type}: no tested "
            f"sequence-classification class. Supported: {', '.join(PREFIXES)}."
        )
    tokenizer = _load(AutoTokenizer, name)
    if config.model_type == "t5":  # its positions are relative: no limit but the tokenizer's
        if (config.architectures or [""])[0] not in TEXT_TO_TEXT:
            raise ModelError(
                f"base-model {name!r} is {config.architectures}: text to text needs the decoder "
                f"and the LM head, so a checkpoint of {TEXT_TO_TEXT[0]}"
            )
    else:
        offset = config.pad_token_id + 1 if config.model_type in ("roberta", "mpnet") else 0
        room = config.max_position_embeddings - offset  # positions start behind the padding's
        tokenizer.model_max_length = min(tokenizer.model_max_length, room)
    return Base(name, config, tokenizer, _fingerprint(config, tokenizer))


def _load(kind: Any, name: str) -> Any:
    try:
        return kind.from_pretrained(name)
    except Exception as error:  # a broken file may raise anything
        raise ModelError(
            f"base-model {name!r} cannot be loaded: {first_line(error)} Give a hub name or, "
            "without a network, the absolute path of a folder with config.json, tokenizer.json "
            "and model.safetensors (--set base-model=<folder>)."
        ) from error


def first_line(error: Exception) -> str:
    """Return the first line of what a library says, as a sentence."""
    return (str(error).strip() or repr(error)).splitlines()[0].rstrip(".") + "."
