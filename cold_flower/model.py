"""Base models: load one, split body and head by name, attach a fresh head.

The **body** is ``model.base_model`` of the sequence-classification model, under the
names of its state dict without prefix, in float32, without tied aliases and integer
buffers. Everything else of that model is the **head**. Tensors of the starting model
that are not in the body (an LM head, RoBERTa's pooler) are never fused. A text-to-text
model (T5) has no head beside it: all of it is the body.
"""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.initialization import no_init_weights

from cold_flower import cores, demo, first_token, gpus
from cold_flower.errors import ModelError
from cold_flower.families import PREFIXES
from cold_flower.seeds import derive, seeded
from cold_flower.text_to_text import TextToText, label_tokens

# T5 with its decoder and LM head: the class's name, and the name that old checkpoints give.
_TEXT_TO_TEXT = ("T5ForConditionalGeneration", "T5WithLMHeadModel")

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Base:
    """A base model's shape and tokenizer; its weights arrive with each message."""

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
        if (config.architectures or [""])[0] not in _TEXT_TO_TEXT:
            raise ModelError(
                f"base-model {name!r} is {config.architectures}: text to text needs the decoder "
                f"and the LM head, so a checkpoint of {_TEXT_TO_TEXT[0]}"
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
            f"base-model {name!r} cannot be loaded: {_first_line(error)} Give a hub name or, "
            "without a network, the absolute path of a folder with config.json, tokenizer.json "
            "and model.safetensors (--set base-model=<folder>)."
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0].rstrip(".") + "."


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
        architecture = _TEXT_TO_TEXT[0] if base.text_to_text else named
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
                f"{_first_line(error)}"
            ) from error
    return model, body_of(classifier)


def prefix_of(model: Any) -> str:
    """Return what stands before the body's names in the model's own state dict."""
    return "" if model.base_model is model else f"{model.base_model_prefix}."


def body_of(model: Any) -> dict[str, Tensor]:
    """Return the body's state: float32, on the CPU, without aliases and integer buffers."""
    state: dict[str, Tensor] = {}
    seen = set()
    for name, tensor in model.base_model.state_dict().items():
        address = (tensor.data_ptr(), tensor.shape) if tensor.numel() else (name, None)
        if tensor.is_floating_point() and address not in seen:
            seen.add(address)
            state[name] = tensor.detach().float().cpu()
    return state


def load_body(model: Any, body: State) -> None:
    """Put a body into a model.

    Raises:
        ModelError: a name or a shape that does not fit, by name.
    """
    own = body_of(model)
    if differing := own.keys() ^ body.keys():
        raise ModelError(f"the body does not fit: {min(differing)} is in one model only")
    for name, tensor in own.items():
        if tensor.shape != body[name].shape:
            raise ModelError(
                f"the body does not fit: {name} has shape {tuple(body[name].shape)}, expected "
                f"{tuple(tensor.shape)}"
            )
    # strict=False: what body_of left out (aliases, integer buffers) stays as it is.
    model.base_model.load_state_dict(dict(body), strict=False)


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


def head_parameters(model: Any) -> list[nn.Parameter]:
    """Return the parameters outside the body."""
    body = set(map(id, model.base_model.parameters()))
    return [p for p in model.parameters() if id(p) not in body]


def save_starting_model(model: Any, base: Base, folder: Path) -> None:
    """Write the starting model and its tokenizer as a transformers folder."""
    model.save_pretrained(folder, max_shard_size="1000GB")
    base.tokenizer.save_pretrained(folder)
