"""Who takes part, in which role."""

import pytest

from cold_flower.config import Config
from cold_flower.data.plan import plan, resolve
from cold_flower.data.suite import load_suite
from cold_flower.errors import ConfigError


def test_the_plan() -> None:
    demo = plan(resolve(Config()))
    assert (len(demo.seen), len(demo.unseen)) == (8, 4)
    assert not set(demo.seen) & set(demo.unseen)
    with pytest.raises(ConfigError, match="task in unseen .*Did you mean 'market'"):
        plan(Config.from_flat({"unseen": "markt"}))
    with pytest.raises(ConfigError, match="no task contributes"):
        plan(Config.from_flat({"tasks": "market", "unseen": "market"}))
    with pytest.raises(ConfigError, match="unseen names a task twice: market, market"):
        plan(Config.from_flat({"unseen": "market, market"}))
    with pytest.raises(ConfigError, match="splits one task"):
        plan(Config.from_flat({"partition.kind": "shards"}))
    keys = {"partition.kind": "shards", "tasks": "market", "partition.shards": 3}
    assert plan(Config.from_flat(keys)).names == ("shard-000", "shard-001", "shard-002")


def test_a_recipe_moves_only_keys_that_were_left_alone() -> None:
    recipe = load_suite("demo").recipe
    resolved = resolve(Config.from_flat({"finetune.batch-size": 99}))
    assert resolved.finetune.batch_size == 99
    assert resolved.finetune.max_epochs == recipe["finetune.max-epochs"]
    assert resolve(resolved) == resolved


def test_a_key_that_was_set_to_its_default_stays() -> None:
    """`flwr run -c 'finetune.max-epochs=10'`: the default, but not left alone."""
    set_so = resolve(Config.from_flat({"explicit": "seed,finetune.max-epochs"}))
    assert set_so.finetune.max_epochs == Config().finetune.max_epochs != 6
    assert set_so.finetune.batch_size == load_suite("demo").recipe["finetune.batch-size"]


def test_folds_partition_the_tasks() -> None:
    folds = [plan(Config.from_flat({"folds": 3, "fold": i})) for i in range(3)]
    unseen = [name for fold in folds for name in fold.unseen]
    assert sorted(unseen) == sorted(folds[0].names)
    assert [len(fold.unseen) for fold in folds] == [4, 4, 4]
    assert all(set(fold.seen) == set(fold.names) - set(fold.unseen) for fold in folds)
    other = plan(Config.from_flat({"folds": 3, "fold": 0, "seed": 1}))
    assert other.unseen != folds[0].unseen == plan(Config.from_flat({"folds": 3})).unseen


def test_only_the_unseen_tasks_are_evaluated() -> None:
    chosen = plan(Config.from_flat({"folds": 3, "evaluate.tasks": "unseen"}))
    assert chosen.evaluated == chosen.unseen
    assert len(chosen.unseen) == 4


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"folds": 3, "fold": 3}, r"fold is 3, expected 0 to 2 \(folds = 3\)"),
        ({"folds": 1}, "folds is 1, expected 2 to 12"),
        ({"folds": 13}, "folds is 13, expected 2 to 12, the number of tasks"),
        ({"fold": 1}, r"folds is 0, expected 2 to 12, the number of tasks \(fold is 1\)"),
        ({"folds": 3, "unseen": "market"}, "give one of them"),
        ({"pool": 13}, "pool is 13, but there are 12 tasks"),
        ({"evaluate.tasks": "markt"}, "evaluate.tasks .this run.*Did you mean 'market'"),
        (
            {"recipe": False, "suite": "demo", "evaluate.tasks": "unseen"},
            "every task is seen: set unseen or folds",
        ),
        ({"evaluate.tasks": "music", "tasks": "market"}, "task in evaluate.tasks"),
        ({"partition.fresh": True}, "set partition.kind = shards, or leave them alone"),
    ],
)
def test_what_cannot_be_planned(keys, words) -> None:
    with pytest.raises(ConfigError, match=words):
        plan(Config.from_flat(keys))


def test_pools_are_nested() -> None:
    pools = [set(plan(Config.from_flat({"pool": size})).seen) for size in (3, 6, 12)]
    assert [len(pool) for pool in pools] == [3, 6, 12]
    assert pools[0] < pools[1] < pools[2]
    assert pools[0] != set(plan(Config.from_flat({"pool": 3, "seed": 1})).seen)


def test_who_evaluates() -> None:
    whole = plan(Config.from_flat({"unseen": "market"}))
    assert whole.evaluated == whole.names
    some = plan(Config.from_flat({"unseen": "market", "evaluate.tasks": "market, music"}))
    assert some.evaluated == ("market", "music")
    shards = plan(Config.from_flat({"partition.kind": "shards", "tasks": "market"}))
    assert shards.evaluated == ("shard-000",)
