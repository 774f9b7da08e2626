"""What the documents show, run as it stands there."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cold_flower.config import describe
from cold_flower.data import published
from cold_flower.data.rows import read_split, read_task
from cold_flower.data.suite import load_suite
from cold_flower.errors import TaskError
from cold_flower.runtime import experiments
from strategies.errors import FusionError
from strategies.fusion import Weights, load
from tests.test_fusion import body, contributions, fuse, same_bits

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture
def rule(tmp_path, monkeypatch) -> str:
    """Write the rule of docs/fusion-rules.md as a module; return how a user names it."""
    text = (ROOT / "docs" / "fusion-rules.md").read_text()
    (shown,) = re.findall(r"```python\n(.*?)```", text, re.S)
    assert len(shown.strip().splitlines()) <= 15
    (tmp_path / "rule_of_the_page.py").write_text(shown)
    monkeypatch.syspath_prepend(tmp_path)
    return "rule_of_the_page:softest"


def test_the_rule_of_the_page_keeps_the_promises(rule) -> None:
    base = Weights(body(0))
    fused = fuse(rule, base, contributions(5))
    assert {k: (t.dtype, t.shape) for k, t in fused.items()} == {
        k: (t.dtype, t.shape) for k, t in body(0).items()
    }
    assert not torch.equal(fused["matrix"], body(0)["matrix"])
    equal = [Weights(body(0), name=f"c{i}") for i in range(3)]
    assert same_bits(fuse(rule, base, equal), body(0))
    assert same_bits(fuse(rule, base, contributions(5)[::-1]), fused)


def test_the_rule_of_the_page_takes_its_option(rule) -> None:
    base, given = Weights(body(0)), contributions(3)
    mean = sum(w.get("matrix") for w in given) / 3
    fused = dict(load(rule, strength=0.0)(base, given))
    assert torch.allclose(fused["matrix"], mean, atol=1e-5)
    with pytest.raises(FusionError, match="strength of fusion rule .* is a float"):
        load(rule, strength="much")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_key_of_a_setting_exists(page) -> None:
    shown = re.findall(r"--set ['\"]?([a-z-]+(?:\.[a-z-]+)?)=", page.read_text())
    assert set(shown) <= describe().keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_experiment_that_is_run_exists(page) -> None:
    shown = re.findall(r"cold-flower simulate ([a-z_0-9]+)(?!\w*\.toml)\b", page.read_text())
    assert set(shown) <= {*experiments.names(), "mine"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_leads_somewhere(page) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_copies_made_by_hand(tmp_path, monkeypatch) -> None:
    """The snippets of docs/datasets.md, on files of the originals' form."""
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "datasets.md").read_text()
    saving, *snippets = re.findall(r"```python\n(.*?)```", page, re.S)
    assert "load_dataset" in saving  # needs the hub
    emotions = (
        'ID|Field1|SIT|STATE|\n1|joy|When we met and \u00e1 sang.|1|\n2|guilt|"No" said I.|1|\n'
    )
    (tmp_path / "isear.csv").write_text(emotions, "latin-1")
    (tmp_path / "Sentences_50Agree.txt").write_text("Mail me@home , he said .@neutral\n", "latin-1")
    for name in ("train_5500.label", "TREC_10.label"):
        (tmp_path / name).write_text("DESC:manner How did serfdom develop ?\n", "latin-1")
    for snippet in snippets:
        exec(snippet, {})

    (shown,) = re.findall(r"```toml\n(.*?)```", page, re.S)
    (tmp_path / "mine.toml").write_text(shown)
    mine = load_suite(str(tmp_path / "mine.toml")).tasks["isear"]
    with pytest.raises(TaskError, match="test-sample is 1534, but split train has 2 rows"):
        read_task(mine)
    whole = read_task(replace(mine, test_sample=1))
    assert {*whole.train.texts, *whole.test.texts} == {
        ("When we met and sang.",),
        ('"No" said I.',),
    }
    assert "has 2 rows, but the suite states 7666" in next(published.differences(mine, whole))

    paper = load_suite("paper").tasks
    for name, folder, split, texts, label in (
        ("financial_phrasebank", "phrasebank", "train", "Mail me@home , he said .", "neutral"),
        ("trec_coarse", "trec", "train", "How did serfdom develop ?", "DESC"),
        ("trec_fine", "trec", "test", "How did serfdom develop ?", "DESC:manner"),
    ):
        splits = {"train": "train", "test": "test"}
        entry = replace(paper[name], source="files", path=str(tmp_path / folder), splits=splits)
        rows, labels = read_split(entry, split)
        assert (rows.texts, labels[rows.labels[0]]) == ([(texts,)], label)
