"""Finetuning on a GPU, without one: torch's meta device knows no values, and so cannot be asked."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification, T5ForConditionalGeneration

from cold_flower.config import PROTOCOLS, Config, Finetune
from cold_flower.data.encode import EncodedSplits
from cold_flower.models import first_token, gpus
from cold_flower.models.base import load_base
from cold_flower.models.families import OWN_ATTENTION, PREFIXES
from cold_flower.models.starting import starting_model
from cold_flower.models.text_to_text import TextToText, label_tokens
from cold_flower.training.finetune import accumulate_gradients
from cold_flower.training.protocols import evaluate
from tests.conftest import _tiny_config
from tests.test_encode import some

META = torch.device("meta")
FAMILIES = sorted(set(PREFIXES) - set(OWN_ATTENTION))


def step(family, data, *, adapted=True):
    """One step up to the optimizer's, where asking for any value is an error."""
    config = _tiny_config(family)
    config.num_labels = 3
    model = AutoModelForSequenceClassification.from_config(config).to(META).train()
    if adapted:
        gpus.adapt(model)
        first_token.adapt(model)
    options = Finetune(precision="fp32", micro_batch_size=4)
    loss = accumulate_gradients(model, data.to(META), [0, 1, 2, 3, 4], options)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    return loss, [name for name, p in model.named_parameters() if p.grad is None]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_step_waits_for_the_gpu(tiny, family) -> None:
    loss, left_out = step(family, some(tiny, 5))
    assert loss.device == META
    assert not left_out


def test_transformers_own_masks_would_wait(tiny) -> None:
    with pytest.raises(RuntimeError, match="item"):
        step("bert", some(tiny, 5), adapted=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_outputs_are_those_of_the_library(tiny, family) -> None:
    torch.manual_seed(0)
    config = _tiny_config(family)
    config.initializer_range = 0.5  # at 0.02 so small a model gives all examples the same
    model = AutoModelForSequenceClassification.from_config(config).eval()
    data = some(tiny, 12)  # of different lengths, and one alone, without padding

    def compute():
        for batch in (data.batch(range(12)), data.batch([3])):
            logits = model(**batch).logits
            yield logits, torch.autograd.grad(logits.square().sum(), [*model.parameters()])

    stock = [*compute()]
    assert stock[0][0].std(0).min() > 0.1
    gpus.adapt(model)
    first_token.adapt(model)
    assert model.config._attn_implementation == gpus.ATTENTION
    for (ours, mine), (theirs, its) in zip(compute(), stock, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
        assert all(
            torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(mine, its, strict=True)
        )


def test_t5_makes_its_masks_here_too(folders) -> None:
    base = load_base(str(folders("t5", "T5ForConditionalGeneration")))
    words = label_tokens(base.tokenizer, ("nome", "karo", "zoda"))
    model = TextToText(T5ForConditionalGeneration(base.config), words).eval()
    data = some(base, 5)
    with torch.inference_mode():
        stock = model(**data.batch(range(5))).logits
        gpus.adapt(model)
        assert torch.allclose(model(**data.batch(range(5))).logits, stock, atol=1e-5)
    options = Finetune(precision="fp32")
    loss = accumulate_gradients(model.to(META).train(), data.to(META), [0, 1, 2], options)
    assert loss.device == META


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu_everything_works(tiny) -> None:
    body = starting_model(tiny, seed=0)[1]
    data = some(tiny, 40)
    splits = EncodedSplits(data, data, data, ("a", "b", "c"), "classification", "accuracy")
    few = {"few-shot.examples": 9, "finetune.max-epochs": 2, "finetune.batch-size": 8}
    scores, _ = evaluate(
        tiny, body, splits, PROTOCOLS, Config.from_flat(few), dict.fromkeys(PROTOCOLS, 0)
    )
    assert all(0 <= score <= 1 for score in scores.values())
