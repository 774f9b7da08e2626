"""Tokenised data on disk: how many stay, and that what is gone comes back the same."""

import pytest

from cold_flower.config import Config
from cold_flower.contributors import contributor, tokens
from cold_flower.contributors.contributor import Contributor
from cold_flower.data.plan import plan

FEW = {"evaluate.tasks": "market", "contributors-per-iteration": 2}


def test_a_simulation_keeps_those_that_were_read_last(own_home, monkeypatch) -> None:
    monkeypatch.setattr(contributor, "IDLE", 1)
    config = Config.from_flat(FEW)
    names = plan(config).names

    def read(index: int) -> bytes:
        Contributor(config, index).splits()
        (path,) = (own_home / names[index]).glob("tokens-*")
        return path.read_bytes()

    first = read(0)
    read(1)
    for index in range(2, len(names)):
        assert read(0) == first  # at work again and again, so it stays
        read(index)
        assert len([*own_home.iterdir()]) == min(index + 1, 4)  # 1 idle, 1 evaluated, 2 asked
    assert {path.name for path in own_home.iterdir()} == {names[0], *names[-3:]}
    read(1), read(2), read(3), read(4)
    assert not (own_home / names[0]).exists()
    assert read(0) == first


@pytest.mark.parametrize(
    ("keys", "kept"),
    [
        (FEW, 256 + 1 + 2),
        ({**FEW, "evaluate.tasks": "", "unseen": "music"}, 256 + 12 + 2),
        ({**FEW, "gate.protocol": "frozen"}, 256 + 1 + 12),  # all vote
        ({"contributors-per-iteration": 0, "evaluate.tasks": "market"}, 256 + 1 + 12),
    ],
)
def test_whoever_works_each_time_is_kept(keys, kept) -> None:
    assert contributor._kept(Config.from_flat(keys)) == kept


def test_a_folder_that_is_not_empty_stays(own_home) -> None:
    head = own_home / "ann" / "heads" / "0001.safetensors"
    head.parent.mkdir(parents=True)
    head.write_bytes(b"")
    (own_home / "ann" / "tokens-1.safetensors").write_bytes(b"")
    tokens.prune(own_home, 0)
    assert [path for path in own_home.rglob("*") if path.is_file()] == [head]
