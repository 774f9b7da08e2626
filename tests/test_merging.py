"""Iso-C, TSV, DELLA, PCB, Consensus and FedNova against numpy in float64, and closed forms."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.errors import FusionError
from strategies.fusion import Weights, load, tsv
from strategies.fusion._deltas import Scaled
from strategies.fusion.dare import DRAWS, draws
from strategies.fusion.pcb import kth_largest

Arrays = dict[str, np.ndarray]
SHAPES = {"tall": (50, 6), "wide": (6, 50), "square": (9, 9), "b": (7,), "cube": (2, 3, 4)}
MATRICES = ("tall", "wide", "square")


def differences(n: int, shapes=SHAPES, seed: int = 0) -> list[Arrays]:
    """Return differences, float32, which a base of zeros adds nothing to."""
    draw = np.random.default_rng(seed)
    return [{k: draw.standard_normal(s).astype(np.float32) for k, s in shapes.items()} for _ in range(n)]  # fmt: skip


def step(rule: str, given_: list[Arrays], *, seed: int = 5, steps=None, **options) -> Arrays:
    """Return what a rule adds to a base of zeros; contributor i is called c<i>."""
    bodies = [
        Weights({k: torch.from_numpy(a) for k, a in own.items()}, name=f"c{i}", steps=taken)
        for i, (own, taken) in enumerate(zip(given_, steps or [1] * len(given_), strict=True))
    ]
    base = Weights({k: torch.zeros(a.shape) for k, a in given_[0].items()})
    return {k: t.numpy() for k, t in load(rule, **options)(base, bodies, seed=seed)}


def wide(given_: list[Arrays], key: str) -> np.ndarray:
    return np.stack([own[key].astype(np.float64) for own in given_])


def close(found: np.ndarray, expected: np.ndarray, rtol: float = 1e-5) -> None:
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * np.abs(expected).max())


@pytest.fixture(params=[1 << 20, 100])
def pieces(request, monkeypatch) -> None:
    """Read a tall matrix at once, and 16 rows at a time."""
    monkeypatch.setattr("strategies.fusion._matrices.PIECE", request.param)


def svd(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.linalg.svd(matrix, full_matrices=False)


def nearest_orthonormal(matrix: np.ndarray) -> np.ndarray:
    p, _, q = svd(matrix)
    return p @ q


@pytest.mark.usefixtures("pieces")
class TestMatrices:
    @pytest.mark.parametrize("n", [1, 2, 5])
    def test_iso_c(self, n: int) -> None:
        given_ = differences(n)
        found = step("iso_c", given_, scale=0.5)
        for key in MATRICES:
            u, s, v = svd(wide(given_, key).sum(0))
            close(found[key], 0.5 * s.mean() * u @ v)
        for key in ("b", "cube"):
            close(found[key], 0.5 * wide(given_, key).mean(0))

    @pytest.mark.parametrize("n", [1, 2, 3])
    def test_tsv(self, n: int) -> None:
        given_ = differences(n)
        found = step("tsv", given_, scale=0.5)
        for key in MATRICES:
            kept = min(SHAPES[key]) // n
            parts = [svd(own) for own in wide(given_, key)]
            u = np.concatenate([u[:, :kept] for u, _, _ in parts], axis=1)
            s = np.concatenate([s[:kept] for _, s, _ in parts])
            v = np.concatenate([v[:kept] for _, _, v in parts])
            close(found[key], 0.5 * nearest_orthonormal(u) * s @ nearest_orthonormal(v))
        for key in ("b", "cube"):
            close(found[key], 0.5 * wide(given_, key).mean(0))

    def test_one_alone_keeps_everything_in_tsv(self) -> None:
        (own,) = differences(1)
        found = step("tsv", [own])
        for key, values in own.items():
            close(found[key], values)

    def test_more_contributors_than_directions_keep_one_each(self) -> None:
        """Three that moved apart, in a matrix of two directions: s1 + s2 + s3 are on the diagonal."""
        rows = [np.array([[a, 0], [0, b]], np.float32) for a, b in ((3, 1), (1, 2), (4, 1))]
        found = step("tsv", [{"w": own} for own in rows])["w"]
        # (1, 0) twice, (0, 1) once: each of the two that collide is divided by sqrt(2), twice
        close(found, np.diag([(3 + 4) / 2, 2]))


def test_iso_c_leaves_what_is_even_as_it_is() -> None:
    orthogonal, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((12, 5)))
    close(step("iso_c", [{"w": 3 * orthogonal.astype(np.float32)}])["w"], 3 * orthogonal)


@pytest.mark.parametrize("rule", ["iso_c", "tsv"])
def test_a_row_that_nobody_moved_stays(rule: str) -> None:
    given_ = differences(3, {"w": (40, 6)})
    for own in given_:
        own["w"][7] = 0
    found = step(rule, given_)["w"]
    assert not found[7].any()
    assert found[8].any()


def test_iso_c_makes_up_no_directions() -> None:
    """Of rank 1, in 4 directions: their mean strength is a quarter of the one there is."""
    own = np.outer([1.0, 2, 0, 2, 4], [2.0, 0, 1, 2]).astype(np.float32)
    close(step("iso_c", [{"w": own}])["w"], own / 4)


def test_equal_contributors_are_fused_into_the_strongest_part_of_one() -> None:
    (own,) = differences(1, {"w": (9, 6)})
    u, s, v = svd(own["w"].astype(np.float64))
    close(step("tsv", [own, own])["w"], u[:, :3] * s[:3] @ v[:3])


def test_one_that_did_not_move_does_not_turn_the_others() -> None:
    """Its vectors, made up by the decomposition, would."""
    own, other = differences(2, {"w": (9, 6)})
    still = {"w": np.zeros_like(own["w"])}
    parts = [svd(d["w"].astype(np.float64)) for d in (own, other)]
    u = np.concatenate([u[:, :2] for u, _, _ in parts], axis=1)
    s = np.concatenate([s[:2] for _, s, _ in parts])
    v = np.concatenate([v[:2] for _, _, v in parts])
    expected = nearest_orthonormal(u) * s @ nearest_orthonormal(v)
    close(step("tsv", [own, other, still])["w"], expected)


def test_the_matrices_steps_do_not_depend_on_threads() -> None:
    given_ = differences(3, {"tall": (3000, 64), "wide": (64, 900)})
    threads = torch.get_num_threads()
    for rule in ("iso_c", "tsv"):
        found = []
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(step(rule, given_))
            assert torch.get_num_threads() == count
        torch.set_num_threads(threads)
        assert all(np.array_equal(found[0][key], found[1][key]) for key in given_[0])


def thinned(own: np.ndarray, name: str, key: str, density: float, epsilon: float) -> np.ndarray:
    """DELLA's pruning, a row at a time, with our draws."""
    rows = own.astype(np.float64).reshape(own.shape[0] if own.ndim > 1 else 1, -1)
    drawn = draws(5, name, key, slice(0, own.size)).numpy().reshape(rows.shape)
    kept = np.zeros_like(rows)
    for row in range(len(rows)):
        ranked = sorted(range(rows.shape[1]), key=lambda i: (abs(rows[row, i]), i))
        for rank, i in enumerate(ranked):
            p = density - epsilon + 2 * epsilon * rank / (len(ranked) - 1)
            if drawn[row, i] >= (1 - p) * DRAWS:
                kept[row, i] = rows[row, i] / p
    return kept.reshape(own.shape)


@pytest.mark.parametrize(("density", "epsilon"), [(0.5, 0.15), (0.7, 0.3), (0.4, 0.0)])
def test_della(density: float, epsilon: float) -> None:
    given_ = differences(3)
    given_[0]["tall"] = given_[0]["tall"].round(1)  # equal magnitudes
    found = step("della", given_, density=density, epsilon=epsilon, scale=0.5)
    for key in SHAPES:
        parts = [thinned(d[key], f"c{i}", key, density, epsilon) for i, d in enumerate(given_)]
        close(found[key], 0.5 * np.mean(parts, axis=0))


def test_della_before_ties_elects_a_sign() -> None:
    given_ = differences(3)
    found = step("della", given_, then="ties", scale=2.0)
    for key in SHAPES:
        parts = np.stack([thinned(d[key], f"c{i}", key, 0.5, 0.15) for i, d in enumerate(given_)])
        sign = np.where(parts.sum(0) >= 0, 1, -1)
        agreed = np.where(parts * sign > 0, parts, 0)
        close(found[key], 2 * agreed.sum(0) / np.maximum(1, (agreed != 0).sum(0)))


def test_della_keeps_large_changes_more_often_and_what_is_expected() -> None:
    rows = np.tile(np.arange(1, 101, dtype=np.float32), (2000, 1))
    found = step("della", [{"w": rows}])["w"]
    kept = (found != 0).mean(0)
    assert kept[:10].mean() == pytest.approx(0.364, abs=0.01)  # 0.35 + 0.3 * 4.5 / 99
    assert kept[90:].mean() == pytest.approx(0.636, abs=0.01)
    assert kept.mean() == pytest.approx(0.5, abs=0.01)
    assert found.mean() == pytest.approx(rows.mean(), rel=0.01)


def test_della_keeps_the_share_of_rows_of_one_number() -> None:
    found = step("della", [{"w": np.ones((20_000, 1), np.float32)}], density=0.5)["w"]
    assert (found != 0).mean() == pytest.approx(0.5, abs=0.02)
    assert set(found.ravel().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize(("density", "epsilon"), [(0.1, 0.15), (0.15, 0.15), (0.9, 0.15)])
def test_della_wants_probabilities(density: float, epsilon: float) -> None:
    with pytest.raises(FusionError, match=f"density {density} -. epsilon {epsilon} are prob"):
        load("della", density=density, epsilon=epsilon)


@pytest.mark.parametrize(("n", "moved"), [(1, 1.0), (2, 1.0), (5, 1.0), (40, 1e-4), (120, 1e-4)])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0])
def test_pcb(n: int, moved: float, ratio: float) -> None:
    """Of many the balance / exp(n) of most is 0 in float32, and in float64 it is not."""
    given_ = [{k: moved * own for k, own in one.items()} for one in differences(n)]
    d = np.stack([np.concatenate([own[k].ravel() for k in SHAPES]) for own in given_])
    d = d.astype(np.float64)
    size = np.abs(d)
    least, most = size.min(1, keepdims=True), size.max(1, keepdims=True)
    balance = np.exp(n * ((size - least) / (most - least)) ** 2) * np.tanh(d * d.sum(0))
    bound = np.sort(balance, axis=1)[:, -int(ratio * d.shape[1]), None]
    weights = np.where((balance >= bound) & (balance > 0), balance, 0)
    whole = weights.sum(0)
    expected = 0.5 * (weights * d).sum(0) / np.where(whole > 0, whole, 1)
    found = step("pcb", given_, ratio=ratio, scale=0.5)
    whole = np.concatenate([found[k].ravel() for k in SHAPES])
    close(whole, expected, rtol=1e-5 if n < 10 else 2e-3)


def test_pcb_of_equal_contributors_is_what_one_of_them_keeps() -> None:
    own = {"w": np.array([1, -2, 3, -4, 5, -6, 7, -8, 9, -10], np.float32)}
    kept = [0, 0, 0, 0, 0, 0, 0, -8, 9, -10]
    close(step("pcb", [own] * 3, ratio=0.3)["w"], np.array(kept))
    close(step("pcb", [own] * 3, ratio=1.0)["w"], own["w"])


def test_pcb_of_very_many_contributors_is_finite() -> None:
    """exp(n) is infinite from 89 on."""
    given_ = differences(200, {"w": (30,)})
    found = step("pcb", given_, ratio=1.0)["w"]
    assert np.isfinite(found).all()
    assert np.abs(found).max() > 0.1


def test_tsv_takes_contributions_apart_on_all_cores(monkeypatch) -> None:
    seen, roots, before = set(), tsv.roots, torch.get_num_threads()
    both = threading.Barrier(2, timeout=60)

    def noting(gram):
        if gram.shape == (4, 4):  # of a contribution
            both.wait()  # only two threads at once get beyond it
            seen.add(threading.get_ident())
        return roots(gram)

    monkeypatch.setattr(tsv, "roots", noting)
    draw = torch.Generator().manual_seed(0)
    base, *models = (
        Weights({"w": torch.randn(6, 4, generator=draw)}, name=f"c{i}") for i in range(3)
    )
    torch.set_num_threads(2)
    try:
        list(load("tsv")(base, models))
    finally:
        torch.set_num_threads(before)
    assert len(seen) == 2


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 10**6), n=st.integers(1, 4), size=st.integers(1, 400), zeros=st.booleans()
)
def test_the_kth_largest_of_each_row(seed: int, n: int, size: int, zeros: bool) -> None:
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, size, generator=draw).abs() ** 9
    if zeros:
        rows *= torch.rand(rows.shape, generator=draw) < 0.5
    k = int(torch.randint(1, size + 1, (), generator=draw))
    found = kth_largest(
        lambda count: [
            count(iter(part) for part in half.split(64, dim=1)) for half in rows.chunk(2, dim=1)
        ],
        n,
        k,
    )
    assert found == rows.sort(dim=1, descending=True).values[:, k - 1].tolist()


@pytest.mark.parametrize("agree", [1, 2, 3])
@pytest.mark.parametrize("threshold", [0.4, 1.0])
def test_consensus(threshold: float, agree: int) -> None:
    given_ = differences(5)
    found = step("consensus", given_, threshold=threshold, agree=agree, scale=0.5)
    for key in SHAPES:
        d = wide(given_, key)
        owners = (np.abs(d) > threshold * np.abs(d.sum(0) - d)).sum(0)
        close(found[key], 0.5 * np.where(owners >= agree, d.sum(0), 0))
    dropped = np.mean([(found[key] == 0).mean() for key in SHAPES])
    assert dropped > 0.01 or agree == 1


def test_equal_contributors_own_everything_up_to_three_and_nothing_from_four() -> None:
    own = {"w": np.array([1, -2, 3], np.float32)}
    close(step("consensus", [own] * 3, scale=1.0)["w"], 3 * own["w"])
    assert not step("consensus", [own] * 4, scale=1.0)["w"].any()


def test_who_is_just_as_large_as_the_threshold_owns_nothing() -> None:
    given_ = [{"w": np.array(d, np.float32)} for d in ([1, 1.1], [2, 2])]
    close(step("consensus", given_, threshold=0.5, scale=1.0)["w"], np.array([0, 3.1]))


def test_consensus_needs_as_many_as_are_to_agree() -> None:
    with pytest.raises(FusionError, match=r"agree = 2, .* needs 2 contributions, got 1"):
        step("consensus", differences(1))


def test_fednova_by_hand() -> None:
    """Steps 10 and 30, mean 20: (20 / 10 * (1, 4) + 20 / 30 * (3, -6)) / 2."""
    given_ = [{"w": np.array(d, np.float32)} for d in ([1, 4], [3, -6])]
    close(step("fednova", given_, steps=[10, 30])["w"], np.array([2.0, 2.0]))


@pytest.mark.parametrize("n", [1, 3, 7])
def test_fednova_of_equal_steps_is_the_average_to_the_last_bit(n: int) -> None:
    given_ = differences(n)
    found, mean = step("fednova", given_, steps=[7] * n), step("average", given_)
    assert all(np.array_equal(found[key], mean[key]) for key in SHAPES)


def test_fednova_names_who_does_not_say_its_steps() -> None:
    with pytest.raises(
        FusionError, match=r"which 2 of 3 contributions do not say: c0, c2\. .* take"
    ):
        step("fednova", differences(3), steps=[0, 5, -1])


def test_steps_outlive_clipping() -> None:
    whole = Weights({"w": torch.ones(1)}, name="a", steps=9)
    assert Scaled(Weights({"w": torch.zeros(1)}), whole, 0.5).steps == 9
