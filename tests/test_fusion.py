"""Fusion rules: the promises every rule keeps, and the average's own identities."""

import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from zlib import crc32

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from strategies import fusion
from strategies.errors import FusionError
from strategies.fusion import Weights, _deltas, _order, load, names
from strategies.fusion._statistics import pack
from strategies.names import absolute
from strategies.waiting import ahead


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
    return [
        Weights(body(i + 1, dtype), name=f"c{i}", examples=i + 1, steps=9 + i) for i in range(n)
    ]


# Options to test besides the defaults; a rule that is not named here is tested with its defaults.
OPTIONS: dict[str, list[dict[str, object]]] = {
    "weighted_average": [{"power": 0}, {"weights": {"c1": 3, "gone": 9}}, {"cap": 0.7}],
    "trimmed_mean": [{"beta": 0.0}, {"beta": 0.45}],
    "geometric_median": [{"steps": 1, "eps": 1.0}],
    "krum": [{"byzantine": 0}],
    "multi_krum": [{"byzantine": 0, "keep": 3}],
    "ties": [{"density": 1.0, "scale": 0.5}, {"density": 0.9}],
    "breadcrumbs": [{"density": 0.5, "gamma": 0.3, "scale": 1.0}],
    "dare": [{"then": "ties", "density": 0.4}, {"drop": 0.9}, {"then": "ties"}],
    "della": [{"then": "ties", "density": 0.3}, {"epsilon": 0.0}, {"density": 0.9, "epsilon": 0.1}],
    "fisher": [{"eps": 1e-3}, {"normalise": False}],
    "regmean": [{"gram": "full"}, {"gram": "full", "alpha": 0.9}],
    "iso_c": [{"scale": 0.5}],
    "tsv": [{"scale": 0.5}],
    "pcb": [{"ratio": 1.0}, {"ratio": 0.5, "scale": 0.3}],
    "consensus": [{"threshold": 1.5, "scale": 1.0}, {"agree": 1}],
}
Case = tuple[str, dict[str, object]]
CASES: list[Case] = [(rule, chosen) for rule in names() for chosen in [{}, *OPTIONS.get(rule, [])]]
BY_DISTANCE = {"geometric_median", "krum", "multi_krum", "model_stock"}
every_case = pytest.mark.parametrize("rule", CASES, ids=lambda case: f"{case[0]}-{case[1]}")


def fuse(rule: str | Case, base: Weights, given: list[Weights]) -> dict[str, torch.Tensor]:
    name, chosen = (rule, {}) if isinstance(rule, str) else rule
    loaded = load(name, **chosen)
    for one in given:
        if loaded.statistic and not one.statistic:
            one.statistic = Weights(statistic(loaded.statistic, base, one.name))
    return dict(loaded(base, given, seed=3))


def statistic(kind: str, base: Weights, name: str) -> dict[str, torch.Tensor]:
    """Draw what a contributor of this name might say of its data."""
    generator, found = torch.Generator().manual_seed(crc32(name.encode())), {}
    for key, (dtype, shape) in base.template().items():
        if kind == "fisher" and dtype.is_floating_point:
            found[key] = torch.randn(shape, generator=generator) ** 4
        elif kind != "fisher" and len(shape) == 2 and key != "row":  # not of all
            inputs = torch.randn(9, shape[1], generator=generator)
            gram = inputs.T @ inputs / 9
            found[key] = gram.diagonal() if kind == "gram" else pack(gram)
    return found


def least(rule: Case) -> int:
    name, chosen = rule
    needed = getattr(fusion._find(name), "min_contributions", 1)
    defaults = {k: p.default for k, p in fusion.options(fusion._find(name)).items()}
    return needed(**(defaults | chosen)) if callable(needed) else needed


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(
        a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a
    )


@every_case
class TestEveryRule:
    """The contract: a new file in strategies/fusion is tested by existing."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_keeps_keys_shapes_dtypes_and_integers(self, rule: Case, dtype: torch.dtype) -> None:
        base = body(0, dtype)
        fused = fuse(rule, Weights(base), contributions(5, dtype))
        assert {k: (t.dtype, t.shape) for k, t in fused.items()} == {
            k: (t.dtype, t.shape) for k, t in base.items()
        }
        assert torch.equal(fused["positions"], base["positions"])

    def test_what_it_yields_stays_while_the_next_is_made(self, rule: Case) -> None:
        base, given = Weights(body(0)), contributions(5)
        fused = fuse(rule, base, given)
        at_once = [(k, t.clone()) for k, t in load(rule[0], **rule[1])(base, given, seed=3)]
        assert same_bits(dict(at_once), fused)
        assert same_bits(dict(ahead(load(rule[0], **rule[1])(base, given, seed=3))), fused)

    def test_leaves_its_inputs_alone(self, rule: Case) -> None:
        base, others = body(0), [body(i) for i in range(1, 6)]
        fuse(rule, Weights(base), [Weights(o, name=f"c{i}", steps=1) for i, o in enumerate(others)])
        assert same_bits(base, body(0))
        assert all(same_bits(o, body(i)) for i, o in enumerate(others, start=1))

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
    def test_returns_the_base_when_all_equal_it(self, rule: Case, dtype: torch.dtype) -> None:
        base = {k: t / 3 if t.is_floating_point() else t for k, t in body(0, dtype).items()}
        equal = [Weights(dict(base), name=f"c{i}", steps=i + 1) for i in range(7)]
        assert same_bits(fuse(rule, Weights(base), equal), base)

    def test_order_does_not_matter_to_the_last_bit(self, rule: Case) -> None:
        base, given = Weights(body(0)), contributions(6)
        assert same_bits(fuse(rule, base, given), fuse(rule, base, given[::-1]))

    def test_same_seed_same_bits(self, rule: Case) -> None:
        base, given = Weights(body(0)), contributions(5)
        assert same_bits(fuse(rule, base, given), fuse(rule, base, given))

    def test_finite_in_finite_out(self, rule: Case) -> None:
        fused = fuse(rule, Weights(body(0)), contributions(5))
        assert all(torch.isfinite(t).all() for t in fused.values())

    def test_half_precision_is_computed_in_float32(self, rule: Case) -> None:
        halves = contributions(5, torch.float16)
        wide = [
            Weights(
                {k: t.float() if t.is_floating_point() else t for k, t in w.items()},
                name=w.name,
                examples=w.examples,
                steps=w.steps,
            )
            for w in halves
        ]
        base = body(0, torch.float16)
        base32 = {k: t.float() if t.is_floating_point() else t for k, t in base.items()}
        half, full = fuse(rule, Weights(base), halves), fuse(rule, Weights(base32), wide)
        assert all(torch.equal(half[k], full[k].to(half[k].dtype)) for k in half)

    def test_refuses_an_empty_list(self, rule: Case) -> None:
        with pytest.raises(FusionError, match="got 0"):
            fuse(rule, Weights(body(0)), [])

    def test_refuses_another_shape_naming_both(self, rule: Case) -> None:
        other = {**body(1), "matrix": torch.zeros(3, 5)}
        with pytest.raises(FusionError, match=r"bad: matrix has shape \(3, 5\), .* \(5, 3\)"):
            fuse(rule, Weights(body(0)), [*contributions(4), Weights(other, name="bad")])

    def test_one_contribution_is_accepted_or_refused_with_the_numbers(self, rule: Case) -> None:
        needed = least(rule)
        if needed > 1:
            with pytest.raises(FusionError, match=f"needs {needed} contributions, got 1"):
                fuse(rule, Weights(body(0)), contributions(1))
        else:
            fused = fuse(rule, Weights(body(0)), contributions(1))
            assert all(torch.isfinite(t).all() for t in fused.values())

    def test_identical_contributions_move_the_base_finitely(self, rule: Case) -> None:
        same = [Weights(body(1), name=f"c{i}", steps=i + 1) for i in range(5)]
        fused = fuse(rule, Weights(body(0)), same)
        assert all(torch.isfinite(t).all() for t in fused.values())
        if rule[0] in {"average", "median", "trimmed_mean", "model_stock", *BY_DISTANCE}:
            assert all(torch.allclose(fused[k], t) for k, t in body(1).items())

    def test_does_not_depend_on_the_block_size(self, rule: Case, monkeypatch) -> None:
        def wide(seed: int) -> Weights:
            draw = torch.Generator().manual_seed(seed)
            made = {k: torch.randn(s, generator=draw) for k, s in (("w", (3, 2801)), ("b", (9,)))}
            return Weights(made, name=f"c{seed}", examples=seed, steps=seed)

        found = []
        for block in (1 << 18, 16 * 3, 1000):
            monkeypatch.setattr(_deltas, "BLOCK", block)
            found.append(fuse(rule, wide(0), [wide(i) for i in range(1, 7)]))
        for other in found[1:]:
            if rule[0] in BY_DISTANCE:  # float64 inner products are rounded block by block
                assert all(torch.allclose(found[0][k], other[k], atol=1e-6) for k in other)
            else:
                assert same_bits(found[0], other)

    def test_does_not_depend_on_the_number_of_threads(self, rule: Case, monkeypatch) -> None:
        draw = torch.Generator().manual_seed(0)
        shapes = {"w": (30, 100), "b": (9,)}

        def wide(seed: int) -> Weights:
            made = {k: torch.randn(s, generator=draw) for k, s in shapes.items()}
            return Weights(made, name=f"c{seed}", examples=seed, steps=seed)

        monkeypatch.setattr(_deltas, "ROW", 100)
        base, models, found = wide(0), [wide(i) for i in range(1, 7)], []
        for number in (1, 2, 5):
            with threads(number):
                found.append(fuse(rule, base, models))
        assert same_bits(found[0], found[1])
        assert same_bits(found[0], found[2])

    @settings(deadline=None, max_examples=15)
    @given(data=st.data())
    def test_odd_shapes_and_mixed_types(self, rule: Case, data) -> None:
        sizes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
        shapes = data.draw(st.lists(sizes | st.sampled_from([(1, 9), (9, 1)]), max_size=3))
        types = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
        draw = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))

        def model() -> dict[str, torch.Tensor]:
            made = {
                str(i): torch.randn(shape, generator=draw).to(data.draw(types))
                for i, shape in enumerate(shapes)
            }
            return made | {"count": torch.tensor(3)}

        base, n = model(), data.draw(st.integers(2, 7))
        given_ = [Weights(model(), name=f"c{i}", examples=i + 1, steps=i + 1) for i in range(n - 1)]
        given_.append(Weights(dict(base), name="b", steps=7))  # one that did not move
        if n < least(rule):
            with pytest.raises(FusionError, match=f"got {n}"):
                fuse(rule, Weights(base), given_)
            return
        fused = fuse(rule, Weights(base), given_)
        assert {k: (t.dtype, t.shape) for k, t in fused.items()} == {
            k: (t.dtype, t.shape) for k, t in base.items()
        }
        assert all(torch.isfinite(t).all() for t in fused.values())
        shuffled = data.draw(st.permutations(given_))
        assert same_bits(fused, fuse(rule, Weights(base), shuffled))

    def test_memory_does_not_grow_with_the_contributions(self, rule: Case, monkeypatch) -> None:
        few, many = peaks(load(rule[0], **rule[1]), monkeypatch)
        assert few > 0
        assert many < few + 20_000  # bytes; a tensor of a contribution has 24,000


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Decoded(dict):
    """Tensors as a server has its base: made anew whenever one is asked for (`records.Tensors`)."""

    def __getitem__(self, key: str) -> torch.Tensor:
        return super().__getitem__(key).clone()


def peaks(fuse: fusion.Rule, monkeypatch) -> list[int]:
    """Return the most bytes of tensors alive while 5 contributions are fused, and 12."""
    monkeypatch.setattr(_deltas, "BLOCK", 1 << 13)
    monkeypatch.setattr(_deltas, "ROW", 1 << 11)
    monkeypatch.setattr("strategies.fusion.dare.CHUNK", 1 << 11)
    draw = torch.Generator().manual_seed(0)
    found = []
    for n in (5, 12):
        base = {key: torch.randn(60, 100, generator=draw) for key in "wv"}
        given = [
            Weights(
                {k: t + torch.randn(t.shape, generator=draw) for k, t in base.items()},
                name=f"{i:02d}",
                steps=i + 1,
            )
            for i in range(n)
        ]
        for one in given if fuse.statistic else []:
            one.statistic = Weights(statistic(fuse.statistic, Weights(base), one.name))
        with threads(1), Live() as live:  # it sees its own thread alone
            for _ in fuse(Weights(Decoded(base)), given, seed=1):
                pass
        found.append(live.peak)
    return found


class Live(TorchDispatchMode):
    """Counts the bytes of tensors made under it and still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, weakref.ref] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        old = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if torch.is_tensor(t)}
        for tensor in filter(torch.is_tensor, tree_leaves(made)):
            storage = tensor.untyped_storage()
            if id(storage) not in old and id(storage) not in self.seen:
                self.now += (size := storage.nbytes())
                self.peak = max(self.peak, self.now)
                self.seen[id(storage)] = weakref.finalize(storage, self.gone, id(storage), size)
        return made

    def gone(self, which: int, size: int) -> None:
        del self.seen[which]
        self.now -= size


def test_sort_is_a_sort() -> None:
    for n in range(1, 34):
        block = torch.randn(n, 200, generator=torch.Generator().manual_seed(n)).round(decimals=1)
        expected = block.sort(dim=0).values
        assert torch.equal(torch.stack(_order.sort(block)), expected)


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_magnitude_is_the_kth_largest(data) -> None:
    draw = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    size = data.draw(st.sampled_from([1, 50, 5000, 100_000]))
    vector = torch.randn(size, generator=draw)
    kind = data.draw(st.sampled_from(["plain", "ties", "zeros", "equal", "few", "subnormal"]))
    if kind == "ties":
        vector = vector.round(decimals=1)
    elif kind == "zeros":
        vector *= torch.rand(size, generator=draw) < 0.3
    elif kind == "equal":
        vector = vector.sign()
    elif kind == "few":  # large ones
        vector *= 1e-3
        vector[1::61] = 5
    elif kind == "subnormal":
        vector *= 1e-42
    base = Weights({"a": torch.zeros(size // 3), "b": torch.zeros(size - size // 3)})
    parts = {"a": vector[: size // 3], "b": vector[size // 3 :]}
    delta = _deltas.Difference(base, Weights(parts))
    k = data.draw(st.integers(1, size))
    found = _order.magnitude(delta, _deltas.learned(base), k)
    assert found == vector.abs().sort(descending=True).values[k - 1].item()
    assert _order.magnitude(delta, _deltas.learned(base), 0) == float("inf")
    assert _order.magnitude(delta, _deltas.learned(base), size + 1) == 0


def test_a_share_that_is_nearly_half_leaves_one_in_the_middle() -> None:
    base, given = (
        Weights({"w": torch.zeros(1)}),
        [Weights({"w": torch.tensor([float(i)])}, name=str(i)) for i in range(4)],
    )
    (fused,) = dict(load("trimmed_mean", beta=0.4999999999)(base, given)).values()
    assert fused.tolist() == [1.5]


def test_a_tiny_fisher_is_scaled_in_double() -> None:
    base = Weights({"w": torch.zeros(4)})
    given = [
        Weights(
            {"w": torch.full((4,), float(i))},
            name=str(i),
            statistic=Weights({"w": torch.tensor([1.0, 0.0, 2.0, 3.0]) * 1e-39}),
        )
        for i in (1, 2)
    ]
    (fused,) = dict(load("fisher")(base, given)).values()
    assert torch.allclose(fused, torch.full((4,), 1.5))
    wide = torch.tensor([1.0, 0.0, 2.0, 3.0], dtype=torch.float64)
    given[0].statistic = Weights({"w": wide})
    list(load("fisher")(base, given))
    assert wide.tolist() == [1, 0, 2, 3]  # what was given is left alone


def test_half_precision_does_not_overflow() -> None:
    base = Weights({"w": torch.zeros(2, dtype=torch.float16)})
    large = torch.tensor([6e4, -6e4], dtype=torch.float16)
    given_ = [Weights({"w": large}, name=f"{i}") for i in range(9)]
    assert fuse("task_arithmetic", base, given_)["w"].tolist() == [65504, -65504]


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

    def test_keeps_small_steps_of_float64(self) -> None:
        base = torch.full((5,), 1.0, dtype=torch.float64)
        given = [Weights({"w": base + step}, name=str(step)) for step in (1e-12, 3e-12)]
        fused = fuse("average", Weights({"w": base}), given)["w"] - base
        assert torch.allclose(fused, torch.full_like(base, 2e-12), rtol=1e-3, atol=0)

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

    @pytest.mark.parametrize(
        ("line", "words"),
        [
            ("return None", r"returns NoneType, expected an iterator of \(key, tensor\)"),
            ("return dict(base.items())", "returns dict, expected an iterator"),
            ("return (t for _, t in base.items())", "yields Tensor, expected an iterator"),
            ("return [(k, 1) for k in base.keys()]", "yields tuple, expected an iterator"),
            ("return [*base.items(), 5]", "yields int, which the base does not have"),
            ("return given[9]", "failed in .*mine.py, line 2: IndexError: list index out"),
            ("yield base.get('no')", "failed in .*mine.py, line 2: KeyError: 'no'"),
            ("import sys; sys.exit(0)", "failed in .*mine.py, line 2: SystemExit: 0"),
        ],
    )
    def test_what_fails_in_a_rule_is_said_in_a_line(self, tmp_path, line, words) -> None:
        (tmp_path / "mine.py").write_text(f"def mine(base, given, *, seed):\n    {line}\n")
        with pytest.raises(FusionError, match=f"^fusion rule {tmp_path}/mine.py:mine {words}.*$"):
            list(load(f"{tmp_path}/mine.py:mine")(Weights(body(0)), contributions(1)))

    def test_a_rule_of_a_class_that_fails(self, tmp_path) -> None:
        text = "class Mine:\n    def __call__(self, base, given, *, seed): 1 / 0\nmine = Mine()\n"
        (tmp_path / "mine.py").write_text(text)
        with pytest.raises(FusionError, match="mine.py, line 2: ZeroDivisionError: division by"):
            list(load(f"{tmp_path}/mine.py:mine")(Weights(body(0)), contributions(1)))

    def test_a_file_of_ones_own(self, tmp_path, monkeypatch) -> None:
        text = "def half(base, given, *, seed):\n    for k in base.keys(): yield k, given[0].get(k) / 2\n"
        (tmp_path / "mine.py").write_text(text)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "dont_write_bytecode", False)  # whatever this shell says
        for name in ("mine.py:half", f"{tmp_path}/mine.py:half", absolute("mine.py:half")):
            fused = dict(load(name)(Weights({"w": torch.ones(2)}), [Weights({"w": torch.ones(2)})]))
            assert torch.equal(fused["w"], torch.full((2,), 0.5))
        (tmp_path / "mine.py").write_text(text.replace("/ 2", "/ 4"))  # it is read anew
        fused = dict(load(name)(Weights({"w": torch.ones(2)}), [Weights({"w": torch.ones(2)})]))
        assert torch.equal(fused["w"], torch.full((2,), 0.25))
        assert absolute("average") == "average"

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("nowhere.py:half", "there is no file {}/nowhere.py"),
            ("mine.py:none", "has no attribute 'none'"),
            ("broken.py:half", "SyntaxError: "),
            ("mine:half", "No module named 'mine' among .* a file goes by its path: mine.py:half"),
            ("mine.py", r"unknown fusion rule 'mine.py'.*Or one of yours: file.py:function"),
        ],
    )
    def test_where_it_was_searched(self, tmp_path, monkeypatch, name, words) -> None:
        (tmp_path / "mine.py").write_text("")
        (tmp_path / "broken.py").write_text("def half(")
        monkeypatch.chdir(tmp_path)
        with pytest.raises(FusionError, match=words.format(tmp_path)):
            load(name)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("def f(", "SyntaxError: "),
            ("import nosuch", "No module named 'nosuch'"),
            ("x = 1", "has no attribute 'broken'"),
        ],
    )
    def test_one_that_cannot_be_explained(self, tmp_path, monkeypatch, text, words) -> None:
        (tmp_path / "broken.py").write_text(text)
        monkeypatch.setattr(fusion, "__path__", [*fusion.__path__, str(tmp_path)])
        with pytest.raises(FusionError, match=f"fusion rule 'broken' cannot be loaded.*{words}"):
            fusion.explain("broken")
        sys.modules.pop("strategies.fusion.broken", None)

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
