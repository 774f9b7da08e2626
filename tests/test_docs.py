"""What the documents show, run as it stands there."""

import re
from pathlib import Path

import pytest
import torch

from cold_flower import experiments
from cold_flower.config import describe
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
