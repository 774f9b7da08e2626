"""A base model without its weights: those arrive with each message."""

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from cold_flower.errors import ModelError, sentence
from cold_flower.models import demo
from cold_flower.models.families import BEHIND_PADDING, PREFIXES
from cold_flower.models.folder import located
from cold_flower.models.tokenizer import load_tokenizer

# The class of a T5 with decoder and LM head, and its name in old checkpoints.
TEXT_TO_TEXT = ("T5ForConditionalGeneration", "T5WithLMHeadModel")

# Keys of a config that differ between copies of one model.
_INCIDENTAL = ("transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype")


@dataclass(frozen=True)
class Base:
    """A base model's configuration and tokenizer."""

    name: str
    config: Any
    tokenizer: Any
    sha256: str
    """Fingerprint of both: contributors must agree on it."""
    place: str = ""
    """What transformers loads its weights by; "" for the demo, which has none."""

    @property
    def text_to_text(self) -> bool:
        """Return whether a class is scored by the words of its label instead of by a head."""
        return bool(self.config.model_type == "t5")


@functools.lru_cache(maxsize=4)
def load_base(name: str) -> Base:
    """Load configuration and tokenizer of a hub model (``owner/name@tag``), a folder, or the demo.

    Raises:
        ModelError: it cannot be read, is of a family that is not supported, or is a decoder.
    """
    if name == "demo":
        config, tokenizer = demo.config(), demo.tokenizer()
        return Base(name, config, tokenizer, _fingerprint(config, tokenizer))
    place = located(name)
    config = _load_config(name, place)
    if config.model_type not in PREFIXES:
        raise ModelError(
            f"base-model {name!r} is {config.architectures or config.model_type}: no tested "
            f"sequence-classification class. Supported: {', '.join(PREFIXES)}."
        )
    # A family whose classes know no decoder has no such key, or reads none.
    if config.model_type != "t5" and getattr(config, "is_decoder", False):
        raise ModelError(
            f"base-model {name!r}: is_decoder is true in config.json, so a token sees those before "
            "it alone, and the first one, which the head reads, none. Take an encoder; if this is "
            "one, set is_decoder to false there."
        )
    tokenizer = load_tokenizer(place, config)
    if config.model_type == "t5":  # has relative positions, so only the tokenizer sets a limit
        if (config.architectures or [""])[0] not in TEXT_TO_TEXT:
            raise ModelError(
                f"base-model {name!r} is {config.architectures}: text to text needs the decoder "
                f"and the LM head, so a checkpoint of {TEXT_TO_TEXT[0]}"
            )
    else:
        # Positions begin behind the padding's in these families, so there are fewer of them.
        skipped = config.pad_token_id + 1 if config.model_type in BEHIND_PADDING else 0
        positions = config.max_position_embeddings - skipped
        tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
    return Base(name, config, tokenizer, _fingerprint(config, tokenizer), place)


def _load_config(name: str, place: str) -> Any:
    try:
        return AutoConfig.from_pretrained(place)
    except Exception as error:  # a broken file may raise anything
        tried = "" if Path(name).is_dir() else " (no such folder here; as a model of the hub)"
        raise ModelError(
            f"base-model {name!r} cannot be loaded{tried}: {sentence(error)} Give a hub name or, "
            "without a network, the absolute path of a folder with config.json, tokenizer.json "
            "and model.safetensors (--set base-model=<folder>; at a site, in its site.toml)."
        ) from error


def _fingerprint(config: Any, tokenizer: Any) -> str:
    shape = {k: v for k, v in config.to_diff_dict().items() if k not in _INCIDENTAL}
    if tokenizer.is_fast:
        words = json.loads(tokenizer.backend_tokenizer.to_str())
        for setting in ("truncation", "padding"):  # left there by the tokenizer's last call
            words.pop(setting, None)
    else:
        words = [type(tokenizer).__name__, tokenizer.get_vocab()]
    text = json.dumps([shape, words], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
