"""Fuse transformers folders that lie on a disk: ``cold-flower fuse``.

Needs no flwr, and no transformers where folders of a family we know have the same configuration;
so it starts fast. Tensors are mapped, fused a block at a time, and written as they come.
"""

import json
import shlex
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cold_flower import toml
from cold_flower.commands import carried
from cold_flower.commands.data_statistics import attach
from cold_flower.commands.union import Union
from cold_flower.errors import ConfigError, ModelError, TokensError
from cold_flower.identity import __version__
from cold_flower.models import configurations, vocabularies
from cold_flower.models.bodies import match
from cold_flower.models.folder import WEIGHTS, Folder, is_tied_name
from cold_flower.models.vocabularies import Vocabulary
from cold_flower.repository.provenance import CARD, TAG
from cold_flower.repository.publish import check_space
from strategies.errors import FusionError
from strategies.fusion import Rule, Weights, is_finite, write_safetensors
from strategies.waiting import told

VOCABULARIES = ("base", "union")


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


def card(
    rule: str,
    options: Mapping[str, Any],
    base: str,
    models: Sequence[str],
    seed: int,
    flags: Sequence[str] = (),
) -> str:
    """Write the model card: the recipe, and the command that repeats it."""
    listed = "\n".join(f"- {name}" for name in models)
    command = ["cold-flower", "fuse", rule, "--base", base, "--out", "...", "--seed", str(seed)]
    command += flags
    for key, value in options.items():
        command += ["--option", f"{key}={_toml(value)}"]
    return f"""---
base_model: {json.dumps(base)}
tags: [merge, {TAG}]
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
    rule: Rule,
    base: Folder,
    models: Sequence[Folder],
    out: Path,
    card: str,
    seed: int = 0,
    *,
    statistics: Sequence[Path] = (),
    vocabulary: str = "base",
    allow_tokenizer: bool = False,
    say: Callable[[str], object] = warnings.warn,
    progress: Callable[[str], object] = lambda line: None,
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
        statistics: of each model's data, folders in their order, where the rule needs them.
        vocabulary: ``base``, or ``union`` where models added tokens (`Union`).
        allow_tokenizer: whether models may have other tokenizers than the base.
        say: takes a line for what is not carried along.
        progress: takes a line every ten seconds.

    Raises:
        ModelError, FusionError: models that do not fit, by key, token or tensor; NaN, by file and
            tensor; a base without vocabulary; no space; the rule's own conditions.
    """
    if out.exists():
        raise ModelError(f"{out} exists: name a new folder with --out")
    for model in models:
        configurations.check(base, model)
    by_token = vocabulary == "union"
    with _naming_the_way_out():
        tokens = _vocabularies(base, models, by_token, allow_tokenizer)
        (body, *bodies), left = match(base, models, by_token)
    theta: Weights = _Checked(base, body)
    given: list[Weights] = [_Checked(m, b) for m, b in zip(models, bodies, strict=True)]
    kind = getattr(rule, "statistic", "")
    if kind and by_token:
        raise ConfigError(f"a rule that needs a statistic ({kind}) fuses models of one vocabulary")
    attach(kind, given, statistics, theta.template())
    union = None
    if by_token:
        union = Union(theta, given, [key for key in body if is_tied_name(key)], tokens)
        theta, given = union.theta, union.given
    # In the file's order, the body first: the rule yields in the order of the base's keys. What
    # is tied to a tensor comes behind it, with the same values.
    stored = {key: [name] for key, name in body.items()}
    for alias, name in base.tied.items():
        stored[base.named(name)].append(alias)
    shared = {name for names in stored.values() for name in names}
    heads = {key: form for key, form in base.template.items() if key not in shared}
    if union:
        heads = {key: union.widened(form) for key, form in heads.items()}
    template = {name: form for key, form in theta.template().items() for name in stored[key]}

    def tensors(body: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for key, tensor in body:
            for name in stored[key]:
                yield name, tensor
        for key, (_, shape) in heads.items():
            yield key, union.padded(base[key], shape) if union else base[key]

    def tell(line: str, **_: int) -> None:
        progress(line)

    template |= heads
    check_space(sum(d.itemsize * torch.Size(s).numel() for d, s in template.values()), out)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        for line in carried.copy(base, temporary):
            say(line)
        if union:
            union.write(temporary)
        (temporary / CARD).write_text(card)
        with told(partial(rule, theta, given, seed=seed), len(stored), tell) as fused:
            write_safetensors(temporary / WEIGHTS, template, tensors(fused), {"format": "pt"})
        temporary.chmod(0o755)  # mkdtemp makes it private
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return left


@contextmanager
def _naming_the_way_out() -> Iterator[None]:
    try:
        yield
    except TokensError as error:
        way_out = "allow-tokenizer says that this is meant"
        if error.more:
            way_out = "vocabulary union fuses embeddings by token and keeps them"
        raise ModelError(f"{error}; --{way_out}") from error


def _vocabularies(
    base: Folder, models: Sequence[Folder], by_token: bool, allow: bool
) -> list[Vocabulary]:
    """Read and compare the vocabularies; return the base's and the models'.

    Raises:
        ModelError: the base has none, or a model another one; by token.
    """
    ours = vocabularies.read(base, whole=by_token)
    if ours is None and not vocabularies.takes_bytes(base):
        raise ModelError(
            f"model {base.name}: no vocabulary in {base.path} (tokenizer.json, vocab.txt, "
            "vocab.json or a SentencePiece model), so the fused model could read no text: save "
            "the tokenizer into that folder"
        )
    if ours is None:
        return []
    found = [ours]
    for model in models:
        theirs = vocabularies.read(model, like=ours)
        if theirs and not allow:
            vocabularies.check(ours, theirs, united=by_token)
        if theirs and by_token:
            found.append(theirs)
    return found


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
