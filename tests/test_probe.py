"""Linear probing: what the head sees, and how it is trained."""

import pytest
import torch

from cold_flower.config import Probe
from cold_flower.models.classifier import classifier
from cold_flower.models.starting import starting_model
from cold_flower.training import probe
from tests.test_encode import some


@pytest.fixture(scope="module")
def model(tiny):
    body = starting_model(tiny, seed=0)[1]
    # The library's own, whose last layer has all tokens.
    labels = ("a", "b", "c")
    return classifier(tiny, body, labels=labels, kind="classification", seed=1, plain=True)


def test_features_are_the_first_tokens_last_state_in_the_datas_order(tiny, model) -> None:
    data = some(tiny, 20)
    found = probe.extract_features(model, data, "fp32")
    for i in (0, 7, 19):
        with torch.inference_mode():
            alone = model.eval().base_model(**data.batch([i])).last_hidden_state[0, 0]
        assert torch.allclose(found.state[i], alone, atol=1e-5)
    assert found.pooled is None  # RoBERTa has none


def test_a_mean_leaves_padding_out(tiny, model, monkeypatch) -> None:
    monkeypatch.setattr(model.config, "classifier_pooling", "mean", raising=False)
    data = some(tiny, 12)
    found = probe.extract_features(model, data, "fp32")
    for i in (0, 11):
        with torch.inference_mode():
            alone = model.eval().base_model(**data.batch([i])).last_hidden_state[0].mean(0)
        assert torch.allclose(found.state[i], alone, atol=1e-5)


def test_the_head_learns_the_features_labels_and_the_body_is_back(tiny, model) -> None:
    torch.manual_seed(0)
    labels = torch.arange(30) % 3
    state = torch.nn.functional.one_hot(labels, 64).float() * 3 + 0.1 * torch.randn(30, 64)
    features, body = probe.Features(state, None), model.base_model
    before = {key: tensor.clone() for key, tensor in body.state_dict().items()}
    options = Probe(epochs=30, learning_rate=3e-3)
    probe.train_head(model, features, labels, options=options, batch_size=7, seed=0)
    assert model.base_model is body
    assert all(torch.equal(tensor, before[key]) for key, tensor in body.state_dict().items())
    assert torch.equal(probe.head_logits(model, features).argmax(-1), labels)
    assert model.base_model is body


def test_every_epoch_has_each_row_once_in_an_order_of_its_own(monkeypatch) -> None:
    weight, seen, schedules = torch.nn.Parameter(torch.ones(2)), [], []
    linear_decay = probe.linear_decay

    def watched(*arguments):
        schedules.append(linear_decay(*arguments))
        return schedules[0]

    def loss(rows):
        assert weight.grad is None  # nothing is left of the step before
        seen.append(rows.tolist())
        return weight.sum()

    monkeypatch.setattr(probe, "linear_decay", watched)
    options = Probe(epochs=3, learning_rate=0.1)
    for seed in (0, 0, 1):
        probe._train([weight], loss, 10, options=options, batch_size=4, seed=seed)
    assert [len(rows) for rows in seen] == [4, 4, 2] * 9
    epochs = [[row for rows in seen[i : i + 3] for row in rows] for i in range(0, 27, 3)]
    assert all(sorted(epoch) == [*range(10)] for epoch in epochs)
    assert epochs[:3] == epochs[3:6] != epochs[6:]
    assert len({tuple(epoch) for epoch in epochs[:3]}) == 3
    assert schedules[0].get_last_lr()[0] == pytest.approx(0.0, abs=1e-12)
    del seen[:]
    clock = iter(range(100))
    monkeypatch.setattr(probe.time, "perf_counter", lambda: next(clock))
    probe._train([weight], loss, 10, options=options, batch_size=4, seed=0, until=5)
    assert len(seen) == 5  # looked at 0, 1, 2, 3, 4
