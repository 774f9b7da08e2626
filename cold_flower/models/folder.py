"""A model as transformers saves it: a folder of safetensors files, read one tensor at a time.

For the families of `cold_flower.models.families` this needs neither flwr nor transformers.
"""

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cold_flower.errors import ModelError
from cold_flower.models.families import PREFIXES
from strategies.fusion import DTYPES

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


class Folder(Mapping[str, Tensor]):
    """The tensors of a transformers folder, in one file or several; read when asked for.

    Args:
        name: a folder, or a model of the hub.

    Raises:
        ModelError: it cannot be found, or holds no safetensors.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = _path(name)
        try:
            self.config: dict[str, Any] = dict(json.loads((self.path / "config.json").read_text()))
            self.family = str(self.config.get("model_type", ""))
            file_of = dict(self._files_by_tensor())
            opened = {
                file: safe_open(self.path / file, framework="pt") for file in set(file_of.values())
            }
            self._files = {key: opened[file] for key, file in file_of.items()}
            self.template = {key: self._dtype_and_shape(key) for key in self._files}
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ModelError(
                f"model {name}: not a readable transformers folder: {error}"
            ) from error

    def _files_by_tensor(self) -> Iterator[tuple[str, str]]:
        """Yield each tensor's name, and the name of its file."""
        index = self.path / INDEX
        if index.exists():
            for key, file in dict(json.loads(index.read_text())["weight_map"]).items():
                if Path(str(file)).name != file:
                    raise ModelError(f"model {self.name}: {INDEX} leads to {file!r}")
                yield key, file
        elif (self.path / WEIGHTS).exists():
            with safe_open(self.path / WEIGHTS, framework="pt") as file:
                yield from ((key, WEIGHTS) for key in file.keys())  # noqa: SIM118 - no dict
        else:
            raise ModelError(
                f"model {self.name}: no {WEIGHTS} in {self.path} (other formats are pickles or "
                "not ours: save it again with save_pretrained)"
            )

    def _dtype_and_shape(self, key: str) -> tuple[torch.dtype, tuple[int, ...]]:
        header = self._files[key].get_slice(key)  # type: ignore[no-untyped-call]  # safetensors'
        if header.get_dtype() not in DTYPES:
            raise ValueError(f"{key} is {header.get_dtype()}, which is not supported")
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
        gamma and its bias beta.
        """
        prefix = _prefix(self.family, self.name)
        prefixed = [key for key in self if key.startswith(prefix)]
        return {_modern(key.removeprefix(prefix)): key for key in prefixed or self}


def _modern(name: str) -> str:
    for old, new in {"LayerNorm.gamma": "weight", "LayerNorm.beta": "bias"}.items():
        if name.endswith(old):
            return f"{name.rpartition('.')[0]}.{new}"
    return name


def _path(name: str) -> Path:
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        wanted = ["*.json", "model*.safetensors", "*.txt", "*.model", "*.jinja"]
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=["*/*"]))
    except Exception as error:  # the hub's client raises what its many back ends raise
        raise ModelError(
            f"model {name}: neither a folder nor to be had from the hub: "
            f"{(str(error) or repr(error)).splitlines()[0]}"
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
    return f"{PREFIXES[family]}." if PREFIXES[family] else ""
