"""A contributor: its task, its data, its answers. Knows nothing of Flower.

Its own things (tokenised data) lie under ``COLD_FLOWER_HOME``, a folder each.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from cold_flower import evaluate as protocols
from cold_flower import sources, tasks, text_to_text
from cold_flower.config import Config, split
from cold_flower.encode import Encoded, encode
from cold_flower.errors import ConfigError, NoTaskError
from cold_flower.evaluate import Splits
from cold_flower.finetune import finetune
from cold_flower.model import Base, State, body_of, classifier, load_base
from cold_flower.seeds import derive
from strategies.names import unknown

ENCODED = ("ids", "types", "starts", "labels")  # the tensors of an Encoded


@dataclass(frozen=True)
class Plan:
    """Who the contributors of a run are, in the order of their partition ids."""

    tasks: Mapping[str, tasks.Task]
    """By contributor name; with shards, the same task under every name."""
    seen: tuple[str, ...]
    """Contribute, and are evaluated."""
    unseen: tuple[str, ...]
    """Are only evaluated."""

    @property
    def names(self) -> tuple[str, ...]:
        """Return every contributor, the seen ones first."""
        return self.seen + self.unseen


def plan(config: Config) -> Plan:
    """Derive a run's contributors from its configuration.

    Raises:
        TaskError, ConfigError: a suite or task that is not there, or an empty plan.
    """
    suite = tasks.load_suite(config.suite, config.seed)
    chosen = split(config.tasks) or list(suite.tasks)
    unseen = split(config.unseen)
    for key, listed in (("tasks", chosen), ("unseen", unseen)):
        if len(set(listed)) != len(listed):
            raise ConfigError(f"{key} names a task twice: {', '.join(listed)}")
        for name in listed:
            if name not in suite.tasks:
                where = f"task in {key} (suite {config.suite})"
                raise ConfigError(unknown(where, name, list(suite.tasks)))
    if config.partition.kind == "shards":
        if len(chosen) != 1 or unseen:
            raise ConfigError(
                "partition.kind = shards splits one task: set tasks to its name and unseen to "
                f"nothing (tasks are {chosen}, unseen {unseen})"
            )
        names = tuple(f"shard-{i:03d}" for i in range(config.partition.shards))
        return Plan(dict.fromkeys(names, suite.tasks[chosen[0]]), names, ())
    seen = tuple(name for name in chosen if name not in unseen)
    if not seen:
        raise ConfigError(f"no task contributes: tasks are {chosen}, all of them in unseen")
    return Plan({n: suite.tasks[n] for n in (*seen, *unseen)}, seen, tuple(unseen))


def resolve(config: Config) -> Config:
    """Apply the suite's recipe to the keys that stand at their default.

    Raises:
        TaskError, ConfigError: no such suite, or a recipe with a wrong key.
    """
    if not config.recipe:
        return config
    recipe = tasks.load_suite(config.suite, config.seed).recipe
    defaults, values = Config().flat(), config.flat()
    alone = {k: v for k, v in recipe.items() if values.get(k) == defaults.get(k)}
    return Config.from_flat({**values, **alone, "recipe": False})


def home() -> Path:
    """Return the folder for the contributors' own things."""
    given = os.environ.get("COLD_FLOWER_HOME")
    data = os.environ.get("XDG_DATA_HOME", str(Path.home() / ".local" / "share"))
    return Path(given) if given else Path(data) / "cold-flower"


class Contributor:
    """One contributor of a run.

    Args:
        config: the run's, resolved.
        index: its partition id.
    """

    def __init__(self, config: Config, index: int) -> None:
        whole = plan(config)
        if not 0 <= index < len(whole.names):
            raise NoTaskError(
                f"partition-id {index} has no task: there are {len(whole.names)} contributors "
                f"({', '.join(whole.names)})"
            )
        self.config = config
        self.name = whole.names[index]
        self.task = whole.tasks[self.name]
        self._shard = index if config.partition.kind == "shards" else None
        self.base: Base = load_base(config.base_model)

    def splits(self) -> Splits:
        """Return the tokenised data; tokenised once, then read from its own folder."""
        about = {
            "layout": 2,  # of the file; 1 had no label names
            "task": [str(value) for value in astuple(self.task)],
            "shard": self._shard,
            "seed": self.config.seed,
            "sizes": [
                self.config.finetune.max_examples,
                self.config.finetune.dev_examples,
                self.config.finetune.max_length,
                self.config.evaluate.max_test_examples,
                *astuple(self.config.partition),
            ],
            "base": self.base.sha256,
            "files": sources.stamp(self.task),
        }
        digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
        path = home() / self.name / f"tokens-{digest}.safetensors"
        if not path.exists():
            self._tokenise(path)
        with safe_open(path, framework="pt") as file:
            read = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no dict
            labels = tuple(json.loads(file.metadata()["labels"]))
        train, dev, test = (
            Encoded(**{key: read[f"{name}.{key}"] for key in ENCODED}, padding=int(read["padding"]))
            for name in ("train", "dev", "test")
        )
        return Splits(train, dev, test, labels, self.task.kind, self.task.metric)

    def _tokenise(self, path: Path) -> None:
        data = tasks.load(self.task, self.config, self._shard)
        text_to_text.check(self.base, self.task, data.labels)
        limit = self.config.finetune.max_length
        tensors: dict[str, Tensor] = {}
        for name, rows in (("train", data.train), ("dev", data.dev), ("test", data.test)):
            made = encode(self.base.tokenizer, rows.texts, rows.labels, max_length=limit)
            tensors |= {f"{name}.{key}": getattr(made, key) for key in ENCODED}
            tensors["padding"] = torch.tensor(made.padding)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        save_file(tensors, temporary, {"labels": json.dumps(data.labels)})
        temporary.replace(path)

    def finetune(
        self, body: State, *, iteration: int, seed: int
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Finetune from ``body`` on the own task; return the new body and the metrics.

        The head is made fresh and stays here (PAPER: every dataset has its own).
        """
        data = self.splits()
        derived = derive(seed, iteration, self.name, "train")
        model = classifier(
            self.base, body, labels=data.labels, kind=data.kind, seed=derive(derived, "head")
        )
        outcome = finetune(
            model,
            data.train,
            data.dev,
            options=self.config.finetune,
            metric=data.metric,
            seed=derive(derived, "run"),
        )
        return body_of(model), {
            "num-examples": len(data.train),
            "train-loss": outcome.train_loss,
            "dev-accuracy": outcome.dev_score,
            "seconds": outcome.seconds,
            "steps": outcome.steps,
        }

    def evaluate(self, body: State, chosen: list[str], *, seed: int) -> dict[str, float]:
        """Score ``body`` on the own test data under each protocol."""
        data = self.splits()
        # The same draws at every iteration: then only the body makes the difference.
        derived = derive(seed, self.name, "evaluate")
        scores = protocols.evaluate(self.base, body, data, chosen, self.config, derived)
        return {"num-examples": len(data.test), **scores}
