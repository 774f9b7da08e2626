"""The run configuration: types, defaults and help of every key, in one place.

Keys are Flower's flat scalars, written with dashes, and with a dot after the group
(``finetune.learning-rate``). Defaults are the paper's (arXiv 2212.01378) where it states them, on
the embedded demo. A test keeps the table in pyproject.toml equal to them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from cold_flower import toml
from cold_flower.errors import ConfigError
from cold_flower.keys import Scalar, built, checked, declared, key, unknown_key
from strategies.names import unknown

PROTOCOLS = ("frozen", "finetuned", "few-shot")
EMA = "ema-"  # before a protocol: what is scored is the moving average beside a base
ALL_PROTOCOLS = (*PROTOCOLS, *(EMA + protocol for protocol in PROTOCOLS))
ASYNCHRONOUS = "asynchronous"  # a schedule
# Beyond these a number is a slip: a learning rate that trains nothing, more than anybody runs or
# waits for.
LITTLE, MANY, YEAR = 1e-9, 100_000, 365 * 24 * 3600


@dataclass(frozen=True)
class Partition:
    """What one contributor holds."""

    kind: str = key(
        "tasks", "a contributor holds a whole task, or a shard of one", choices=("tasks", "shards")
    )
    shards: int = key(10, "contributors, with kind = shards", least=1, most=MANY)
    examples: int = key(5000, "training examples of each shard, disjoint", least=1)
    total: int = key(0, "training examples of all shards together, split evenly; 0 = examples")
    fresh: bool = key(False, "draw the shards anew each iteration, and one more to evaluate with")

    @property
    def size(self) -> int:
        """Return the number of a shard's training examples, including those held out for dev."""
        return self.total // self.shards if self.total else self.examples


@dataclass(frozen=True)
class Finetune:
    """One contributor's finetuning (App. B; whose each value is: docs/experiments.md)."""

    learning_rate: float = key(5e-5, "peak learning rate", least=LITTLE, most=1)
    final_learning_rate_ratio: float = key(
        0.0006, "last learning rate divided by the peak; linear decay", most=1
    )
    warmup_ratio: float = key(0.06, "share of the steps that warm up", most=1)
    optimizer: str = key(
        "adamw",
        "adafactor: T5's, with steps relative to the size of the weights",
        choices=("adamw", "adafactor"),
    )
    schedule: str = key(
        "linear",
        "after the warm-up: linear falls to final-learning-rate-ratio; constant stays, as T5's",
        choices=("linear", "constant"),
    )
    weight_decay: float = key(0.01, "weight decay of matrices, times the learning rate", most=10)
    batch_size: int = key(256, "examples a step", least=1, most=10 * MANY)
    micro_batch_size: int = key(0, "examples a forward pass, at most; 0 = the batch")
    max_epochs: int = key(10, "at most so many passes over the data", least=1)
    max_examples: int = key(0, "training examples used of a task; 0 = all")
    dev_examples: int = key(
        1000,
        "of train, held out for early stopping where a task has no dev split of its own: at most "
        "so many, and 10 %",
        least=1,
    )
    max_dev_examples: int = key(0, "dev examples used of a task; 0 = all")
    max_length: int = key(250, "tokens; longer texts are cut", least=4)
    early_stop_examples: int = key(
        256_000, "stop after so many examples without improvement", least=1
    )
    early_stop_delta: float = key(
        0.001, "how much better a dev score has to be to count as improvement", most=1
    )
    validate_every_examples: int = key(
        12_800, "examples between two validations; there is one at each epoch's end, too", least=1
    )
    max_seconds: float = key(
        0.0,
        "stop after so many seconds, those of scoring dev and of probing the head counted, with "
        "the best weights so far; 0 = never. The result then depends on the machine's speed",
        least=1,
        most=YEAR,
    )
    precision: str = key(
        "auto",
        "bf16 autocast where the hardware has it; weights stay float32",
        choices=("auto", "fp32", "bf16"),
    )
    proximal_mu: float = key(
        0.0,
        "FedProx: pulls a contribution towards its base, mu/2 * ||w - base||^2 in the loss, over "
        "the body; 0 = off. Evaluations finetune without it",
    )
    head: str = key(
        "fresh",
        "what a contribution begins with. fresh: drawn anew each iteration; probe: drawn anew and "
        "trained on the frozen base with probe.*, then all is finetuned (LP-FT); keep: that of the "
        "last iteration it took part in. Evaluations always begin with a fresh head, so scores of "
        "runs with any of these compare",
        choices=("fresh", "probe", "keep"),
    )


@dataclass(frozen=True)
class Probe:
    """The linear probe: train the head on the frozen body's features (section 4.4)."""

    learning_rate: float = key(
        3e-3, "peak learning rate of the head, AdamW, linear decay", least=LITTLE, most=10
    )
    epochs: int = key(50, "passes over the features, in finetune.batch-size", least=1)


@dataclass(frozen=True)
class FewShot:
    """Finetuning on few labelled examples (section 5.3)."""

    examples: int = key(100, "labelled examples", least=1)
    draws: int = key(3, "draws, averaged", least=1)
    learning_rate: float = key(
        0.0, "peak learning rate; 0 = finetune.learning-rate", least=LITTLE, most=1
    )
    epochs: int = key(20, "passes over them", least=1)
    batch_size: int = key(16, "examples a step", least=1, most=10 * MANY)


@dataclass(frozen=True)
class Fusion:
    """How the next base is made."""

    rule: str = key(
        "average",
        "a fusion rule; one of yours: file.py:function, or module:function if it is installed",
    )
    options: str = key("", "the rule's options, a TOML inline table: {beta = 0.2}")
    strategy: str = key(
        "", "a Flower strategy instead: flwr.serverapp.strategy:FedAvg; yours: file.py:class"
    )
    clip: str = key("", "bound each contribution's norm: median (of the cohort's), or a number")
    norm: str = key(
        "",
        "length of the rule's update: mean (the plain mean's), contributions (the median of "
        "theirs), or so many times the mean's; empty = the rule's own",
    )
    learning_rate: float = key(
        0.0, "fusion learning rate; 0 = 1 with sgd, 0.001 with adam", least=LITTLE, most=100
    )
    optimizer: str = key("sgd", "what makes a step of the fused update", choices=("sgd", "adam"))
    momentum: float = key(0.0, "of sgd; beta1 of adam, there 0 = 0.9")
    nesterov: bool = key(False, "Nesterov momentum, with sgd")
    anchor: float = key(0.0, "share by which each base is pulled back to the starting model")
    ema: float = key(
        0.0,
        "publish a moving average of the bases beside each, in ema/, that keeps this share of the "
        "last one; contributors go on from the plain base; 0 = none",
        most=0.99999,
    )


@dataclass(frozen=True)
class Screening:
    """What is refused before it is fused. The form of a reply is checked in any case."""

    checks: str = key(
        "duplicate,unchanged,metrics,random,norm,growth,cosine", "comma-separated; empty = none"
    )
    norm: float = key(6.0, "refuse an update so many times the median norm", least=1)
    cosine: float = key(
        -0.2,
        "refuse an update whose median cosine with the other updates is below; in a cohort "
        "that agrees, also one that points half as far the other way; -1 = neither",
        least=-1,
        most=1,
    )
    similarity: float = key(
        0.25, "refuse a model with a matrix whose cosine with the base's is below", least=-1, most=1
    )


@dataclass(frozen=True)
class Gating:
    """Whether a candidate becomes the next base; it is validated on the contributors' dev data."""

    protocol: str = key(
        "", "how each candidate is validated; empty = no gate", choices=("", *PROTOCOLS)
    )
    tolerance: float = key(0.01, "by how much the mean score may fall", most=2)
    task_tolerance: float = key(0.1, "by how much any contributor's score may fall", most=2)
    budget: int = key(
        8, "how many further candidates may be validated, each without one of the contributions"
    )


@dataclass(frozen=True)
class Evaluate:
    """What is measured, at the contributors, on their test data."""

    every: int = key(1, "iterations between evaluations; the first and last always", least=1)
    protocols: str = key("frozen,finetuned", f"comma-separated, of {', '.join(ALL_PROTOCOLS)}")
    max_test_examples: int = key(0, "test examples used of a task; 0 = all")
    tasks: str = key("", "evaluate only these, comma-separated, or unseen; empty = all")
    reuse: bool = key(
        True,
        "take the finetuned score of a base from who contributes next, where its finetuning is "
        "that evaluation: fewer finetunings, the same numbers",
    )


@dataclass(frozen=True)
class Wait:
    """Deadlines."""

    nodes: float = key(120.0, "seconds for the contributors to come online", least=0.1, most=YEAR)
    replies: float = key(
        43_200.0, "seconds for an iteration's replies (Flower's own limit)", least=0.1, most=YEAR
    )


@dataclass(frozen=True)
class Sites:
    """Who takes part where contributors are sites of their own (docs/deployment.md)."""

    allow: str = key(
        "",
        "names as registered at the SuperLink, comma-separated, or * for all that are; empty = "
        "the contributors are the suite's, as in a simulation",
    )
    minimum: int = key(
        1, "sites that must be ready before an iteration; it waits for them (wait.nodes)", least=1
    )


@dataclass(frozen=True)
class Config:
    """A whole run; see each field's help."""

    experiment: str = key("demo", "its name")
    suite: str = key("demo", "a built-in suite, or the absolute path of a suite file")
    recipe: bool = key(True, "let the suite's [recipe] set those keys that are not set here")
    explicit: str = key(
        "", "keys that a recipe leaves at their default; `flwr run -c` lists those given there"
    )
    tasks: str = key("", "of the suite, comma-separated; empty = all")
    unseen: str = key("", "tasks that are evaluated but never contribute; * = all: a drop box does")
    pool: int = key(
        0,
        "only so many of the tasks contribute, drawn from the seed, and the rest is unseen; a pool "
        "is part of a larger one; 0 = all",
    )
    folds: int = key(0, "divide the tasks into so many parts, drawn from the seed; 0 = do not")
    fold: int = key(0, "which of these parts is unseen, from 0")
    base_model: str = key(
        "demo",
        "a hub name (owner/name@tag for a revision) or a folder, resolved at each contributor",
    )
    iterations: int = key(30, "iterations to run", most=MANY)
    contributors_per_iteration: int = key(8, "sampled for each iteration; 0 = all seen")
    schedule: str = key(
        "random",
        "who comes next. asynchronous: nobody waits; contributors-per-iteration of them are at "
        "work at any time, each on the base that was the newest when it began",
        choices=("random", "round-robin", ASYNCHRONOUS),
    )
    buffer: int = key(
        0,
        "with schedule = asynchronous, so many contributions make an iteration; 0 = quorum, or "
        "half of contributors-per-iteration",
    )
    staleness: int = key(
        3,
        "with schedule = asynchronous, or of a drop box, how many bases older than the last one a "
        "contribution may have begun from; of age a it counts (1 + a)^-1/2, older ones are dropped",
        most=MANY,
    )
    dropbox: str = key(
        "",
        "a folder into which anybody puts finetuned models; empty = dropbox in the run directory",
    )
    late: str = key(
        "",
        "a contribution that comes after wait.replies is dropped, or counts in the next iteration "
        "as one that is a base older",
        choices=("", "next"),
    )
    replay: str = key(
        "", "repeat the run in this directory: the same contributions from the same bases"
    )
    seed: int = key(0, "everything random is derived from it")
    run_dir: str = key("", "where the run lies, absolute; empty = a new folder")
    resume: bool = key(False, "continue the run in run-dir")
    transport: str = key(
        "message",
        "how bodies travel: in messages, or by reference through run-dir, which all nodes share",
        choices=("message", "shared-dir"),
    )
    keep_iterations: int = key(0, "delete the weights of all but the newest so many; 0 = none")
    keep_contributions: int = key(
        0,
        "keep the contributions of the newest so many iterations, for `cold-flower worth` and "
        "`leave`; each takes the disk of a body; 0 = none",
    )
    quorum: int = key(
        0,
        "good contributions an iteration needs; 0 = all that are asked answer, and screening "
        "refuses fewer than half",
    )
    baseline: str = key(
        "",
        "train on the union of all data instead of fusing: many tasks, or one in shards",
        choices=("", "multitask", "centralised"),
    )
    sampling: str = key(
        "proportional",
        "of a baseline: a task's share of the batches is its size's, or the same for all",
        choices=("proportional", "balanced"),
    )
    loss_scaling: str = key(
        "",
        "of baseline = multitask: log-classes divides a task's loss by the logarithm of the number "
        "of its classes, as MUPPET",
        choices=("", "log-classes"),
    )
    attacks: str = key("", "a rehearsal: who does harm, {music = 'sign-flip'}; docs/safety.md")
    log: str = key(
        "",
        "also send the scores to this package, which has to be installed",
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
    of_recipe: frozenset[str] = field(default=frozenset(), compare=False, repr=False)
    """Not a key: names of the keys whose values are the suite's recipe's."""

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
        for name in values if strict else ():
            if name not in known:
                raise ConfigError(unknown_key(name, known))
        given = {n: checked(n, v, *known[n]) for n, v in values.items() if n in known}
        return built(cls, given)

    def flat(self) -> dict[str, Scalar]:
        """Return all keys and values, flat."""
        return {name: value for name, _, value in declared(self)}

    def protocols(self) -> list[str]:
        """Return the protocols to evaluate.

        Raises:
            ConfigError: one that is not known.
        """
        chosen = split(self.evaluate.protocols)
        if len(set(chosen)) != len(chosen):
            raise ConfigError(f"evaluate.protocols names one twice: {', '.join(chosen)}")
        for name in chosen:
            if name not in ALL_PROTOCOLS:
                raise ConfigError(unknown("evaluate.protocols", name, ALL_PROTOCOLS))
            if name.startswith(EMA) and not self.fusion.ema:
                raise ConfigError(
                    f"evaluate.protocols names {name}, but fusion.ema is 0: there is no average"
                )
        return chosen

    def files(self) -> dict[str, str]:
        """Return what may be files of the user's own, by key: suite, rule, strategy."""
        return {
            "suite": self.suite,
            "fusion.rule": self.fusion.rule.rpartition(":")[0],
            "fusion.strategy": self.fusion.strategy.rpartition(":")[0],
        }

    def rule_options(self) -> dict[str, Any]:
        """Parse ``fusion.options``.

        Raises:
            ConfigError: not a TOML inline table.
        """
        text = self.fusion.options.strip()
        try:
            return dict(toml.value(text or "{}"))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"fusion.options is a TOML inline table such as {{beta = 0.2}}, got {text!r}"
            ) from error


OF_A_RUN = ("run-dir", "resume", "log", "explicit", "recipe")
"""Keys that say where a run lies and how it was begun, not what it is."""
NO_BEARING = (
    *OF_A_RUN,
    *("transport", "keep-iterations", "keep-contributions", "wait.nodes", "wait.replies"),
    *("evaluate.every", "evaluate.reuse"),
)
"""And those that change no score: only which there are, what is kept, or how it travels."""


def split(text: str) -> list[str]:
    """Split a comma-separated value."""
    return [part.strip() for part in text.split(",") if part.strip()]


def describe() -> dict[str, tuple[Scalar, Mapping[str, Any]]]:
    """Return every key's default, and what `cold_flower.keys.key` declared of it."""
    return {name: (value, field.metadata) for name, field, value in declared(Config())}
