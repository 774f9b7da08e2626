"""Contributors that do harm, each kind against what is to find it."""

import math

import pytest
import torch

from cold_flower.config import Config
from cold_flower.contributors import attacks
from cold_flower.contributors.attacks import Answer, Attack
from cold_flower.contributors.contributor import Contributor
from cold_flower.data.encode import EncodedSplits
from cold_flower.data.plan import plan, resolve
from cold_flower.errors import ConfigError
from cold_flower.runtime.experiments import check_keys

KEYS = {"tasks": "travel,music,kitchen", "unseen": "", "contributors-per-iteration": 0}


def config(table: str) -> Config:
    return resolve(Config.from_flat({**KEYS, "attacks": table}))


def test_who_does_what_from_when() -> None:
    chosen = config("{music = {kind = 'scale', size = 100.0, from = 2}, travel = 'label-flip'}")
    parsed = attacks.parse(chosen)
    assert parsed["music"] == Attack("scale", size=100.0, first=2)
    assert (parsed["travel"].kind, parsed["travel"].first) == ("label-flip", 1)
    moved = {
        iteration: float(answer(chosen, "music", iteration).body["b"][0]) for iteration in range(4)
    }
    assert moved == {0: 1.0, 1: 1.0, 2: 100.0, 3: 100.0}
    assert answer(chosen, "kitchen", 3).body["b"][0] == 2.0  # an honest one


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("music", "attacks is a TOML inline table such as"),
        ("{music = 'sign-flop'}", "unknown attack of music 'sign-flop'. Did you mean 'sign-flip'"),
        ("{music = {kind = 'nan', size = 2}}", "music: size is about scale, .*, not about nan"),
        ("{music = {kind = 'label-flip', size = 2}}", r"a share, in \(0, 1\], got 2"),
        ("{music = {kind = 'nan', form = 2}}", "unknown key of music 'form'. Did you mean 'from'"),
        ("{music = {kind = 'scale', size = 'x'}}", "size of music is 'x', expected float"),
        ("{music = 'copy'}", "music: of names the contributor whose weights copy sends"),
        ("{musik = 'nan'}", "unknown contributor in attacks 'musik'. Did you mean 'music'"),
        ("{music = {kind = 'copy', of = 'x'}}", "unknown contributor in attacks 'x'"),
    ],
)
def test_what_cannot_be_rehearsed(table, words) -> None:
    with pytest.raises(ConfigError, match=words):
        check_keys(config(table))


BASE = {"w": torch.ones(4, 3), "b": torch.zeros(3)}


def finetune(who, start):
    """Move everything by 1; by 2 if it is another contributor's work."""
    by = 1.0 if who.name == "music" else 2.0
    return {key: t + by for key, t in start.items()}, {"num-examples": 10.0}


def answer(chosen: Config, name: str = "music", iteration: int = 1, work=finetune) -> Answer:
    me = Contributor(chosen, plan(chosen).names.index(name))
    return attacks.answer(me, BASE, work, iteration=iteration, seed=0)


def harm(kind: str, **options) -> Answer:
    """Have music do harm."""
    listed = "".join(f", {key} = {value!r}" for key, value in options.items())
    return answer(config(f"{{music = {{kind = '{kind}'{listed}}}}}"))


def test_directions_by_hand() -> None:
    assert torch.equal(harm("scale").body["b"], torch.full((3,), 10.0))
    assert torch.equal(harm("scale", size=100.0).body["b"], torch.full((3,), 100.0))
    assert torch.equal(harm("sign-flip").body["w"], torch.zeros(4, 3))
    assert torch.equal(harm("copy", of="travel").body["b"], torch.full((3,), 2.0))


def test_the_forms_that_are_wrong() -> None:
    assert math.isnan(harm("nan").body["w"][0, 0])
    assert harm("shape").body["w"].shape == (12,)
    assert harm("huge").body["w"].numel() == attacks.HUGE
    hostile = harm("names")
    assert "../../x" in hostile.body
    assert hostile.claims == {"contributor": "../../x"}
    assert harm("metrics").metrics == {"num-examples": 10_000_000}


def test_noise_and_random_weights_are_drawn_from_the_seed() -> None:
    for kind in ("noise", "random"):
        one, same = harm(kind).body["w"], harm(kind).body["w"]
        assert torch.equal(one, same)
        assert one.shape == (4, 3)
        assert torch.isfinite(one).all()


def own_and_flipped(table: str) -> list[EncodedSplits]:
    """Return the data of music, and what it trains on as an attacker, twice."""
    chosen, seen = config(table), []

    def spy(who, start):
        seen.append(who.splits())
        return dict(start), {"num-examples": 1.0}

    answer(chosen, work=spy)
    answer(chosen, work=spy)
    return [Contributor(chosen, plan(chosen).names.index("music")).splits(), *seen]


def test_labels_are_flipped_in_training_data_alone() -> None:
    own, flipped, _ = own_and_flipped("{music = 'label-flip'}")
    assert len(own.labels) == 3
    assert torch.equal(flipped.train.labels, 2 - own.train.labels)
    assert torch.equal(flipped.dev.labels, 2 - own.dev.labels)
    assert torch.equal(flipped.test.labels, own.test.labels)


def test_a_share_of_the_labels_is_flipped_and_always_the_same() -> None:
    own, one, same = own_and_flipped("{music = {kind = 'label-flip', size = 0.25}}")
    for mine, theirs, again in ((own.train, one.train, same.train), (own.dev, one.dev, same.dev)):
        changed = mine.labels != theirs.labels
        assert torch.equal(theirs.labels[changed], 2 - mine.labels[changed])
        movable = mine.labels != 1  # the middle one of three stays itself
        share = changed.sum() / movable.sum()
        assert 0.1 < share < 0.4
        assert torch.equal(theirs.labels, again.labels)
    assert torch.equal(own.test.labels, one.test.labels)


def test_a_stale_base_is_named_or_not() -> None:
    assert harm("stale").claims["base"]
    assert harm("stale-lie").claims == {}
