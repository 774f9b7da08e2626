"""Dropout and attention on cores are torch's, but for the random numbers."""

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForSequenceClassification

from cold_flower.models.base import load_base
from cold_flower.models.classifier import classifier
from cold_flower.models.cores import ATTENTION, Dropout, attention, scaled_mask
from cold_flower.models.families import OWN_ATTENTION, PREFIXES
from cold_flower.models.starting import starting_model
from tests.test_model import ABC, STARTS


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_drops_its_share_in_every_lane(p, dtype) -> None:
    torch.manual_seed(0)
    n = 400_000
    drawn = scaled_mask(torch.empty(n, dtype=dtype), p)
    assert drawn.dtype == dtype
    kept = 65_536 / (65_536 - round(p * 65_536))
    assert set(drawn.unique().tolist()) == {0.0, torch.tensor(kept, dtype=dtype).item()}
    shares = [float((drawn[lane::4] == 0).double().mean()) for lane in range(4)]
    error = (p * (1 - p) / (n / 4)) ** 0.5
    assert all(abs(share - p) < 4 * error + 2**-17 for share in shares)
    together = ((drawn[::4] == 0) & (drawn[1::4] == 0)).double().mean()  # independent lanes
    assert abs(together - p * p) < 4 * (p * p / (n / 4)) ** 0.5


def test_a_mask_is_that_of_its_seed_and_of_any_shape() -> None:
    def draw(seed, *shape):
        torch.manual_seed(seed)
        return scaled_mask(torch.empty(*shape), 0.5)

    assert torch.equal(draw(0, 3, 5), draw(0, 3, 5))
    assert not torch.equal(draw(0, 30, 5), draw(1, 30, 5))
    assert draw(0, 0).shape == (0,)
    assert draw(0, 1, 1, 7).shape == (1, 1, 7)
    assert torch.equal(scaled_mask(torch.empty(9), 0.0), torch.ones(9))
    assert torch.equal(scaled_mask(torch.empty(9), 1.0), torch.zeros(9))


def test_dropout_is_silent_unless_it_trains() -> None:
    x, layer = torch.randn(50, 50, requires_grad=True), Dropout(0.5)
    assert torch.equal(layer.eval()(x), x)
    y = layer.train()(x)
    y.sum().backward()
    assert torch.allclose(y, x * x.grad)
    assert set(x.grad.unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_torchs(dtype, masked) -> None:
    torch.manual_seed(0)
    heads = [torch.randn(2, 3, 7, 8, dtype=dtype, requires_grad=True) for _ in range(3)]
    mask = None
    if masked:
        mask = torch.zeros(2, 1, 7, 7)
        mask[1, ..., 4:] = torch.finfo(torch.float32).min  # of a shorter text
    module = torch.nn.Module()
    got, none = attention(module, *heads, mask, scaling=0.3, dropout=1e-9)  # rounds to none
    bias = None if mask is None else mask.to(dtype)
    want = functional.scaled_dot_product_attention(*heads, attn_mask=bias, scale=0.3)
    assert none is None
    close = {"atol": 1e-6} if dtype == torch.float32 else {"atol": 3e-2}
    assert torch.allclose(got, want.transpose(1, 2), **close)
    along = torch.randn_like(got)
    ours = torch.autograd.grad(got, heads, along)
    theirs = torch.autograd.grad(want, heads, along.transpose(1, 2))
    assert all(torch.allclose(a, b, **close) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("masked", [False, True])
def test_the_gradients_of_attention_that_drops_something(masked) -> None:
    torch.manual_seed(0)
    heads = [torch.randn(2, 2, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    mask = torch.zeros(2, 1, 5, 5)
    mask[1, ..., 3:] = torch.finfo(torch.float32).min

    def mix(*heads):
        torch.manual_seed(1)
        return attention(torch.nn.Module(), *heads, mask if masked else None, dropout=0.3)[0]

    assert torch.autograd.gradcheck(mix, heads)
    torch.manual_seed(1)
    kept = scaled_mask(torch.empty(2, 2, 5, 5, dtype=torch.float64), 0.3)
    assert 0 < (kept == 0).sum() < kept.numel() / 2
    query, key, value = heads
    scores = query @ key.mT / 2 + (mask if masked else 0)
    assert torch.allclose(mix(*heads), (scores.softmax(-1) * kept @ value).transpose(1, 2))


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_attention_keeps_each_weight_and_its_scaled_mask(dtype, size) -> None:
    tokens, kept = 50, 0
    heads = [torch.randn(2, 3, tokens, 8, dtype=dtype, requires_grad=True) for _ in range(3)]

    def count(tensor):
        nonlocal kept
        kept += tensor.numel() * size * (tensor.shape[-1] == tokens)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        attention(torch.nn.Module(), *heads, None, dropout=0.1)
    assert kept == 2 * size * (2 * 3 * tokens * tokens)


def test_only_families_with_their_own_attention_keep_it(folders) -> None:
    for family in PREFIXES:
        base = load_base(str(folders(family, STARTS[family][0])))
        body = starting_model(base, seed=0)[1]
        model = classifier(base, body, labels=ABC, kind="classification", seed=1)
        ours = model.config._attn_implementation == ATTENTION
        assert ours == (family not in OWN_ATTENTION), family


@pytest.mark.parametrize("family", sorted(set(PREFIXES) - {"t5"}))
def test_a_model_without_dropout_computes_what_transformers_does(folders, family) -> None:
    base = load_base(str(folders(family, STARTS[family][0])))
    _, body = starting_model(base, seed=0)
    model = classifier(base, body, labels=ABC, kind="classification", seed=1)
    config = type(base.config).from_dict({**base.config.to_dict(), "num_labels": len(ABC)})
    stock = AutoModelForSequenceClassification.from_config(config)  # with torch's attention
    ours, theirs = (m.config._attn_implementation for m in (model, stock))
    assert (ours, theirs) in {(ATTENTION, "sdpa"), ("eager", "eager")}
    assert not any(type(m) is torch.nn.Dropout for m in model.modules())
    stock.load_state_dict(model.state_dict())
    ids = torch.randint(5, 40, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, 9, dtype=torch.long)
    mask[1, 5:] = 0
    with torch.no_grad():
        for trained in (False, True):
            for m in (model, stock):
                m.train(trained)
                for module in m.modules():
                    if isinstance(module, torch.nn.Dropout):
                        module.p = 1e-9 if m is model else 0.0
            ours, theirs = (m(input_ids=ids, attention_mask=mask).logits for m in (model, stock))
            assert torch.allclose(ours, theirs, atol=1e-5)
