"""A model as transformers saves it: a folder of safetensors files, read one tensor at a time.

For the families of `cold_flower.models.families` this needs neither flwr nor transformers.
"""

import json
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cold_flower.errors import ModelError, first_line
from cold_flower.models.families import PREFIXES
from strategies.fusion import DTYPES

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
BESIDE = (
    ".json", ".txt", ".model", ".spm", ".codes", ".bpe", ".vocab", ".tokenizer", ".tiktoken",
    ".jinja", ".py",
)  # fmt: skip
"""Suffixes of what lies beside the weights: configuration, tokenizer, the model's own code."""
QUANTISED = "a quantised checkpoint; dequantise it and save it again with save_pretrained"

# What a tensor ends with that may be one with the input embedding, the embedding's names first.
_TIED = (
    "word_embeddings.weight", "tok_embeddings.weight", "shared.weight", "embed_tokens.weight",
    "wte.weight", "lm_head.weight", "decoder.weight", "vocab_projector.weight",
)  # fmt: skip
_INPUTS = {
    "t5": "shared.weight",
    "mt5": "shared.weight",
    "umt5": "shared.weight",
    "modernbert": "embeddings.tok_embeddings.weight",
}
# In old files, and in no model: buffers, and a bias that T5's cross attention never had.
_UNREAD = re.compile(
    r"(^|\.)(position_ids|token_type_ids|rotary_emb\.inv_freq)$"
    r"|(^|\.)decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight$"
)
_LORA = re.compile(r"\.(lora_\w+|ia3_\w+|base_layer)\.|^prompt_embeddings$")


class Folder(Mapping[str, Tensor]):
    """The tensors of a transformers folder, in one file or several; read when asked for.

    Args:
        name: a folder, or a model of the hub.

    Raises:
        ModelError: it cannot be found, holds no safetensors, or is an adapter or quantised.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = _path(name)
        if (self.path / ADAPTER).exists():
            raise ModelError(_adapter(name, f"it has {ADAPTER}"))
        try:
            self.config: dict[str, Any] = dict(json.loads((self.path / "config.json").read_text()))
            self.family = str(self.config.get("model_type", ""))
            if self.config.get("quantization_config"):
                raise ModelError(f"model {name} is {QUANTISED} (quantization_config)")
            files, promised = self._stored()
            opened = [safe_open(self.path / file, framework="pt") for file in files]
            self._files = {key: file for file in opened for key in _keys(file)}
            if absent := promised - self._files.keys():
                raise ValueError(f"no file holds {min(absent)}, which {INDEX} lists")
            self.template = {key: self._dtype_and_shape(key) for key in self._files}
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ModelError(
                f"model {name}: not a readable transformers folder: {error}"
            ) from error
        if low_rank := next(filter(_LORA.search, self), None):
            raise ModelError(_adapter(name, f"it holds {low_rank}"))

    def _stored(self) -> tuple[list[str], set[str]]:
        """Return the files that transformers loads, and the tensors that an index promises."""
        first = self.config.get("transformers_weights") or WEIGHTS
        if first == WEIGHTS and not (self.path / WEIGHTS).exists():
            first = INDEX  # transformers looks at it only where the whole file is not there
        promised: set[str] = set()
        if not str(first).endswith(".index.json"):
            files = [str(first)]
        elif (self.path / first).exists():
            listed = dict(json.loads((self.path / first).read_text())["weight_map"])
            files, promised = sorted({str(file) for file in listed.values()}), set(listed)
        else:
            raise ModelError(
                f"model {self.name}: no {WEIGHTS} in {self.path} (other formats are pickles or "
                "not ours: save it again with save_pretrained)"
            )
        for file in files:
            if Path(file).name != file:
                raise ModelError(f"model {self.name}: {first} leads to {file!r}")
        return files, promised

    def _dtype_and_shape(self, key: str) -> tuple[torch.dtype, tuple[int, ...]]:
        header = self._files[key].get_slice(key)  # type: ignore[no-untyped-call]  # safetensors'
        if header.get_dtype() not in DTYPES:
            raise ValueError(f"{key} is {header.get_dtype()}, which is not supported: {QUANTISED}")
        return DTYPES[header.get_dtype()], tuple(header.get_shape())

    def __getitem__(self, key: str) -> Tensor:
        tensor: Tensor = self._files[key].get_tensor(key)  # type: ignore[no-untyped-call]  # safetensors'
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    @cached_property
    def body(self) -> dict[str, str]:
        """Return the body: each tensor's name in a body, and its name in the file.

        If some names in the file carry the family's prefix, the others are the head. If none
        does, it is a bare model, which is all body. Old checkpoints call a layer norm's weight
        gamma and its bias beta. Of tied tensors there is one; what no model reads is left out.
        """
        inside = [key for key in self if self._is_inside(key)]
        inside += [self.embedding] if self.embedding else []  # an LM head's may stand for both
        named = {self.named(key): key for key in inside if key not in self.tied}
        return {name: key for name, key in named.items() if not self._is_unread(name)}

    def named(self, key: str) -> str:
        """Return a tensor's name in a body, from its name in the file."""
        if key == self.embedding and (name := _input(self.family)):
            return name
        return _modern(key if self.bare else key.removeprefix(self.prefix))

    @cached_property
    def bare(self) -> bool:
        """Return whether the file holds a body alone, whose names have no prefix."""
        return not any(key.startswith(self.prefix) for key in self)

    @cached_property
    def embedding(self) -> str:
        """Return the input embedding's name in the file, or that of what is tied to it."""
        stands_in = self._ties and _input(self.family)
        usable = (key for key in self._candidates if stands_in or self._is_inside(key))
        return next(usable, "")

    @cached_property
    def tied(self) -> dict[str, str]:
        """Return the other names in the file of its input embedding, as ``{name: embedding}``.

        As transformers has it, tensors are tied if the configuration says so and they are equal.
        """
        first = self.embedding
        others = [key for key in self._candidates if first and key != first]
        if not self._ties:  # encoder and decoder of T5 read one embedding in any case
            others = [key for key in others if key.endswith("embed_tokens.weight")]
        return {
            key: first
            for key in others
            if self.template[key] == self.template[first] and torch.equal(self[key], self[first])
        }

    @property
    def _ties(self) -> bool:
        return self.config.get("tie_word_embeddings") is not False

    @cached_property
    def _candidates(self) -> list[str]:
        """Return what may be one with the input embedding, which comes first if it is there."""
        found = [key for key in self if key.endswith(_TIED) and len(self.template[key][1]) == 2]
        return sorted(found, key=lambda key: [key.endswith(end) for end in _TIED], reverse=True)

    def _is_inside(self, key: str) -> bool:
        return self.bare or key.startswith(self.prefix)

    @cached_property
    def prefix(self) -> str:
        """Return what stands before a body's names in a file that also holds a head."""
        return _prefix(self.family, self.name)

    def _is_unread(self, name: str) -> bool:
        if is_unread_name(name):
            return True
        relative = self.config.get("position_biased_input") is False  # DeBERTa
        return relative and name.startswith("embeddings.position_embeddings.")


def is_tied_name(name: str) -> bool:
    """Return whether a tensor of this name may be one with the input embedding."""
    return name.endswith(_TIED)


def is_unread_name(name: str) -> bool:
    """Return whether a tensor of this name is in old files only, and no model reads it."""
    return bool(_UNREAD.search(name))


def _input(family: str) -> str:
    """Return the input embedding's name in a body of this family, if we know it."""
    usual = "embeddings.word_embeddings.weight" if family in PREFIXES else ""
    return _INPUTS.get(family, usual)


def _adapter(name: str, found: str) -> str:
    return (
        f"model {name} is a LoRA or other PEFT adapter ({found}), no whole model: load it with "
        "peft, merge_and_unload() it, and save_pretrained it"
    )


def _keys(file: Any) -> list[str]:
    return list(file.keys())


def _modern(name: str) -> str:
    for old, new in {"LayerNorm.gamma": "weight", "LayerNorm.beta": "bias"}.items():
        if name.endswith(old):
            return f"{name.rpartition('.')[0]}.{new}"
    return name


def located(name: str) -> str:
    """Return what transformers loads a model by: the name, but of one revision the folder.

    ``owner/name@revision`` is a model of the hub at that revision: a tag, a branch or a commit.

    Raises:
        ModelError: that revision cannot be had.
    """
    return str(_path(name)) if "@" in name and not Path(name).is_dir() else name


def _path(name: str) -> Path:
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    try:
        return Path(
            snapshot_download(
                repository,
                revision=revision or None,
                # Of the sub-folders only those of sentence-transformers, such as 1_Pooling.
                allow_patterns=[
                    *(f"*{suffix}" for suffix in BESIDE),
                    "model*.safetensors",
                    "[0-9]*/*.safetensors",
                ],
                ignore_patterns=["[!0-9]*/*"],
            )
        )
    except Exception as error:  # the hub's client raises what its many back ends raise
        raise ModelError(
            f"model {name}: neither a folder nor to be had from the hub: {first_line(error)}"
        ) from error


def _prefix(family: str, name: str) -> str:
    """Return what stands before the body's names; of an unknown family, transformers knows it."""
    if family not in PREFIXES:
        from transformers import AutoModel
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        try:
            return f"{AutoModel._model_mapping[CONFIG_MAPPING[family]].base_model_prefix}."
        except (KeyError, AttributeError) as error:
            raise ModelError(f"model {name}: model_type {family!r} is not supported") from error
    return f"{PREFIXES[family] or 'transformer'}."  # T5 has one where it is made a classifier
