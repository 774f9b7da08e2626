"""A base model is what its files say, or refused before anything starts: tokenizer and weights."""

import json
from io import BytesIO
from pathlib import Path

import pytest
import sentencepiece
import torch
import transformers
from safetensors.torch import load_file, save_file

from cold_flower.commands.rehearsal import rehearse
from cold_flower.config import Config
from cold_flower.contributors.site import load_site
from cold_flower.data import demo
from cold_flower.data.encode import encode
from cold_flower.errors import ModelError
from cold_flower.models.base import load_base
from cold_flower.models.classifier import classifier
from cold_flower.models.families import BEHIND_PADDING
from cold_flower.models.folder import WEIGHTS
from cold_flower.models.starting import save_starting_model, starting_model
from cold_flower.training.scoring import logits_of
from tests.test_encode import some
from tests.test_model import ABC, ENCODERS, STARTS

TEXT = "nome karo  zoda!"
FRAMED = {"pad_piece": "[PAD]", "bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"}
# How each family's sentencepiece model is made; its ids' distance from the tokenizer's; the frame.
SENTENCEPIECE = {
    "deberta-v2": ("spm.model", {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, **FRAMED}, 0),
    "t5": ("spiece.model", {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}, 0),
    "albert": (
        "spiece.model",
        {
            "pad_id": 0,
            "unk_id": 1,
            "bos_id": -1,
            "eos_id": -1,
            "control_symbols": ["[CLS]", "[SEP]", "[MASK]"],
        },
        0,
    ),
    "xlm-roberta": ("sentencepiece.bpe.model", {}, 1),
    "camembert": ("sentencepiece.bpe.model", {}, 4),
}
FRAMES = {"t5": ([], [1]), "albert": ([2], [3]), "xlm-roberta": ([0], [2]), "camembert": ([5], [6])}
WORDS = [word for concept in demo.vocabulary() for word in concept]


def pieces(family) -> bytes:
    """Train a small sentencepiece model on the demo's words."""
    model = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS),
        model_writer=model,
        vocab_size=60,
        minloglevel=3,
        **SENTENCEPIECE[family][1],
    )
    return model.getvalue()


def vocabulary(family) -> dict[str, bytes]:
    """Return the files in which a family's own tokenizer keeps its words."""
    if family in SENTENCEPIECE:
        return {SENTENCEPIECE[family][0]: pieces(family)}
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "[UNK]", "[PAD]", "[CLS]", "[SEP]"]
    if family == "roberta":
        letters = [*special, "Ġ", *sorted(set("".join(WORDS))), "no", "Ġno"]
        ids = json.dumps({token: i for i, token in enumerate(letters)})
        return {"vocab.json": ids.encode(), "merges.txt": "#version: 0.2\nn o\nĠ no\n".encode()}
    return {"vocab.txt": "\n".join([*special, "[MASK]", *WORDS[:99]]).encode()}


KINDS = sorted({"bert", "distilbert", "electra", "mpnet", "roberta", *SENTENCEPIECE})
_MADE: dict[str, dict[str, bytes]] = {}


@pytest.fixture
def native(folders):
    """Return a function that writes a model with its family's own vocabulary files alone."""

    def write(family, *, tokenizer_class=None, **changes) -> Path:
        folder = folders(family, STARTS[family][0], **changes)
        for path in folder.glob("tokenizer*"):
            path.unlink()
        if family not in _MADE:
            _MADE[family] = vocabulary(family)
        for name, data in _MADE[family].items():
            (folder / name).write_bytes(data)
        if tokenizer_class:
            settings = json.dumps({"tokenizer_class": tokenizer_class})
            (folder / "tokenizer_config.json").write_text(settings)
        return folder

    return write


@pytest.mark.parametrize("family", KINDS)
def test_a_familys_own_vocabulary_files_are_read(native, family, tmp_path) -> None:
    base = load_base(str(native(family)))
    model, body = starting_model(base, seed=0)
    data = encode(base.tokenizer, [(TEXT, "nome"), ("futu", "☃")], [0, 1], max_length=32)
    made = classifier(base, body, labels=ABC, kind="classification", seed=1)
    assert logits_of(made, data, "fp32").isfinite().all()
    save_starting_model(model, base, tmp_path / "again")  # as iteration 0 is published
    again = load_base(str(tmp_path / "again"))
    assert again.sha256 == base.sha256
    assert again.tokenizer(TEXT)["input_ids"] == base.tokenizer(TEXT)["input_ids"]


@pytest.mark.parametrize("family", SENTENCEPIECE)
@pytest.mark.parametrize("suffix", ["", "Tokenizer", "TokenizerFast"])
def test_tokens_are_those_of_sentencepiece_itself(native, family, suffix) -> None:
    name = {"deberta-v2": "DebertaV2", "xlm-roberta": "XLMRoberta"}.get(family, family.capitalize())
    base = load_base(str(native(family, tokenizer_class=name + suffix if suffix else None)))
    file, _, distance = SENTENCEPIECE[family]
    own = sentencepiece.SentencePieceProcessor(model_proto=_MADE[family][file])
    begin, end = FRAMES.get(family, ([1], [2]))
    for text in (TEXT, "futu", ""):
        ids = [i + distance for i in own.encode(text)]
        if family in ("xlm-roberta", "camembert"):  # their unknown token comes before the others
            ids = [3 if i == own.unk_id() + distance else i for i in ids]
        assert base.tokenizer(text)["input_ids"] == [*begin, *ids, *end]


@pytest.mark.parametrize("family", KINDS)
def test_missing_vocabulary_files_are_named(native, family) -> None:
    for file in vocabulary(family):
        folder = native(family)
        (folder / file).unlink()
        with pytest.raises(ModelError, match=rf"{folder}.*no {file}.*no tokenizer.json.*Copy"):
            load_base(str(folder))


def test_a_folder_without_any_tokenizer_is_refused_for_every_family(folders) -> None:
    for family in STARTS:
        folder = folders(family, STARTS[family][0])
        for path in folder.glob("tokenizer*"):
            path.unlink()
        with pytest.raises(ModelError, match=r"no tokenizer\.json, which would be enough"):
            load_base(str(folder))


@pytest.mark.parametrize("family", KINDS)
def test_tokenizer_json_alone_is_enough(native, family) -> None:
    folder = native(family)
    tokenizer = load_base(str(folder)).tokenizer
    for file in vocabulary(family):
        (folder / file).unlink()
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    load_base.cache_clear()
    alone = load_base(str(folder)).tokenizer
    assert alone(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]


SPACES = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}
SPLIT = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, SPACES]}
RUNS = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}
ENDS = {"type": "Strip", "strip_left": False, "strip_right": True}
FOLDED = ({"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Lowercase"})


@pytest.mark.parametrize(
    ("family", "before", "after", "cut"),
    [
        ("xlm-roberta", (), (), SPLIT),
        ("xlm-roberta", (), (ENDS, RUNS), SPACES),
        ("camembert", (), (ENDS, RUNS), SPACES),
        ("t5", (), (), SPLIT),
        ("t5", (), (ENDS, RUNS), SPACES),
        ("albert", FOLDED, (), SPLIT),
        ("albert", FOLDED, (RUNS,), SPACES),
        ("deberta-v2", (ENDS,), (RUNS,), SPACES),
    ],
)
def test_sentencepiece_as_transformers_4_wrote_it_is_read(
    native, family, before, after, cut
) -> None:
    """On the hub most tokenizer.json are of that version."""
    folder = native(family)
    tokenizer = load_base(str(folder)).tokenizer
    table = json.loads(tokenizer.backend_tokenizer.to_str())
    own = table["normalizer"] or {}
    mapped = [n for n in own.get("normalizers", [own]) if n.get("type") == "Precompiled"]
    table["normalizer"] = {"type": "Sequence", "normalizers": [*before, *mapped, *after]}
    table["pre_tokenizer"] = cut
    (folder / "tokenizer.json").write_text(json.dumps(table))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 512}))
    load_base.cache_clear()
    assert load_base(str(folder)).tokenizer(WORDS[:9])["input_ids"]


def test_a_cased_vocabulary_is_not_read_in_lower_case(folders) -> None:
    folder = folders("bert", "BertModel")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "The", "the"]
    ids = {word: i for i, word in enumerate(words)}
    transformers.BertTokenizer(vocab=ids, do_lower_case=False).save_pretrained(folder)
    assert load_base(str(folder)).tokenizer("The the")["input_ids"] == [2, 5, 6, 3]
    load_base.cache_clear()
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match="no tokenizer_config.json, and without it"):
        load_base(str(folder))


DAMAGED = {
    "spm.model": ("deberta-v2", b"no model", "its sentencepiece model is damaged"),
    "spiece.model": ("t5", b"", "no words, only special tokens"),
    "vocab.txt": ("bert", b"", "no words, only special tokens"),
    "vocab.json": ("roberta", b"{", "its tokenizer cannot be loaded"),
    "merges.txt": ("roberta", b"#version: 0.2\nn zz\n", "its tokenizer cannot be loaded"),
}


@pytest.mark.parametrize("file", DAMAGED)
def test_a_damaged_vocabulary_is_refused(native, file) -> None:
    family, data, said = DAMAGED[file]
    folder = native(family)
    (folder / file).write_bytes(data)
    with pytest.raises(ModelError, match=rf"{said}.*save_pretrained\(folder\)"):
        load_base(str(folder))
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n"
    (folder / file).write_bytes(pointer)
    with pytest.raises(ModelError, match=rf"{file} is a pointer of Git LFS.*git lfs pull"):
        load_base(str(folder))


def test_tokens_beyond_the_embedding_are_refused(folders) -> None:
    folder = folders("bert", "BertForMaskedLM")
    tokenizer = load_base(str(folder)).tokenizer
    rows = len(tokenizer)
    tokenizer.add_tokens(["xylophone", "yoke"])
    tokenizer.save_pretrained(folder)
    load_base.cache_clear()
    with pytest.raises(ModelError, match=rf"2 tokens.*'xylophone' is number {rows}.*is {rows}\."):
        load_base(str(folder))
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer))  # the way out
    model.save_pretrained(folder)
    base = load_base(str(folder))
    assert len(starting_model(base, 0)[1]["embeddings.word_embeddings.weight"]) == rows + 2
    assert rows + 1 in base.tokenizer("nome yoke")["input_ids"]


def test_tokenizers_that_are_not_written_in_rust_work_too(folders) -> None:
    """BERTweet is a RoBERTa whose words lie in vocab.txt and bpe.codes."""
    made = {}
    for words in ("nome karo", "nome zoda"):
        folder = folders("roberta", "RobertaModel")
        (folder / "tokenizer.json").unlink()
        settings = json.dumps({"tokenizer_class": "BertweetTokenizer"})
        (folder / "tokenizer_config.json").write_text(settings)
        (folder / "bpe.codes").write_text("")
        letters = sorted({f"{letter}@@" for letter in words} | set(words.replace(" ", "")))
        (folder / "vocab.txt").write_text("\n".join(f"{letter} 1" for letter in letters))
        made[words] = load_base(str(folder))
        assert len(set(made[words].tokenizer(words)["input_ids"])) > 5
    assert len({base.sha256 for base in made.values()}) == 2  # another vocabulary


def test_rows_beyond_the_tokenizer_are_usual(folders) -> None:
    folder = folders("bert", "BertModel", vocab_size=512)
    assert load_base(str(folder)).config.vocab_size == 512


@pytest.mark.parametrize("family", BEHIND_PADDING)
def test_positions_are_counted_from_the_padding_that_was_meant(folders, family) -> None:
    for ours in (None, 0):
        folder = folders(family, STARTS[family][0])
        change(folder, pad_token_id=ours)
        said = "null" if ours is None else "0"
        with pytest.raises(
            ModelError, match=rf"pad_token_id is {said} in config.*tokenizer's is 1"
        ):
            load_base(str(folder))


def change(folder, **keys) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **keys}))


@pytest.mark.parametrize("key", ["pad_token_id", "decoder_start_token_id"])
def test_t5_needs_a_token_to_begin_with(folders, key) -> None:
    folder = folders("t5", STARTS["t5"][0])
    change(folder, **{key: None})
    with pytest.raises(ModelError, match=rf"{key} in config.json is null"):
        load_base(str(folder))


@pytest.mark.parametrize("family", ENCODERS)
def test_elsewhere_padding_may_be_any_token(folders, family) -> None:
    """A tokenizer without one fills up with token 0, which the mask hides."""
    folder = folders(family, STARTS[family][0], initializer_range=0.5)
    if family not in BEHIND_PADDING:
        change(folder, pad_token_id=None)
    base = load_base(str(folder))
    base.tokenizer.pad_token = None
    model = classifier(base, starting_model(base, 0)[1], labels=ABC, kind="regression", seed=1)
    data = some(base, 9)
    assert data.padding == 0
    alone = torch.cat([logits_of(model, data.take([i]), "fp32") for i in range(9)])
    assert torch.allclose(logits_of(model, data, "fp32"), alone, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "start"), [("bert", "BertForMaskedLM"), ("t5", STARTS["t5"][0])]
)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_in_any_tensor_is_refused_by_name(folders, family, start, bad) -> None:
    folder = folders(family, start)
    whole = load_file(folder / WEIGHTS)
    for name, tensor in whole.items():
        spoilt = tensor.clone()
        spoilt.view(-1)[-1] = bad
        save_file({**whole, name: spoilt}, folder / WEIGHTS, {"format": "pt"})
        with pytest.raises(ModelError, match=rf"{folder}.*tensor {name} holds NaN or infinity"):
            starting_model(load_base(str(folder)), 0)


def test_a_checkpoint_without_part_of_the_body_is_refused(folders) -> None:
    for family, names in STARTS.items():
        folder = folders(family, names[-1])
        whole = load_file(folder / WEIGHTS)
        name = next(n for n in whole if n.endswith("weight") and whole[n].ndim == 2 and ".0." in n)
        if family == "albert":
            name = next(n for n in whole if "albert_layers" in n)
        save_file({k: t for k, t in whole.items() if k != name}, folder / WEIGHTS, {"format": "pt"})
        with pytest.raises(ModelError, match=rf"lack 1 of the model's .*{name[-20:]}\."):
            starting_model(load_base(str(folder)), 0)
        other = {f"module.{k}": t for k, t in whole.items()}  # as DataParallel names them
        save_file(other, folder / WEIGHTS, {"format": "pt"})
        with pytest.raises(ModelError, match=r"weights lack \d\d of the model's \d\d tensors"):
            starting_model(load_base(str(folder)), 0)


def test_a_vocabulary_size_that_is_not_the_embeddings_is_refused(folders) -> None:
    folder = folders("bert", "BertModel")  # whose tokenizer has 389 tokens, as many as rows
    change(folder, vocab_size=400)
    with pytest.raises(ModelError, match=r"word_embeddings.weight is \[389, 16\] in its weights"):
        starting_model(load_base(str(folder)), 0)


def test_loading_says_nothing_but_errors(folders, capfd) -> None:
    base = load_base(str(folders("bert", "BertForMaskedLM")))
    capfd.readouterr()
    transformers.logging.set_verbosity_info()
    try:
        starting_model(base, 0)
        assert transformers.logging.get_verbosity() == transformers.logging.INFO
    finally:
        transformers.logging.set_verbosity_error()
    assert capfd.readouterr() == ("", "")


def spoil(folder) -> None:
    whole = load_file(folder / WEIGHTS)
    whole["embeddings.word_embeddings.weight"][7] = float("nan")
    save_file(whole, folder / WEIGHTS, {"format": "pt"})


@pytest.mark.parametrize("where", ["simulate", "evaluate", "site check"])
def test_the_same_is_said_everywhere_before_anything_starts(folders, tmp_path, where) -> None:
    from cold_flower.commands import api

    def start(folder) -> None:
        if where == "simulate":
            api.simulate("demo", {"base-model": str(folder)}, run_dir=tmp_path / "run")
        elif where == "evaluate":
            api.evaluate(folder, suite="demo", run_dir=tmp_path / "run")
        else:
            toml = tmp_path / "site.toml"
            toml.write_text(
                f'name = "travel"\nbase-model = "{folder}"\n[task]\nsource = "demo"\n'
                'path = "travel"\ntext = ["text"]\nlabel = "label"\n'
                'splits = { train = "train", test = "test" }\n'
            )
            list(rehearse(load_site(toml), Config()))

    wrong = {
        "holds NaN or infinity": spoil,
        "no vocab.txt": lambda f: [path.unlink() for path in f.glob("tokenizer*")],
        "no embedding for": lambda f: change(f, vocab_size=300),
    }
    for said, spoils in wrong.items():
        folder = folders("bert", "BertModel")
        spoils(folder)
        with pytest.raises(ModelError, match=rf"{folder}.*{said}"):
            start(folder)
        assert not (tmp_path / "run").exists()
