"""Training on the union: what it trains on, and that it becomes a run's iteration 1."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from cold_flower.config import Config
from cold_flower.data.encode import concatenate
from cold_flower.errors import ConfigError
from cold_flower.models import text_to_text
from cold_flower.models.base import load_base
from cold_flower.models.body import body_of
from cold_flower.models.starting import starting_model
from cold_flower.repository.bases import Repository
from cold_flower.runtime import baselines, experiments
from cold_flower.runtime import cost as counted
from strategies.fusion import fingerprint
from tests.test_encode import some

KEYS = {
    "recipe": False,
    "tasks": "travel,music,market",
    "unseen": "market",
    "iterations": 1,
    "baseline": "multitask",
    "contributors-per-iteration": 0,
    "finetune.learning-rate": 1e-3,
    "finetune.batch-size": 8,
    "finetune.max-epochs": 2,
    "finetune.max-examples": 60,
    "finetune.precision": "fp32",
}


@pytest.fixture
def run(tmp_path, tiny):
    def make(**keys) -> tuple[Config, Repository]:
        name = str(len(list(tmp_path.iterdir())))
        config = Config.from_flat({**KEYS, **keys, "run-dir": str(tmp_path / name)})
        repository = Repository(tmp_path / name)
        model, body = starting_model(tiny, seed=0)
        repository.create(lambda folder: model.save_pretrained(folder), body, "roberta.", {})
        return config, repository

    return make


def test_it_publishes_iteration_1_deterministically(run) -> None:
    lines: list[str] = []
    digests = []
    for seed in (0, 0, 1):
        config, repository = run(seed=seed)
        baselines.train(config, lines.append)
        manifest = repository.manifest(1)
        assert (manifest["rule"], manifest["parent"]) == ("multitask", 0)
        assert manifest["sha256"] == fingerprint(repository.body(1).items())
        digests.append(manifest["sha256"])
    assert digests[0] == digests[1] != digests[2]
    assert digests[0] != fingerprint(repository.body(0).items())
    assert (
        lines[0] == "multitask: 2 tasks, 120 training examples"
    )  # the unseen one is not among them


def test_one_body_and_a_head_for_each_task(run, tiny) -> None:
    config, repository = run()
    tasks = baselines._tasks(config, dict(repository.body(0).items()))
    assert list(tasks) == ["music", "travel"]
    bodies = {id(task.model.base_model) for task in tasks.values()}
    assert len(bodies) == 1
    assert [task.model.num_labels for task in tasks.values()] == [3, 2]
    heads = {id(task.model.classifier) for task in tasks.values()}
    assert len(heads) == 2


def test_shards_are_joined_into_one_task(run) -> None:
    shards = {"partition.kind": "shards", "partition.shards": 3, "partition.examples": 50}
    config, repository = run(**shards, tasks="music", unseen="", baseline="centralised")
    (task,) = baselines._tasks(config, dict(repository.body(0).items())).values()
    assert (len(task.train), len(task.dev)) == (135, 15)
    baselines.train(config, lambda line: None)
    assert repository.manifest(1)["rule"] == "centralised"


def test_sampling() -> None:
    class Task:
        def __init__(self, size: int) -> None:
            self.train = self
            self._size = size

        def __len__(self) -> int:
            return self._size

        def lengths(self) -> torch.Tensor:
            return torch.ones(self._size)

    tasks = {"big": Task(72), "small": Task(8)}
    for sampling, least in (("proportional", 10), ("balanced", 35)):
        config = Config.from_flat({"finetune.batch-size": 8, "sampling": sampling})
        source = baselines._batches(tasks, config, 10, torch.Generator().manual_seed(0))
        drawn = Counter(id(task) for task, _ in (next(source) for _ in range(100)))
        small = drawn[id(tasks["small"])]
        assert small == 10 if sampling == "proportional" else small >= least


def test_loss_weights_by_hand() -> None:
    """Whoever guesses among n classes has a loss of log n: divided, it is 1 on every task."""
    for size in (2, 3, 20):
        guess = torch.nn.functional.cross_entropy(torch.zeros(4, size), torch.arange(4) % size)
        weight = baselines.loss_weight("log-classes", "classification", size)
        assert weight * float(guess) == pytest.approx(1)
        assert baselines.loss_weight("", "classification", size) == 1
    assert baselines.loss_weight("log-classes", "classification", 2) == pytest.approx(1.442695)
    assert baselines.loss_weight("log-classes", "classification", 1) == 1
    assert baselines.loss_weight("log-classes", "regression", 1) == 1


def test_a_scaled_loss_is_a_scaled_gradient_before_it_is_clipped(run, monkeypatch) -> None:
    def first_gradients(**keys) -> dict[int, float]:
        """Return the norm of the gradient that the first batch of each head's size makes."""
        norms: dict[int, float] = {}

        class Watched(baselines.Optimizer):
            def step(self) -> None:
                given = [p.grad for p in self._parameters if p.grad is not None]
                (head,) = (g for g in given if g.ndim == 1 and len(g) < 4)  # the bias, by classes
                norms.setdefault(len(head), float(torch.stack([g.norm() for g in given]).norm()))
                for parameter in self._parameters:  # no step, so all batches meet one model
                    parameter.grad = None

        with monkeypatch.context() as patch:
            patch.setattr(baselines, "Optimizer", Watched)
            baselines.train(run(**keys)[0], lambda line: None)
        return norms

    plain, scaled = first_gradients(), first_gradients(**{"loss-scaling": "log-classes"})
    assert plain.keys() == scaled.keys() == {2, 3}
    for classes, norm in plain.items():
        assert scaled[classes] == pytest.approx(norm / math.log(classes), rel=1e-4)


def test_text_to_text_predicts_a_vocabulary(run, folders, monkeypatch) -> None:
    """All its tasks have the same weight."""
    monkeypatch.setattr(text_to_text, "check", lambda *_: None)  # its tokenizer knows few words
    config, _ = run(**{"base-model": str(folders("t5", "T5ForConditionalGeneration"))})
    config = replace(config, loss_scaling="log-classes")
    base = load_base(config.base_model)
    body = starting_model(base, seed=0)[1]
    weights = {task.weight for task in baselines._tasks(config, body).values()}
    assert weights == {1 / math.log(base.config.vocab_size)}


def test_parts_are_joined_in_order(tiny) -> None:
    whole = some(tiny, 9)
    parts = [whole.take(range(4)), whole.take(range(4, 9))]
    joined = concatenate(parts)
    assert torch.equal(joined.ids, whole.ids)
    assert torch.equal(joined.starts, whole.starts)
    assert torch.equal(joined.labels, whole.labels)


def test_what_does_not_go_together() -> None:
    good = Config.from_flat(KEYS)
    assert experiments.check(good).plan.unseen == ("market",)
    with pytest.raises(ConfigError, match="expected 'multitask' and iterations = 1"):
        experiments.check(replace(good, iterations=2))
    with pytest.raises(ConfigError, match="baseline = 'centralised' .*expected 'multitask'"):
        experiments.check(replace(good, baseline="centralised"))
    assert experiments.check_keys(replace(good, loss_scaling="log-classes"))
    with pytest.raises(
        ConfigError, match="loss-scaling .* baseline = 'multitask', but baseline is"
    ):
        experiments.check_keys(replace(good, baseline="", loss_scaling="log-classes"))


def test_it_stops_on_the_mean_of_all_tasks_and_keeps_the_best_weights(run, monkeypatch) -> None:
    def layers(items) -> str:  # all but the embedding, which is trimmed while it trains
        return fingerprint((name, tensor) for name, tensor in items if name.startswith("encoder."))

    scores = iter([0.2, 0.8, 0.6, 0.0])  # two tasks at each of two epochs: means of 0.5 and 0.3
    states, lines = [], []

    def score(model, *_):
        states.append(layers(body_of(model).items()))
        return next(scores)

    monkeypatch.setattr(baselines, "score", score)
    config, repository = run()
    baselines.train(config, lines.append)
    assert repository.manifest(1)["dev-score"] == 0.5
    assert "mean dev score 0.500" in lines[-1]
    assert states[1] != states[2]
    assert layers(repository.body(1).items()) == states[0] == states[1]  # the first epoch's


@pytest.mark.parametrize("cohort", [0, 2])
def test_a_dry_run_counts_what_is_trained_in_one_place(cohort) -> None:
    keys = {"suite": "demo", "base-model": "demo", "baseline": "multitask", "iterations": 1}
    config = Config.from_flat({**keys, "contributors-per-iteration": cohort})
    checked = experiments.check(config)
    one = counted.cost(config, checked, counted.ahead(config, checked), parameters=100)
    examples = sum(checked.train[name] for name in checked.plan.seen)
    assert (one.contributions, one.trained) == (0, config.finetune.max_epochs * examples)
    assert one.messages == 400 * one.evaluations
    assert one.disk == 2 * 400


def test_it_ends_when_its_time_is_up_with_the_best_weights(run, monkeypatch) -> None:
    """As a contributor does (``finetune.max-seconds``): within an epoch, and scored before."""
    ends = iter([False, False, True])  # after the third of an epoch's 16 batches
    monkeypatch.setattr(baselines.clock, "is_up", lambda until: next(ends))
    config, repository = run(**{"finetune.max-seconds": 5})
    lines: list[str] = []
    baselines.train(config, lines.append)
    assert lines[1].startswith("multitask: 24 examples, mean dev score")
    assert lines[2:] == ["multitask: its time is up (finetune.max-seconds = 5)"]
    assert repository.manifest(1)["sha256"] != fingerprint(repository.body(0).items())


IDLE = {
    "gate.protocol": "frozen",
    "attacks": "{music = 'sign-flip'}",
    "fusion.rule": "ties",
    "fusion.clip": "median",
    "fusion.norm": "mean",
    "fusion.momentum": 0.5,
    "fusion.learning-rate": 0.5,
    "fusion.anchor": 0.3,
    "quorum": 2,
    "late": "next",
    "screen.norm": 2.0,
    "keep-contributions": 2,
}


@pytest.mark.parametrize("keys", [{"baseline": "multitask"}, {"baseline": "", "iterations": 0}])
def test_keys_about_contributions_are_said_where_there_are_none(keys, tmp_path) -> None:
    """They are not refused: a variant of an experiment has the keys of that, too."""
    given = {**KEYS, **keys, **IDLE, "dropbox": str(tmp_path)}
    config = Config.from_flat(given)
    said = experiments.remarks(config, experiments.check(config))
    assert {line.split()[1] for line in said} == {*IDLE, "dropbox"}
    assert all(line.endswith("there are none here: it does nothing") for line in said)
    plain = Config.from_flat({**KEYS, **keys})
    assert experiments.remarks(plain, experiments.check(plain)) == []


def test_a_cohort_is_nothing_to_a_baseline() -> None:
    keys = {**KEYS, "contributors-per-iteration": 2, "schedule": "round-robin"}
    config = Config.from_flat(keys)
    assert [line.split()[1] for line in experiments.remarks(config, experiments.check(config))] == [
        *("contributors-per-iteration", "schedule")
    ]


def test_a_recipe_says_nothing_of_contributions_that_are_not_there() -> None:
    """Its keys were nobody's choice for this run."""
    config = replace(Config.from_flat({**KEYS, "quorum": 2}), of_recipe=frozenset(["quorum"]))
    assert experiments.remarks(config, experiments.check(config)) == []


def test_keys_that_another_key_turns_off_are_said() -> None:
    def said(**keys) -> list[str]:
        flat = {name.replace("__", ".").replace("_", "-"): keys[name] for name in keys}
        config = Config.from_flat({**KEYS, "baseline": "", **flat})
        return experiments.remarks(config, experiments.check(config))

    ratio = {"finetune__final_learning_rate_ratio": 0.5}
    assert said(**ratio) == said(finetune__schedule="constant") == []
    (line,) = said(**ratio, finetune__schedule="constant")
    assert "finetune.final-learning-rate-ratio does nothing with finetune.schedule = cons" in line
    assert said(screen__norm=2.0) == said(screen__checks="") == []
    for checks in ("", "duplicate,cosine"):
        (line,) = said(screen__norm=2.0, screen__checks=checks)
        assert "screen.norm does nothing: screen.checks leaves out norm" in line
    (line,) = said(screen__similarity=0.5, screen__checks="norm")
    assert "screen.similarity does nothing: screen.checks leaves out random" in line
