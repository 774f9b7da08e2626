"""A LoRA adapter as peft saves it: what it adds to a base model, exactly.

Hu et al., LoRA, arXiv 2106.09685: a weight W [out, in] becomes W + s B A, where A is [r, in], B is
[out, r], and s = alpha / r (rsLoRA, arXiv 2312.03732: alpha / sqrt(r)). So an adapter is a
contribution like any other; averaging A and B each by itself would not be.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from cold_flower.errors import ModelError
from cold_flower.models.folder import ADAPTER, Folder
from strategies.fusion import is_finite

WEIGHTS = "adapter_model.safetensors"
_WRAPPED = "base_model.model."  # before every name in an adapter's file
_A, _B = ".lora_A.weight", ".lora_B.weight"
# Of adapter_config.json. All else has to be off: there are variants that compute otherwise (DoRA),
# or that change the base, too (PiSSA and others, by init_lora_weights).
_USED = ("peft_type", "lora_alpha", "alpha_pattern", "use_rslora", "fan_in_fan_out")
_INCIDENTAL = (
    *("auto_mapping", "base_model_name_or_path", "exclude_modules", "inference_mode"),
    *("layers_pattern", "layers_to_transform", "lora_dropout", "megatron_core", "modules_to_save"),
    *("peft_version", "qalora_group_size", "r", "rank_pattern", "revision", "target_modules"),
    "task_type",
)
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "orthogonal"),
}
MERGE = "load it with peft, merge_and_unload() it, and save_pretrained it"


class Adapter:
    """What a LoRA adapter adds to a body.

    Args:
        folder: as peft saves it.
        base: a base of the run, for the names and shapes of its body.

    Raises:
        ModelError: it cannot be read, is no plain LoRA, or does not fit.
    """

    def __init__(self, folder: Path, base: Folder) -> None:
        self.path, self.name = folder, str(folder)
        try:
            self.config: dict[str, Any] = dict(json.loads((folder / ADAPTER).read_text("utf-8")))
            self._file: Any = safe_open(folder / WEIGHTS, framework="pt")
        except (OSError, ValueError, TypeError, SafetensorError) as error:
            raise ModelError(f"{folder} holds no readable adapter: {error}") from error
        self._check_config()
        self._parts = self._found(base)
        for key, (_, _, shape) in self._parts.items():
            ours = base.template[base.body[key]][1]
            if shape != ours:
                raise ModelError(f"{folder}: it adds {shape} to {key}, which is {ours} in the base")

    @property
    def keys(self) -> list[str]:
        """Return the names of the tensors in a body to which it adds something."""
        return list(self._parts)

    def difference(self, key: str) -> Tensor:
        """Return what it adds to a tensor of a body: s B A, in float32, as the body stores it.

        Raises:
            ModelError: NaN or infinity.
        """
        module, scale, _ = self._parts[key]
        a, b = (self._file.get_tensor(module + end).float() for end in (_A, _B))
        added: Tensor = (b @ a) * scale
        if not is_finite(added):
            raise ModelError(f"{self.name}: {module} holds NaN or infinity")
        return added.T if self.config.get("fan_in_fan_out") else added

    def _check_config(self) -> None:
        if self.config.get("peft_type") != "LORA":
            kind = self.config.get("peft_type")
            raise ModelError(f"{self.name} is an adapter of kind {kind}, not LORA: {MERGE}")
        for key, value in self.config.items():
            plain = value in _PLAIN[key] if key in _PLAIN else not value
            if not plain and key not in (*_USED, *_INCIDENTAL):
                raise ModelError(f"{self.name}: {key} = {value!r} is more than plain LoRA: {MERGE}")

    def _found(self, base: Folder) -> dict[str, tuple[str, float, tuple[int, ...]]]:
        """Return each pair's module, scale and shape, by the tensor of the body it adds to."""
        found: dict[str, tuple[str, float, tuple[int, ...]]] = {}
        for stored in sorted(self._file.keys()):
            plain = stored.removeprefix(_WRAPPED)
            module = stored.removesuffix(_A).removesuffix(_B)
            name = plain
            if module != stored:
                name = f"{module.removeprefix(_WRAPPED)}.weight"
            inside = next((n for n in (name, name.removeprefix(base.prefix)) if n in base.body), "")
            if not inside:
                if module != stored or ".lora_" in stored:
                    raise ModelError(f"{self.name}: {stored} is of no weight that the base has")
                continue  # of the head
            if module == stored:
                raise ModelError(f"{self.name}: {stored} is part of the body, saved whole: {MERGE}")
            found[inside] = self._pair(module)
        if not found:
            raise ModelError(f"{self.name}: no LoRA weights of the base's body in {WEIGHTS}")
        return found

    def _pair(self, module: str) -> tuple[str, float, tuple[int, ...]]:
        try:
            a, b = (tuple(self._file.get_slice(module + end).get_shape()) for end in (_A, _B))
        except SafetensorError as error:
            raise ModelError(f"{self.name}: {module} has one of lora_A and lora_B only") from error
        if not (len(a) == len(b) == 2 and a[0] == b[1] > 0):
            raise ModelError(f"{self.name}: {module} multiplies {b} and {a}: {MERGE}")
        alpha = self._alpha(module.removeprefix(_WRAPPED))
        scale = alpha / (math.sqrt(a[0]) if self.config.get("use_rslora") else a[0])
        shape = (b[0], a[1])
        return module, scale, shape[::-1] if self.config.get("fan_in_fan_out") else shape

    def _alpha(self, module: str) -> float:
        """Return a module's alpha: of the first pattern that its name ends with, as in peft."""
        for pattern, alpha in (self.config.get("alpha_pattern") or {}).items():
            if not re.fullmatch(r"[\w.]+", pattern):  # a stranger's expression may take for ever
                raise ModelError(f"{self.name}: alpha_pattern {pattern!r} is no name: {MERGE}")
            if re.match(rf"(.*\.)?({pattern})$", module):
                return float(alpha)
        return float(self.config.get("lora_alpha", 8))


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter beside which there is no whole model."""
    return (folder / ADAPTER).exists() and not (folder / "config.json").exists()
