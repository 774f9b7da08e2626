"""The last layer for the first token alone computes what the whole layer does, gradients too."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from cold_flower.models.base import load_base
from cold_flower.models.body import body_of
from cold_flower.models.classifier import classifier
from cold_flower.models.cores import ATTENTION, Dropout
from cold_flower.models.families import FIRST_TOKEN
from cold_flower.models.first_token import FirstToken, adapt
from cold_flower.models.starting import starting_model
from cold_flower.training.probe import extract_features
from cold_flower.training.scoring import logits_of, score
from tests.conftest import _tiny_config
from tests.test_encode import some
from tests.test_model import ABC, ENCODERS, STARTS

CLOSE = {"rtol": 1e-9, "atol": 1e-12}
EVERY = [(family, start) for family in FIRST_TOKEN for start in STARTS[family]]


def pair(folders, family, start):
    """Ours, and the same model as transformers makes it, in 64 bit; nothing is dropped."""
    # At 0.02 so small a model gives all examples the same, and its queries hardly any gradient.
    base = load_base(str(folders(family, start, initializer_range=0.5)))
    _, body = starting_model(base, seed=0)
    torch.manual_seed(0)
    body = {name: t + 0.1 * torch.randn_like(t) for name, t in body.items()}  # biases are 0 else
    models = [
        classifier(base, body, labels=ABC, kind="classification", seed=1, plain=plain)
        for plain in (False, True)
    ]
    for model in models:
        model.double().train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    return base, *models


@pytest.mark.parametrize(("family", "start"), EVERY)
def test_outputs_and_gradients_are_the_whole_layers(folders, family, start) -> None:
    base, ours, stock = pair(folders, family, start)
    assert [type(m).__name__ for m in ours.base_model.encoder.layer][-1] == "FirstToken"
    assert not any(isinstance(m, FirstToken | Dropout) for m in stock.modules())
    data = some(base, 9)
    for rows in (list(range(9)), [3]):  # of several lengths; one alone, without padding
        batch, labels = data.batch(rows), data.labels_of(rows)
        a, b = ours(**batch, labels=labels), stock(**batch, labels=labels)
        assert torch.allclose(a.logits, b.logits, **CLOSE)
        names = [name for name, _ in stock.named_parameters()]
        assert [name for name, _ in ours.named_parameters()] == names
        got, want = (
            torch.autograd.grad(x.loss, [*m.parameters()]) for x, m in ((a, ours), (b, stock))
        )
        for name, ga, gb in zip(names, got, want, strict=True):
            assert torch.allclose(ga, gb, **CLOSE), name
    states = stock.base_model(**batch).last_hidden_state
    assert torch.allclose(ours.base_model(**batch).last_hidden_state, states[:, :1], **CLOSE)


@pytest.mark.parametrize(("family", "start"), EVERY)
def test_features_scores_and_the_body_are_the_same(folders, family, start) -> None:
    base, ours, stock = pair(folders, family, start)
    data = some(base, 30)
    a, b = extract_features(ours, data, "fp32"), extract_features(stock, data, "fp32")
    assert torch.allclose(a.state, b.state, atol=1e-6)
    assert (a.pooled is None) == (b.pooled is None) == (family != "bert")
    assert a.pooled is None or torch.allclose(a.pooled, b.pooled, atol=1e-6)
    assert logits_of(ours, data, "fp32").std(0).min() > 0.1  # it tells examples apart
    assert score(ours, data, "accuracy", "fp32") == score(stock, data, "accuracy", "fp32")
    assert [*body_of(ours)] == [*body_of(stock)]
    assert all(torch.equal(t, body_of(stock)[name]) for name, t in body_of(ours).items())


@pytest.mark.parametrize("family", FIRST_TOKEN)
def test_in_bf16_it_is_as_near_as_the_whole_layer(folders, family) -> None:
    base, *models = pair(folders, family, STARTS[family][0])
    data = some(base, 30)
    want = logits_of(models[1], data, "fp32")
    errors = []
    for model in models:
        errors.append((logits_of(model.float(), data, "bf16") - want).square().mean().sqrt())
    assert 0 < errors[0] < 2 * errors[1] < 0.2 * want.std(), errors


@pytest.mark.parametrize("family", FIRST_TOKEN)
def test_dropout_reaches_the_first_token(folders, family) -> None:
    base, ours, _ = pair(folders, family, STARTS[family][0])
    data = some(base, 9)
    layer = ours.base_model.encoder.layer[-1]
    parts = {
        "attention": layer.attention.self.dropout,
        "after attention": layer.attention.output.dropout,
        "after the feed-forward": layer.output.dropout,
    }
    for part in parts.values():
        part.p = 0.5
        torch.manual_seed(0)
        first, second = (ours(**data.batch(range(9))).logits for _ in range(2))
        assert not torch.equal(first, second)
        ours.eval()
        assert torch.equal(*(ours(**data.batch(range(9))).logits for _ in range(2)))
        ours.train()
        part.p = 0.0


@pytest.mark.parametrize("family", FIRST_TOKEN)
def test_a_token_that_attention_drops_adds_nothing(folders, family) -> None:
    _, ours, stock = pair(folders, family, STARTS[family][0])
    layer, stock_layer = (m.base_model.encoder.layer[-1] for m in (ours, stock))
    states = torch.randn(3, 7, 16, dtype=torch.float64)

    class Drop(torch.nn.Module):
        def forward(self, weights):
            return weights * torch.tensor([0, 2, 0, 2, 2, 0, 2])

    layer.attention.self.dropout = Drop()
    own = stock_layer.attention.self
    query, key, value = (
        part(states).unflatten(-1, (-1, own.attention_head_size)).transpose(1, 2)
        for part in (own.query, own.key, own.value)
    )
    weights = Drop()((query[:, :, :1] @ key.mT * own.scaling).softmax(-1))
    mixed = (weights @ value).transpose(1, 2).flatten(2)
    attended = stock_layer.attention.output(mixed, states[:, :1])
    want = stock_layer.output(stock_layer.intermediate(attended), attended)
    assert torch.allclose(layer(states), want, **CLOSE)


@pytest.mark.parametrize("family", sorted(set(ENCODERS) - set(FIRST_TOKEN)))
def test_other_families_keep_their_layers(folders, family) -> None:
    _, ours, stock = pair(folders, family, STARTS[family][0])
    assert not any(isinstance(m, FirstToken) for m in ours.modules())
    assert [n for n, _ in ours.named_modules()] == [n for n, _ in stock.named_modules()]


@pytest.mark.parametrize(
    ("changes", "attention"),
    [({}, "eager"), ({"is_decoder": True}, ATTENTION), ({"num_hidden_layers": 0}, ATTENTION)],
)
def test_what_it_does_not_know_is_left_whole(changes, attention) -> None:
    config = _tiny_config("bert")
    for key, value in changes.items():
        setattr(config, key, value)
    model = AutoModelForSequenceClassification.from_config(config)
    model.set_attn_implementation(attention)
    adapt(model)
    assert not any(isinstance(m, FirstToken) for m in model.modules())
