"""Who takes part in a run, and in which role: derived from the configuration alone."""

import functools
import random
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from cold_flower.config import ASYNCHRONOUS, Config, Partition, split
from cold_flower.data.suite import Suite, load_suite
from cold_flower.data.task import Task
from cold_flower.errors import ColdFlowerError, ConfigError
from cold_flower.keys import unknown_key
from cold_flower.seeds import derive
from strategies.errors import StrategyError
from strategies.names import unknown

NOBODY_CONTRIBUTES = "*"  # as `unseen`
# Who sets one of these has said who contributes: the recipe's `unseen` is left aside.
_INSTEAD_OF_UNSEEN = ("tasks", "folds", "partition.kind")
# Which run it is, and whose recipe: nothing that a recipe could say.
_OF_THE_RUN = ("experiment", "suite", "recipe", "explicit", "run-dir", "resume")


@dataclass(frozen=True)
class Plan:
    """Who the contributors of a run are, in the order of their partition ids."""

    tasks: Mapping[str, Task]
    """By contributor name; with shards, the same task under every name."""
    seen: tuple[str, ...]
    """Contribute."""
    unseen: tuple[str, ...]
    """Are evaluated, but never contribute."""
    evaluated: tuple[str, ...]
    """Score the bases on their test data."""

    @property
    def names(self) -> tuple[str, ...]:
        """Return every contributor, the seen ones first."""
        return self.seen + self.unseen

    def without(self, left: Collection[str]) -> "Plan":
        """Return the plan without some contributors; their tasks are not evaluated either.

        Shards share a test split: if the one that evaluates is gone, the next one does it.
        """
        tasks = {name: task for name, task in self.tasks.items() if name not in left}
        seen, unseen, evaluated = (
            tuple(name for name in names if name not in left)
            for names in (self.seen, self.unseen, self.evaluated)
        )
        if not evaluated and {t.name for t in self.tasks.values()} == {
            t.name for t in tasks.values()
        }:
            evaluated = seen[:1]
        return Plan(tasks, seen, unseen, evaluated)


def plan(config: Config) -> Plan:
    """Derive a run's contributors from its configuration.

    Raises:
        TaskError, ConfigError: a suite or task that is not there, a fold out of range, or
            an empty plan.
    """
    return _plan(config, load_suite(config.suite, config.seed))


@functools.lru_cache(maxsize=4)
def _plan(config: Config, suite: Suite) -> Plan:
    chosen = split(config.tasks) or list(suite.tasks)
    _check_names("tasks", chosen, list(suite.tasks), f"suite {config.suite}")
    if config.partition.kind == "shards":
        return _shards(config, suite.tasks, chosen)
    if config.partition != Partition():
        raise ConfigError(
            "partition.shards, examples, total and fresh are about shards: set partition.kind = "
            "shards, or leave them alone"
        )
    unseen = chosen if config.unseen == NOBODY_CONTRIBUTES else split(config.unseen)
    _check_names("unseen", unseen, list(suite.tasks), f"suite {config.suite}")
    if config.folds or config.fold:
        unseen = _fold(config, chosen)
    elif config.pool:
        unseen += _outside_pool(config, [name for name in chosen if name not in unseen])
    left_out = set(unseen)
    seen = tuple(name for name in chosen if name not in left_out)
    if not seen and not (config.schedule == ASYNCHRONOUS and config.buffer):
        raise ConfigError(
            f"no task contributes: unseen is {config.unseen}, which are all of the tasks "
            f"({', '.join(chosen)}). If a drop box alone is to feed the run, set schedule = "
            f"{ASYNCHRONOUS} and buffer = how many models make an iteration"
        )
    if not seen and config.gate.protocol:
        raise ConfigError("gate.protocol has the contributors validate, and no task contributes")
    names = (*seen, *unseen)
    evaluated = split(config.evaluate.tasks) or names
    if evaluated == ["unseen"]:
        if not unseen:
            raise ConfigError(
                "evaluate.tasks is unseen, but every task is seen: set unseen, folds or a "
                "smaller pool"
            )
        evaluated = unseen
    _check_names("evaluate.tasks", evaluated, names, "this run")
    scoring = set(evaluated)
    scored = tuple(name for name in unseen if name in scoring)  # no other unseen one has a role
    return Plan({n: suite.tasks[n] for n in (*seen, *scored)}, seen, scored, tuple(evaluated))


def _outside_pool(config: Config, chosen: Sequence[str]) -> list[str]:
    """Return all but the first tasks of a permutation.

    Pools of 4, 8, 16 and 36 are nested (App. E), and all 36 are tested with each (section 4.1).
    """
    if config.pool > len(chosen):
        may = " that may contribute (see unseen)" if config.unseen else ""
        raise ConfigError(f"pool is {config.pool}, but there are {len(chosen)} tasks{may}")
    order = sorted(chosen)
    random.Random(derive(config.seed, "pool")).shuffle(order)
    inside = set(order[: config.pool])
    return [name for name in chosen if name not in inside]


def _check_names(key: str, listed: Sequence[str], valid: Sequence[str], where: str) -> None:
    if len(set(listed)) != len(listed):
        raise ConfigError(f"{key} names a task twice: {', '.join(listed)}")
    known = set(valid)
    for name in listed:
        if name not in known:
            raise ConfigError(unknown(f"task in {key} ({where})", name, valid))


def _shards(config: Config, known: Mapping[str, Task], chosen: Sequence[str]) -> Plan:
    asked = config.unseen or config.pool or config.folds or config.evaluate.tasks
    if len(chosen) != 1 or asked:
        raise ConfigError(
            "partition.kind = shards splits one task: set tasks to its name and leave unseen, "
            f"pool, folds and evaluate.tasks alone (tasks are {', '.join(chosen)}; unseen is "
            f"{config.unseen!r}, pool {config.pool}, folds {config.folds}, evaluate.tasks "
            f"{config.evaluate.tasks!r})"
        )
    names = tuple(f"shard-{i:03d}" for i in range(config.partition.shards))
    # All have the same test split: the first contributor evaluates for all (DESIGN).
    return Plan(dict.fromkeys(names, known[chosen[0]]), names, (), names[:1])


def _fold(config: Config, chosen: Sequence[str]) -> list[str]:
    """Return the unseen tasks of a cross-validation (section 5.2); sizes differ by at most 1."""
    for key, value in (("unseen", config.unseen), ("pool", config.pool)):
        if value:
            raise ConfigError(
                f"{key} ({value}) and folds ({config.folds}) both say which tasks are unseen: "
                "give one of them"
            )
    if not 2 <= config.folds <= len(chosen):
        raise ConfigError(
            f"folds is {config.folds}, expected 2 to {len(chosen)}, the number of tasks"
            + (f" (fold is {config.fold})" if not config.folds else "")
        )
    if config.fold >= config.folds:
        raise ConfigError(
            f"fold is {config.fold}, expected 0 to {config.folds - 1} (folds = {config.folds})"
        )
    order = sorted(chosen)
    random.Random(derive(config.seed, "folds")).shuffle(order)
    unseen = set(order[config.fold :: config.folds])
    return [name for name in chosen if name in unseen]


def resolve(config: Config, given: Iterable[str] = ()) -> Config:
    """Apply the suite's recipe to the keys that were left alone.

    Those are the keys that stand at their default, but for ``given`` and ``explicit`` ones.
    ``tasks``, ``folds`` and ``partition.kind`` say who contributes: where one of them was set, the
    recipe's ``unseen`` is left alone, too.

    Args:
        config: the run's.
        given: names of the keys that were set, also to their default.

    Raises:
        TaskError, ConfigError: no such suite, or a recipe with a wrong key.
    """
    if not config.recipe or config.sites.allow:  # sites bring tasks of their own, no suite
        return config
    recipe = load_suite(config.suite, config.seed).recipe
    for key in _OF_THE_RUN:
        if key in recipe:
            raise ConfigError(f"suite {config.suite}: a [recipe] cannot set {key}: leave it out")
    defaults, values = Config().flat(), config.flat()
    for key in split(config.explicit):
        if key not in values:
            raise ConfigError(f"explicit names no key: {unknown_key(key, values)}")
    kept = {*given, *split(config.explicit)} | {k for k in values if values[k] != defaults[k]}
    if kept.intersection(_INSTEAD_OF_UNSEEN):
        kept.add("unseen")
    applied = {key: value for key, value in recipe.items() if key not in kept}
    try:
        resolved = Config.from_flat({**values, **applied, "recipe": False})
    except ConfigError as error:
        raise ConfigError(f"suite {config.suite}: [recipe]: {error}") from error
    return replace(resolved, of_recipe=frozenset(applied))


@contextmanager
def naming_the_recipe(config: Config) -> Iterator[None]:
    """Say of an error which of the keys that it names the suite's recipe has set."""
    try:
        yield
    except (ColdFlowerError, StrategyError) as error:
        if named := [key for key in sorted(config.of_recipe) if _names(str(error), key)]:
            them, is_are = ("it", "is") if len(named) == 1 else ("them", "are")
            settings = " ".join(f"--set {key}=..." for key in named)
            error.args = (
                f"{str(error).rstrip('.')}. ({', '.join(named)} {is_are} from the [recipe] of "
                f"suite {config.suite}; {settings} overrides {them})",
            )
        raise


def _names(text: str, key: str) -> bool:
    """Return whether a text speaks of a key; one without a group is a common word, too."""
    plain = "." not in key and "-" not in key
    told = r"(?= (=|is|are|was|names|\())" if plain else ""
    words = re.escape(key).replace(r"\.", "[. ]")  # "unknown fusion rule"
    return bool(re.search(rf"(?<![\w./-]){words}(?![\w-]){told}", text))
