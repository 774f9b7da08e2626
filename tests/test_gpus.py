"""Finetuning on a GPU, without one: torch's meta device knows no values, and so cannot be asked."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from cold_flower import gpus
from cold_flower.config import Finetune
from cold_flower.finetune import accumulate
from tests.conftest import _tiny_config
from tests.test_encode import some

META = torch.device("meta")
FAMILIES = ("bert", "roberta", "electra", "modernbert", "distilbert")


def step(family, data, *, adapted=True):
    """One step up to the optimizer's, where asking for any value is an error."""
    config = _tiny_config(family)
    config.num_labels = 3
    model = AutoModelForSequenceClassification.from_config(config).to(META).train()
    if adapted:
        gpus.adapt(model)
    options = Finetune(precision="fp32", micro_batch_size=4)
    loss = accumulate(model, data.to(META), [0, 1, 2, 3, 4], options)
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
    model = AutoModelForSequenceClassification.from_config(_tiny_config(family)).eval()
    data = some(tiny, 12)  # of different lengths, and one alone, without padding
    with torch.inference_mode():
        batches = data.batch(range(12)), data.batch([3])
        stock = [model(**batch).logits for batch in batches]
        gpus.adapt(model)
        assert model.config._attn_implementation == gpus.ATTENTION
        ours = [model(**batch).logits for batch in batches]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, stock, strict=True))
