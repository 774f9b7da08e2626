"""The blocks that the documents show, run as they stand there."""

import inspect
import re
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import cold_flower
from cold_flower.config import Config
from cold_flower.data import published
from cold_flower.data.rows import read_split, read_task
from cold_flower.data.suite import load_suite
from cold_flower.reporting import catalogue
from cold_flower.toml import flatten
from strategies.errors import FusionError
from strategies.fusion import Weights, _deltas, load
from tests.test_docs import DOCS, ROOT
from tests.test_fusion import body, contributions, fuse, same_bits


def blocks(page: Path, language: str) -> list[str]:
    """Return a page's code blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.S)


def test_the_suites_that_are_shown_load(tmp_path) -> None:
    whole, recipe = blocks(DOCS / "suites.md", "toml")
    (short,) = blocks(ROOT / "README.md", "toml")
    for text, tasks in ((recipe + whole, {"reviews", "sst2"}), (short, {"reviews"})):
        path = tmp_path / "suite.toml"
        path.write_text(text)
        assert load_suite(str(path)).tasks.keys() == tasks
    Config.from_flat(flatten(tomllib.loads(recipe)["recipe"]))


def test_the_experiment_that_is_shown_is_one() -> None:
    (shown,) = blocks(DOCS / "experiments.md", "toml")
    table = flatten(tomllib.loads(shown))
    assert Config.from_flat(table).unseen == "reviews"


def test_the_readme_calls_the_api_as_it_is(monkeypatch) -> None:
    (shown,) = blocks(ROOT / "README.md", "python")
    signature, calls = inspect.signature(cold_flower.simulate), []

    def simulate(*args: Any, **options: Any) -> None:
        calls.append(signature.bind(*args, **options).arguments)

    monkeypatch.setattr(cold_flower, "simulate", simulate, raising=False)
    exec(shown, {})
    assert calls[0]["experiment"] in catalogue.names()
    Config.from_flat(calls[0]["settings"])


@pytest.fixture
def rule(tmp_path, monkeypatch) -> str:
    """Write the rule of docs/fusion-rules.md as a module; return how a user names it."""
    text = (ROOT / "docs" / "fusion-rules.md").read_text()
    shown = re.findall(r"```python\n(.*?)```", text, re.S)[-1]  # before it, a strategy's class
    assert len(shown.strip().splitlines()) <= 15
    (tmp_path / "rule_of_the_page.py").write_text(shown)
    monkeypatch.syspath_prepend(tmp_path)
    return "rule_of_the_page:softest"


def test_the_rule_of_the_page_keeps_the_promises(rule, monkeypatch) -> None:
    base = Weights(body(0))
    fused = fuse(rule, base, contributions(5))
    assert {k: (t.dtype, t.shape) for k, t in fused.items()} == {
        k: (t.dtype, t.shape) for k, t in body(0).items()
    }
    assert not torch.equal(fused["matrix"], body(0)["matrix"])
    equal = [Weights(body(0), name=f"c{i}") for i in range(3)]
    assert same_bits(fuse(rule, base, equal), body(0))
    assert same_bits(fuse(rule, base, contributions(5)[::-1]), fused)
    draw = torch.Generator().manual_seed(0)
    wide = [Weights({"w": torch.randn(2801, generator=draw)}, name=f"c{i}") for i in range(6)]
    whole = fuse(rule, wide[0], wide)
    monkeypatch.setattr(_deltas, "BLOCK", 16 * 3)
    assert same_bits(fuse(rule, wide[0], wide), whole)


def test_the_rule_of_the_page_takes_its_option(rule) -> None:
    base, given = Weights(body(0)), contributions(3)
    mean = sum(w.get("matrix") for w in given) / 3
    fused = dict(load(rule, strength=0.0)(base, given))
    assert torch.allclose(fused["matrix"], mean, atol=1e-5)
    with pytest.raises(FusionError, match="strength of fusion rule .* is a float"):
        load(rule, strength="much")


def test_copies_made_by_hand(tmp_path, monkeypatch) -> None:
    """The snippets of docs/datasets.md, on files of the originals' form."""
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "datasets.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", page, re.S)
    rows = ["1|joy|When we met and \u00e1 sang.|1|", '2|guilt|"No" said I.|1|']
    rows += [f"{i}|fear|It was {i}.|1|" for i in range(3, 17)]
    emotions = "ID|Field1|SIT|STATE|\n" + "\n".join(rows) + "\n"
    (tmp_path / "isear.csv").write_text(emotions, "utf-8")
    posts = SimpleNamespace(data=["From: me\n\nHi"], target=[1], target_names=["a", "sci.med"])
    datasets = SimpleNamespace(fetch_20newsgroups=lambda subset: posts)
    monkeypatch.setitem(sys.modules, "sklearn", SimpleNamespace(datasets=datasets))
    monkeypatch.setitem(sys.modules, "sklearn.datasets", datasets)
    (tmp_path / "Sentences_50Agree.txt").write_text("Mail me@home , he said .@neutral\n", "latin-1")
    for name in ("train_5500.label", "TREC_10.label"):
        (tmp_path / name).write_text("DESC:manner How did serfdom develop ?\n", "latin-1")
    for snippet in snippets:
        exec(snippet, {})

    (shown,) = re.findall(r"```toml\n(.*?)```", page, re.S)
    (tmp_path / "mine.toml").write_text(shown)
    mine = load_suite(str(tmp_path / "mine.toml")).tasks["isear"]
    whole = read_task(mine)
    parts = (whole.train, whole.validation, whole.test)
    assert [len(part) for part in parts] == [10, 2, 4]  # 7:1:2 of 16
    texts = {text for part in parts for text in part.texts}
    assert len(texts) == 16 and {("When we met and sang.",), ('"No" said I.',)} < texts
    assert "has 10 rows, but the suite states 5365" in next(published.differences(mine, whole))

    paper = load_suite("paper").tasks
    for name, folder, split, texts, label in (
        ("20_newsgroups", "newsgroups", "test", "From: me\n\nHi", "sci.med"),
        ("financial_phrasebank", "phrasebank", "train", "Mail me@home , he said .", "neutral"),
        ("trec_coarse", "trec", "train", "How did serfdom develop ?", "DESC"),
        ("trec_fine", "trec", "test", "How did serfdom develop ?", "DESC:manner"),
    ):
        splits = {"train": "train", "test": "test"}
        entry = replace(paper[name], source="files", path=str(tmp_path / folder), splits=splits)
        rows, labels = read_split(entry, split)
        assert (rows.texts, labels[rows.labels[0]]) == ([(texts,)], label)
