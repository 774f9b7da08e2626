"""Fusion rules: the promises every rule keeps, and the average's own identities."""

import sys
from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import fusion
from strategies.errors import FusionError
from strategies.fusion import Weights, load, names


def body(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "matrix": torch.randn(5, 3, generator=generator).to(dtype),
        "row": torch.randn(1, 4, generator=generator).to(dtype),
        "scalar": torch.randn((), generator=generator).to(dtype),
        "empty": torch.zeros(0, 3, dtype=dtype),
        "positions": torch.arange(4),
    }


def contributions(n: int, dtype: torch.dtype = torch.float32) -> list[Weights]:
    return [Weights(body(i + 1, dtype), name=f"c{i}", examples=i + 1) for i in range(n)]


def fuse(rule: str, base: Weights, given: list[Weights]) -> dict[str, torch.Tensor]:
    return dict(load(rule)(base, given, seed=3))


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(
        a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a
    )


@pytest.mark.parametrize("rule", names())
class TestEveryRule:
    """The contract: a new file in strategies/fusion is tested by existing."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_keeps_keys_shapes_dtypes_and_integers(self, rule: str, dtype: torch.dtype) -> None:
        base = body(0, dtype)
        fused = fuse(rule, Weights(base), contributions(5, dtype))
        assert {k: (t.dtype, t.shape) for k, t in fused.items()} == {
            k: (t.dtype, t.shape) for k, t in base.items()
        }
        assert torch.equal(fused["positions"], base["positions"])

    def test_leaves_its_inputs_alone(self, rule: str) -> None:
        base, others = body(0), [body(i) for i in range(1, 6)]
        fuse(rule, Weights(base), [Weights(o, name=f"c{i}") for i, o in enumerate(others)])
        assert same_bits(base, body(0))
        assert all(same_bits(o, body(i)) for i, o in enumerate(others, start=1))

    def test_returns_the_base_when_all_equal_it(self, rule: str) -> None:
        base = body(0)
        equal = [Weights(body(0), name=f"c{i}") for i in range(7)]
        assert same_bits(fuse(rule, Weights(base), equal), base)

    def test_order_does_not_matter_to_the_last_bit(self, rule: str) -> None:
        base, given = Weights(body(0)), contributions(6)
        assert same_bits(fuse(rule, base, given), fuse(rule, base, given[::-1]))

    def test_same_seed_same_bits(self, rule: str) -> None:
        base, given = Weights(body(0)), contributions(5)
        assert same_bits(fuse(rule, base, given), fuse(rule, base, given))

    def test_finite_in_finite_out(self, rule: str) -> None:
        fused = fuse(rule, Weights(body(0)), contributions(5))
        assert all(torch.isfinite(t).all() for t in fused.values())

    def test_half_precision_is_computed_in_float32(self, rule: str) -> None:
        halves = contributions(5, torch.float16)
        wide = [
            Weights(
                {k: t.float() if t.is_floating_point() else t for k, t in w.items()},
                name=w.name,
                examples=w.examples,
            )
            for w in halves
        ]
        base = body(0, torch.float16)
        base32 = {k: t.float() if t.is_floating_point() else t for k, t in base.items()}
        half, full = fuse(rule, Weights(base), halves), fuse(rule, Weights(base32), wide)
        assert all(torch.equal(half[k], full[k].to(half[k].dtype)) for k in half)

    def test_refuses_an_empty_list(self, rule: str) -> None:
        with pytest.raises(FusionError, match="got 0"):
            load(rule)(Weights(body(0)), [])

    def test_refuses_another_shape_naming_both(self, rule: str) -> None:
        other = {**body(1), "matrix": torch.zeros(3, 5)}
        with pytest.raises(FusionError, match=r"bad: matrix has shape \(3, 5\), .* \(5, 3\)"):
            fuse(rule, Weights(body(0)), [*contributions(4), Weights(other, name="bad")])


class TestAverage:
    def test_hand_number(self) -> None:
        given = [
            Weights({"w": torch.tensor(v)}, name=n)
            for n, v in (("a", [1.0, 2.0, 6.0]), ("b", [3.0, 2.0, -3.0]))
        ]
        fused = fuse("average", Weights({"w": torch.tensor([0.0, 2.0, 3.0])}), given)
        assert fused["w"].tolist() == [2.0, 2.0, 1.5]

    @settings(deadline=None, max_examples=40)
    @given(n=st.integers(1, 12), seed=st.integers(0, 10**6))
    def test_is_the_numpy_expression_bit_for_bit(self, n: int, seed: int) -> None:
        draw = np.random.default_rng(seed)
        theta = draw.standard_normal((17, 3)).astype(np.float32)
        others = [
            (theta + draw.standard_normal((17, 3)) * 1e-2).astype(np.float32) for _ in range(n)
        ]
        total = reduce(np.add, [other - theta for other in others])
        expected = theta + (1 / n) * total
        assert expected.dtype == np.float32
        given_ = [
            Weights({"w": torch.from_numpy(o)}, name=f"{i:02d}") for i, o in enumerate(others)
        ]
        fused = fuse("average", Weights({"w": torch.from_numpy(theta)}), given_)
        assert fused["w"].numpy().tobytes() == expected.tobytes()
        exact = np.mean([o.astype(np.float64) for o in others], axis=0)
        assert np.abs(fused["w"].numpy() - exact).max() < 1e-6

    def test_does_not_weigh_by_examples(self) -> None:
        base, given = Weights(body(0)), contributions(3)
        heavier = [Weights(dict(w.items()), name=w.name, examples=10**6) for w in given[:1]]
        assert same_bits(fuse("average", base, given), fuse("average", base, heavier + given[1:]))


class TestLoad:
    def test_unknown_rule_names_the_nearest(self) -> None:
        with pytest.raises(FusionError, match="Did you mean 'average'"):
            load("averge")

    def test_unknown_option(self) -> None:
        with pytest.raises(FusionError, match="unknown option of fusion rule average 'beta'"):
            load("average", beta=1)

    def test_third_party_rule_with_options(self, tmp_path, monkeypatch) -> None:
        (tmp_path / "their_rules.py").write_text(
            "def scaled(base, given, *, seed, factor=1.0, first=False):\n"
            "    for key in base.keys():\n"
            "        yield key, given[0].get(key) * factor\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        rule = load("their_rules:scaled", factor=2)
        fused = dict(rule(Weights(body(0)), contributions(1)))
        assert torch.equal(fused["matrix"], body(1)["matrix"] * 2)
        with pytest.raises(FusionError, match="factor of fusion rule .* is a float, got 'two'"):
            load("their_rules:scaled", factor="two")
        with pytest.raises(FusionError, match="first of fusion rule .* is a bool, got 1"):
            load("their_rules:scaled", first=1)

    def test_a_rule_that_needs_more(self, tmp_path, monkeypatch) -> None:
        (tmp_path / "picky_rules.py").write_text(
            "def picky(base, given, *, seed):\n    yield from base.items()\n"
            "picky.min_contributions = 5\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(FusionError, match="needs 5 contributions, got 4"):
            load("picky_rules:picky")(Weights(body(0)), contributions(4))

    def test_a_rule_that_cannot_be_called(self, tmp_path, monkeypatch) -> None:
        (tmp_path / "odd_rules.py").write_text(
            "def seedless(base, given):\n    return []\n"
            "def wants(base, given, *, seed, much):\n    return []\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        for name, words in (("seedless", "seed"), ("wants", "missing a required argument: 'much'")):
            with pytest.raises(FusionError, match=f"cannot be called as rule.*{words}"):
                load(f"odd_rules:{name}")

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda t: t.pop("row"), "yields scalar, due is row"),
            (lambda t: t.pop("positions"), "yields None, due is positions"),
            (lambda t: t.update(row=torch.zeros(4)), r"row is torch.float32 \(4,\), the base's"),
            (lambda t: t.update(row=t["row"].double()), "row is torch.float64"),
            (lambda t: t.update(row=t["row"] / 0), "row holds NaN or infinity"),
            (lambda t: t.update(more=t["row"]), "yields more, which the base does not have"),
        ],
    )
    def test_what_a_rule_may_not_yield(self, tmp_path, monkeypatch, change, words) -> None:
        fused = body(3)
        change(fused)
        (tmp_path / "wrong_rules.py").write_text("def wrong(base, given, *, seed): return FUSED\n")
        monkeypatch.syspath_prepend(tmp_path)
        rule = load("wrong_rules:wrong")
        monkeypatch.setattr(sys.modules["wrong_rules"], "FUSED", list(fused.items()), raising=False)
        with pytest.raises(FusionError, match=words):
            list(rule(Weights(body(0)), contributions(1)))
        monkeypatch.delitem(sys.modules, "wrong_rules")

    def test_a_module_that_is_not_there(self) -> None:
        with pytest.raises(FusionError, match=r"nowhere:rule.*cannot be loaded"):
            load("nowhere:rule")

    def test_two_contributions_of_one_name(self) -> None:
        twice = [Weights(body(1), name="a"), Weights(body(2), name="a")]
        with pytest.raises(FusionError, match="share a name"):
            load("average")(Weights(body(0)), twice)

    def test_a_missing_tensor_is_named(self) -> None:
        less = {k: t for k, t in body(1).items() if k != "row"}
        with pytest.raises(FusionError, match="c: not in both models: row"):
            load("average")(Weights(body(0)), [Weights(less, name="c")])

    def test_all_names_are_public(self) -> None:
        assert all(hasattr(fusion, name) for name in fusion.__all__)
