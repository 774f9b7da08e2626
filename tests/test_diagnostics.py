"""How contributions lie to each other, by hand."""

import math

import pytest
import torch

from strategies.diagnostics import diagnose, layer_of
from strategies.fusion import Weights, fingerprint, load
from strategies.fusion import _deltas as kernel


def some(*vectors):
    base = Weights({"layer.0.w": torch.ones(2), "n": torch.tensor([7]), "layer.1.b": torch.ones(1)})
    given = [
        Weights(
            {
                "layer.0.w": torch.tensor(v[:2]) + 1,
                "n": torch.tensor([7]),
                "layer.1.b": torch.tensor(v[2:]) + 1,
            },
            name=f"c{i}",
        )
        for i, v in enumerate(vectors)
    ]
    return base, given


@pytest.mark.parametrize("block", [1, 3, 1 << 20])
def test_by_hand(monkeypatch, block) -> None:
    monkeypatch.setattr(kernel, "BLOCK", block)
    found = diagnose(*some([3.0, 4.0, 0.0], [3.0, -4.0, 0.0], [0.0, 0.0, 6.0]))
    assert found.norms == [5, 5, 6]
    # The mean is (2, 0, 2) with norm sqrt(8).
    eight = math.sqrt(8)
    assert found.mean == pytest.approx(eight)
    assert found.cosines == pytest.approx([6 / (5 * eight), 6 / (5 * eight), 12 / (6 * eight)])
    assert found.pairwise[0] == pytest.approx([1, -7 / 25, 0])
    assert found.conflicts == pytest.approx(1 / 3)  # the second coordinate
    assert found.layers == {"layer.0": [5, 5, 0], "layer.1": [0, 0, 6]}
    # Without the third the mean is (3, 0, 0): sqrt(1 + 4) away.
    assert found.without[2] == pytest.approx(math.sqrt(5))


def test_what_did_not_move_and_one_alone() -> None:
    still = diagnose(*some([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]))
    assert still.cosines == still.norms == still.without == [0, 0]
    assert still.pairwise == [[0, 0], [0, 0]]
    alone = diagnose(*some([1.0, 2.0, 2.0]))
    assert (alone.norms, alone.cosines, alone.without) == ([3], pytest.approx([1]), [0])
    assert (still.mean, alone.mean) == (0, 3)


def test_those_that_cancel_have_a_mean_of_no_length() -> None:
    """Their products may sum to less than 0 by rounding, whose root is NaN."""
    base = Weights({"w": torch.zeros(5000)})
    for seed in range(42, 62):
        moved = torch.randn(4, 5000, generator=torch.Generator().manual_seed(seed)).double()
        rows = [*moved, -moved.sum(0)]
        given = [Weights({"w": row.float()}, name=f"c{i}") for i, row in enumerate(rows)]
        found = diagnose(base, given)
        assert found.mean < 1e-4
        assert not any(map(math.isnan, found.without))


def test_layers_by_name() -> None:
    names = {
        "encoder.layer.11.attention.self.query.weight": "encoder.layer.11",
        "embeddings.word_embeddings.weight": "embeddings",
        "decoder.block.2.layer.0.w": "decoder.block.2",
        "shared.weight": "shared",
    }
    assert {name: layer_of(name) for name in names} == names


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_mean_beside_it_is_the_rules_to_the_bit(dtype) -> None:
    drawn = torch.Generator().manual_seed(1)
    theta = {"w": torch.randn(70, 1000, generator=drawn).to(dtype), "n": torch.tensor([7])}
    base = Weights(theta | {"empty": torch.empty(0, 3, dtype=dtype)})
    given = [
        Weights({k: t + (k != "n") * torch.randn(t.shape).to(t.dtype) for k, t in base.items()})
        for _ in range(5)
    ]
    for one, name in zip(given, "abcde", strict=True):
        one.name = name
    made: dict[str, torch.Tensor] = {}
    assert diagnose(base, given, made) == diagnose(base, given)
    assert fingerprint(made.items()) == fingerprint(load("average")(base, given, seed=0))
    assert [*made] == base.keys()
