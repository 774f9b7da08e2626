"""`cold-flower fuse`: tied tensors are one, whichever of their names a file holds."""

import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from cold_flower.commands.offline import fuse
from cold_flower.errors import ModelError
from cold_flower.models.folder import Folder
from strategies.fusion import load
from tests.test_offline import AVERAGE, broken, reconfigured

SHARED = "shared.weight"
ALIASES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
OLD = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


def written(to, source, change):
    """Copy a folder and change its tensors."""
    shutil.copytree(source, to)
    broken(to, change)
    return Folder(str(to))


def shifted(tensors, by):
    for key in tensors:
        if tensors[key].is_floating_point():
            torch.manual_seed(len(key))
            tensors[key] += by * torch.randn(tensors[key].shape)


def stored_as(tensors, names):
    """Store the shared embedding under these names."""
    shared = tensors.pop(SHARED)
    tensors |= {name: shared.clone() for name in names}


@pytest.fixture(scope="module")
def t5(folders):
    return folders("t5", "T5ForConditionalGeneration")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ([SHARED], [SHARED, *ALIASES]),
        ([SHARED, *ALIASES], [SHARED]),
        ([SHARED, "lm_head.weight"], [ALIASES[0]]),
        ([ALIASES[1]], [SHARED, ALIASES[0], ALIASES[1]]),
        ([SHARED, *ALIASES], ["lm_head.weight"]),
        ([SHARED, *ALIASES], [SHARED, *ALIASES]),
    ],
)
def test_t5s_embedding_is_one_tensor(t5, tmp_path, ours, theirs) -> None:
    def model(tensors, names):
        shifted(tensors, 0.1)
        stored_as(tensors, names)

    rule = load("dare")
    plain = [
        written(tmp_path / "p" / "base", t5, lambda _: None),
        written(tmp_path / "p" / "m", t5, lambda tensors: model(tensors, [SHARED])),
    ]
    base = written(tmp_path / "base", t5, lambda tensors: stored_as(tensors, ours))
    given = written(tmp_path / "m", t5, lambda tensors: model(tensors, theirs))
    plain[1].name = given.name  # dare draws by name
    assert fuse(rule, plain[0], [plain[1]], tmp_path / "expected", "", seed=3) == []
    assert fuse(rule, base, [given], tmp_path / "out", "", seed=3) == []

    found = load_file(tmp_path / "out" / "model.safetensors")
    expected = load_file(tmp_path / "expected" / "model.safetensors")
    assert not torch.equal(expected[SHARED], plain[0][SHARED])
    assert found.keys() == set(base)
    for name in ours:
        assert torch.equal(found[name], expected[SHARED]), name
    assert all(torch.equal(found[key], expected[key]) for key in found.keys() & expected.keys())
    loaded = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert loaded.lm_head.weight is loaded.shared.weight
    assert loaded.encoder.embed_tokens.weight is loaded.shared.weight
    assert torch.equal(loaded.shared.weight, expected[SHARED])


def test_an_lm_head_of_its_own_is_fused_apart(t5, tmp_path) -> None:
    """T5 1.1, whose configuration says tie_word_embeddings = false."""

    def model(tensors, by=0.0):
        torch.manual_seed(1)
        tensors["lm_head.weight"] = torch.randn(tensors[SHARED].shape)
        tensors["lm_head.weight"] += 2 * by
        tensors[SHARED] += by
        tensors["encoder.embed_tokens.weight"] = tensors[SHARED].clone()

    base = written(tmp_path / "base", t5, model)
    given = written(tmp_path / "m", t5, lambda tensors: model(tensors, 0.5))
    for folder in (base, given):
        reconfigured(folder.path, tie_word_embeddings=False, scale_decoder_outputs=False)
    fuse(AVERAGE, Folder(base.name), [Folder(given.name)], tmp_path / "out", "")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.allclose(found["lm_head.weight"], base["lm_head.weight"] + 1)
    assert torch.allclose(found[SHARED], base[SHARED] + 0.5)
    assert torch.equal(found["encoder.embed_tokens.weight"], found[SHARED])
    loaded = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded.lm_head.weight, found["lm_head.weight"])
    assert not loaded.config.scale_decoder_outputs


def test_a_head_that_was_untied_is_refused(t5, tmp_path) -> None:
    def untie(tensors):
        tensors["lm_head.weight"] = tensors[SHARED] + 1

    model = written(tmp_path / "m", t5, untie)
    with pytest.raises(ModelError, match="lm_head.weight is a tensor of its own, in the base"):
        fuse(AVERAGE, Folder(str(t5)), [model], tmp_path / "out", "")


def test_a_t5_made_a_classifier_has_another_prefix(t5, tmp_path) -> None:
    whole = transformers.T5ForSequenceClassification.from_pretrained(t5, num_labels=3)
    with torch.no_grad():
        whole.transformer.shared.weight += 1
    whole.save_pretrained(tmp_path / "m")
    fuse(AVERAGE, Folder(str(t5)), [Folder(str(tmp_path / "m"))], tmp_path / "out", "")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.allclose(found[SHARED], load_file(t5 / "model.safetensors")[SHARED] + 1)


@pytest.mark.parametrize("in_base", [True, False])
def test_what_transformers_does_not_read_is_ignored(t5, tmp_path, in_base) -> None:
    def older(tensors):
        tensors[OLD] = torch.full((32, 2), float("nan"))
        tensors["encoder.position_ids"] = torch.arange(7)

    folders = [written(tmp_path / "m", t5, older), Folder(str(t5))]
    base, model = folders if in_base else folders[::-1]
    assert fuse(AVERAGE, base, [model], tmp_path / "out", "") == []
    transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "out")


MASKED = {
    "bert": ("BertForMaskedLM", "cls.predictions.decoder.weight"),
    "roberta": ("RobertaForMaskedLM", "lm_head.decoder.weight"),
    "distilbert": ("DistilBertForMaskedLM", "vocab_projector.weight"),
    "electra": ("ElectraForMaskedLM", "generator_lm_head.weight"),
    "mpnet": ("MPNetForMaskedLM", "lm_head.decoder.weight"),
    "modernbert": ("ModernBertForMaskedLM", "decoder.weight"),
    "deberta-v2": ("DebertaV2ForMaskedLM", "cls.predictions.decoder.weight"),
}


@pytest.mark.parametrize("family", MASKED)
@pytest.mark.parametrize("held", ["both", "head"])
def test_a_decoder_that_is_tied_follows_the_embedding(folders, tmp_path, family, held) -> None:
    name, head = MASKED[family]
    source = folders(family, name)
    (words,) = (
        k
        for k in Folder(str(source))
        if k.endswith(("word_embeddings.weight", "tok_embeddings.weight"))
    )

    def alias(tensors):
        tensors[head] = tensors[words].clone()
        if held == "head":
            del tensors[words]

    def model(tensors):
        tensors[words] += 1
        tensors[head] = torch.zeros(tensors[words].shape)  # a head, and so its own affair

    base = written(tmp_path / "base", source, alias)
    given = written(tmp_path / "m", source, model)
    assert fuse(AVERAGE, base, [given], tmp_path / "out", "") == []
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == set(base)
    assert torch.allclose(found[head], base[head] + 1)
    loaded = getattr(transformers, name).from_pretrained(tmp_path / "out").state_dict()
    assert loaded[head].data_ptr() == loaded[words].data_ptr()
    assert torch.equal(loaded[words], found[head])


def test_a_decoder_that_is_not_tied_is_a_head(folders, tmp_path) -> None:
    source = folders("bert", "BertForMaskedLM", tie_word_embeddings=False)
    tensors = load_file(source / "model.safetensors")
    head, words = "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"
    tensors[head] = tensors[words].clone()  # equal, but by chance
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    given = written(tmp_path / "m", source, lambda tensors: tensors[words].add_(1))
    fuse(AVERAGE, Folder(str(source)), [given], tmp_path / "out", "")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(found[head], tensors[head])
    assert torch.allclose(found[words], tensors[words] + 1)
