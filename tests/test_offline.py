"""`cold-flower fuse`: folders in, a folder out, nothing half-written."""

import errno
import json
import re
import shlex
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from cold_flower.commands import offline
from cold_flower.commands.offline import fuse
from cold_flower.errors import ConfigError, ModelError
from cold_flower.models.families import PREFIXES
from cold_flower.models.folder import Folder
from strategies.errors import FusionError
from strategies.fusion import load
from tests.test_cli import cold_flower

AVERAGE = load("average")


@pytest.fixture
def base(folders):
    return folders("roberta", "RobertaForMaskedLM")


@pytest.fixture
def finetuned(base, tmp_path):
    """Return a function that writes a finetuned copy with a head of its own."""

    def write(name, shift, *, dtype=torch.float32, shards=False):
        torch.manual_seed(len(name))
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
        with torch.no_grad():
            for parameter in model.base_model.parameters():
                parameter += shift
        size = "20KB" if shards else "1GB"
        model.to(dtype).save_pretrained(tmp_path / name, max_shard_size=size)
        return str(tmp_path / name)

    return write


def state(folder):
    return AutoModel.from_pretrained(folder, add_pooling_layer=False).state_dict()


def test_bodies_are_averaged_and_all_else_is_the_bases(base, finetuned, tmp_path) -> None:
    a = finetuned("a", 0.25)
    b = finetuned("b", 0.75, shards=True)
    assert len(list((tmp_path / "b").glob("*.safetensors"))) > 2
    done = cold_flower(
        "fuse", "average", "--base", str(base), "--out", "fused", a, b, cwd=tmp_path
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    out = tmp_path / "fused"
    before, after = state(base), state(out)
    for key, tensor in before.items():
        assert torch.allclose(after[key], tensor + 0.5, atol=1e-6), key
    files = [load_file(folder / "model.safetensors") for folder in (base, out)]
    assert files[0].keys() == files[1].keys()
    heads = [key for key in files[0] if not key.startswith("roberta.")]
    assert heads
    assert all(torch.equal(files[0][key], files[1][key]) for key in heads)
    assert AutoTokenizer.from_pretrained(out).get_vocab()
    text = (out / "README.md").read_text()
    assert "2 models fused by average" in text
    assert f"cold-flower fuse average --base {base}" in text
    assert not list(tmp_path.glob(".fused*"))


def test_mixed_dtypes_keep_the_bases(base, finetuned, tmp_path) -> None:
    models = [Folder(finetuned("a", 0.5, dtype=torch.bfloat16)), Folder(finetuned("b", 0.5))]
    fuse(AVERAGE, Folder(str(base)), models, tmp_path / "out", "")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert {t.dtype for t in found.values()} == {torch.float32}
    key = "roberta.encoder.layer.0.output.dense.weight"
    start = load_file(base / "model.safetensors")[key]
    assert torch.allclose(found[key], start + 0.5, atol=2e-3)


@pytest.mark.parametrize("family", PREFIXES)
def test_the_prefixes_are_the_librarys(folders, family) -> None:
    from tests.test_model import STARTS

    for name in STARTS[family]:
        folder = Folder(str(folders(family, name)))
        body = AutoModel.from_pretrained(folder.path).state_dict()
        floats = {k for k, t in body.items() if t.is_floating_point()}
        if family == "t5":
            assert set(folder.body) == set(folder)
        else:  # a pooler may be there only in memory
            assert {k for k in floats ^ set(folder.body) if "pooler" not in k} == set()


def test_a_family_of_the_library_that_we_do_not_list(tmp_path) -> None:
    from transformers import AlbertConfig, AlbertForMaskedLM

    shape = AlbertConfig(
        vocab_size=30, embedding_size=8, hidden_size=8, num_attention_heads=2, intermediate_size=8
    )
    AlbertForMaskedLM(shape).save_pretrained(tmp_path / "albert")
    body = Folder(str(tmp_path / "albert")).body
    assert "embeddings.word_embeddings.weight" in body
    assert not [key for key in body if "predictions" in key]


def test_old_checkpoints_call_a_layer_norm_otherwise(base, finetuned, tmp_path) -> None:
    def older(tensors):
        for key in [key for key in tensors if "LayerNorm" in key and "lm_head" not in key]:
            new = key.replace("LayerNorm.weight", "LayerNorm.gamma")
            tensors[new.replace("LayerNorm.bias", "LayerNorm.beta")] = tensors.pop(key)

    old = tmp_path / "old"
    shutil.copytree(base, old)
    broken(old, older)
    fuse(AVERAGE, Folder(str(old)), [Folder(finetuned("a", 0.5))], tmp_path / "out", "")
    files = [load_file(folder / "model.safetensors") for folder in (old, tmp_path / "out")]
    key = "roberta.embeddings.LayerNorm.gamma"
    assert torch.allclose(files[1][key], files[0][key] + 0.5)


def test_the_card_repeats_the_command() -> None:
    options = {"density": 0.5, "weights": {"a b": 2.0}, "then": "ties"}
    text = offline.card("dare", options, "my base", ["a b", "c"], seed=3)
    command = shlex.split(text.strip().splitlines()[-1])
    assert command[:5] == ["cold-flower", "fuse", "dare", "--base", "my base"]
    assert command[-2:] == ["a b", "c"]
    given = [command[i + 1] for i, word in enumerate(command) if word == "--option"]
    assert offline.parse_options(given) == options


def test_a_pooler_that_a_model_lacks_stays_the_bases(folders, tmp_path) -> None:
    base = folders("bert", "BertModel")
    without = folders("bert", "BertForMaskedLM")
    left = fuse(AVERAGE, Folder(str(base)), [Folder(str(without))], tmp_path / "out", "")
    assert left == ["pooler.dense.bias", "pooler.dense.weight"]
    files = [load_file(folder / "model.safetensors") for folder in (base, tmp_path / "out")]
    assert all(torch.equal(files[0][key], files[1][key]) for key in left)


def broken(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


KEY = "roberta.embeddings.word_embeddings.weight"


def nan(folder):
    broken(folder, lambda tensors: tensors[KEY].fill_(float("nan")))


def other_vocabulary(folder):
    broken(folder, lambda tensors: tensors.update({KEY: torch.zeros(7, 16)}))


def missing(folder):
    broken(folder, lambda tensors: tensors.pop(KEY))


def reconfigured(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def other_family(folder):
    reconfigured(folder, model_type="bert")


def more_heads(folder):
    reconfigured(folder, num_attention_heads=4)


def deeper(folder):
    key = "roberta.encoder.layer.2.output.dense.bias"
    broken(folder, lambda tensors: tensors.update({key: torch.zeros(16)}))


def quantised(folder):
    broken(folder, lambda tensors: tensors.update({KEY: tensors[KEY].to(torch.int8)}))


def float8(folder):
    key = "roberta.embeddings.position_embeddings.weight"
    broken(folder, lambda tensors: tensors.update({key: tensors[key].to(torch.float8_e4m3fn)}))


def no_table(folder):
    (folder / "config.json").write_text("[1, 2]")


def indexed(folder, weight_map):
    (folder / "model.safetensors").rename(folder / "shard.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def phantom(folder):
    indexed(folder, {"nowhere": "shard.safetensors"})


def pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:100])


def escape(folder):
    indexed(folder, {"x": "../a/model.safetensors"})


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (nan, "bad: tensor embeddings.word_embeddings.weight holds NaN or infinity"),
        (other_vocabulary, r"word_embeddings.weight has shape \(7, 16\), .* it has \(389, 16\)"),
        (missing, "bad has no tensor embeddings.word_embeddings.weight"),
        (deeper, "has no tensor encoder.layer.2.output.dense.bias, which .*bad has"),
        (more_heads, "bad has num_attention_heads = 4, the base .* 2: only models of one"),
        (quantised, "word_embeddings.weight is torch.int8, in the base .* torch.float32"),
        (float8, "position_embeddings.weight is F8_E4M3, which is not supported"),
        (other_family, "bad has model_type = 'bert', the base .* 'roberta'"),
        (no_table, "bad: not a readable transformers folder"),
        (phantom, "bad: not a readable transformers folder: .*nowhere"),
        (pickle, "no model.safetensors in"),
        (cut, "bad: not a readable transformers folder"),
        (escape, "leads to '../a/model.safetensors'"),
        (lambda folder: shutil.rmtree(folder), "bad: neither a folder nor to be had from the hub"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_does_not_fit_is_named_and_nothing_is_left(
    base, finetuned, tmp_path, harm, words
) -> None:
    good, bad = finetuned("good", 0.1), finetuned("bad", 0.2)
    harm(tmp_path / "bad")
    there = sorted(tmp_path.iterdir())
    with pytest.raises((ModelError, FusionError), match=words):
        fuse(AVERAGE, Folder(str(base)), [Folder(good), Folder(bad)], tmp_path / "out", "")
    assert sorted(tmp_path.iterdir()) == there


def test_no_space(base, finetuned, tmp_path, monkeypatch) -> None:
    models = [Folder(finetuned("a", 0.1))]
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(
        ModelError, match=r"no space for .*out: it takes [\d,]{6,} bytes, there are 1,000"
    ):
        fuse(AVERAGE, Folder(str(base)), models, tmp_path / "out", "")
    monkeypatch.undo()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(offline, "write_safetensors", full)
    with pytest.raises(OSError, match="No space left"):
        fuse(AVERAGE, Folder(str(base)), models, tmp_path / "out", "")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


def test_an_existing_folder_is_not_touched(base, finetuned, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match="exists: name a new folder"):
        fuse(AVERAGE, Folder(str(base)), [Folder(finetuned("a", 0.1))], tmp_path / "out", "")


def test_options_are_toml_or_text() -> None:
    given = offline.parse_options(["beta=0.2", "then=ties", "weights={a = 2}", 'name="x"'])
    assert given == {"beta": 0.2, "then": "ties", "weights": {"a": 2}, "name": "x"}
    with pytest.raises(ConfigError, match="expects key=value, got 'beta'"):
        offline.parse_options(["beta"])


def test_a_fuse_that_takes_long_says_how_far_it_is(base, finetuned, tmp_path, monkeypatch) -> None:
    model = finetuned("a", 0.5)  # before the patch: it takes a while
    monkeypatch.setattr("strategies.waiting.EVERY", 0.0001)
    done = cold_flower("fuse", "tsv", "--base", str(base), "--out", "x", model, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, *_, last = done.stdout.splitlines()
    of = sum(key.startswith("roberta.") for key in load_file(base / "model.safetensors"))
    assert re.fullmatch(rf"fusing: \d+ of {of} tensors, \d+ s", first)
    assert last.startswith("1 models fused by tsv: ")


def test_models_on_a_disk_have_no_steps(base, finetuned, tmp_path) -> None:
    models = [finetuned("a", 0.5), finetuned("b", 0.25)]
    done = cold_flower("fuse", "fednova", "--base", str(base), "--out", "x", *models, cwd=tmp_path)
    assert done.returncode == 1
    assert "which 2 of 2 contributions do not say: " in done.stderr
    assert "a model on a disk has none: take average" in " ".join(done.stderr.split())
    assert not (tmp_path / "x").exists()


def test_an_unknown_option_lists_the_valid_ones(base, tmp_path) -> None:
    done = cold_flower(
        "fuse", "average", "--base", str(base), "--out", "x", "--option", "beta=1", str(base),
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert "unknown option of fusion rule average 'beta'" in done.stderr
    assert list(tmp_path.iterdir()) == []
