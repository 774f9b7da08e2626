"""Fuse transformers folders that lie on a disk: ``cold-flower fuse``.

Needs neither flwr nor transformers for the families we know, so it starts fast; tensors are
mapped, fused a block at a time, and written as they come.
"""

import json
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cold_flower import toml
from cold_flower.errors import ConfigError, ModelError
from cold_flower.identity import __version__
from cold_flower.models.folder import INDEX, WEIGHTS, Folder
from strategies.errors import FusionError
from strategies.fusion import Rule, Template, Weights, is_finite, write_safetensors

CARD = "README.md"
_CARRIED = (".json", ".txt", ".model", ".jinja")  # configuration and tokenizer
_OWN = (INDEX, "manifest.json")  # of the base's weights, and of a run
# Of a configuration: what makes another architecture of the same tensor shapes.
_SHAPE = (
    "num_hidden_layers", "n_layers", "num_layers", "num_attention_heads", "n_heads", "num_heads",
    "hidden_act", "activation", "hidden_activation", "position_embedding_type", "is_decoder",
)  # fmt: skip


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """Parse ``key=value`` options of a rule; a value is TOML, or else plain text.

    Raises:
        ConfigError: no ``=``.
    """
    chosen: dict[str, Any] = {}
    for pair in pairs:
        key, found, text = pair.partition("=")
        if not found:
            raise ConfigError(f"--option expects key=value, got {pair!r}")
        try:
            chosen[key.strip()] = toml.value(text)
        except ValueError:
            chosen[key.strip()] = text
    return chosen


def card(rule: str, options: Mapping[str, Any], base: str, models: Sequence[str], seed: int) -> str:
    """Write the model card: the recipe, and the command that repeats it."""
    listed = "\n".join(f"- {name}" for name in models)
    command = ["cold-flower", "fuse", rule, "--base", base, "--out", "...", "--seed", str(seed)]
    for key, value in options.items():
        command += ["--option", f"{key}={_toml(value)}"]
    return f"""---
base_model: {json.dumps(base)}
tags: [merge, cold-fusion]
---
# {len(models)} models fused by {rule}

Made with cold-flower {__version__} from the bodies of

{listed}

and the head, tokenizer and configuration of {base}:

    {shlex.join([*command, *models])}
"""


def _toml(value: Any) -> str:
    """Write an option's value as `parse_options` reads it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)


def fuse(
    rule: Rule, base: Folder, models: Sequence[Folder], out: Path, card: str, seed: int = 0
) -> list[str]:
    """Fuse the models' bodies into a copy of the base; return tensors left as the base's.

    The folder appears whole or not at all. What is outside the body (heads), and what no
    body needs to have (a pooler that a model was saved without), is the base's.

    Args:
        rule: from `strategies.fusion.load`.
        base: what the models were finetuned from; its dtypes, files and head are kept.
        models: the contributions, named as on the command line.
        out: a folder that does not exist.
        card: its README.md.
        seed: for rules that draw.

    Raises:
        ModelError, FusionError: models that do not fit, by tensor; NaN, by file and tensor;
            no space; the rule's own conditions.
    """
    if out.exists():
        raise ModelError(f"{out} exists: name a new folder with --out")
    body, left = _common(base, models)
    given = [_Checked(model, {key: model.body[key] for key in body}) for model in models]
    theta = _Checked(base, body)
    # In the file's order, the body first: the rule yields in the order of the base's keys.
    stored = set(body.values())
    ordered = {body[key]: base.template[body[key]] for key in theta.keys()}  # noqa: SIM118 - no dict
    ordered |= {key: form for key, form in base.template.items() if key not in stored}

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for key, tensor in rule(theta, given, seed=seed):
            yield body[key], tensor
        for key in base:
            if key not in stored:
                yield key, base[key]

    _check_space(ordered, out)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        for file in base.path.iterdir():
            if file.is_file() and file.suffix in _CARRIED and file.name not in _OWN:
                shutil.copy2(file, temporary)
        (temporary / CARD).write_text(card)
        write_safetensors(temporary / WEIGHTS, ordered, tensors(), {"format": "pt"})
        temporary.chmod(0o755)  # mkdtemp makes it private
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return left


def _common(base: Folder, models: Sequence[Folder]) -> tuple[dict[str, str], list[str]]:
    """Return the body that all have, and what of the base's a model lacks (a pooler)."""
    body, left = dict(base.body), []
    for model in models:
        theirs = model.body
        _check_architecture(base, model)
        for key in sorted(body.keys() ^ theirs.keys()):
            holder, stored = (base, body[key]) if key in body else (model, theirs[key])
            if "pooler." not in key and holder.template[stored][0].is_floating_point:
                without = model if key in body else base
                raise ModelError(
                    f"model {without.name} has no tensor {key}, which {holder.name} has"
                )
            if key in body:
                left.append(key)
                del body[key]
        for key, stored in body.items():
            (kind, ours), (other, shape) = base.template[stored], model.template[theirs[key]]
            if ours != shape:
                raise ModelError(
                    f"model {model.name}: {key} has shape {shape}, in the base {base.name} it "
                    f"has {ours} (another vocabulary or size?)"
                )
            if kind.is_floating_point != other.is_floating_point:
                raise ModelError(
                    f"model {model.name}: {key} is {other}, in the base {base.name} it is {kind} "
                    "(quantised?)"
                )
    return body, left


def _check_architecture(base: Folder, model: Folder) -> None:
    """Check that two models compute the same with the same weights.

    Raises:
        ModelError: naming the first key of their configurations that differs.
    """
    for key in ("model_type", *_SHAPE):
        ours, theirs = base.config.get(key), model.config.get(key)
        if ours != theirs and None not in (ours, theirs):
            raise ModelError(
                f"model {model.name} has {key} = {theirs!r}, the base {base.name} {ours!r}: only "
                "models of one architecture can be fused"
            )


class _Checked(Weights):
    """A model's body; each tensor is checked when it is first read, while it is in the cache.

    Raises:
        FusionError: NaN or infinity, by model and tensor.
    """

    def __init__(self, folder: Folder, stored_as: Mapping[str, str]) -> None:
        super().__init__(folder, name=folder.name, stored_as=stored_as)
        self._finite: set[str] = set()

    def get(self, key: str) -> Tensor:
        """Return a tensor; not to be written to."""
        tensor = super().get(key)
        if key not in self._finite:
            if not is_finite(tensor):
                raise FusionError(f"model {self.name}: tensor {key} holds NaN or infinity")
            self._finite.add(key)
        return tensor


def _check_space(template: Template, out: Path) -> None:
    needed = sum(dtype.itemsize * torch.Size(shape).numel() for dtype, shape in template.values())
    there = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise ModelError(f"no space for {out}: it takes {needed:,} bytes, there are {free:,}")
