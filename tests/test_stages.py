"""The stages around a rule: the promises every rule keeps, and each stage's hand numbers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from strategies.errors import FusionError
from strategies.fusion import Weights, load
from strategies.fusion._deltas import Scaled
from strategies.stages import Stages, length, staged
from tests.test_fusion import CASES, body, contributions, every_case, peaks, same_bits

EVERY = {
    "clip": Stages(clip="median"),
    "clip at a number": Stages(clip="0.5"),
    "norm of the mean": Stages(norm="mean"),
    "norm of the contributions": Stages(norm="contributions"),
    "twice the mean": Stages(norm="2"),
    "half a step": Stages(learning_rate=0.5),
    "momentum": Stages(momentum=0.9),
    "nesterov": Stages(learning_rate=0.7, momentum=0.9, nesterov=True),
    "adam": Stages(optimizer="adam"),
    "anchor": Stages(anchor=0.25),
    "all": Stages("median", "1.5", 0.7, "sgd", 0.9, True, 0.1),
}


class Run:
    """A few iterations of fusing, with the memory in files as a run keeps it."""

    def __init__(self, folder: Path, stages: Stages, theta=None, rule="average") -> None:
        self.folder = folder
        self.iteration = 0
        self.theta = body(0) if theta is None else theta
        start = Weights(dict(self.theta))
        self.own: list[float] = []  # of each iteration with a norm, the rule's own length
        self.fuse = staged(
            load(rule),
            stages,
            start=lambda: start,
            before=lambda: self.file(self.iteration) if self.iteration else None,
            after=lambda: self.file(self.iteration + 1),
            measured=self.own.append,
        )

    def file(self, iteration: int) -> Path:
        return self.folder / f"{iteration}.safetensors"

    def step(self, given, seed=3) -> dict[str, torch.Tensor]:
        self.theta = dict(self.fuse(Weights(self.theta), given, seed=seed))
        self.iteration += 1
        return self.theta


def towards(*values: float) -> list[Weights]:
    return [Weights({"w": torch.tensor([v])}, name=f"c{i}") for i, v in enumerate(values)]


@pytest.mark.parametrize("stages", EVERY.values(), ids=EVERY)
class TestEveryStage:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_keeps_keys_shapes_dtypes_and_integers(self, tmp_path, stages, dtype) -> None:
        base = body(0, dtype)
        fused = Run(tmp_path, stages, base).step(contributions(5, dtype))
        assert {k: (t.dtype, t.shape) for k, t in fused.items()} == {
            k: (t.dtype, t.shape) for k, t in base.items()
        }
        assert torch.equal(fused["positions"], base["positions"])
        assert all(torch.isfinite(t).all() for t in fused.values())

    def test_leaves_its_inputs_alone(self, tmp_path, stages) -> None:
        base, others = body(0), [body(i) for i in range(1, 6)]
        given = [Weights(o, name=f"c{i}") for i, o in enumerate(others)]
        Run(tmp_path, stages, base).step(given)
        assert same_bits(base, body(0))
        assert all(same_bits(o, body(i)) for i, o in enumerate(others, start=1))

    def test_returns_the_base_when_all_equal_it(self, tmp_path, stages) -> None:
        equal = [Weights(body(0), name=f"c{i}") for i in range(7)]
        assert same_bits(Run(tmp_path, stages).step(equal), body(0))

    def test_order_does_not_matter_to_the_last_bit(self, tmp_path, stages) -> None:
        runs = [Run(tmp_path / name, stages) for name in "ab"]
        for run, turn in zip(runs, (1, -1), strict=True):
            run.folder.mkdir()
            for i in range(3):
                run.step([Weights(body(9 * i + c), name=f"c{c}") for c in range(4)][::turn])
        assert same_bits(runs[0].theta, runs[1].theta)

    def test_half_precision_is_computed_in_float32(self, tmp_path, stages) -> None:
        def wide(tensors):
            return {k: t.float() if t.is_floating_point() else t for k, t in tensors.items()}

        halves = contributions(4, torch.float16)
        full = [Weights(wide(dict(w.items())), name=w.name) for w in halves]
        for name in "ab":
            (tmp_path / name).mkdir()
        narrow = Run(tmp_path / "a", stages, wide(body(0, torch.float16))).step(halves)
        exact = Run(tmp_path / "b", stages, wide(body(0, torch.float16))).step(full)
        assert same_bits(narrow, exact)

    def test_refuses_an_empty_list(self, tmp_path, stages) -> None:
        with pytest.raises(FusionError, match="got 0"):
            Run(tmp_path, stages).step([])
        assert list(tmp_path.iterdir()) == []

    def test_its_memory_is_in_the_files_alone(self, tmp_path, stages) -> None:
        whole = Run(tmp_path, stages)
        for i in range(3):
            before = dict(whole.theta)
            whole.step(contributions(i + 2))
        again = Run(tmp_path, stages)  # repeats the last iteration, as after a crash
        again.theta, again.iteration = before, 2
        assert same_bits(again.step(contributions(4)), whole.theta)
        assert bool(list(tmp_path.iterdir())) == bool(stages.memory)


def test_without_stages_it_is_the_rule_itself(tmp_path) -> None:
    rule = load("average")
    none = staged(rule, Stages(), start=dict, before=Path, after=Path)
    assert none is rule


def test_clip_by_hand(tmp_path) -> None:
    base = {"w": torch.zeros(2), "b": torch.zeros(1)}

    def given():
        vectors = ([3.0, 0.0, 4.0], [0.0, 1.0, 0.0], [0.0, 0.0, 2.0])  # norms 5, 1, 2
        return [
            Weights({"w": torch.tensor(v[:2]), "b": torch.tensor(v[2:])}, name=str(i))
            for i, v in enumerate(vectors)
        ]

    median = Run(tmp_path, Stages(clip="median"), dict(base)).step(given())
    assert median["w"].tolist() == pytest.approx([1.2 / 3, 1 / 3])  # the first is cut to 2/5
    assert median["b"].tolist() == pytest.approx([(1.6 + 2) / 3])
    fixed = Run(tmp_path, Stages(clip="1"), dict(base)).step(given())
    assert fixed["b"].tolist() == pytest.approx([(0.8 + 1) / 3])


def test_norm_by_hand(tmp_path) -> None:
    base = {"w": torch.zeros(2), "b": torch.zeros(1), "positions": torch.tensor([7])}
    vectors = ([3.0, 0.0, 4.0], [0.0, 1.0, 0.0], [0.0, 0.0, 2.0])  # norms 5, 1, 2; of the mean:
    mean = (1 + 1 / 9 + 4) ** 0.5
    given = [
        Weights(
            {"w": torch.tensor(v[:2]), "b": torch.tensor(v[2:]), "positions": torch.tensor([7])},
            name=str(i),
        )
        for i, v in enumerate(vectors)
    ]
    for rule in ("average", "median", "task_arithmetic"):
        plain = Run(tmp_path, Stages(), dict(base), rule).step(given)
        for by, size in (("mean", mean), ("contributions", 2.0), ("2.5", 2.5 * mean)):
            run = Run(tmp_path, Stages(norm=by), dict(base), rule)
            fused = run.step(given)
            assert run.own == [length(Weights(base), plain.items())]
            assert length(Weights(base), fused.items()) == pytest.approx(size)
            scale = size / length(Weights(base), plain.items())
            torch.testing.assert_close(fused["w"], plain["w"] * scale)
            torch.testing.assert_close(fused["b"], plain["b"] * scale)
            assert torch.equal(fused["positions"], base["positions"])


def test_norm_does_not_undo_a_clip(tmp_path) -> None:
    stages = Stages(clip="1", norm="2")
    fused = Run(tmp_path, stages, {"w": torch.zeros(1)}, "median").step(towards(3, 500))
    assert fused["w"].tolist() == pytest.approx([2.0])


def test_norm_leaves_an_update_of_nothing(tmp_path) -> None:
    """The median of -1, 0 and 1 has no direction that could be made longer."""
    start = {"w": torch.zeros(1)}
    run = Run(tmp_path, Stages(norm="contributions"), start, "median")
    run.own.append(7.0)  # of an iteration before
    assert run.step(towards(-1, 0, 1)) == {"w": torch.zeros(1)}


def by_hand(base, given, *, seed):
    """A rule of somebody else, that reads whole tensors."""
    for key in base.keys():
        yield key, given[0].get(key)


@pytest.mark.parametrize("rule", [by_hand, load("krum", byzantine=0), load("average")])
def test_a_rule_sees_what_is_clipped_however_it_reads(tmp_path, rule) -> None:
    base = {"w": torch.tensor([[1.0], [1.0]]), "b": torch.tensor(1.0), "n": torch.tensor([7])}
    far = {"w": torch.tensor([[3.0], [1.0]]), "b": torch.tensor(1.0), "n": torch.tensor([8])}
    given = [Weights(dict(far), name=name) for name in "abc"]
    fuse = staged(rule, Stages(clip="0.5"), start=dict, before=lambda: None, after=Path)
    fused = dict(fuse(Weights(base), given))
    assert fused["w"].tolist() == [[1.5], [1.0]] and fused["b"].item() == 1.0
    clipped = Scaled(Weights(base), given[0], 0.25)
    assert {k: t.tolist() for k, t in clipped.items()} == {"w": [[1.5], [1.0]], "b": 1.0, "n": [8]}
    assert clipped.template() == given[0].template() and clipped.name == "a"


@every_case
def test_memory_does_not_grow_with_the_contributions(tmp_path, rule, monkeypatch) -> None:
    optimizer = ("sgd", "adam")[CASES.index(rule) % 2]  # it sees what is fused, not the rule
    # All are clipped, at less than any one's norm of about 110: one that a rule picks costs a
    # tensor, where one that is as it came is read as it lies.
    stages = Stages("1.0", "1.5", 0.7, optimizer, 0.9, optimizer == "sgd", 0.1)
    made = []

    def around(base, given, *, seed):
        after = tmp_path / f"{len(made)}.safetensors"
        fuse = staged(
            load(rule[0], **rule[1]),
            stages,
            start=lambda: base,
            before=lambda: None,
            after=lambda: after,
        )
        made.append(after)
        return fuse(base, given, seed=seed)

    around.statistic = load(rule[0], **rule[1]).statistic
    few, many = peaks(around, monkeypatch)
    assert many < few + 20_000  # bytes; a tensor of a contribution has 24,000


def test_steps_by_hand(tmp_path) -> None:
    def run(stages, *means):
        made = Run(tmp_path, stages, {"w": torch.tensor([1.0])})
        return [made.step(towards(made.theta["w"].item() + m))["w"].item() for m in means]

    assert run(Stages(learning_rate=0.5), 2.0, 2.0) == [2.0, 3.0]
    assert run(Stages(learning_rate=1.5), 2.0) == [4.0]
    assert run(Stages(momentum=0.5), 2.0, 2.0) == [3.0, 6.0]  # v: 2, 3
    assert run(Stages(momentum=0.5, nesterov=True), 2.0, 2.0) == [4.0, 7.5]  # 2 + 1, 2 + 1.5
    assert run(Stages(anchor=0.25), 2.0, 2.0) == [2.5, 3.625]  # pulled back to 1


def test_adam_moves_no_weight_far(tmp_path) -> None:
    small, large = 1e-5, 10.0
    made = Run(tmp_path, Stages(optimizer="adam"), {"w": torch.zeros(2)})
    first = made.step([Weights({"w": torch.tensor([small, large])}, name="a")])["w"]
    # Bias-corrected, the first step is rate * d / (|d| + tau).
    assert first.tolist() == pytest.approx(
        [1e-3 * small / (small + 1e-3), 1e-3 * large / (large + 1e-3)], rel=1e-4
    )
    for _ in range(5):
        before = made.theta["w"]
        moved = made.step([Weights({"w": before + torch.tensor([small, large])}, name="a")])["w"]
        assert (moved - before).abs().max() <= 1.0001e-3
    growing = Run(tmp_path, Stages(optimizer="adam"), {"w": torch.zeros(1)})
    for i in range(30):
        before = growing.theta["w"]
        moved = growing.step([Weights({"w": before + 2.0**i}, name="a")])["w"]
        assert (moved - before).abs() <= 2.3e-3
    faster = replace(EVERY["adam"], learning_rate=0.1)
    assert faster.rate == 0.1
    assert EVERY["adam"].rate == 1e-3
    assert Stages().rate == 1.0


@pytest.mark.parametrize(
    "stages",
    [
        Stages(learning_rate=3e38),
        Stages(learning_rate=3e38, momentum=0.9, nesterov=True),
        Stages(learning_rate=3e38, optimizer="adam"),
        Stages(learning_rate=3e38, anchor=0.5),
        Stages(learning_rate=3e38, clip="median"),
        Stages(learning_rate=1e22),  # finite, but its squares are not: no layer norm computes
    ],
)
def test_what_no_base_can_be_is_refused(tmp_path, stages) -> None:
    words = r"matrix is too large for any model after the stages .*rate=[13]e.*: lower fusion"
    with pytest.raises(FusionError, match=words):
        Run(tmp_path, stages).step([Weights({k: t * 4 for k, t in body(1).items()}, name="a")])


@pytest.mark.parametrize("kind", ["momentum", "variance"])
def test_a_memory_that_overflows_is_an_error_not_a_weight_that_never_moves(tmp_path, kind) -> None:
    """rate * m / sqrt(inf) is 0, in this iteration and in all that follow."""
    sgd = Stages(momentum=0.9, learning_rate=1e-25)
    stages = sgd if kind == "momentum" else Stages(optimizer="adam")
    run = Run(tmp_path, stages, {"w": torch.zeros(1)})
    size = 1e20 if kind == "variance" else 1.5e38  # the variance has its square
    with pytest.raises(FusionError, match=rf"the {kind} of \w+ holds NaN or infinity.*fusion.clip"):
        for _ in range(4):
            run.step(towards(size))


def test_a_memory_that_is_gone_is_an_error_not_a_fresh_start(tmp_path) -> None:
    run = Run(tmp_path, Stages(momentum=0.9))
    run.step(contributions(2))
    run.file(1).unlink()
    with pytest.raises(FusionError, match="the optimizer's state is missing: .*1.safetensors"):
        run.step(contributions(2))


def test_a_failing_rule_leaves_no_memory(tmp_path) -> None:
    def broken(base, given, *, seed):
        yield "matrix", given[0].get("matrix")
        raise FusionError("half way")

    after = tmp_path / "x.safetensors"
    fuse = staged(
        broken, Stages(momentum=0.5), start=dict, before=lambda: None, after=lambda: after
    )
    with pytest.raises(FusionError, match="half way"):
        list(fuse(Weights(body(0)), contributions(1)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"clip": "mean"}, "clip is 'median' or a number above 0, got 'mean'"),
        ({"clip": "-1"}, "got '-1'"),
        ({"clip": "nan"}, "got 'nan'"),
        ({"norm": "median"}, "norm is 'mean', 'contributions' or a number above 0, got 'median'"),
        ({"norm": "0"}, "got '0'"),
        ({"optimizer": "yogi"}, "sgd or adam"),
        ({"momentum": 1.0}, "below 1, got 1"),
        ({"nesterov": True}, "a momentum above 0"),
        ({"nesterov": True, "momentum": 0.5, "optimizer": "adam"}, "goes with optimizer sgd"),
        ({"anchor": 1.5}, "a share from 0 to 1, got 1.5"),
    ],
)
def test_options_out_of_range(options, words) -> None:
    with pytest.raises(FusionError, match=words):
        Stages(**options)
