"""The configuration: one source, checked early."""

import tomllib
from pathlib import Path

import pytest

from cold_flower.config import Config, describe, flatten
from cold_flower.errors import ConfigError

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
        ("iterations", -1, "at least 0, got -1"),
        ("finetune.batch-size", 0, "at least 1, got 0"),
        ("finetune.learning-rate", float("nan"), "at least 0, got nan"),
    ],
)
def test_a_wrong_key_or_value_says_what_was_expected(key, value, words) -> None:
    with pytest.raises(ConfigError, match=words):
        Config.from_flat({key: value})


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
