"""Fusion rules against hand numbers, then against Flower's strategies and peft's merges."""

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, FedMedian, FedTrimmedAvg, Krum, MultiKrum
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from peft.utils import merge_utils

from strategies.errors import FusionError
from strategies.fusion import Weights, load
from strategies.fusion._options import share
from strategies.fusion.dare import CHUNK, DRAWS, draws
from strategies.fusion.weighted_average import capped

Rows = list[list[float]]


def fused(rule: str, theta: list[float], given_: Rows, examples=None, **options) -> list[float]:
    """Fuse vectors; contributor i is called c<i>."""
    examples = examples or [1] * len(given_)
    bodies = [
        Weights({"w": torch.tensor(own)}, name=f"c{i}", examples=count)
        for i, (own, count) in enumerate(zip(given_, examples, strict=True))
    ]
    found = dict(load(rule, **options)(Weights({"w": torch.tensor(theta)}), bodies, seed=0))
    return found["w"].tolist()


# theta is (1, 1, 1), so that a rule that forgets the base is found out.
BASE = [1.0, 1.0, 1.0]
TWO = [[3.0, 1.0, -1.0], [2.0, 5.0, 5.0]]  # differences (2, 0, -2) and (1, 4, 4)
FIVE = [[2.0, 1, 1], [3.0, 1, 1], [4.0, 1, 0], [5.0, 1, 1], [101.0, 2, 9]]  # the last is far off


@pytest.mark.parametrize(
    ("rule", "given_", "options", "expected"),
    [
        ("average", TWO, {}, [2.5, 3.0, 2.0]),
        ("weighted_average", TWO, {"power": 0}, [2.5, 3.0, 2.0]),
        ("weighted_average", TWO, {"weights": {"c0": 3}}, [2.75, 2.0, 0.5]),
        ("weighted_average", TWO, {"weights": {"c0": 0}}, TWO[1]),
        ("weighted_average", TWO, {"weights": {"c0": 99}, "cap": 0.75}, [2.75, 2.0, 0.5]),
        ("model_stock", [[2.0, 1, 1], [1.0, 2, 1]], {}, BASE),  # orthogonal: t = 0
        ("model_stock", [[2.0, 1, 1], [3.0, 1, 1]], {}, [2.5, 1, 1]),  # parallel: t = 1
        ("model_stock", [[2.0, 1, 1], [0.0, 1, 1]], {}, BASE),  # opposed: c = -1 counts as 0
        ("model_stock", [[1.0, 1, 1], [3.0, 1, 1]], {}, BASE),  # one did not move: c = 0
        ("model_stock", [[4.0, 5.0, 1], [6.0, 1, 1]], {}, [4.0, 2.5, 1]),  # c 3/5, t 3/4
        ("median", [[3.0, 1, 1], [2.0, 5, 1], [9.0, 2, 0]], {}, [3.0, 2.0, 1.0]),
        ("median", TWO, {}, [2.5, 3.0, 2.0]),
        ("trimmed_mean", FIVE, {}, [4.0, 1.0, 1.0]),
        ("trimmed_mean", FIVE, {"beta": 0.4}, [4.0, 1.0, 1.0]),
        ("trimmed_mean", FIVE, {"beta": 0}, [23.0, 1.2, 2.4]),
        ("geometric_median", [[2.0, 1, 1], [2.0, 1, 1], [9.0, 9, 9]], {"steps": 99}, [2.0, 1, 1]),
        # distances from the mean (3, 1, 1) are 2, 1 and 3: weights 3/11, 6/11, 2/11
        ("geometric_median", [[1.0, 1, 1], [2.0, 1, 1], [6.0, 1, 1]], {"steps": 1}, [27 / 11, 1, 1]),
        # two nearest: 1+5, 1+2, 2+2, 2+4, ...: the second has the lowest score, then the third
        ("krum", FIVE, {}, FIVE[1]),
        ("multi_krum", FIVE, {}, [3.5, 1.0, 0.5]),
        ("task_arithmetic", TWO, {"scale": 0.5}, [2.5, 3.0, 2.0]),
        # kept: (2, 0, -2) and (0, 4, 4); signs + + +; means 2, 4, 4
        ("ties", TWO, {"density": 0.67}, [3.0, 5.0, 5.0]),
        ("ties", TWO, {"density": 1.0, "scale": 2.0}, [4.0, 9.0, 9.0]),  # means 1.5, 4, 4
        ("ties", [[3.0, 1, 1], [-1.0, 1, 1]], {"density": 1.0}, [3.0, 1, 1]),  # a zero sum is +
        ("ties", [[3.0, 0, 1], [-6.0, 0, 1]], {"density": 1.0}, [-6.0, 0, 1]),
        # each keeps the middle one of its three magnitudes: 2 and -3
        (
            "breadcrumbs",
            [[2.0, 3.0, 6.0], [-2.0, 1.5, 5.0]],
            {"density": 0.4, "gamma": 0.34, "scale": 0.5},
            [-0.5, 2.0, 1.0],
        ),
        ("breadcrumbs", TWO, {"density": 1.0, "gamma": 0.0, "scale": 0.5}, [2.5, 3.0, 2.0]),
        ("dare", TWO, {"drop": 0.0}, [2.5, 3.0, 2.0]),
        ("dare", TWO, {"drop": 0.0, "then": "ties"}, [2.5, 5.0, 5.0]),
    ],
)  # fmt: skip
def test_hand_numbers(rule: str, given_: Rows, options: dict, expected: list[float]) -> None:
    assert fused(rule, BASE, given_, **options) == pytest.approx(expected, abs=1e-6)


def test_weights_by_examples() -> None:
    assert fused("weighted_average", BASE, TWO, [3, 1]) == [2.75, 2.0, 0.5]
    assert fused("weighted_average", BASE, TWO, [9, 1], power=0.5) == [2.75, 2.0, 0.5]
    # shares 0.9, 0.05, 0.05: what is above the cap goes to the others in proportion
    assert load("weighted_average", cap=0.4).min_contributions == 3  # two have 0.8 at most
    assert load("weighted_average", cap=1 / 3).min_contributions == 3
    capped = fused("weighted_average", [0.0], [[8.0], [4.0], [0.0]], [18, 1, 1], cap=0.5)
    assert capped == [5.0]


def test_krum_breaks_ties_by_name() -> None:
    square = [[0.0, 0, 1], [0.0, 1, 0], [1.0, 1, 1], [1.0, 0, 0]]
    for first in range(4):
        turned = square[first:] + square[:first]
        assert fused("krum", BASE, turned, byzantine=0) == turned[0]


@pytest.mark.parametrize(
    ("rule", "options", "said"),
    [
        ("trimmed_mean", {"beta": 0.5}, r"beta .*trimmed_mean is a float in \[0, 0.5\), got 0.5"),
        ("weighted_average", {"cap": 0}, r"cap .* is a float in \(0, 1\], got 0"),
        ("weighted_average", {"weights": {"a": -1}}, r"a float in \[0, inf\) or '', got \{'a': -1"),
        ("weighted_average", {"weights": 3}, r"weights .* a table .*, got 3"),
        ("weighted_average", {"power": float("nan")}, r"power .*, got nan"),
        ("krum", {"byzantine": -1}, r"byzantine .* is an int in \[0, inf\), got -1"),
        ("krum", {"byzantine": 1.5}, r"byzantine .* is an int in \[0, inf\), got 1.5"),
        ("geometric_median", {"steps": 0}, r"steps .* is an int in \[1, inf\), got 0"),
        ("dare", {"then": "tie"}, r"then .* is 'average' or 'ties', got 'tie'"),
        ("dare", {"drop": 1.0}, r"drop .* is a float in \[0, 1\), got 1.0"),
        ("breadcrumbs", {"density": 0.9, "gamma": 0.2}, r"density 0.9 \+ gamma 0.2 is more than 1"),
    ],
)
def test_options_are_refused_with_what_is_valid(rule: str, options: dict, said: str) -> None:
    with pytest.raises(FusionError, match=said):
        load(rule, **options)


def test_refusals_at_fusion_give_the_numbers() -> None:
    with pytest.raises(FusionError, match=r"krum \(byzantine = 2\) needs 7 contributions, got 5"):
        fused("krum", BASE, FIVE, byzantine=2)
    with pytest.raises(FusionError, match=r"keep = 6\) needs 6 contributions, got 5"):
        fused("multi_krum", BASE, FIVE, keep=6)
    with pytest.raises(FusionError, match=r"2 contributions of at most 0.4 each make 0.8, .* 0.5"):
        fused("weighted_average", BASE, [*TWO, BASE], weights={"c2": 0}, cap=0.4)
    with pytest.raises(FusionError, match=r"all 2 weights are 0: c0 \(0 examples\)"):
        fused("weighted_average", BASE, TWO, [0, 0])


# Flower's strategies, run on replies made by hand.

SHAPES = {"m": (7, 3), "b": (5,), "s": ()}


@pytest.mark.parametrize(
    ("part", "of", "floor"),
    [(0.29, 100, 29), (0.1, 10, 1), (0.1, 9, 0), (0.3, 10, 3), (0.7, 10, 7), (0.57, 100, 57),
     (1 / 3, 3, 1), (0.999, 1000, 999), (1e-9, 10**9, 1), (1, 7, 7), (0.0, 5, 0)],
)  # fmt: skip
def test_a_share_is_of_the_number_that_was_meant(part, of, floor) -> None:
    assert share(part, of) == floor


def test_29_in_100_are_trimmed_on_either_side() -> None:
    base = {"w": torch.zeros(1)}
    given_ = [Weights({"w": torch.tensor([float(2**i)])}, name=f"{i:03d}") for i in range(100)]
    (fused,) = (t for _, t in load("trimmed_mean", beta=0.29)(Weights(base), given_))
    middle = sum(2.0**i for i in range(29, 71)) / 42
    assert float(fused) == pytest.approx(middle, rel=1e-6)


def models(n: int, seed: int) -> tuple[dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
    draw = np.random.default_rng(seed)
    base = {k: np.asarray(draw.standard_normal(s), np.float32) for k, s in SHAPES.items()}

    def near(array: np.ndarray) -> np.ndarray:
        return np.asarray(array + 0.1 * draw.standard_normal(array.shape), np.float32)

    return base, [{k: near(a) for k, a in base.items()} for _ in range(n)]


def ours(rule: str, base, others, examples, **options) -> dict[str, np.ndarray]:
    bodies = [
        Weights({k: torch.tensor(a) for k, a in own.items()}, name=f"{i:02d}", examples=count)
        for i, (own, count) in enumerate(zip(others, examples, strict=True))
    ]
    start = Weights({k: torch.tensor(a) for k, a in base.items()})
    return {k: t.numpy() for k, t in load(rule, **options)(start, bodies)}


def theirs(strategy: FedAvg, others, examples) -> dict[str, np.ndarray]:
    replies = []
    for own, count in zip(others, examples, strict=True):
        arrays = ArrayRecord({k: Array(a) for k, a in own.items()})
        metrics = MetricRecord({"num-examples": count})
        content = RecordDict({"arrays": arrays, "metrics": metrics})
        replies.append(Message(content, dst_node_id=1, message_type="train"))
    arrays, _ = strategy.aggregate_train(1, replies)
    assert arrays is not None
    return {k: a.numpy() for k, a in arrays.items()}


@pytest.mark.parametrize(
    ("rule", "options", "strategy", "weighed"),
    [
        ("average", {}, lambda n: FedAvg(), False),
        ("weighted_average", {}, lambda n: FedAvg(), True),
        ("median", {}, lambda n: FedMedian(), True),
        ("trimmed_mean", {}, lambda n: FedTrimmedAvg(), True),
        ("trimmed_mean", {"beta": 0.33}, lambda n: FedTrimmedAvg(beta=0.33), True),
        ("krum", {"byzantine": 1}, lambda n: Krum(num_malicious_nodes=1), True),
        ("multi_krum", {"byzantine": 1, "keep": 3},
         lambda n: MultiKrum(num_malicious_nodes=1, num_nodes_to_select=3), False),
        ("multi_krum", {"byzantine": 1},
         lambda n: MultiKrum(num_malicious_nodes=1, num_nodes_to_select=n - 3), False),
    ],
)  # fmt: skip
@settings(deadline=None, max_examples=15)
@given(n=st.integers(5, 11), seed=st.integers(0, 10**6))
def test_flowers_strategies(rule, options, strategy, weighed, n, seed) -> None:
    base, others = models(n, seed)
    if "krum" in rule:
        assume(gap(others) > 1e-3)  # a near tie is decided by rounding
    examples = list(range(1, n + 1)) if weighed else [1] * n
    found = ours(rule, base, others, examples, **options)
    for key, expected in theirs(strategy(n), others, examples).items():
        np.testing.assert_allclose(found[key], expected, rtol=2e-6, atol=2e-6)


def gap(others: list[dict[str, np.ndarray]], byzantine: int = 1) -> float:
    """Return by how much two of Krum's scores differ at least, relative to the smaller one."""
    flat = np.stack([np.concatenate([a.ravel() for a in own.values()]) for own in others])
    squares = ((flat[:, None] - flat[None]) ** 2).sum(-1, dtype=np.float64)
    nearest = np.sort(squares, axis=1)[:, 1 : len(flat) - byzantine - 1]
    scores = np.sort(nearest.sum(1))
    return float((np.diff(scores) / scores[:-1]).min())


# peft's functions take differences of one tensor, and trim each tensor by itself.


def differences(n: int, size: int = 1000) -> list[torch.Tensor]:
    return [torch.randn(size, generator=torch.Generator().manual_seed(i)) for i in range(n)]


def step(rule: str, vectors: list[torch.Tensor], **options) -> torch.Tensor:
    """Return what a rule adds to a base of zeros."""
    bodies = [Weights({"w": v}, name=f"c{i}") for i, v in enumerate(vectors)]
    base = Weights({"w": torch.zeros_like(vectors[0])})
    return dict(load(rule, **options)(base, bodies, seed=5))["w"]


@pytest.mark.parametrize("n", [1, 2, 8])
def test_pefts_task_arithmetic_and_ties(n: int) -> None:
    vectors, one = differences(n), torch.ones(n)
    expected = merge_utils.task_arithmetic(vectors, 0.3 * one)
    torch.testing.assert_close(step("task_arithmetic", vectors), expected)
    for density in (0.2, 0.55):
        expected = merge_utils.ties(vectors, one, density)
        torch.testing.assert_close(step("ties", vectors, density=density), expected)


@pytest.mark.parametrize("n", [1, 2, 8])
def test_pefts_dare_with_our_draws(n: int, monkeypatch) -> None:
    vectors, one = differences(n, CHUNK + 100), torch.ones(n)

    def masks():
        for i, vector in enumerate(vectors):
            drawn = draws(5, f"c{i}", "w", slice(0, len(vector)))
            yield (drawn >= int(0.7 * DRAWS)).float()

    for then, merge in (("average", merge_utils.dare_linear), ("ties", merge_utils.dare_ties)):
        drawn = masks()
        monkeypatch.setattr(torch, "bernoulli", lambda _, drawn=drawn: next(drawn))
        expected = merge(vectors, one, 1 - 0.7)
        if then == "average":
            expected = expected / n
        torch.testing.assert_close(step("dare", vectors, drop=0.7, then=then), expected)


def test_dare_keeps_its_share_and_a_contributors_mask_its_own() -> None:
    vectors = [torch.ones(100_000), torch.ones(100_000)]
    alone = step("dare", vectors[:1], drop=0.9)
    assert sorted(set(alone.tolist())) == pytest.approx([0, 10])
    assert abs(alone.mean().item() - 1) < 0.05
    both = step("dare", vectors, drop=0.9)
    assert torch.equal(both >= alone / 2, torch.ones(100_000, dtype=torch.bool))
    assert 0.005 < (both > 6).float().mean() < 0.02  # independent: both kept in 1 of 100


def test_draws_are_of_seed_contributor_tensor_and_place() -> None:
    def drawn(seed=0, name="a", key="v", start=0) -> tuple[int, ...]:
        return tuple(draws(seed, name, key, slice(start, start + 64)).tolist())

    assert drawn() == drawn()
    others = [drawn(seed=1), drawn(name="b"), drawn(key="w"), drawn(start=CHUNK)]
    assert len({drawn(), *others}) == 5
    assert all(0 <= min(one) < DRAWS / 2 <= max(one) < DRAWS for one in others)
    whole = draws(0, "a", "v", slice(0, 3 * CHUNK))
    cut = slice(CHUNK - 7, 2 * CHUNK + 7)
    assert torch.equal(draws(0, "a", "v", cut), whole[cut])


def test_dares_scale_is_the_length_of_the_step() -> None:
    base = {"w": torch.zeros(3)}
    given_ = [Weights({"w": torch.tensor([1.0, 2.0, -4.0]) * i}, name=str(i)) for i in (1, 3)]
    fused = dict(load("dare", drop=0.0, scale=0.5)(Weights(base), given_))["w"]
    assert fused.tolist() == [1.0, 2.0, -4.0]  # half of the mean, 2 d


def test_a_cap_is_kept_by_those_too_whom_the_rest_goes_to() -> None:
    """10 of 17 is capped at 0.4; of the 0.6 left, 5 of 7 would be 0.43: that one is capped, too."""
    assert capped([10.0, 5.0, 1.0, 1.0], 0.4) == pytest.approx([0.4, 0.4, 0.1, 0.1])
    three = capped([100.0, 50.0, 25.0, 1.0, 1.0], 0.3)
    assert three == pytest.approx([0.3, 0.3, 0.3, 0.05, 0.05])


def test_model_stock_stays_where_contributions_disagree() -> None:
    """A negative cosine counts as 0, not as its size: there is nothing that both learned."""
    base = {"w": torch.zeros(2)}
    given_ = [
        Weights({"w": torch.tensor(d)}, name=n) for n, d in (("a", [1.0, 0.0]), ("b", [-0.5, 0.8]))
    ]
    assert dict(load("model_stock")(Weights(base), given_))["w"].tolist() == [0.0, 0.0]
