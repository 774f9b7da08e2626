"""The protocols."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from cold_flower.config import PROTOCOLS, Config
from cold_flower.data.encode import EncodedSplits, encode
from cold_flower.models.base import load_base
from cold_flower.models.starting import starting_model
from cold_flower.seeds import derive
from cold_flower.training import protocols
from cold_flower.training.protocols import evaluate, stratified
from cold_flower.training.scoring import DivergedError
from strategies.fusion import fingerprint
from tests.test_encode import some
from tests.test_model import ENCODERS, STARTS

SEEDS = {name: derive(1, name) for name in PROTOCOLS}
CONFIG = Config.from_flat(
    {
        "finetune.learning-rate": 2e-3,
        "finetune.batch-size": 8,
        "finetune.max-epochs": 15,
        "finetune.precision": "fp32",
        "few-shot.examples": 20,
        "few-shot.draws": 2,
        "few-shot.epochs": 3,
    }
)


@pytest.fixture(scope="module")
def data(tiny):
    train = some(tiny, 60)
    return EncodedSplits(train, train, train, ("a", "b", "c"), "classification", "accuracy")


def test_protocols_are_independent_and_leave_the_body_alone(tiny, data) -> None:
    _, body = starting_model(tiny, seed=0)
    before = fingerprint(body.items())
    every = ["frozen", "finetuned", "few-shot"]
    together, _ = evaluate(tiny, body, data, every, CONFIG, SEEDS)
    assert list(together) == every
    assert fingerprint(body.items()) == before
    assert (
        evaluate(tiny, body, data, ["few-shot"], CONFIG, SEEDS)[0]["few-shot"]
        == together["few-shot"]
    )
    assert together["finetuned"] > together["frozen"]  # it memorises what it is tested on


@pytest.mark.parametrize("protocol", ["frozen", "finetuned", "few-shot"])
def test_a_body_that_computes_nan_has_no_score(tiny, data, protocol) -> None:
    _, body = starting_model(tiny, seed=0)
    key = "encoder.layer.1.output.dense.weight"
    with pytest.raises(DivergedError, match=f"^{protocol}: "):
        evaluate(tiny, {**body, key: body[key] * math.nan}, data, [protocol], CONFIG, SEEDS)


@pytest.mark.parametrize("protocol", ["frozen", "finetuned", "few-shot"])
def test_no_forward_pass_is_larger_than_a_micro_batch(tiny, data, protocol, monkeypatch) -> None:
    _, body = starting_model(tiny, seed=0)
    make, sizes = protocols.classifier, []

    def watched(*given, **more):
        model = make(*given, **more)
        model.base_model.register_forward_pre_hook(
            lambda _, args, kw: sizes.append(len((*args, *kw.values())[0])),
            with_kwargs=True,
        )
        return model

    monkeypatch.setattr(protocols, "classifier", watched)
    for micro, largest in ((7, 7), (0, 60)):
        options = replace(CONFIG.finetune, micro_batch_size=micro, max_epochs=1)
        config = replace(CONFIG, finetune=options)
        evaluate(tiny, body, data, [protocol], config, SEEDS)
        assert max(sizes) == largest
        sizes.clear()


@pytest.mark.parametrize("family", ENCODERS)
def test_regression_heads(folders, family) -> None:
    """Every encoder learns a number, the share of one word in a text, by each protocol."""
    base = load_base(str(folders(family, STARTS[family][0], initializer_range=0.1)))
    _, body = starting_model(base, seed=0)
    generator = torch.Generator().manual_seed(0)
    ones = torch.randint(9, (48,), generator=generator).tolist()
    texts = [(" ".join(["nome"] * n + ["karo"] * (8 - n)),) for n in ones]
    rows = encode(base.tokenizer, texts, [n / 8 for n in ones], max_length=16)
    data = EncodedSplits(rows, rows, rows, ("",), "regression", "pearson")
    config = replace(CONFIG, few_shot=replace(CONFIG.few_shot, draws=1, epochs=10))
    scores, _ = evaluate(base, body, data, ["frozen", "finetuned", "few-shot"], config, SEEDS)
    assert scores["finetuned"] > 0.9
    assert scores["few-shot"] > 0.5
    assert scores["frozen"] > 0.5


def test_a_draw_keeps_the_classes_shares() -> None:
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    drawn = stratified(labels, 20, seed=0)
    assert Counter(labels[drawn].tolist()) == {0: 12, 1: 6, 2: 2}
    assert len(set(drawn)) == 20
    assert drawn == stratified(labels, 20, seed=0) != stratified(labels, 20, seed=1)
    assert sorted(stratified(labels, 500, seed=0)) == list(range(100))
    assert len(stratified(torch.rand(50), 7, seed=0)) == 7
