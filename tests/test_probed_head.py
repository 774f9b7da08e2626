"""``finetune.head = "probe"``: a contribution begins with a head trained on the frozen base."""

import gc
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from cold_flower.config import Config
from cold_flower.contributors import attacks
from cold_flower.contributors import contributor as module
from cold_flower.contributors.contributor import Contributor
from cold_flower.contributors.site import load_site
from cold_flower.data.plan import plan
from cold_flower.errors import ConfigError
from cold_flower.models.base import load_base
from cold_flower.models.classifier import classifier
from cold_flower.models.heads import head_of
from cold_flower.models.starting import starting_model
from cold_flower.runtime import cost as counted
from cold_flower.runtime import experiments, preview
from cold_flower.runtime.tune import tune
from cold_flower.seeds import derive
from cold_flower.server.coordinator import Coordinator
from cold_flower.training import clock as clocks
from cold_flower.training import finetune as loop
from cold_flower.training import probe, protocols
from strategies.fusion import fingerprint
from tests.conftest import FakeGrid
from tests.test_client_app import RUN
from tests.test_site import site  # noqa: F401 - a fixture

KEYS = {**RUN, "finetune.batch-size": 8, "probe.epochs": 6, "probe.learning-rate": 0.02}


@pytest.fixture(scope="module")
def body(tiny):
    return starting_model(tiny, seed=0)[1]


def make(head: str, **keys) -> Contributor:
    return Contributor(Config.from_flat({**KEYS, "finetune.head": head, **keys}), 0)


def prints(model) -> str:
    return fingerprint(head_of(model).items())


class Begun:
    """What finetunings began with."""

    def __init__(self) -> None:
        self.heads: list[str] = []
        self.bodies: list[str] = []
        self.options: list = []


@pytest.fixture
def begun(monkeypatch) -> Begun:
    found, finetune = Begun(), protocols.finetune

    def watched(model, *arguments, options, **more):
        found.heads.append(prints(model))
        found.bodies.append(fingerprint(module.body_of(model).items()))
        found.options.append(options)
        return finetune(model, *arguments, options=options, **more)

    monkeypatch.setattr(protocols, "finetune", watched)
    return found


def frozen(me: Contributor, body, monkeypatch) -> tuple[str, float]:
    """Run the frozen protocol with a contribution's draws; return its head and its dev score."""
    derived, heads = derive(0, 1, me.name, "train"), []
    seeds = {"initial-head": derive(derived, "head"), "probe": derive(derived, "probe")}
    logits = probe.head_logits
    with monkeypatch.context() as patch:
        patch.setattr(protocols, "derive", lambda _, purpose: seeds[purpose])
        patch.setattr(probe, "head_logits", lambda m, f: (heads.append(prints(m)), logits(m, f))[1])
        data = me.splits(1)
        value = protocols.frozen(me.base, body, replace(data, test=data.dev), me.config, 0)
    return heads[0], value


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_it_begins_with_the_head_of_the_frozen_protocol(body, begun, monkeypatch, precision):
    me = make("probe", **{"finetune.precision": precision})
    me.finetune(body, iteration=1, seed=0)
    assert begun.heads == [frozen(me, body, monkeypatch)[0]]
    assert begun.bodies == [fingerprint(body.items())]


@pytest.mark.parametrize("mu", [0.0, 3.0])
def test_where_the_body_hardly_moves_dev_stays_the_frozen_probes(body, monkeypatch, mu) -> None:
    still = {"finetune.learning-rate": 1e-9, "finetune.proximal-mu": mu}
    me = make("probe", **still)
    metrics = me.finetune(body, iteration=1, seed=0)[1]
    score = frozen(me, body, monkeypatch)[1]
    assert metrics["dev-start"] == metrics["dev-accuracy"] == score
    fresh = make("fresh", **still).finetune(body, iteration=1, seed=0)[1]
    assert metrics["train-loss"] < fresh["train-loss"] - 0.01


def test_order_and_dropout_are_those_of_a_fresh_head(body, monkeypatch) -> None:
    step, steps = loop.accumulate_gradients, []

    def watched(model, data, indices, options):
        steps.append((indices, torch.get_rng_state().tolist()))
        return step(model, data, indices, options)

    monkeypatch.setattr(loop, "accumulate_gradients", watched)
    results = [make(h).finetune(body, iteration=1, seed=0)[0] for h in ("fresh", "probe", "probe")]
    size = len(steps) // 3
    assert size > 1
    assert steps[:size] == steps[size : 2 * size] == steps[2 * size :]
    fresh, one, same = (fingerprint(result.items()) for result in results)
    assert fresh != one == same


def test_the_probe_has_draws_of_its_own_for_each_contribution(body, monkeypatch) -> None:
    seeds: list[int] = []
    finetune, train = protocols.finetune, probe.train_head
    monkeypatch.setattr(
        protocols,
        "finetune",
        lambda *a, seed, **k: (seeds.append(seed), finetune(*a, seed=seed, **k))[1],
    )
    monkeypatch.setattr(
        probe,
        "train_head",
        lambda *a, seed, **k: (seeds.append(seed), train(*a, seed=seed, **k))[1],
    )
    other = Contributor(make("probe").config, 1)
    for who, iteration, seed in (("me", 1, 0), ("me", 2, 0), ("me", 1, 5), ("other", 1, 0)):
        me = other if who == "other" else make("probe")
        me.finetune(body, iteration=iteration, seed=seed)
    assert len(seeds) == len(set(seeds)) == 8


def test_evaluations_begin_with_a_fresh_head(body) -> None:
    few = {"few-shot.examples": 8, "few-shot.draws": 1, "few-shot.epochs": 1}
    chosen = ["frozen", "finetuned", "few-shot"]
    results = [
        make(head, **few).evaluate(body, chosen, iteration=1, seed=0)
        for head in ("fresh", "probe", "keep")
    ]
    assert results[0] == results[1] == results[2]


def test_its_time_counts(body, begun, monkeypatch) -> None:
    for spent, left in ((4.0, 6.0), (10.0, 1e-9), (40.0, 1e-9)):
        clock = iter((3.0, 3.0 + spent))
        ends = []
        with monkeypatch.context() as patch:
            patch.setattr(clocks, "time", SimpleNamespace(perf_counter=clock.__next__))
            patch.setattr(probe, "train_head", lambda *_, until, to=ends, **__: to.append(until))
            me = make("probe", **{"finetune.max-seconds": 10})
            outcome = me.finetune(body, iteration=1, seed=0)
        assert (ends, begun.options[-1].max_seconds) == ([13.0], left)
        assert (outcome[1]["stopped"], outcome[1]["steps"] > 1) == (
            ("epochs", True) if left > 1 else ("time", False)
        )
    make("probe").finetune(body, iteration=1, seed=0)
    assert begun.options[-1].max_seconds == 0  # no limit


def test_the_features_are_gone_before_finetuning(body, monkeypatch) -> None:
    kept, extract, finetune = [], probe.extract_features, protocols.finetune

    def watched(*arguments):
        found = extract(*arguments)
        kept.append(weakref.ref(found.state))
        return found

    def check(*arguments, **more):
        assert kept[0]() is None
        return finetune(*arguments, **more)

    monkeypatch.setattr(probe, "extract_features", watched)
    monkeypatch.setattr(protocols, "finetune", check)
    gc.disable()
    try:
        make("probe").finetune(body, iteration=1, seed=0)
    finally:
        gc.enable()
    assert len(kept) == 1


def test_the_body_reads_no_more_than_a_micro_batch(body, monkeypatch) -> None:
    batches, sizes = probe.evaluation_batches, []

    def watched(*given):
        for batch, rows in batches(*given):
            sizes.append(len(rows))
            yield batch, rows

    monkeypatch.setattr(probe, "evaluation_batches", watched)
    make("probe", **{"finetune.micro-batch-size": 5}).finetune(body, iteration=1, seed=0)
    assert sizes == [5, 5, 5, 5, 4]


def test_an_attacker_probes_what_it_trains_on(body, monkeypatch) -> None:
    me, seen, train = make("probe", attacks="{travel = 'label-flip'}"), [], probe.train_head

    def watched(model, features, labels, **more):
        seen.append(labels)
        return train(model, features, labels, **more)

    monkeypatch.setattr(probe, "train_head", watched)
    attacks.answer(
        me, body, lambda who, start: who.finetune(start, iteration=1, seed=0), iteration=1, seed=0
    )
    data = me.splits(1)
    assert torch.equal(seen[0], len(data.labels) - 1 - data.train.labels)


@pytest.mark.parametrize("head", ["fresh", "probe"])
def test_a_trainer_of_ones_own_gets_that_head(site, body, monkeypatch, head) -> None:  # noqa: F811
    own, jobs = load_site(site(top='trainer = "my_trainer:finetune"')), []
    keys = {"finetune.head": head, "finetune.batch-size": 8, "probe.epochs": 3}
    keys |= {"finetune.max-seconds": 100.0}
    keys = {"finetune.max-epochs": 1, "finetune.precision": "fp32", **keys}
    me = Contributor(Config.from_flat(keys), site=own)
    monkeypatch.setattr(module, "train", lambda *given: (jobs.append(given[2]), ({}, {}))[1])
    me.finetune(body, iteration=1, seed=0)
    derived, data = derive(0, 1, me.name, "train"), me.splits(1)
    model = classifier(
        me.base, body, labels=data.labels, kind=data.kind, seed=derive(derived, "head"), plain=True
    )
    if head == "probe":
        options = {"options": me.config.probe, "batch_size": 8, "seed": derive(derived, "probe")}
        probe.probe_head(model, data.train, "fp32", **options)
    (job,) = jobs
    assert prints(job.model) == prints(model)
    assert job.model.training
    assert (job.options.max_seconds < 100) == (head == "probe")


@pytest.fixture(scope="module")
def t5(folders) -> str:
    return str(folders("t5", "T5ForConditionalGeneration"))


@pytest.mark.parametrize("head", ["probe", "keep"])
def test_text_to_text_has_no_head_of_its_own(t5, head, tmp_path) -> None:
    words = f"finetune.head is {head!r}, but .* is text to text.*LM head is part of the body"
    suite = tmp_path / "mine.toml"
    suite.write_text(
        '[tasks.travel]\nsource = "demo"\ntext = ["text"]\nlabel = "label"\n'
        'labels = ["nome", "karo"]\nsplits = { train = "train", test = "test" }\n'
    )
    keys = {**KEYS, "suite": str(suite), "tasks": "", "base-model": t5}
    keys |= {"finetune.head": head, "contributors-per-iteration": 0}
    config = Config.from_flat(keys)
    with pytest.raises(ConfigError, match=words):
        experiments.check(config)
    with pytest.raises(ConfigError, match=words):
        Coordinator(config, tmp_path / "run", FakeGrid(lambda message: None, []))
    base = load_base(t5)
    me, start = Contributor(config, 0), starting_model(base, seed=0)[1]
    with pytest.raises(ConfigError, match=words):
        me.finetune(start, iteration=1, seed=0)
    fresh = Contributor(Config.from_flat({**keys, "finetune.head": "fresh"}), 0)
    assert fresh.finetune(start, iteration=1, seed=0)[0].keys() == start.keys()


@pytest.mark.parametrize("head", ["probe", "keep"])
def test_what_makes_no_contributions_refuses_it_or_says_so(head, tmp_path) -> None:
    baseline = {"baseline": "multitask", "iterations": 1, "finetune.head": head}
    with pytest.raises(ConfigError, match=f"head = {head!r} .*'multitask' makes no contributions"):
        experiments.check_keys(Config.from_flat(baseline))
    config = make(head, **{"run-dir": str(tmp_path / "run")}).config
    with pytest.raises(ConfigError, match="from a fresh head: leave finetune.head at fresh"):
        tune(config, tasks=["travel"])
    checked = experiments.Checked(plan(config), {"travel": 24, "music": 24}, {})
    scored = Config.from_flat({**config.flat(), "iterations": 0, "finetune.proximal-mu": 1.0})
    assert experiments.remarks(config, checked) == []
    assert experiments.remarks(scored, checked) == [
        f"WARNING: {key} is about contributions, and there are none here: it does nothing"
        for key in ("finetune.proximal-mu", "finetune.head")
    ]


def test_a_dry_run_counts_the_forward_passes() -> None:
    config = make("probe", iterations=3, **{"contributors-per-iteration": 0}).config
    checked = experiments.Checked(
        plan(config), {"travel": 100, "music": 40}, {"travel": 9, "music": 9}
    )
    for head, forward in (("probe", 420), ("fresh", 0)):
        one = Config.from_flat({**config.flat(), "finetune.head": head})
        cost = counted.cost(one, checked, counted.Ahead(range(1, 4)), 10)
        assert (cost.trained, cost.probed) == (420, forward)
        (row,) = [*preview._costs(cost, checked, 1, 1.0).columns[2].cells][:1]
        assert row == "420 training examples, repeats counted" + (
            "; 420 forward" if forward else ""
        )
