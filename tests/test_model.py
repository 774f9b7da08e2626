"""Body and head by name, for every family; strict loading; what is published."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy, mse_loss
from transformers import AutoModel, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from cold_flower.config import Finetune
from cold_flower.data.encode import encode
from cold_flower.errors import ModelError, RunError
from cold_flower.identity import versions
from cold_flower.models.base import load_base
from cold_flower.models.body import body_of, head_parameters, load_body, prefix_of
from cold_flower.models.classifier import classifier
from cold_flower.models.families import BEHIND_PADDING, PREFIXES
from cold_flower.models.folder import WEIGHTS, Folder
from cold_flower.models.starting import save_starting_model, starting_model
from cold_flower.repository.bases import Repository
from cold_flower.repository.journal import CONFIG
from cold_flower.repository.start import MODEL, check_start, described
from cold_flower.training.finetune import finetune
from cold_flower.training.probe import extract_features, head_logits
from cold_flower.training.scoring import autocast, logits_of
from strategies.fusion import Weights, fingerprint
from tests.test_encode import some

# A starting model of each kind: bare, with a language-model head, with a classifier.
STARTS = {
    "albert": ("AlbertModel", "AlbertForMaskedLM", "AlbertForSequenceClassification"),
    "camembert": ("CamembertModel", "CamembertForMaskedLM"),
    "xlm-roberta": (
        "XLMRobertaModel",
        "XLMRobertaForMaskedLM",
        "XLMRobertaForSequenceClassification",
    ),
    "bert": ("BertModel", "BertForMaskedLM", "BertForSequenceClassification"),
    "roberta": ("RobertaModel", "RobertaForMaskedLM"),
    "distilbert": ("DistilBertModel", "DistilBertForMaskedLM"),
    "electra": ("ElectraModel", "ElectraForPreTraining"),
    "mpnet": ("MPNetModel", "MPNetForMaskedLM"),
    "deberta-v2": ("DebertaV2Model", "DebertaV2ForMaskedLM", "DebertaV2ForSequenceClassification"),
    "modernbert": ("ModernBertModel", "ModernBertForMaskedLM"),
    "t5": ("T5ForConditionalGeneration",),
}
PAIRS = [(family, name) for family, names in STARTS.items() for name in names]
ENCODERS = sorted(set(PREFIXES) - {"t5"})
ABC = ("nome", "karo", "zoda")  # the labels of three classes


def first_base(folder, run_dir):
    """Publish a folder's model as base 0; return it, its body and the repository."""
    base = load_base(str(folder))
    model, body = starting_model(base, seed=0)
    repository = Repository(run_dir)
    said = {MODEL: described(base)}
    repository.create(lambda to: save_starting_model(model, base, to), body, prefix_of(model), said)
    return model, body, repository


def test_every_supported_family_is_tested() -> None:
    assert set(STARTS) == set(PREFIXES)


@pytest.mark.parametrize(("family", "start"), PAIRS)
class TestFamilies:
    def test_the_body_is_the_classifiers_base_model(self, folders, family, start) -> None:
        base = load_base(str(folders(family, start)))
        model, body = starting_model(base, seed=0)
        kind = AutoModelForSeq2SeqLM if family == "t5" else AutoModelForSequenceClassification
        want = kind.from_config(base.config).base_model
        assert body.keys() == {name for name, _ in want.named_parameters()}  # a tied one once
        assert all(t.dtype == torch.float32 for t in body.values())
        shared = body_of(model).keys() & body.keys()
        assert shared, "the checkpoint's own tensors reach the body"
        assert all(torch.equal(body[k], body_of(model)[k]) for k in shared)

    def test_what_is_published_loads_as_the_start_did(
        self, folders, tmp_path, family, start
    ) -> None:
        folder = folders(family, start)
        model, body, repository = first_base(folder, tmp_path)
        begun = AutoModel.from_pretrained(folder).state_dict()
        again = AutoModel.from_pretrained(repository.path(0)).state_dict()
        in_checkpoint = begun.keys() & body_of(model).keys()  # not what AutoModel adds
        assert all(torch.equal(begun[k], again[k]) for k in in_checkpoint)
        moved = {k: t + 1 for k, t in body.items()}
        repository.publish(1, 0, Weights(moved), {})
        loaded = AutoModel.from_pretrained(tmp_path / "iterations" / "latest").state_dict()
        assert all(torch.equal(loaded[k], moved[k]) for k in moved.keys() & loaded.keys())
        assert fingerprint(repository.body(1).items()) == fingerprint(moved.items())
        own = type(model).from_pretrained(repository.path(1)).state_dict()
        # Outside the body the file is as it was; tied tensors are in it once, in the body.
        file = Weights(repository.path(1) / WEIGHTS)
        head = [k for k in file.keys() if k.removeprefix(prefix_of(model)) not in body]
        assert all(torch.equal(own[k], model.state_dict()[k]) for k in head)

    def test_a_run_knows_the_weights_that_it_began_with(
        self, folders, tmp_path, family, start
    ) -> None:
        folder = folders(family, start)
        _, body, repository = first_base(folder, tmp_path)
        check_start(repository, str(folder))
        stored = load_file(folder / WEIGHTS)
        of_body = [name for key, name in Folder(str(folder)).body.items() if key in body]
        assert len(of_body) >= len(body) - 2, "all but a pooler is compared"
        for name in (of_body[0], of_body[-1]):
            changed = {**stored, name: stored[name] + 1e-3}
            save_file(changed, folder / WEIGHTS, {"format": "pt"})
            with pytest.raises(RunError, match="holds other weights than when that run began"):
                check_start(repository, str(folder))
        save_file(stored, folder / WEIGHTS, {"format": "pt"})
        (tmp_path / CONFIG).write_text(json.dumps({"versions": versions()}))
        file = folder / "tokenizer.json"
        other = json.loads(file.read_text())
        words = other["model"]["vocab"]
        first, *_, last = [word for word in words if word.isalpha()]
        words[first], words[last] = words[last], words[first]
        file.write_text(json.dumps(other))
        load_base.cache_clear()
        with pytest.raises(RunError, match="holds another shape or tokenizer than when that run"):
            check_start(repository, str(folder))


POOLINGS = {"modernbert": ("cls", "mean")}  # what a family's head may read


@pytest.mark.parametrize(
    ("family", "pooling"), [(f, p) for f in ENCODERS for p in POOLINGS.get(f, ("",))]
)
def test_the_probe_sees_what_the_whole_model_sees(folders, family, pooling) -> None:
    changes = {"initializer_range": 0.5}  # at 0.02 all examples look alike in so small a model
    if pooling:
        changes["classifier_pooling"] = pooling
    base = load_base(str(folders(family, STARTS[family][-1], **changes)))
    _, body = starting_model(base, seed=0)
    model = classifier(base, body, labels=ABC, kind="classification", seed=1)
    data = some(base, 9)
    direct = logits_of(model, data, "fp32")
    cached = head_logits(model, extract_features(model, data, "fp32"))
    assert torch.allclose(direct, cached, atol=1e-5)
    assert direct.std(0).min() > 0.1, "the examples differ"


@pytest.mark.parametrize("family", ENCODERS)
def test_the_loss_is_float32_whatever_the_products_are(folders, family) -> None:
    base = load_base(str(folders(family, STARTS[family][0])))
    _, body = starting_model(base, seed=0)
    batch = some(base, 8).batch(range(8))
    cases = (
        ("classification", ABC, torch.arange(8) % 3, cross_entropy),
        ("regression", ("",), torch.arange(8) / 8, lambda a, b: mse_loss(a[:, 0], b)),
    )
    for kind, labels, targets, want in cases:
        model = classifier(base, body, labels=labels, kind=kind, seed=1).eval()
        for precision in ("fp32", "bf16"):
            with autocast(model.device, precision):
                out = model(**batch, labels=targets)
            assert out.loss.dtype == torch.float32
            assert torch.allclose(out.loss, want(out.logits.float(), targets), atol=1e-6)


@pytest.mark.parametrize("family", PREFIXES)
def test_every_family_trains_in_bfloat16(folders, family) -> None:
    base = load_base(str(folders(family, STARTS[family][0])))
    _, body = starting_model(base, seed=0)
    model = classifier(base, body, labels=ABC, kind="classification", seed=1)
    options = Finetune(learning_rate=1e-3, batch_size=8, max_epochs=2, precision="bf16")
    data = some(base, 24)
    outcome = finetune(model, data, data, options=options, metric="accuracy", seed=0)
    assert math.isfinite(outcome.train_loss)
    trained = body_of(model)
    assert all(trained[k].dtype == torch.float32 for k in body)
    assert not all(torch.equal(trained[k], body[k]) for k in body)


@pytest.mark.parametrize("family", PREFIXES)
def test_a_text_has_the_positions_that_there_are(folders, family) -> None:
    folder = folders(family, STARTS[family][0])
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["model_max_length"] = 10**30  # as many tokenizers say
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    base = load_base(str(folder))
    data = encode(base.tokenizer, [("nome " * 100,)], [0], max_length=64)
    room = 38 if family in BEHIND_PADDING else 64 if family == "t5" else 40
    assert data.lengths().tolist() == [room]
    _, body = starting_model(base, seed=0)
    model = classifier(base, body, labels=ABC, kind="classification", seed=1)
    assert logits_of(model, data, "fp32").shape == (1, 3)


def test_a_head_is_fresh_from_its_seed_and_never_in_the_body(tiny) -> None:
    _, body = starting_model(tiny, seed=0)
    a, b, c = (classifier(tiny, body, labels=ABC, kind="classification", seed=s) for s in (1, 1, 2))
    assert fingerprint(a.state_dict().items()) == fingerprint(b.state_dict().items())
    assert fingerprint(a.state_dict().items()) != fingerprint(c.state_dict().items())
    assert fingerprint(body_of(a).items()) == fingerprint(body_of(c).items())
    names = {n for n, p in a.named_parameters() if any(p is h for h in head_parameters(a))}
    assert names == {n for n, _ in a.named_parameters() if n.startswith("classifier.")}


def test_making_a_model_leaves_the_global_generator_alone(tiny) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    _, body = starting_model(tiny, seed=0)
    classifier(tiny, body, labels=ABC, kind="classification", seed=1)
    assert torch.equal(before, torch.get_rng_state())


def test_loading_is_strict_by_name_and_shape(tiny) -> None:
    model, body = starting_model(tiny, seed=0)
    name = "embeddings.word_embeddings.weight"
    with pytest.raises(ModelError, match=f"{name} is in one model only"):
        load_body(model, {k: t for k, t in body.items() if k != name})
    with pytest.raises(ModelError, match=rf"{name} has shape \(2, 2\), expected \(389, 64\)"):
        load_body(model, {**body, name: torch.zeros(2, 2)})


def test_a_model_that_is_not_supported_or_not_there(tmp_path, folders) -> None:
    from transformers import GPT2Config

    GPT2Config(architectures=["GPT2LMHeadModel"]).save_pretrained(tmp_path)
    from cold_flower.models import demo as demo_model

    demo_model.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"GPT2LMHeadModel.*Supported: albert, bert, camembert"):
        load_base(str(tmp_path))
    with pytest.raises(ModelError, match=r"'no-such/model' cannot be loaded.*absolute path"):
        load_base("no-such/model")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_base(str(tmp_path / "missing"))


def test_the_fingerprint_is_of_shape_and_words(folders) -> None:
    a, b = (load_base(str(folders("roberta", c))) for c in STARTS["roberta"])
    assert a.sha256 == b.sha256  # another head, another folder, the same body
    a.tokenizer(["x"], truncation=True, max_length=4)
    load_base.cache_clear()
    assert load_base(a.name).sha256 == a.sha256 != load_base("demo").sha256


def test_a_head_is_drawn_from_its_seed_alone(folders) -> None:
    base = load_base(str(folders("roberta", "RobertaModel")))
    deeper = load_base(str(folders("roberta", "RobertaModel", num_hidden_layers=3)))

    def head(of, seed):
        _, body = starting_model(of, seed=0)
        model = classifier(of, body, labels=ABC, kind="classification", seed=seed)
        return [p.detach() for p in head_parameters(model)]

    first = head(base, 1)
    assert all(torch.equal(a, b) for a, b in zip(first, head(deeper, 1), strict=True))
    assert not torch.equal(first[0], head(base, 2)[0])
    for weight in (p for p in first if p.ndim > 1):  # as the library draws it
        assert float(weight.std()) == pytest.approx(base.config.initializer_range, rel=0.2)
    assert all(not p.any() for p in first if p.ndim == 1)
