"""Statistics of a task's data for models on a disk: made, and given to a rule.

A folder with one file, whose tensors are named as they travel beside a body, and whose header says
what they are of.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FILE = "statistic.safetensors"


def make(config: Any, kind: str, examples: int) -> tuple[dict[str, Any], str]:
    """Return a statistic of the model ``base-model`` on its one task, and the body's `print_of`.

    Its tensors are prefixed.

    Raises:
        ModelError: no classifier of the task's classes.
        ConfigError, DivergedError: see `cold_flower.training.statistics.statistic`.
    """
    from transformers import AutoModelForSequenceClassification

    from cold_flower.contributors.contributor import Contributor
    from cold_flower.errors import ConfigError, ModelError
    from cold_flower.models.body import body_of
    from cold_flower.models.classifier import device
    from cold_flower.training.statistics import statistic
    from strategies.fusion._statistics import prefix

    with tempfile.TemporaryDirectory() as folder:
        me = Contributor(config, 0, Path(folder))
        data = me.splits()
    name = config.base_model
    if me.base.text_to_text:
        raise ConfigError(
            f"model {name!r} is text to text: statistics are made of classifiers with a head"
        )
    model, report = AutoModelForSequenceClassification.from_pretrained(
        name, output_loading_info=True, dtype="float32"
    )
    missing = [key for key in report["missing_keys"] if not key.startswith(model.base_model_prefix)]
    if kind == "fisher" and missing:
        raise ModelError(
            f"model {name!r} has no head ({min(missing)}): the Fisher information is of a "
            "finetuned classifier, saved with its head"
        )
    if kind == "fisher" and model.config.num_labels != len(data.labels):
        raise ModelError(
            f"model {name!r} has {model.config.num_labels} classes, task {me.task.name} has "
            f"{len(data.labels)}: it was finetuned on another task"
        )
    found = statistic(
        kind,
        model.to(device()),
        data.train,
        regression=data.kind == "regression",
        seed=config.seed,
        examples=examples,
    )
    return {prefix(kind) + key: tensor for key, tensor in found.items()}, print_of(body_of(model))


def print_of(body: Mapping[str, Any]) -> str:
    """Return the sha256 of a body in float32, without a pooler, which not all files hold."""
    from strategies.fusion import fingerprint

    kept = ((k, t) for k, t in body.items() if t.is_floating_point() and "pooler." not in k)
    return fingerprint((key, tensor.float()) for key, tensor in kept)


def attach(
    kind: str, given: Sequence[Any], folders: Sequence[Path], body: Mapping[str, Any]
) -> None:
    """Give each model its statistic, after a look at all of it.

    Args:
        kind: that the rule needs; empty for none.
        given: the models, as `strategies.fusion.Weights`.
        folders: in their order.
        body: dtypes and shapes that are fused.

    Raises:
        ConfigError: not one for each, not of this kind, or of another body.
    """
    from safetensors import SafetensorError

    from cold_flower.errors import ConfigError
    from strategies.errors import Refused
    from strategies.fusion import Weights, read_metadata
    from strategies.fusion._statistics import check_form, check_values, prefix

    if folders and not kind:
        raise ConfigError("this fusion rule takes no statistics: leave --statistics")
    if kind and len(folders) != len(given):
        raise ConfigError(
            f"this fusion rule needs a statistic of each model, {kind}: give --statistics DIR for "
            f"each, in their order (there are {len(given)}, got {len(folders)}); cold-flower "
            f"statistics MODEL --kind {kind} makes one"
        )
    for one, folder in zip(given, folders, strict=False):
        path = folder / FILE
        try:
            facts = read_metadata(path)
            made, body_print = facts["kind"], facts["body"]
            names = Weights(path).keys()
        except (OSError, SafetensorError, KeyError) as error:
            raise ConfigError(f"{folder} holds no statistic ({FILE}): {error}") from error
        if made != kind:
            raise ConfigError(f"{folder} holds {made}, the fusion rule needs {kind}")
        if body_print != print_of(dict(one.items())):
            raise ConfigError(
                f"{folder} is of {facts.get('model')}, which is not {one.name} as it is now: the "
                "folders come in the order of the models, each made of the model that is fused"
            )
        bare = {name.removeprefix(prefix(kind)): name for name in names}
        # A pooler that another model lacks is not fused, so nothing is to be known of it.
        known = {n: stored for n, stored in bare.items() if any(k in body for k in n.split(","))}
        statistic = Weights(path, name=one.name, stored_as=known)
        try:
            check_form(kind, statistic.template(), dict(body))
            for name, tensor in statistic.items():
                check_values(kind, name, tensor, dict(body))
        except Refused as reason:
            raise ConfigError(f"{folder}, for model {one.name}: {reason}") from reason
        one.statistic = statistic
