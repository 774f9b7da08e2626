"""The training loop."""

import math
from dataclasses import replace

import pytest
import torch
from transformers.optimization import Adafactor

from cold_flower.config import Finetune
from cold_flower.models.classifier import classifier
from cold_flower.models.starting import starting_model
from cold_flower.training.finetune import EarlyStopping, finetune
from cold_flower.training.optimizer import Optimizer, linear_decay
from cold_flower.training.scoring import DivergedError, knowing_nothing, measure, score
from strategies.fusion import fingerprint
from tests.test_encode import some

OPTIONS = Finetune(learning_rate=1e-3, batch_size=8, max_epochs=4, precision="fp32")


@pytest.fixture(scope="module")
def start(tiny):
    return starting_model(tiny, seed=0)[1]


def fresh_model(tiny, start, kind="classification"):
    labels = ("",) if kind == "regression" else ("a", "b", "c")
    return classifier(tiny, start, labels=labels, kind=kind, seed=1)


def run(tiny, start, options=OPTIONS, dev=None, train=None, seed=0):
    model = fresh_model(tiny, start)
    data = some(tiny, 40) if train is None else train
    return model, finetune(model, data, dev, options=options, metric="accuracy", seed=seed)


def still(model):
    """Switch dropout off, so that nothing but the order of the examples is drawn."""
    model.config.hidden_dropout_prob = 0.0
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return model


def test_it_learns_what_it_is_shown(tiny, start) -> None:
    train = some(tiny, 16)
    model, outcome = run(tiny, start, replace(OPTIONS, max_epochs=40, batch_size=4), train, train)
    assert outcome.dev_score > 0.9
    assert score(model, train, "accuracy", "fp32") == outcome.dev_score
    assert outcome.examples == 16 * 40
    assert outcome.steps == 4 * 40


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_one_seed_one_result_and_the_global_generator_untouched(tiny, start, optimizer) -> None:
    options = replace(OPTIONS, optimizer=optimizer)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    a, _ = run(tiny, start, options, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    b, _ = run(tiny, start, options, seed=1)
    c, _ = run(tiny, start, options, seed=2)
    prints = [fingerprint(m.state_dict().items()) for m in (a, b, c)]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_micro_batches_change_nothing_but_rounding(tiny, start, optimizer) -> None:
    states = []
    for micro in (0, 3):
        m = still(fresh_model(tiny, start))
        options = replace(OPTIONS, micro_batch_size=micro, max_epochs=1, optimizer=optimizer)
        finetune(m, some(tiny, 20), None, options=options, metric="accuracy", seed=0)
        states.append(m.state_dict())
    assert all(torch.allclose(states[0][k], states[1][k], atol=1e-4) for k in states[0])


def test_the_best_dev_weights_are_returned(tiny, start, monkeypatch) -> None:
    import cold_flower.training.finetune as loop

    scores, states = iter([0.95, 0.2, 0.9, 0.3, 0.4]), []  # the first is before any step

    def state(m):  # while it trains, the word embedding is another (vocabulary.py)
        return fingerprint((k, v) for k, v in m.state_dict().items() if "word" not in k)

    def fake(m, *_):
        states.append(state(m))
        return next(scores)

    monkeypatch.setattr(loop, "score", fake)
    model, outcome = run(tiny, start, dev=some(tiny, 4))
    assert outcome.dev_score == 0.9
    assert state(model) == states[2] != states[4]
    assert outcome.dev_start == 0.95


def test_early_stopping_counts_examples(tiny, start, monkeypatch) -> None:
    import cold_flower.training.finetune as loop

    def stop(scores, **changes):
        given = iter([0.0, *scores])  # the first is before any step
        monkeypatch.setattr(loop, "score", lambda *_: next(given))
        options = replace(OPTIONS, max_epochs=9, early_stop_examples=80, **changes)
        return run(tiny, start, options, dev=some(tiny, 4))[1].examples

    # 40 examples an epoch: stops 80 examples after the last improvement by the delta.
    assert stop([0.5, 0.5, 0.5]) == 120
    assert stop([0.5, 0.6, 0.6004, 0.6008]) == 160
    # each step forward is below the delta, but together they are an improvement
    assert stop([0.5, 0.5006, 0.5012, 0.5012, 0.5012]) == 200
    assert stop([0.5] * 9, validate_every_examples=16) == 96  # at 16, 32, 40, 56, 72, 80, 96


def test_a_gain_of_the_delta_counts_whatever_floats_make_of_it() -> None:
    """Of 1,000 dev rows one more is right: 0.001, or a little less in floats."""
    options = replace(OPTIONS, early_stop_delta=0.001, early_stop_examples=1)

    def stops(before: float, after: float) -> bool:
        stopping = EarlyStopping(torch.nn.Linear(1, 1), options)
        assert not stopping.update(before, 1)
        return stopping.update(after, 2)

    assert 0.008 + 0.001 > 0.009
    assert not any(stops(k / 1000, (k + 1) / 1000) for k in range(1000))
    assert all(stops(k / 1000, (k + 0.999) / 1000) for k in range(1000))


@pytest.mark.parametrize(("micro", "largest"), [(0, 64), (7, 7), (200, 64)])
def test_dev_is_scored_in_pieces_no_larger_than_a_micro_batch(tiny, start, micro, largest) -> None:
    model, sizes = fresh_model(tiny, start), []

    def look(model, _, given) -> None:
        if not model.training:
            sizes.append(len(given["input_ids"]))

    model.register_forward_pre_hook(look, with_kwargs=True)
    options = replace(OPTIONS, micro_batch_size=micro, max_epochs=1)
    data = some(tiny, 70)
    finetune(model, data, data, options=options, metric="accuracy", seed=0)
    assert max(sizes) == largest
    assert sum(sizes) == 2 * 70  # before and after


@pytest.mark.parametrize(
    ("scores", "changes", "facts"),
    [
        ([0.25, 0.5, 0.75], {"max_epochs": 2}, (0.25, 0.75, True, "epochs")),
        ([0.25, 0.75, 0.5], {"max_epochs": 2}, (0.25, 0.75, False, "epochs")),
        ([0.25, 0.75, 0.75], {"max_epochs": 2}, (0.25, 0.75, False, "epochs")),
        ([0.75, 0.25, 0.5], {"max_epochs": 2}, (0.75, 0.5, False, "epochs")),  # below the start
        ([0.25, 0.5], {"max_epochs": 1}, (0.25, 0.5, True, "epochs")),
        ([0.25, 0.5, 0.5], {"early_stop_examples": 40}, (0.25, 0.5, False, "early")),
        ([0.25, 0.5], {"max_seconds": 1e-9}, (0.25, 0.5, True, "time")),
    ],
)
def test_it_says_whether_it_trained(tiny, start, monkeypatch, scores, changes, facts) -> None:
    given = iter(scores)
    monkeypatch.setattr("cold_flower.training.finetune.score", lambda *_: next(given))
    outcome = run(tiny, start, replace(OPTIONS, **changes), dev=some(tiny, 4))[1]
    said = outcome.facts()
    assert (outcome.dev_start, outcome.dev_score, outcome.improving, outcome.stopped) == facts
    assert said["dev-majority"] == knowing_nothing("accuracy", some(tiny, 4).labels) == 0.75
    assert {**said, "improving": facts[2], "stopped": facts[3]} == said


def test_knowing_nothing_scores_the_largest_class_and_no_correlation() -> None:
    assert knowing_nothing("accuracy", torch.tensor([2, 0, 2, 2])) == 0.75
    assert knowing_nothing("pearson", torch.tensor([0.5, 0.5, 2.0])) == 0.0


def test_without_dev_the_last_weights_stay(tiny, start) -> None:
    _, outcome = run(tiny, start)
    assert math.isnan(outcome.dev_score)


def test_the_schedule_by_hand() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=2.0)
    schedule = linear_decay(optimizer, 11, 0.2, 0.1)
    rates = []
    for _ in range(11):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:3] == pytest.approx([2 / 3, 4 / 3, 2.0])
    assert rates[-1] == pytest.approx(0.2)
    assert rates[6] == pytest.approx(1.1)


def test_regression_learns_a_number(tiny, start) -> None:
    data = some(tiny, 40)
    data = replace(data, labels=data.lengths().float() / 10)
    model = fresh_model(tiny, start, "regression")
    options = replace(OPTIONS, max_epochs=30)
    outcome = finetune(model, data, data, options=options, metric="pearson", seed=0)
    assert outcome.dev_score > 0.9


def test_a_loss_that_is_not_finite_says_what_to_lower(tiny, start) -> None:
    bad = {k: t * math.inf if k.endswith("word_embeddings.weight") else t for k, t in start.items()}
    with pytest.raises(DivergedError, match="lower finetune.learning-rate"):
        run(tiny, bad)


def test_metrics_by_hand() -> None:
    chosen = torch.tensor([[2.0, 1.0], [0.0, 1.0], [0.0, 1.0], [5.0, 0.0]])
    assert measure("accuracy", chosen, torch.tensor([0, 1, 0, 0])) == 0.75
    line = torch.tensor([[1.0], [2.0], [3.0]])
    assert measure("pearson", line, torch.tensor([10.0, 20.0, 30.0])) == pytest.approx(1.0)
    assert measure("pearson", torch.ones(3, 1), torch.tensor([1.0, 2.0, 3.0])) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("metric", ["accuracy", "pearson"])
def test_outputs_that_are_not_finite_have_no_score(metric, bad) -> None:
    logits = torch.zeros(4, 2 if metric == "accuracy" else 1)
    logits[2, 0] = bad
    with pytest.raises(DivergedError, match="NaN or infinite on 1 of 4 examples"):
        measure(metric, logits, torch.tensor([0, 0, 1, 0]))


def test_weights_that_the_last_step_spoils_are_noticed(tiny, start, monkeypatch) -> None:
    """The loss is measured before the step, so it is finite to the end."""
    step = Optimizer.step

    def spoil(self) -> None:
        step(self)
        with torch.no_grad():
            self._parameters[0].fill_(math.nan)

    monkeypatch.setattr(Optimizer, "step", spoil)
    options = replace(OPTIONS, batch_size=40, max_epochs=1)
    with pytest.raises(DivergedError, match="outputs are NaN or infinite on 40 of 40"):
        run(tiny, start, options, dev=some(tiny, 40))


def test_a_loss_that_is_not_finite_is_said_before_dev_is_scored(tiny, start) -> None:
    options = replace(OPTIONS, learning_rate=1e38, warmup_ratio=0.0, validate_every_examples=16)
    with pytest.raises(DivergedError, match="loss is nan after 2 steps: lower finetune"):
        run(tiny, start, options, dev=some(tiny, 40))


@pytest.mark.parametrize("trains", [True, False])
def test_scoring_leaves_a_model_in_the_mode_it_found(tiny, start, trains) -> None:
    model = fresh_model(tiny, start).train(trains)
    score(model, some(tiny, 8), "accuracy", "fp32")
    assert {module.training for module in model.modules()} == {trains}


def test_the_order_of_the_examples_comes_from_the_seed(tiny, start) -> None:
    prints = []
    for seed in (1, 2):
        model, options = still(fresh_model(tiny, start)), replace(OPTIONS, max_epochs=1)
        finetune(model, some(tiny, 24), None, options=options, metric="accuracy", seed=seed)
        prints.append(fingerprint(model.state_dict().items()))
    assert prints[0] != prints[1]


def test_the_clock_ends_the_whole_finetuning(tiny, start) -> None:
    _, outcome = run(tiny, start, replace(OPTIONS, max_seconds=1e-9))
    assert (outcome.steps, outcome.examples) == (1, 8)


def test_the_train_loss_is_the_mean_over_examples(tiny, start) -> None:
    """Of 8, 8 and 1 examples; with a rate of 0 it is that of the model as it was."""
    data = some(tiny, 17)
    model, options = still(fresh_model(tiny, start)), replace(OPTIONS, max_epochs=1)
    with torch.inference_mode():
        batch = data.batch(range(17))
        logits = model.eval()(**batch).logits
        expected = torch.nn.functional.cross_entropy(logits, data.labels)
    frozen = replace(options, learning_rate=0.0)
    outcome = finetune(model, data, None, options=frozen, metric="accuracy", seed=0)
    assert outcome.train_loss == pytest.approx(float(expected), rel=1e-5)


def steps(gradients: list[torch.Tensor], options: Finetune) -> torch.Tensor:
    parameter = torch.nn.Parameter(torch.ones_like(gradients[0]))
    optimizer = Optimizer([parameter], options, 10, None)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        assert parameter.grad is None  # else the next step's would be added to it
    return parameter.detach()


def test_gradients_are_clipped_to_a_norm_of_one() -> None:
    """AdamW forgets a scale that all steps share; one long step among others it does not."""
    one = torch.tensor([[0.6, 0.8]])
    assert torch.allclose(steps([100 * one, one], OPTIONS), steps([one, one], OPTIONS), atol=1e-6)
    shorter = steps([0.1 * one, one], OPTIONS)  # what is below stays as it is
    assert not torch.allclose(shorter, steps([one, one], OPTIONS), atol=1e-6)


def test_matrices_decay_and_biases_do_not() -> None:
    options = replace(OPTIONS, warmup_ratio=0.0, weight_decay=0.1)
    assert torch.equal(steps([torch.zeros(3)], options), torch.ones(3))
    decayed = steps([torch.zeros(1, 3)], options)
    assert torch.allclose(decayed, torch.full((1, 3), 1 - 1e-3 * 0.1), atol=1e-7)


T5 = replace(
    OPTIONS, optimizer="adafactor", schedule="constant", warmup_ratio=0.0, weight_decay=0.0
)


def test_adafactor_by_hand() -> None:
    """The first step is the rate times the weights' RMS; in the second the moment is a mean."""
    first = steps([torch.tensor([0.5])], T5)
    assert torch.allclose(first, torch.tensor([1 - 1e-3]))
    one_minus_beta2 = 2**-0.8
    moment = 0.5**2 + one_minus_beta2 * (0.1**2 - 0.5**2)
    second = (1 - 1e-3) * (1 - 1e-3 * 0.1 / moment**0.5)
    assert torch.allclose(
        steps([torch.tensor([0.5]), torch.tensor([0.1])], T5), torch.tensor([second])
    )
    # A matrix whose rows differ: the second moment is that of its row, so all move equally.
    moved = steps([torch.tensor([[0.3, 0.3], [0.0, 0.0], [0.01, -0.01]])], T5)
    expected = torch.tensor([[-1.0, -1.0], [0.0, 0.0], [-1.0, 1.0]]) * 1e-3 + 1
    assert torch.allclose(moved, expected, atol=1e-6)


def gradients(scale: float) -> list[list[torch.Tensor]]:
    """Make those of three steps, of a matrix (one row has none) and a vector, of norms below 1."""
    generator = torch.Generator().manual_seed(0)
    given = []
    for _ in range(3):
        matrix, vector = (torch.randn(size, generator=generator) for size in ((6, 4), (4,)))
        matrix[2] = 0
        given.append([matrix * scale, vector * scale])
    return given


def weights() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(size, generator=generator)) for size in ((6, 4), (4,))]


def moved(optimizer, parameters, scale: float) -> list[torch.Tensor]:
    for step in gradients(scale):
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    return [p.detach() - q.detach() for p, q in zip(parameters, weights(), strict=True)]


def test_adafactor_makes_torchs_steps() -> None:
    for decay in (0.0, 0.1):  # which torch multiplies by the rate, as AdamW's
        ours, theirs = weights(), weights()
        optimizer = Optimizer(ours, replace(T5, weight_decay=decay), 10, None)
        torchs = torch.optim.Adafactor(
            [
                {"params": theirs[:1], "weight_decay": decay},
                {"params": theirs[1:], "weight_decay": 0.0},
            ],
            lr=1e-3,
            eps=(1e-18, 1e-3),
        )
        for got, want in zip(moved(optimizer, ours, 0.1), moved(torchs, theirs, 0.1), strict=True):
            assert torch.equal(got, want)


@pytest.mark.parametrize("scale", [0.1, 1e-5, 1e-8])
def test_adafactor_makes_t5s_steps_however_small_the_gradients(scale) -> None:
    """Against transformers' (fairseq's), which is T5's; torch's own epsilon makes others."""
    ours, theirs, torchs = weights(), weights(), weights()
    library = Adafactor(theirs, lr=1e-3, scale_parameter=True, relative_step=False)
    own = torch.optim.Adafactor(torchs, lr=1e-3)
    want = moved(library, theirs, scale)
    for got, expected in zip(moved(Optimizer(ours, T5, 10, None), ours, scale), want, strict=True):
        assert torch.allclose(got, expected, rtol=1e-3, atol=1e-6)
    same = torch.allclose(moved(own, torchs, scale)[0], want[0], rtol=1e-3, atol=1e-6)
    assert same == (scale == 0.1)


def rates(options: Finetune, count: int) -> list[float]:
    optimizer = Optimizer([torch.nn.Parameter(torch.zeros(1))], options, count, None)
    seen = []
    for _ in range(count):
        seen.append(optimizer._optimizer.param_groups[0]["lr"])
        optimizer.step()
    return seen


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_a_constant_schedule_stays_at_the_peak_once_it_has_warmed_up(optimizer) -> None:
    constant = replace(OPTIONS, optimizer=optimizer, schedule="constant", max_epochs=1)
    assert rates(replace(constant, warmup_ratio=0.0), 10) == [1e-3] * 10
    warm = rates(replace(constant, warmup_ratio=0.3), 10)
    assert warm == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3] + [1e-3] * 7)
    falls = rates(replace(constant, schedule="linear", warmup_ratio=0.0), 10)
    assert falls[-1] == pytest.approx(1e-3 * 0.0006)


def test_adafactor_learns_what_it_is_shown(tiny, start) -> None:
    train = some(tiny, 16)
    options = replace(T5, learning_rate=1e-2, max_epochs=40, batch_size=4)
    assert run(tiny, start, options, train, train)[1].dev_score > 0.9


def test_adafactor_clips_gradients_too() -> None:
    one = torch.tensor([[0.6, 0.8]])
    assert torch.allclose(steps([100 * one, one], T5), steps([one, one], T5), atol=1e-7)
    assert not torch.allclose(steps([one, 0.1 * one], T5), steps([one, one], T5), atol=1e-5)
