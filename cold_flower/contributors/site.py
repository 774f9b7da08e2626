"""A partner site's own settings: ``site.toml``, read by the ClientApp at the site.

The SuperNode names the file (``--node-config 'site="/path/site.toml"'``). What stands there
wins over the run's configuration: data, base model, trainer and limits are the site's.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cold_flower import keys, toml
from cold_flower.config import YEAR, Config, Finetune, Partition, split
from cold_flower.data.task import Task
from cold_flower.errors import ConfigError, LimitError, SiteError
from strategies.names import NAME, unknown

_DEFAULTS = {
    "name": "",
    "base-model": "",
    "trainer": "",
    "app": "",
    "dry-run": False,
    "statistics": "",
}
_KEYS = (*_DEFAULTS, "task", "limits")
# A step of AdamW and AdaFactor leaves 1 - rate * decay of the weights. With 0.01 the last hundred
# steps are in a body; with 1 the last alone is.
MOST_ERASED = 0.01
_OF_THE_PROCESS = ("threads", "memory-gb")  # limits that hold a ClientApp of a site's own, too
_PURPOSE = {"train": "to train on", "test": "to test on", "dev": "in the dev split"}


@dataclass(frozen=True)
class Limits:
    """What a site allows a run to use; 0 leaves a limit out."""

    # A body that leaves tells of all its examples together; of one alone it would spell the words.
    min_examples: int = keys.key(100, "training examples that a body which leaves was trained on")
    min_test_examples: int = keys.key(
        50, "rows, of test or dev, that a score which leaves was counted on"
    )
    max_examples: int = keys.key(0, "training examples used in an iteration")
    max_seconds: float = keys.key(
        0.0,
        "of a finetuning, which then ends with the best weights so far, and of an evaluation",
        least=1,
        most=YEAR,
    )
    micro_batch_size: int = keys.key(0, "examples in a forward pass: memory, not the result")
    threads: int = keys.key(0, "cores that torch computes on; there may be fewer", most=1024)
    memory_gb: float = keys.key(
        0.0, "main memory of the process that answers a message (Linux)", least=0.5, most=10**6
    )


@dataclass(frozen=True)
class Site:
    """A contributor at an organisation of its own."""

    name: str
    """As the coordinator registered it."""
    path: Path
    """Its site.toml."""
    task: Task
    base_model: str = ""
    """A local folder or hub name; empty takes the run's."""
    trainer: str = ""
    """``package.module:function``; empty is our own loop (`cold_flower.contributors.trainer`)."""
    app: str = ""
    """``module:app``, a Flower ClientApp of the site's own that answers instead of ours."""
    dry_run: bool = False
    """Do everything, send nothing but the answer to the query."""
    statistics: str = ""
    """Which statistics of its data may leave, comma-separated, of `KINDS`; by default none."""
    limits: Limits = Limits()

    def check_statistic(self, kind: str) -> None:
        """Check that a statistic of this site's data may leave.

        Raises:
            LimitError: it may not.
        """
        if kind not in split(self.statistics):
            raise LimitError(
                f"the run's fusion rule asks for a statistic of the data, {kind}, which this site "
                f'does not let leave; statistics = "{kind}" in its own site.toml would'
            )

    def apply(self, config: Config) -> Config:
        """Return a run's configuration as this site carries it out.

        Which rows are used is the site's own matter: all, or its ``max-examples``, always the same
        ones. From two bodies or scores of which one saw a row more, that row could be told.

        Raises:
            LimitError: the run asks for less than a minimum, or for a recipe whose body would hold
                its last examples alone.
        """
        asked, own = config.finetune, self.limits
        for key, value, limit, least in (
            ("finetune.max-examples", asked.max_examples, "min-examples", own.min_examples),
            # Weights are taken at a validation: before it they saw no more than these.
            ("finetune.validate-every-examples", asked.validate_every_examples, "min-examples",
             own.min_examples),
            ("finetune.dev-examples", asked.dev_examples, "min-test-examples",
             own.min_test_examples),
            ("finetune.max-dev-examples", asked.max_dev_examples, "min-test-examples",
             own.min_test_examples),
            ("evaluate.max-test-examples", config.evaluate.max_test_examples,
             "min-test-examples", own.min_test_examples),
        ):  # fmt: skip
            if 0 < value < least:
                raise LimitError(
                    f"{key} is {value}, which is less than limits.{limit} = {least} of this site"
                )
        erased = round(asked.learning_rate * asked.weight_decay, 12)
        if erased > MOST_ERASED:
            raise LimitError(
                f"finetune.learning-rate * finetune.weight-decay is {erased:g}: each step would "
                "erase that share of the weights, and the body that leaves would hold the last "
                f"examples alone. A site takes {MOST_ERASED:g} at most: lower one of the two"
            )
        finetune = replace(
            asked,
            max_examples=own.max_examples,
            dev_examples=Finetune().dev_examples,
            max_dev_examples=Finetune().max_dev_examples,
            max_seconds=float(_lower(asked.max_seconds, own.max_seconds)),
            micro_batch_size=int(_lower(asked.micro_batch_size, own.micro_batch_size)),
        )
        return replace(
            config,
            base_model=self.base_model or config.base_model,
            partition=Partition(),
            finetune=finetune,
            evaluate=replace(config.evaluate, max_test_examples=0),
            seed=0,  # of the rows that are drawn; that of the training comes with the message
            attacks="",  # a rehearsed attack is a simulation's: nobody else has a site do harm
        )

    def check(self, **rows: int) -> None:
        """Check that a body and a score rest on as many examples as they have to.

        Args:
            rows: how many of ``train`` there are, or a finetuning has seen; of ``test`` or
                ``dev``, how many a score is counted on.

        Raises:
            LimitError: there are fewer.
        """
        for rows_of, count in rows.items():
            key, least = ("min-examples", self.limits.min_examples)
            if rows_of != "train":
                key, least = ("min-test-examples", self.limits.min_test_examples)
            if count < least:
                raise LimitError(
                    f"fewer than limits.{key} = {least} examples {_PURPOSE[rows_of]} at this site; "
                    "whether fewer may do is for its own site.toml to say"
                )

    def looked_at(self, usual: int, there: int) -> int:
        """Return how many examples a statistic is of, at most; the minimum may be more than usual.

        Raises:
            LimitError: there are fewer than the minimum.
        """
        most = max(usual, self.limits.min_examples)
        self.check(train=min(most, there))
        return most

    @contextmanager
    def within_limits(self) -> Iterator[None]:
        """Hold this process to the site's threads and memory, from here on.

        Raises:
            LimitError: what is done within takes more memory than there is.
        """
        self.apply_limits()
        try:
            yield
        except Exception as error:
            if not _out_of_memory(error):
                raise
            limit = self.limits.memory_gb
            within = f" within limits.memory-gb = {limit:g}: raise it, or" if limit else ":"
            raise LimitError(
                f"this site is out of main memory{within} lower limits.micro-batch-size"
            ) from error

    def apply_limits(self) -> None:
        """Hold this process to the site's threads and memory."""
        import resource

        import torch

        if self.limits.threads:
            torch.set_num_threads(min(self.limits.threads, os.cpu_count() or 1))
        if self.limits.memory_gb:
            most = int(self.limits.memory_gb * 1e9)
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def _lower(asked: float, own: float) -> float:
    """Return the lower of two limits, where 0 is none."""
    return min(asked, own) if asked and own else asked or own


def _out_of_memory(error: BaseException) -> bool:
    """Return whether main memory that is used up led to an error."""
    said = str(error).lower()  # torch raises a RuntimeError, safetensors an error of its own
    return (
        isinstance(error, MemoryError)
        or any(words in said for words in ("can't allocate memory", "cannot allocate memory"))
        or (error.__cause__ is not None and _out_of_memory(error.__cause__))
    )


def load_site(path: Path) -> Site:
    """Read and check a site.toml.

    Raises:
        SiteError, TaskError: it cannot be read, or naming the key that is wrong.
    """
    if not path.is_absolute():
        raise SiteError(f"site {str(path)!r}: give the absolute path of site.toml")
    table = toml.read(path, "site file", SiteError)
    for key in table:
        if key not in _KEYS:
            raise SiteError(f"site file {path}: {unknown('key', key, _KEYS)}")
    values: dict[str, Any] = {**_DEFAULTS, **table}
    for key, default in _DEFAULTS.items():
        if type(values[key]) is not type(default):
            raise SiteError(
                f"site file {path}: {key} is of type {type(default).__name__}, got {values[key]!r}"
            )
    name = values["name"]
    if not NAME.fullmatch(name):
        raise SiteError(
            f"site file {path}: name is {name[:80]!r}, expected the name that the coordinator "
            f"registered ({NAME.pattern})"
        )
    return Site(
        name=name,
        path=path,
        task=_task(path, name, table),
        base_model=_beside(path, values["base-model"]),
        trainer=values["trainer"],
        app=values["app"],
        dry_run=values["dry-run"],
        statistics=_statistics(path, values["statistics"]),
        limits=_limits(path, table.get("limits", {}), values["app"]),
    )


def _statistics(path: Path, text: str) -> str:
    from strategies.fusion._statistics import KINDS  # imports torch

    for kind in split(text):
        if kind not in KINDS:
            raise SiteError(f"site file {path}: {unknown('statistic', kind, KINDS)}")
    return text


def _task(path: Path, name: str, table: dict[str, Any]) -> Task:
    if table.get("app"):  # it has its data from wherever it wants
        if table.get("trainer"):
            raise SiteError(f"site file {path}: app answers instead of ours, trainer has no use")
        return Task(name, str(path), source="app", text=(), label="")
    if not isinstance(table.get("task"), dict):
        raise SiteError(f"site file {path}: the table [task] is missing")
    return Task.from_table(name, table["task"], str(path), seed=0)


def _beside(path: Path, model: str) -> str:
    """Resolve a folder beside the file; anything else is a hub name."""
    folder = path.parent / model
    return str(folder) if model and folder.is_dir() else model


def _limits(path: Path, table: Any, app: str) -> Limits:
    known = {name: (value, field.metadata) for name, field, value in keys.declared(Limits())}
    if not isinstance(table, dict):
        raise SiteError(f"site file {path}: limits is a table, got {table!r}")
    for name in table:
        if name not in known:
            raise SiteError(f"site file {path}: {unknown('limit', name, list(known))}")
    if app and (unheld := sorted(table.keys() - _OF_THE_PROCESS)):
        raise SiteError(
            f"site file {path}: limits.{unheld[0]}: what {app} trains on and for how long is in "
            f"its own hands. Beside app there are limits.{' and limits.'.join(_OF_THE_PROCESS)}"
        )
    where = f"site file {path}: limits."
    try:
        given = {n: keys.checked(where + n, value, *known[n]) for n, value in table.items()}
    except ConfigError as error:
        raise SiteError(str(error)) from error
    limits = keys.built(Limits, given)
    if 0 < limits.max_examples < limits.min_examples:
        raise SiteError(
            f"site file {path}: limits.max-examples is {limits.max_examples}, less than "
            f"limits.min-examples = {limits.min_examples}: raise one or lower the other"
        )
    return limits
