"""Who takes part, in which role."""

import os
from pathlib import Path

import pytest

from cold_flower.config import Config
from cold_flower.data.plan import naming_the_recipe, plan, resolve
from cold_flower.data.suite import FOLDER as SUITES
from cold_flower.data.suite import load_suite
from cold_flower.errors import ConfigError
from strategies.errors import FusionError


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
    with pytest.raises(ConfigError, match="explicit names no key: .*'sead'.*seed"):
        resolve(Config.from_flat({"explicit": "sead"}))
    set_so = resolve(Config.from_flat({"explicit": "seed,finetune.max-epochs"}))
    assert set_so.finetune.max_epochs == Config().finetune.max_epochs != 6
    assert set_so.finetune.batch_size == load_suite("demo").recipe["finetune.batch-size"]


@pytest.mark.parametrize(
    ("keys", "seen", "unseen"),
    [
        ({"tasks": "weather,market,music"}, ("weather", "market", "music"), ()),
        ({"tasks": "weather,market,music", "unseen": "market"}, ("weather", "music"), ("market",)),
        ({"tasks": "weather,music", "unseen": "market"}, ("weather", "music"), ("market",)),
    ],
)
def test_tasks_that_are_named_win_over_the_recipes_unseen(keys, seen, unseen) -> None:
    chosen = plan(resolve(Config.from_flat(keys)))
    assert (chosen.seen, chosen.unseen) == (seen, unseen)


def test_what_says_who_contributes_wins_over_the_recipes_unseen() -> None:
    assert len(plan(resolve(Config.from_flat({"folds": 3}))).unseen) == 4
    shards = {"partition.kind": "shards", "tasks": "music", "partition.shards": 2}
    assert plan(resolve(Config.from_flat(shards))).names == ("shard-000", "shard-001")
    assert len(plan(resolve(Config(), {"tasks"})).seen) == 12  # set, but to all of them
    alone = plan(resolve(Config.from_flat({"unseen": "market"})))
    assert (len(alone.seen), alone.unseen) == (11, ("market",))


def suite_of(folder, recipe: str) -> str:
    path = folder / "mine.toml"
    demo = (SUITES / "demo.toml").read_text()
    path.write_text(f"[recipe]\n{recipe}\n{demo[demo.index('[tasks.weather]') :]}")
    return str(path)


def test_an_error_says_which_of_its_keys_the_recipe_set(tmp_path) -> None:
    path = suite_of(tmp_path, 'unseen = "market"\nevaluate.tasks = "market"\niterations = 2')
    config = resolve(Config.from_flat({"suite": path, "tasks": "music,travel"}))
    assert config.of_recipe == {"evaluate.tasks", "iterations"}
    with pytest.raises(ConfigError) as raised, naming_the_recipe(config):
        plan(config)
    assert str(raised.value).endswith(
        f"(evaluate.tasks is from the [recipe] of suite {path}; --set evaluate.tasks=... overrides "
        "it)"
    )
    with pytest.raises(FusionError) as told, naming_the_recipe(config):
        raise FusionError("in runs/iterations/latest: iterations is 2, evaluate.tasks = 'market'.")
    assert "'market'. (evaluate.tasks, iterations are from the [recipe]" in str(told.value)
    prose = "three iterations of x/iterations"
    with pytest.raises(ConfigError, match=f"^{prose}$"), naming_the_recipe(config):
        raise ConfigError(prose)
    with pytest.raises(ConfigError, match="^iterations is 2$"), naming_the_recipe(Config()):
        raise ConfigError("iterations is 2")  # the user's


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("seeed = 1", r"mine.toml: \[recipe\]: unknown config key 'seeed'. Did you mean 'seed'"),
        ("iterations = -1", r"mine.toml: \[recipe\]: iterations is at least 0"),
        ('suite = "paper"', r"mine.toml: a \[recipe\] cannot set suite: leave it out"),
    ],
)
def test_a_wrong_recipe_is_called_so(tmp_path, recipe, words) -> None:
    with pytest.raises(ConfigError, match=words):
        resolve(Config.from_flat({"suite": suite_of(tmp_path, recipe)}))


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
        ({"folds": 3, "unseen": "market"}, r"unseen \(market\) and folds \(3\) .*give one of them"),
        ({"folds": 3, "pool": 4}, r"pool \(4\) and folds \(3\) both say .*give one of them"),
        ({"pool": 13}, "pool is 13, but there are 12 tasks$"),
        (
            {"pool": 12, "unseen": "market"},
            r"pool is 12, but there are 11 tasks that may contribute \(see unseen\)",
        ),
        ({"pool": 12, "evaluate.tasks": "unseen"}, "or a smaller pool"),
        (
            {"pool": 1, "partition.kind": "shards", "tasks": "market"},
            "leave unseen, pool, folds and evaluate.tasks alone .*pool 1",
        ),
        ({"evaluate.tasks": "markt"}, "evaluate.tasks .this run.*Did you mean 'market'"),
        (
            {"recipe": False, "suite": "demo", "evaluate.tasks": "unseen"},
            "every task is seen: set unseen, folds or a smaller pool",
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


def test_what_is_outside_a_pool_is_evaluated_and_never_contributes() -> None:
    """The paper's section 4.1: all datasets are tested, whichever contribute."""
    pool = plan(Config.from_flat({"pool": 3}))
    assert sorted(pool.evaluated) == sorted(load_suite("demo").tasks)
    assert (len(pool.seen), len(pool.unseen)) == (3, 9)
    some = plan(Config.from_flat({"pool": 2, "tasks": "market, music, travel"}))
    assert (len(some.seen), len(some.unseen), len(some.names)) == (2, 1, 3)


def test_a_pool_is_drawn_from_what_may_contribute() -> None:
    """Beside tasks that are unseen whatever the pool."""
    with_recipe = plan(resolve(Config.from_flat({"pool": 8})))
    assert set(with_recipe.seen) == set(plan(resolve(Config())).seen)
    for seed in range(5):
        pool = plan(Config.from_flat({"pool": 6, "unseen": "market, music", "seed": seed}))
        assert not {"market", "music"} & set(pool.seen)
        assert pool.unseen[:2] == ("market", "music")
        assert (len(pool.seen), len(pool.names), len(pool.evaluated)) == (6, 12, 12)


def test_an_unseen_task_that_is_not_evaluated_takes_no_part() -> None:
    pool = plan(Config.from_flat({"pool": 3}))
    seen, unseen = pool.seen[0], pool.unseen[4]
    few = plan(Config.from_flat({"pool": 3, "evaluate.tasks": f"{seen}, {unseen}"}))
    assert (few.seen, few.unseen, few.evaluated) == (pool.seen, (unseen,), (seen, unseen))
    assert few.tasks.keys() == {*few.seen, unseen}
    rest = plan(Config.from_flat({"pool": 3, "evaluate.tasks": "unseen"}))
    assert rest.evaluated == rest.unseen == pool.unseen


def test_who_evaluates() -> None:
    whole = plan(Config.from_flat({"unseen": "market"}))
    assert whole.evaluated == whole.names
    some = plan(Config.from_flat({"unseen": "market", "evaluate.tasks": "market, music"}))
    assert some.evaluated == ("market", "music")
    shards = plan(Config.from_flat({"partition.kind": "shards", "tasks": "market"}))
    assert shards.evaluated == ("shard-000",)


def test_a_suite_is_parsed_once_and_anew_as_soon_as_it_changes(tmp_path) -> None:
    """Every message to one of thousands of contributors asks for it."""
    name = suite_of(tmp_path, "iterations = 2")
    path, before = Path(name), load_suite(name)
    config = Config.from_flat({"suite": name})
    assert load_suite(name) is before
    assert plan(config) is plan(Config.from_flat({"suite": name}))
    stat, text = path.stat(), path.read_text()
    path.write_text(text.replace("iterations = 2", "iterations = 3").replace("market", "cellar"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # same size, same time
    assert path.stat().st_size == stat.st_size
    assert load_suite(name).recipe["iterations"] == 3
    assert "cellar" in plan(config).names
    assert load_suite(name, seed=1).tasks["cellar"].seed == 1


def test_a_plan_without_some() -> None:
    demo = plan(resolve(Config()))
    gone, other = demo.seen[0], demo.unseen[0]
    rest = demo.without([gone, other, "nobody"])
    assert rest.seen == demo.seen[1:]
    assert rest.unseen == demo.unseen[1:]
    assert {*rest.evaluated} == {*demo.evaluated} - {gone, other} == {*rest.tasks}
    keys = {"tasks": "market,music", "unseen": "market", "evaluate.tasks": "market"}
    assert plan(Config.from_flat(keys)).without(["market"]).evaluated == ()
    keys = {"partition.kind": "shards", "tasks": "market", "partition.shards": 3}
    shards = plan(Config.from_flat(keys)).without(["shard-000"])
    assert shards.evaluated == ("shard-001",)  # all have the same test split
