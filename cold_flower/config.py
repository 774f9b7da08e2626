"""The run configuration: types, defaults and help of every key, in one place.

Keys are Flower's flat scalars, written with dashes and a dot for the group
(``finetune.learning-rate``). Defaults are the paper's (arXiv 2212.01378, App. B), on
the embedded demo. A test keeps pyproject.toml's table equal to these.
"""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Self, cast

from cold_flower.errors import ConfigError
from strategies.names import unknown

Scalar = bool | int | float | str

PROTOCOLS = ("frozen", "finetuned", "few-shot")


def _key(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    least: float = 0,
    most: float = math.inf,
) -> Any:
    limits = {"least": least, "most": most}
    return field(default=default, metadata={"help": help, "choices": choices, **limits})


@dataclass(frozen=True)
class Partition:
    """What one contributor holds."""

    kind: str = _key(
        "tasks", "a contributor holds a whole task, or a shard of one", choices=("tasks", "shards")
    )
    shards: int = _key(10, "contributors, with kind = shards", least=1)
    examples: int = _key(5000, "training examples of each shard, disjoint", least=1)
    total: int = _key(0, "training examples of all shards together, split evenly; 0 = examples")
    fresh: bool = _key(False, "draw the shards anew each iteration, and one more to evaluate with")

    @property
    def size(self) -> int:
        """Return the training examples of one shard, those it holds out for dev included."""
        return self.total // self.shards if self.total else self.examples


@dataclass(frozen=True)
class Finetune:
    """One contributor's finetuning (App. B; Liu et al. 2019 where it is silent)."""

    learning_rate: float = _key(5e-5, "peak learning rate")
    final_learning_rate_ratio: float = _key(
        0.0006, "last learning rate / peak, linear decay", most=1
    )
    warmup_ratio: float = _key(0.06, "share of the steps that warm up", most=1)
    weight_decay: float = _key(0.01, "AdamW weight decay")
    batch_size: int = _key(256, "examples a step", least=1)
    micro_batch_size: int = _key(0, "examples a forward pass; 0 = the batch")
    max_epochs: int = _key(10, "at most so many passes over the data", least=1)
    max_examples: int = _key(0, "training examples used of a task; 0 = all")
    dev_examples: int = _key(
        2000, "at most so many for early stopping (carved: at most 10 %)", least=1
    )
    max_length: int = _key(128, "tokens; longer texts are cut", least=4)
    early_stop_examples: int = _key(256_000, "stop after so many without improvement", least=1)
    early_stop_delta: float = _key(0.001, "what counts as improvement of the dev score")
    validate_every_examples: int = _key(12_800, "also at each epoch's end", least=1)
    max_seconds: float = _key(
        0.0, "stop after so many with the best weights so far, which the clock then decides; 0 = no"
    )
    precision: str = _key(
        "auto",
        "bf16 autocast where the hardware has it; weights stay float32",
        choices=("auto", "fp32", "bf16"),
    )
    head: str = _key(
        "fresh",
        "fresh each iteration, or the contributor's own of the last iteration it took part in",
        choices=("fresh", "keep"),
    )


@dataclass(frozen=True)
class Probe:
    """The linear probe: train the head on the frozen body's features (section 4.4)."""

    learning_rate: float = _key(3e-3, "peak learning rate of the head, AdamW, linear decay")
    epochs: int = _key(50, "passes over the features, in finetune.batch-size", least=1)


@dataclass(frozen=True)
class FewShot:
    """Finetuning on few labelled examples (section 5.3)."""

    examples: int = _key(100, "labelled examples", least=1)
    draws: int = _key(3, "draws, averaged", least=1)
    epochs: int = _key(20, "passes over them", least=1)
    batch_size: int = _key(16, "examples a step", least=1)


@dataclass(frozen=True)
class Fusion:
    """How the next base is made."""

    rule: str = _key("average", "a fusion rule, or package.module:function")
    options: str = _key("", "the rule's options, a TOML inline table: {beta = 0.2}")
    strategy: str = _key("", "a Flower strategy instead: flwr.serverapp.strategy:FedAvg")
    clip: str = _key("", "bound each contribution's norm: median (of the cohort's), or a number")
    learning_rate: float = _key(0.0, "fusion learning rate; 0 = 1 with sgd, 0.001 with adam")
    optimizer: str = _key("sgd", "what makes a step of the fused update", choices=("sgd", "adam"))
    momentum: float = _key(0.0, "of sgd; beta1 of adam, there 0 = 0.9")
    nesterov: bool = _key(False, "Nesterov momentum, with sgd")
    anchor: float = _key(0.0, "share by which each base is pulled back to the starting model")


@dataclass(frozen=True)
class Screening:
    """What is refused before it is fused; the form of a reply is always checked."""

    checks: str = _key(
        "duplicate,unchanged,metrics,random,norm,growth,cosine", "comma-separated; empty = none"
    )
    norm: float = _key(5.0, "refuse an update so many times the median norm", least=1)
    cosine: float = _key(
        -0.2,
        "refuse an update whose median cosine with the others' is below; in a cohort that agrees, "
        "also one that points half as far the other way; -1 = neither",
        least=-1,
        most=1,
    )
    similarity: float = _key(
        0.5, "refuse a model with a matrix whose cosine with the base's is below", least=-1, most=1
    )


@dataclass(frozen=True)
class Gating:
    """Whether a candidate becomes the next base: the contributors' own validation decides."""

    protocol: str = _key(
        "", "validate each candidate so; empty = no gate", choices=("", *PROTOCOLS)
    )
    tolerance: float = _key(0.01, "by how much the mean score may fall")
    task_tolerance: float = _key(0.1, "by how much any contributor's score may fall")
    budget: int = _key(8, "so many more candidates, each without one contribution more")


@dataclass(frozen=True)
class Evaluate:
    """What is measured, at the contributors, on their test data."""

    every: int = _key(1, "iterations between evaluations; the first and last always", least=1)
    protocols: str = _key("frozen,finetuned", f"comma-separated, of {', '.join(PROTOCOLS)}")
    max_test_examples: int = _key(0, "test examples used of a task; 0 = all")
    tasks: str = _key("", "evaluate these alone, comma-separated, or unseen; empty = all")


@dataclass(frozen=True)
class Wait:
    """Deadlines."""

    nodes: float = _key(120.0, "seconds for the contributors to come online")
    replies: float = _key(43_200.0, "seconds for an iteration's replies (Flower's own limit)")


@dataclass(frozen=True)
class Sites:
    """Who takes part where contributors are sites of their own (docs/deployment.md)."""

    allow: str = _key(
        "",
        "names as registered at the SuperLink, comma-separated, or * for all that are; empty = "
        "the contributors are the suite's, as in a simulation",
    )
    minimum: int = _key(
        1, "sites that must be ready before an iteration; it waits for them (wait.nodes)", least=1
    )


@dataclass(frozen=True)
class Config:
    """A whole run; see each field's help."""

    experiment: str = _key("demo", "its name")
    suite: str = _key("demo", "a built-in suite, or the absolute path of a suite file")
    recipe: bool = _key(True, "let the suite's [recipe] set keys that stand at their default")
    tasks: str = _key("", "of the suite, comma-separated; empty = all")
    unseen: str = _key("", "tasks that are evaluated but never contribute")
    pool: int = _key(0, "only the first so many tasks of a permutation by the seed; 0 = all")
    folds: int = _key(0, "cut the tasks into so many parts, drawn from the seed; 0 = do not")
    fold: int = _key(0, "which part is unseen, from 0")
    base_model: str = _key("demo", "a hub name or a folder, resolved at each contributor")
    iterations: int = _key(30, "iterations to run")
    contributors_per_iteration: int = _key(8, "sampled for each iteration; 0 = all seen")
    schedule: str = _key("random", "who comes next", choices=("random", "round-robin"))
    seed: int = _key(0, "everything random is derived from it")
    run_dir: str = _key("", "where the run lies, absolute; empty = a new folder")
    resume: bool = _key(False, "continue the run in run-dir")
    transport: str = _key(
        "message",
        "how bodies travel: in messages, or by reference through run-dir, which all nodes share",
        choices=("message", "shared-dir"),
    )
    keep_iterations: int = _key(0, "delete the weights of all but the newest so many; 0 = none")
    quorum: int = _key(0, "good contributions an iteration needs; 0 = all that are asked")
    baseline: str = _key(
        "",
        "train on the union of all data instead of fusing: many tasks, or one in shards",
        choices=("", "multitask", "centralised"),
    )
    sampling: str = _key(
        "proportional",
        "of a baseline: a task's share of the batches is its size's, or the same for all",
        choices=("proportional", "balanced"),
    )
    attacks: str = _key("", "a rehearsal: who does harm, {music = 'sign-flip'}; docs/safety.md")
    log: str = _key(
        "",
        "follow the scores there, too, where that package is installed",
        choices=("", "tensorboard", "wandb"),
    )
    partition: Partition = Partition()
    finetune: Finetune = Finetune()
    probe: Probe = Probe()
    few_shot: FewShot = FewShot()
    fusion: Fusion = Fusion()
    screen: Screening = Screening()
    gate: Gating = Gating()
    evaluate: Evaluate = Evaluate()
    wait: Wait = Wait()
    sites: Sites = Sites()

    @classmethod
    def from_flat(cls, values: Mapping[str, Any], *, strict: bool = True) -> Self:
        """Build from flat keys.

        Args:
            values: flat keys; those not given keep their default.
            strict: refuse unknown keys; a contributor in somebody else's run ignores
                them instead.

        Raises:
            ConfigError: an unknown key, a wrong type, a value out of range.
        """
        known = describe()
        for key in values:
            if key not in known and strict:
                raise ConfigError(unknown("config key", key, list(known)))
        config = cls()
        for key, value in values.items():
            if key in known:
                config = _with(config, key.split("."), _checked(key, value, *known[key]))
        return config

    def flat(self) -> dict[str, Scalar]:
        """Return all keys and values, flat."""
        return {key: _get(self, key) for key in describe()}

    def protocols(self) -> list[str]:
        """Return the protocols to evaluate.

        Raises:
            ConfigError: one that is not known.
        """
        chosen = split(self.evaluate.protocols)
        if len(set(chosen)) != len(chosen):
            raise ConfigError(f"evaluate.protocols names one twice: {', '.join(chosen)}")
        for name in chosen:
            if name not in PROTOCOLS:
                raise ConfigError(unknown("evaluate.protocols", name, PROTOCOLS))
        return chosen

    def rule_options(self) -> dict[str, Any]:
        """Parse ``fusion.options``.

        Raises:
            ConfigError: not a TOML inline table.
        """
        text = self.fusion.options.strip()
        try:
            return dict(tomllib.loads(f"options = {text or '{}'}")["options"])
        except (tomllib.TOMLDecodeError, TypeError, ValueError) as error:
            raise ConfigError(
                f"fusion.options is a TOML inline table such as {{beta = 0.2}}, got {text!r}"
            ) from error


def split(text: str) -> list[str]:
    """Split a comma-separated value."""
    return [part.strip() for part in text.split(",") if part.strip()]


def describe() -> dict[str, tuple[Scalar, Mapping[str, Any]]]:
    """Return default and metadata (help, choices, least) of every key, flat."""
    found: dict[str, tuple[Scalar, Mapping[str, Any]]] = {}
    for outer in fields(Config):
        name, section = outer.name.replace("_", "-"), outer.default
        if is_dataclass(section):
            for inner in fields(section):
                default: Any = inner.default
                found[f"{name}.{inner.name.replace('_', '-')}"] = (default, inner.metadata)
        else:
            default = section
            found[name] = (default, outer.metadata)
    return found


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested TOML tables into dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _get(config: Any, key: str) -> Scalar:
    for part in key.split("."):
        config = getattr(config, part.replace("-", "_"))
    value: Scalar = config
    return value


def _with(config: Any, path: list[str], value: Scalar) -> Any:
    name = path[0].replace("-", "_")
    inner = value if len(path) == 1 else _with(getattr(config, name), path[1:], value)
    return replace(config, **{name: inner})


def _checked(key: str, value: Any, default: Scalar, metadata: Mapping[str, Any]) -> Scalar:
    kind: type = type(default)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind:
        hint = " (a list is one comma-separated string)" if isinstance(value, list) else ""
        raise ConfigError(
            f"{key} is of type {kind.__name__} (default {default!r}), got {value!r}{hint}"
        )
    if metadata["choices"] and value not in metadata["choices"]:
        raise ConfigError(unknown(f"value for {key}", str(value), metadata["choices"]))
    if isinstance(value, int | float):
        least, most = metadata["least"], metadata["most"]
        if not least <= value <= most or value == math.inf:
            upper = f" and at most {most}" if most < math.inf else ""
            raise ConfigError(f"{key} is at least {least}{upper}, got {value}")
    return cast(Scalar, value)
