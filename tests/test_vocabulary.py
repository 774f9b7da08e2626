"""Training only the embeddings that occur is training all of them."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from cold_flower.config import Finetune
from cold_flower.models.base import load_base
from cold_flower.models.body import body_of
from cold_flower.models.classifier import classifier
from cold_flower.models.starting import starting_model
from cold_flower.training import finetune as loop
from cold_flower.training.finetune import finetune
from cold_flower.training.vocabulary import trimmed_embedding
from tests.test_encode import some
from tests.test_model import ABC, ENCODERS, STARTS

OPTIONS = Finetune(
    learning_rate=1e-3, weight_decay=0.5, batch_size=8, max_epochs=3, precision="fp32"
)


@contextmanager
def everything(*_, options):
    yield None


@pytest.mark.parametrize("family", ENCODERS)
def test_it_ends_where_training_the_whole_ends(folders, family, monkeypatch) -> None:
    base = load_base(str(folders(family, STARTS[family][0])))
    _, body = starting_model(base, seed=0)
    data, dev = some(base, 24), some(base, 8, seed=1)
    ends = []
    for ours in (True, False):
        if not ours:
            monkeypatch.setattr(loop, "trimmed_embedding", everything)
        model = classifier(base, body, labels=ABC, kind="classification", seed=1)
        embedding = model.get_input_embeddings()
        finetune(model, data, dev, options=OPTIONS, metric="accuracy", seed=0)
        assert model.get_input_embeddings() is embedding
        ends.append(body_of(model))
    for key, want in ends[1].items():
        assert torch.allclose(ends[0][key], want, atol=2e-5), key
        assert not torch.equal(want, body[key])


def test_rows_that_do_not_occur_decay_by_hand(tiny) -> None:
    _, body = starting_model(tiny, seed=0)
    model = classifier(tiny, body, labels=ABC, kind="classification", seed=1)
    data = some(tiny, 8)
    options = replace(
        OPTIONS, max_epochs=2, warmup_ratio=0.0, final_learning_rate_ratio=0.5, learning_rate=0.1
    )
    finetune(model, data, None, options=options, metric="accuracy", seed=0)
    key = next(k for k in body if k.endswith("word_embeddings.weight"))
    absent = torch.ones(len(body[key]), dtype=torch.bool)
    absent[[*data.ids.tolist(), data.padding]] = False
    assert absent.any()
    assert not absent.all()
    want = body[key] * (1 - 0.1 * 0.5) * (1 - 0.05 * 0.5)  # two steps, weight decay 0.5
    got = body_of(model)[key]
    assert torch.allclose(got[absent], want[absent], rtol=1e-6)
    assert not torch.allclose(got[~absent], want[~absent], rtol=1e-3)


def test_a_step_trains_the_rows_that_occur_alone(tiny) -> None:
    _, body = starting_model(tiny, seed=0)
    model = classifier(tiny, body, labels=ABC, kind="classification", seed=1)
    data, dev = some(tiny, 4), some(tiny, 4, seed=1)
    tokens = {*data.ids.tolist(), *dev.ids.tolist(), data.padding}
    with trimmed_embedding(model, data, dev, options=OPTIONS):
        assert len(model.get_input_embeddings().weight) == len(tokens)


def test_what_is_more_than_a_look_up_stays_whole(tiny, folders) -> None:
    _, body = starting_model(tiny, seed=0)
    frozen = classifier(tiny, body, labels=ABC, kind="classification", seed=1)
    frozen.base_model.requires_grad_(False)
    t5 = load_base(str(folders("t5", STARTS["t5"][0])))
    worded = classifier(
        t5, starting_model(t5, seed=0)[1], labels=ABC, kind="classification", seed=1
    )
    for model in (frozen, worded):
        with trimmed_embedding(model, some(tiny, 4), options=OPTIONS) as trimmed:
            assert trimmed is None


def test_adafactor_trains_the_whole_because_its_steps_depend_on_it(tiny, monkeypatch) -> None:
    """Rows that do not occur stay; the length of the others' steps depends on all rows."""
    _, body = starting_model(tiny, seed=0)
    data = some(tiny, 8)
    options = replace(OPTIONS, optimizer="adafactor", weight_decay=0.0, learning_rate=0.1)
    ends = {}
    for trims in ("ours", "never", "always"):
        with monkeypatch.context() as patch:
            if trims == "never":
                patch.setattr(loop, "trimmed_embedding", everything)
            if trims == "always":
                patch.setattr(
                    loop,
                    "trimmed_embedding",
                    lambda *given, options: trimmed_embedding(*given, options=OPTIONS),
                )
            model = classifier(tiny, body, labels=ABC, kind="classification", seed=1)
            finetune(model, data, None, options=options, metric="accuracy", seed=0)
            ends[trims] = body_of(model)
    key = next(k for k in body if k.endswith("word_embeddings.weight"))
    assert all(torch.equal(ends["ours"][k], ends["never"][k]) for k in body)
    assert not torch.allclose(ends["ours"][key], ends["always"][key], atol=1e-4)
    absent = torch.ones(len(body[key]), dtype=torch.bool)
    absent[[*data.ids.tolist(), data.padding]] = False
    assert torch.equal(ends["ours"][key][absent], body[key][absent])
    assert not torch.equal(ends["ours"][key][~absent], body[key][~absent])


def test_an_error_puts_the_whole_back(tiny) -> None:
    _, body = starting_model(tiny, seed=0)
    model = classifier(tiny, body, labels=ABC, kind="classification", seed=1)
    trimmed = trimmed_embedding(model, some(tiny, 4), options=OPTIONS)
    with pytest.raises(ZeroDivisionError), trimmed:
        raise ZeroDivisionError
    assert all(torch.equal(body_of(model)[key], body[key]) for key in body)
