"""FedProx: the proximal term of a contribution's finetuning."""

import math
from dataclasses import replace

import pytest
import torch

from cold_flower.config import PROTOCOLS, Config
from cold_flower.data.encode import EncodedSplits, training_batches
from cold_flower.models.base import load_base
from cold_flower.models.body import body_of, head_parameters
from cold_flower.models.classifier import classifier
from cold_flower.models.starting import starting_model
from cold_flower.seeds import derive
from cold_flower.training import finetune as loop
from cold_flower.training import protocols
from cold_flower.training.finetune import finetune
from cold_flower.training.optimizer import Optimizer
from cold_flower.training.proximal import Proximal
from strategies.fusion import fingerprint
from tests.test_encode import some
from tests.test_finetune import OPTIONS, fresh_model, still
from tests.test_model import STARTS


@pytest.fixture(scope="module")
def start(tiny):
    return starting_model(tiny, seed=0)[1]


def by_hand(model, data, options) -> float:
    """Finetune for an epoch with the term in the loss; return the last step's loss without it."""
    body = [p for p in model.base_model.parameters() if p.requires_grad]
    begun = [p.detach().clone() for p in body]
    order = torch.Generator().manual_seed(derive(0, "order"))
    optimizer = Optimizer(model.parameters(), options, math.ceil(len(data) / 8), None)
    model.train()
    losses = []
    for indices in training_batches(data.lengths(), options.batch_size, order):
        loss = model(**data.batch(indices), labels=data.labels_of(indices)).loss
        term = sum(((p - b) ** 2).sum() for p, b in zip(body, begun, strict=True))
        (loss + options.proximal_mu / 2 * term).backward()
        optimizer.step()
        losses.append(float(loss.detach()) * len(indices))
    return sum(losses) / len(data)


def distance(model, body) -> float:
    return math.sqrt(sum(float(((t - body[k]) ** 2).sum()) for k, t in body_of(model).items()))


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
@pytest.mark.parametrize("micro", [0, 3])
def test_it_is_the_term_in_the_loss(tiny, start, optimizer, micro) -> None:
    options = replace(
        OPTIONS, max_epochs=1, optimizer=optimizer, proximal_mu=3.0, micro_batch_size=micro,
        weight_decay=0.5,
    )  # fmt: skip
    data, ours, hand, without = some(tiny, 40), *(still(fresh_model(tiny, start)) for _ in "123")
    outcome = finetune(ours, data, None, options=options, metric="accuracy", seed=0)
    loss = by_hand(hand, data, options)
    finetune(without, data, None, options=replace(options, proximal_mu=0.0), metric="", seed=0)
    assert outcome.train_loss == pytest.approx(loss, abs=1e-5)  # the task's alone
    a, b, c = (m.state_dict() for m in (ours, hand, without))
    # A key's bias has no gradient but rounding (softmax), which AdamW makes whole steps of.
    keys = [k for k in a if not k.endswith("key.bias")]
    assert all(torch.allclose(a[k], b[k], atol=1e-5) for k in keys)
    assert not all(torch.allclose(a[k], c[k], atol=1e-4) for k in keys)


def test_the_gradient_by_hand_and_the_head_is_left_alone(tiny, start) -> None:
    model = fresh_model(tiny, start)
    frozen, moved, idle = list(model.base_model.parameters())[:3]
    frozen.requires_grad_(False)
    proximal = Proximal(model, 0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 2.0
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    frozen.grad = idle.grad = None
    proximal.add_to_gradients()
    assert torch.equal(moved.grad, torch.full_like(moved, 1 + 0.5 * 2.0))
    assert frozen.grad is idle.grad is None
    head = head_parameters(model)
    assert head
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in head)


def test_without_it_not_a_bit_changes(tiny, start, monkeypatch) -> None:
    prints = []
    for patched in (False, True):
        if patched:
            monkeypatch.setattr(Proximal, "add_to_gradients", lambda self: None)
            monkeypatch.setattr(Proximal, "__init__", lambda self, model, mu: None)
        model = fresh_model(tiny, start)
        finetune(model, some(tiny, 40), None, options=OPTIONS, metric="accuracy", seed=0)
        prints.append(fingerprint(model.state_dict().items()))
    assert prints[0] == prints[1]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_larger_the_nearer_to_the_base(tiny, start, precision) -> None:
    distances = []
    for mu in (0.0, 1.0, 1e4):
        model = fresh_model(tiny, start)
        options = replace(OPTIONS, proximal_mu=mu, precision=precision)
        finetune(model, some(tiny, 40), None, options=options, metric="accuracy", seed=0)
        distances.append(distance(model, start))
    assert distances[0] > distances[1] > distances[2] > 0
    assert distances[2] < 0.5 * distances[0]


def test_a_tied_tensor_counts_once(folders) -> None:
    """T5 1.0 shares one matrix between encoder, decoder and output."""
    base = load_base(str(folders("t5", STARTS["t5"][0])))
    body = starting_model(base, seed=0)[1]
    model = classifier(base, body, labels=("a", "b", "c"), kind="classification", seed=1)
    proximal = Proximal(model, 2.0)
    shared = model.base_model.get_input_embeddings().weight
    with torch.no_grad():
        shared += 1.0
    shared.grad = torch.zeros_like(shared)
    proximal.add_to_gradients()
    assert torch.allclose(shared.grad, torch.full_like(shared, 2.0), atol=1e-5)


def test_evaluations_are_without_it(tiny, start, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(
        loop, "Proximal", lambda model, mu: (seen.append(mu), Proximal(model, mu))[1]
    )
    config = Config.from_flat(
        {"finetune.proximal-mu": 0.5, "finetune.max-epochs": 1, "few-shot.examples": 8,
         "few-shot.draws": 1, "few-shot.epochs": 1}
    )  # fmt: skip
    train, test = some(tiny, 16), some(tiny, 8, seed=1)
    data = EncodedSplits(train, test, test, ("a", "b", "c"), "classification", "accuracy")
    protocols.evaluate(
        tiny, start, data, ["finetuned", "few-shot"], config, dict.fromkeys(PROTOCOLS, 0)
    )
    assert seen == [0.0, 0.0]
