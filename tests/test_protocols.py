"""What each protocol learns from, and what it is scored on: watched, and without training."""

import math
from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import pytest
import torch

from cold_flower.config import Config
from cold_flower.data.encode import EncodedSplits
from cold_flower.models.starting import starting_model
from cold_flower.training import clock, probe, protocols
from cold_flower.training.finetune import Outcome
from tests.test_encode import some

CONFIG = Config.from_flat(
    {"few-shot.examples": 6, "few-shot.draws": 3, "few-shot.epochs": 7, "few-shot.batch-size": 5}
)


TEST = 20  # examples


class Seen:
    """What was called: finetunings with their data, and what was scored."""

    def __init__(self) -> None:
        self.finetuned: list[tuple] = []
        self.heads: list[tuple] = []
        self.features: list = []
        self.scored: list = []
        self.models: list[torch.Tensor] = []
        self.until: list[float] = []


@pytest.fixture
def seen(monkeypatch) -> Seen:
    found = Seen()

    def finetune(model, train, dev, *, options, metric, seed):
        found.models.append(model.classifier.dense.weight.detach().clone())
        found.finetuned.append((train, dev, options, seed))
        return Outcome(0.5, 0.5, 0.5, 0.5, "epochs", False, 1, len(train))

    def score(model, data, *_):
        found.scored.append(data)
        return float(len(found.scored))

    def extract(model, data, *_):
        found.features.append(data)
        return data

    def train_head(model, features, labels, *, until, **_):
        found.until.append(until)
        found.models.append(model.classifier.dense.weight.detach().clone())
        found.heads.append((features, labels))

    def logits(model, features):  # right on test alone
        shift = 0 if len(features) == TEST else 1
        return torch.nn.functional.one_hot((features.labels + shift) % 3, 3).float()

    monkeypatch.setattr(protocols, "finetune", finetune)
    monkeypatch.setattr(protocols, "score", score)
    monkeypatch.setattr(probe, "extract_features", extract)
    monkeypatch.setattr(probe, "train_head", train_head)
    monkeypatch.setattr(probe, "head_logits", logits)
    return found


@pytest.fixture(scope="module")
def data(tiny) -> EncodedSplits:
    parts = (some(tiny, n, seed=n) for n in (30, 10, TEST))
    return EncodedSplits(*parts, labels=("a", "b", "c"), kind="classification", metric="accuracy")


def evaluate(tiny, data, protocol, seed=0) -> float:
    body = starting_model(tiny, seed=0)[1]
    return protocols.evaluate(tiny, body, data, [protocol], CONFIG, {protocol: seed})[0][protocol]


def test_finetuned_stops_early_on_dev_and_is_scored_on_test(tiny, data, seen) -> None:
    assert evaluate(tiny, data, "finetuned") == 1.0
    ((train, dev, options, _),) = seen.finetuned
    assert train is data.train
    assert dev is data.dev
    assert options == CONFIG.finetune
    assert seen.scored == [data.test]


def test_frozen_probes_train_and_is_scored_on_test(tiny, data, seen) -> None:
    assert evaluate(tiny, data, "frozen") == 1.0
    ((features, labels),) = seen.heads
    assert features is data.train
    assert labels is data.train.labels
    assert [id(part) for part in seen.features] == [id(data.train), id(data.test)]
    assert not seen.finetuned


def test_few_shot_has_no_dev_split_and_draws_anew_each_time(tiny, data, seen) -> None:
    assert evaluate(tiny, data, "few-shot") == 2.0  # the mean of 1, 2 and 3
    assert len(seen.finetuned) == 3
    for train, dev, options, _ in seen.finetuned:
        assert len(train) == 6
        assert dev is None
        assert (options.max_epochs, options.batch_size) == (7, 5)
    drawn = {tuple(train.ids.tolist()) for train, *_ in seen.finetuned}
    heads = {tuple(weights.flatten().tolist()) for weights in seen.models}
    seeds = {seed for *_, seed in seen.finetuned}
    assert len(drawn) == len(heads) == len(seeds) == 3
    assert all(part is data.test for part in seen.scored)


def test_protocols_draw_apart_and_each_from_the_seed(tiny, data, seen) -> None:
    for protocol, seed in (("finetuned", 0), ("finetuned", 0), ("finetuned", 1), ("few-shot", 0)):
        evaluate(tiny, data, protocol, seed)
    seeds = [seed for *_, seed in seen.finetuned]
    assert seeds[0] == seeds[1]
    assert len(set(seeds)) == 5
    evaluate(tiny, data, "frozen")
    heads = {tuple(weights.flatten().tolist()) for weights in seen.models}
    assert len(heads) == 6  # of finetuned with two seeds, of three draws, of frozen


@pytest.mark.parametrize(
    ("limit", "probed_until", "left"),
    [
        (0.0, math.inf, [0.0] * 4),  # a limit of 0 is none: three draws, the recipe as it is
        (25.0, 25.0, [15.0, 5.0]),  # the clock is at 10 and 20; at 30 no draw begins
        (65.0, 65.0, [55.0, 45.0, 25.0, 5.0]),
        (5.0, 5.0, [1e-9, 1e-9]),
    ],
)
def test_all_that_a_message_asks_has_one_deadline(
    tiny, data, seen, monkeypatch, limit, probed_until, left
) -> None:
    looks = SimpleNamespace(perf_counter=count(0, 10).__next__)  # ten seconds at each look
    monkeypatch.setattr(clock, "time", looks)
    config = replace(CONFIG, finetune=replace(CONFIG.finetune, max_seconds=limit))
    every = ["frozen", "finetuned", "few-shot"]
    body = starting_model(tiny, seed=0)[1]
    scores = protocols.evaluate(tiny, body, data, every, config, dict.fromkeys(every, 0))[0]
    assert seen.until == [probed_until]
    assert [options.max_seconds for _, _, options, _ in seen.finetuned] == left
    drawn = [*range(2, len(left) + 1)]  # each score is one more; the first is finetuned's
    assert scores["few-shot"] == sum(drawn) / len(drawn)


@pytest.mark.parametrize("size", [6, 12])
def test_a_draw_has_each_class_by_its_share(size) -> None:
    labels = torch.tensor([0] * 30 + [1] * 20 + [2] * 10)
    drawn = protocols.stratified(labels, size, seed=3)
    assert labels[drawn].bincount().tolist() == [size // 2, size // 3, size // 6]
    assert drawn != protocols.stratified(labels, size, seed=4)
    numbers = protocols.stratified(labels.float(), size, seed=3)
    assert len(set(numbers)) == size
    assert numbers != list(range(size))
