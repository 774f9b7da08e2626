"""Tokenised data on disk: how many stay, and that what is gone comes back the same."""

import json

import pytest
from safetensors import safe_open

from cold_flower.config import Config
from cold_flower.contributors import tokens
from cold_flower.contributors.contributor import Contributor
from cold_flower.contributors.site import load_site
from cold_flower.data.plan import plan
from cold_flower.errors import ColdFlowerError
from tests.test_site import ROWS, site  # noqa: F401 - one is a fixture

FEW = {"evaluate.tasks": "market", "contributors-per-iteration": 2}


def test_a_simulation_keeps_those_that_were_read_last(own_home, monkeypatch) -> None:
    monkeypatch.setattr(tokens, "IDLE", 1)
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
    assert tokens.kept(Config.from_flat(keys)) == kept


def test_a_folder_that_is_not_empty_stays(own_home) -> None:
    head = own_home / "ann" / "heads" / "0001.safetensors"
    head.parent.mkdir(parents=True)
    head.write_bytes(b"")
    (own_home / "ann" / "tokens-1.safetensors").write_bytes(b"")
    tokens.prune(own_home, 0)
    assert [path for path in own_home.rglob("*") if path.is_file()] == [head]


def test_a_site_keeps_the_tokens_of_its_data_as_they_are_now(site, own_home, tmp_path) -> None:  # noqa: F811
    folder, path = own_home / "clinic-a", site()

    def rows(*withdrawn: str, **keys) -> int:
        """Read the data; return how many rows the one file that is there holds."""
        for split in ("train", "test"):
            kept = [row for row in ROWS if row["review"] not in withdrawn]
            lines = "".join(json.dumps(row) + "\n" for row in kept)
            (tmp_path / "data" / f"{split}.jsonl").write_text(lines)
        Contributor(Config.from_flat(keys), site=load_site(path)).splits()
        (found,) = folder.glob("*tokens-*")
        with safe_open(found, "pt") as file:
            return sum(len(file.get_tensor(f"{name}.labels")) for name in ("train", "dev"))

    assert rows() == 160
    for name in ("heads/r/0001.safetensors", ".tokens-1.safetensors.77", "sent.jsonl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    withdrawn = ROWS[3]["review"]
    assert rows(withdrawn) == 160 - sum(row["review"] == withdrawn for row in ROWS)
    assert rows(withdrawn, **{"finetune.max-length": 8}) < 160
    left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert left - {next(folder.glob("tokens-*")).name} == {"heads/r/0001.safetensors", "sent.jsonl"}


def test_a_site_tokenises_once(site, own_home, monkeypatch) -> None:  # noqa: F811
    saved, save = [], tokens.save
    monkeypatch.setattr(tokens, "save", lambda data, path: (saved.append(path), save(data, path)))
    mine = load_site(site())
    for _ in range(3):
        Contributor(Config(), site=mine).splits()
    assert saved == [*own_home.rglob("tokens-*")]
    assert saved[0].parent.stat().st_mode & 0o777 == 0o700  # before anything is answered


def test_what_was_withdrawn_is_gone_also_where_the_rest_is_too_little(
    site,  # noqa: F811
    own_home,
    tmp_path,
) -> None:
    path = site()
    Contributor(Config(), site=load_site(path)).splits()
    for split in ("train", "test"):
        (tmp_path / "data" / f"{split}.jsonl").write_text("no table\n")
    with pytest.raises(ColdFlowerError):
        Contributor(Config(), site=load_site(path)).splits()
    assert not [*(own_home / "clinic-a").glob("*tokens-*")]


@pytest.mark.parametrize("where", [{"model_max_length": 7}, {"truncation_side": "left"}])
def test_where_a_tokenizer_cuts_is_no_matter_of_the_fingerprint_but_of_what_is_kept(where) -> None:
    me = Contributor(Config(), 0)
    before, tokenizer = me.digest(), me.base.tokenizer
    kept = {key: getattr(tokenizer, key) for key in where}
    try:
        for key, value in where.items():
            setattr(tokenizer, key, value)
        assert me.digest() != before
    finally:
        for key, value in kept.items():
            setattr(tokenizer, key, value)
    assert me.digest() == before
