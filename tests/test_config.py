"""The configuration: one source, checked early."""

import tomllib
from pathlib import Path

import pytest

from cold_flower.config import Config, describe
from cold_flower.errors import ConfigError
from cold_flower.toml import flatten

ROOT = Path(__file__).parent.parent


def test_pyproject_holds_the_same_keys_and_defaults() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    assert flatten(table) == Config().flat()


def test_every_key_has_help() -> None:
    assert all(metadata["help"] for _, metadata in describe().values())


def test_flat_keys_come_back() -> None:
    flat = Config().flat() | {"finetune.learning-rate": 0.1, "seed": 3, "few-shot.draws": 7}
    assert Config.from_flat(flat).flat() == flat
    assert Config.from_flat({"finetune.learning-rate": 1}).finetune.learning_rate == 1.0


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("finetune.learning-rat", 1.0, "Did you mean 'finetune.learning-rate'"),
        ("seed", "one", "seed is of type int .* got 'one'"),
        ("seed", True, "seed is of type int"),
        ("tasks", ["a"], "comma-separated string"),
        ("schedule", "robin", "Did you mean 'round-robin'"),
        ("finetune.optimizer", "adam", "unknown value for finetune.optimizer .*'adamw'"),
        ("finetune.schedule", "constnt", "Did you mean 'constant'"),
        ("iterations", -1, "iterations is at least 0 and at most 100,000, got -1"),
        ("iterations", 10**9, "at most 100,000, got 1000000000"),
        ("finetune.batch-size", 0, "at least 1 and at most 1,000,000, got 0"),
        ("finetune.learning-rate", float("nan"), "at least 1e-09 and at most 1, got nan"),
        ("finetune.learning-rate", 0, "at least 1e-09 and at most 1, got 0"),
        ("probe.learning-rate", 1e300, r"at most 10, got 1e\+300"),
        ("finetune.max-seconds", 1e-6, "is 0 or at least 1 and at most 31,536,000, got 1e-06"),
        ("finetune.max-seconds", float("inf"), "at most 31,536,000, got inf"),
        ("screen.norm", float("inf"), "screen.norm is at least 1, got inf"),
        ("wait.replies", 0, "wait.replies is at least 0.1"),
        ("seed", 2**63, "at most 9,223,372,036,854,775,807, got"),
        ("learning-rate", 1.0, "Did you mean 'finetune.learning-rate' or 'probe.l"),
        ("NOTHERE", 1, "unknown config key 'NOTHERE'. Keys without a group: unseen, schedule, "),
    ],
)
def test_a_wrong_key_or_value_says_what_was_expected(key, value, words) -> None:
    with pytest.raises(ConfigError, match=words):
        Config.from_flat({key: value})


def test_an_unknown_key_names_its_group_the_nearest_first() -> None:
    with pytest.raises(ConfigError) as raised:
        Config.from_flat({"gate.tolerence": 1})
    assert str(raised.value) == (
        "unknown config key 'gate.tolerence'. Did you mean 'gate.tolerance' or "
        "'gate.task-tolerance'? Keys of gate: gate.tolerance, gate.task-tolerance, gate.protocol, "
        "gate.budget. `cold-flower keys` explains all."
    )


def test_a_default_below_the_least_is_a_value_of_its_own() -> None:
    assert Config.from_flat({"finetune.max-seconds": 0}).finetune.max_seconds == 0
    assert Config.from_flat({"few-shot.learning-rate": 0.0}) == Config()
    assert Config.from_flat({"finetune.max-seconds": 1}).finetune.max_seconds == 1
    assert Config.from_flat({"seed": 2**63 - 1}).seed == 2**63 - 1


def test_a_contributor_ignores_keys_of_another_server() -> None:
    assert Config.from_flat({"num-server-rounds": 3}, strict=False) == Config()


def test_protocols_and_rule_options() -> None:
    assert Config.from_flat({"evaluate.protocols": "few-shot, frozen"}).protocols() == [
        "few-shot",
        "frozen",
    ]
    with pytest.raises(ConfigError, match="Did you mean 'frozen'"):
        Config.from_flat({"evaluate.protocols": "frozn"}).protocols()
    assert Config.from_flat({"fusion.options": "{beta = 0.2}"}).rule_options() == {"beta": 0.2}
    with pytest.raises(ConfigError, match="inline table"):
        Config.from_flat({"fusion.options": "beta 0.2"}).rule_options()
