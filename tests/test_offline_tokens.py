"""`cold-flower fuse`: whether the models read with the base's tokenizer, and --vocabulary union."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import AddedToken
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from cold_flower.commands import api, union
from cold_flower.commands.offline import fuse
from cold_flower.errors import ColdFlowerError, ModelError
from cold_flower.models.folder import Folder
from strategies.fusion import load
from tests.test_cli import cold_flower
from tests.test_offline import AVERAGE, broken, reconfigured

WORDS = "roberta.embeddings.word_embeddings.weight"


@pytest.fixture(scope="module")
def base(folders):
    return folders("roberta", "RobertaForMaskedLM")


def tokenizer_json(folder, change):
    path = folder / "tokenizer.json"
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))


def copied(base, to, change=lambda _: None):
    shutil.copytree(base, to)
    tokenizer_json(to, change)
    return to


def swapped(table):
    """Give two tokens each other's id."""
    vocab = table["model"]["vocab"]
    first, second = list(vocab)[10], list(vocab)[11]
    vocab[first], vocab[second] = 11, 10


def lowercase(table):
    table["normalizer"] = {"type": "Lowercase"}


def replaced(table):
    vocab = table["model"]["vocab"]
    del vocab[list(vocab)[20]]
    vocab["elsewhere"] = 20


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (swapped, "other has another tokenizer than the base .*: token 10 is '.*', the base's is"),
        (replaced, "token 20 is 'elsewhere', the base's is .*--allow-tokenizer"),
        (lowercase, r"'[A-Z]+' becomes \['<s>', '[a-z]+', '</s>'\], the base's is .*<unk>"),
    ],
)
def test_another_tokenizer_of_the_same_size_is_refused(base, tmp_path, change, words) -> None:
    models = [Folder(str(base)), Folder(str(copied(base, tmp_path / "other", change)))]
    with pytest.raises(ModelError, match=words):
        fuse(AVERAGE, models[0], [models[1]], tmp_path / "out", "")
    assert not (tmp_path / "out").exists()
    fuse(AVERAGE, models[0], [models[1]], tmp_path / "out", "", allow_tokenizer=True)


@pytest.mark.parametrize("kind", ["vocab.txt", "vocab.json"])
def test_plain_files_are_read(base, tmp_path, kind) -> None:
    table = json.loads((base / "tokenizer.json").read_text())["model"]["vocab"]
    texts = {"vocab.txt": "\n".join(table) + "\n", "vocab.json": json.dumps(table)}
    changed = {k: t.replace(list(table)[30], "other") for k, t in texts.items()}
    for name, text in (("same", texts[kind]), ("other", changed[kind])):
        copied(base, tmp_path / name)
        (tmp_path / name / "tokenizer.json").unlink()
        (tmp_path / name / kind).write_text(text)
    fuse(AVERAGE, Folder(str(base)), [Folder(str(tmp_path / "same"))], tmp_path / "out", "")
    with pytest.raises(ModelError, match="token 30 is 'other'"):
        fuse(AVERAGE, Folder(str(base)), [Folder(str(tmp_path / "other"))], tmp_path / "x", "")


def test_case_is_part_of_a_tokenizer(base, tmp_path) -> None:
    for name, lower in (("cased", False), ("uncased", True)):
        folder = copied(base, tmp_path / name)
        (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}))
    folders = [Folder(str(tmp_path / name)) for name in ("cased", "uncased")]
    with pytest.raises(ModelError, match="do_lower_case is True, the base's is False"):
        fuse(AVERAGE, folders[0], folders[1:], tmp_path / "out", "")


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (["a b", "c d"], ["a b", "d c"], "merge or score 1 is 'd c', the base's is 'c d'"),
        (["a b", "c d"], [["a", "b"], ["c", "d"]], ""),
        (["a b", "c d"], ["a b"], "merge or score 1 is None"),
    ],
)
def test_merges_are_part_of_a_tokenizer(base, tmp_path, one, other, words) -> None:
    ids = {token: i for i, token in enumerate(["a", "b", "c", "d", "ab", "cd", "dc", "<unk>"])}
    for name, merges in (("base", one), ("m", other)):

        def bpe(table, merges=merges):
            table["model"] = {"type": "BPE", "vocab": ids, "merges": merges}
            table["added_tokens"] = []
            table["post_processor"] = None

        copied(base, tmp_path / name, bpe)
    folders = [Folder(str(tmp_path / name)) for name in ("base", "m")]
    if not words:
        fuse(AVERAGE, folders[0], folders[1:], tmp_path / "out", "")
        return
    with pytest.raises(ModelError, match=words):
        fuse(AVERAGE, folders[0], folders[1:], tmp_path / "out", "")


@pytest.mark.parametrize("harm", ["none", "empty"])
def test_a_base_without_vocabulary_is_refused(base, tmp_path, harm) -> None:
    bare = copied(base, tmp_path / "bare", lambda t: t["model"].update(vocab={}))
    if harm == "empty":
        tokenizer_json(bare, lambda t: t.update(added_tokens=[]))
    else:
        (bare / "tokenizer.json").unlink()
    words = {"none": "bare: no vocabulary in .*save the tokenizer", "empty": "vocabulary is empty"}
    with pytest.raises(ModelError, match=words[harm]):
        fuse(AVERAGE, Folder(str(bare)), [Folder(str(base))], tmp_path / "out", "")
    assert not (tmp_path / "out").exists()


def test_bytes_need_no_vocabulary(base, tmp_path) -> None:
    bare = copied(base, tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    (bare / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    fuse(AVERAGE, Folder(str(bare)), [Folder(str(base))], tmp_path / "out", "")


@pytest.fixture
def added(base, tmp_path):
    """Return a function that writes a model with tokens of its own; all else is the base's."""

    def write(name, tokens, rows):
        tokenizer = AutoTokenizer.from_pretrained(base)
        tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tokens])
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        with torch.no_grad():
            for token, value in rows.items():
                i = tokenizer.convert_tokens_to_ids(token)
                model.get_input_embeddings().weight[i] = value
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return str(tmp_path / name)

    return write


def test_added_tokens_are_said(base, added, tmp_path) -> None:
    model = Folder(added("a", ["<x>", "<y>"], {}))
    with pytest.raises(ModelError, match="lacks: 2, the first is '<x>' .*; --vocabulary union"):
        fuse(AVERAGE, Folder(str(base)), [model], tmp_path / "out", "")


@pytest.mark.parametrize("rule", ["average", "ties", "dare"])
def test_added_tokens_are_fused_by_token(base, added, tmp_path, rule) -> None:
    one = added("a", ["<x>", "<y>"], {"<x>": 1.0, "<y>": 2.0})
    two = added("b", ["<z>", "<x>"], {"<z>": 8.0, "<x>": 3.0})
    plain = AutoTokenizer.from_pretrained(base)
    out = tmp_path / "out"
    models = [Folder(one), Folder(two)]
    fuse(load(rule), Folder(str(base)), models, out, "", vocabulary="union")

    tokenizer, model = (c.from_pretrained(out) for c in (AutoTokenizer, AutoModelForMaskedLM))
    assert len(tokenizer) == len(plain) + 3 == model.config.vocab_size
    found = model.get_input_embeddings().weight
    assert found.shape == (len(plain) + 3, 16)
    for token, value in {"<x>": 2.0, "<y>": 2.0, "<z>": 8.0}.items():
        row = found[tokenizer.convert_tokens_to_ids(token)]
        assert torch.equal(row, torch.full((16,), value)), token
    before = load_file(base / "model.safetensors")[WORDS]
    assert torch.allclose(found[: len(before)], before, atol=1e-6)
    word = plain.convert_ids_to_tokens(40)
    assert tokenizer(f"{word} <y>")["input_ids"] == [0, 40, tokenizer.vocab["<y>"], 2]
    assert model.get_output_embeddings().weight is found
    assert torch.equal(model.lm_head.bias[len(before) :], torch.zeros(3))
    assert torch.isfinite(model(**tokenizer("<x> <z>", return_tensors="pt")).logits).all()


def test_a_token_that_a_model_lacks_is_the_mean_of_the_others(base, added, tmp_path) -> None:
    """The base has been extended; one of two models has not."""
    extended = added("base", ["<x>"], {"<x>": 0.0})
    one = added("a", ["<x>"], {"<x>": 6.0})
    old = added("b", [], {})
    out = tmp_path / "out"
    fuse(AVERAGE, Folder(extended), [Folder(one), Folder(old)], out, "", vocabulary="union")
    found = load_file(out / "model.safetensors")[WORDS]
    assert torch.allclose(found[389], torch.full((16,), 6.0))


def test_words_of_a_list_are_united_too(base, tmp_path) -> None:
    def longer(table):
        table["model"]["vocab"]["newcomer"] = 389

    model = copied(base, tmp_path / "m", longer)
    reconfigured(model, vocab_size=390)
    row = torch.full((1, 16), 5.0)
    broken(model, lambda ts: ts.update({WORDS: torch.cat([ts[WORDS], row])}))
    out = tmp_path / "out"
    done = cold_flower(
        "fuse", "average", "--base", str(base), "--out", str(out), "--vocabulary", "union",
        str(model), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "--vocabulary union" in (out / "README.md").read_text()
    assert AutoTokenizer.from_pretrained(out)("newcomer")["input_ids"] == [0, 389, 2]
    assert torch.equal(load_file(out / "model.safetensors")[WORDS][389:], row)


def test_a_mean_is_not_rounded_before_it_is_fused() -> None:
    half = torch.bfloat16
    values = ([1.0], [1.0078125], [])  # next to each other in bfloat16; the third has no row
    models = [torch.tensor(value, dtype=half)[:, None] for value in values]
    rows = [torch.tensor([place]) for place in (0, 0, 0, -1)]
    means = union._means([torch.ones(1, 1, dtype=half), *models], rows)
    assert (means.dtype, means.item()) == (torch.float32, 1.00390625)
    absent = union._means([torch.ones(0, 1, dtype=half), *models], [rows[3], *rows[1:]])
    assert absent.item() in (1.0, 1.0078125)  # as the base will have it: no rule moves it


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_that_has_a_row_for_each_token_gets_new_rows(base, added, tmp_path, dtype) -> None:
    """A decoder that the file holds beside the embedding, its bias, the base's number format."""
    own = copied(base, tmp_path / "own")

    def decoder(tensors):
        tensors["lm_head.decoder.weight"] = tensors[WORDS].clone()
        for key in tensors:
            tensors[key] = tensors[key].to(dtype)

    broken(own, decoder)
    models = [Folder(added("a", ["<x>"], {"<x>": 3.0}))]
    out = tmp_path / "out"
    fuse(AVERAGE, Folder(str(own)), models, out, "", vocabulary="union")
    tensors = load_file(out / "model.safetensors")
    assert {t.dtype for t in tensors.values()} == {dtype}
    assert torch.equal(tensors["lm_head.decoder.weight"], tensors[WORDS])
    assert torch.equal(tensors[WORDS][389:], torch.full((1, 16), 3.0, dtype=dtype))
    model = AutoModelForMaskedLM.from_pretrained(out)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_base_without_tokenizer_json_gets_one(folders, tmp_path) -> None:
    """A BERT of vocab.txt, whose settings list the added tokens, as transformers 4 wrote them."""
    base, model = tmp_path / "base", tmp_path / "m"
    shutil.copytree(folders("bert", "BertModel"), base)
    (base / "tokenizer.json").unlink()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(384))]
    (base / "vocab.txt").write_text("\n".join(words))
    special = {"special": True, "normalized": False, "lstrip": False, "rstrip": False}
    listed = {
        str(i): {"content": word, "single_word": False, **special}
        for i, word in enumerate(words[:5])
    }
    settings = {"tokenizer_class": "BertTokenizer", "added_tokens_decoder": listed}
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    shutil.copytree(base, model)
    (model / "vocab.txt").write_text("\n".join([*words, "word"]))
    (model / "added_tokens.json").write_text('{"<x>": 390, "<y>": 395}')
    rows = torch.arange(400.0).repeat(16, 1).T.contiguous()
    words_key = "embeddings.word_embeddings.weight"
    broken(model, lambda ts: ts.update({words_key: rows}))
    out = tmp_path / "out"
    fuse(AVERAGE, Folder(str(base)), [Folder(str(model))], out, "", vocabulary="union")
    found = load_file(out / "model.safetensors")[words_key]
    assert found[389:, 0].tolist() == [389, 390, 395]
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer("w7 word <x> <y>")["input_ids"] == [2, 12, 389, 390, 391, 3]


def test_pieces_cannot_be_united(base, tmp_path) -> None:
    ids = {token: i for i, token in enumerate(["a", "b", "c", "d", "ab", "cd", "dc", "<unk>"])}
    for name, more in (("base", {}), ("m", {"bb": 8})):

        def bpe(table, more=more):
            table["model"] = {"type": "BPE", "vocab": {**ids, **more}, "merges": ["a b"]}
            table["added_tokens"] = []
            table["post_processor"] = None

        copied(base, tmp_path / name, bpe)
    folders = [Folder(str(tmp_path / name)) for name in ("base", "m")]
    with pytest.raises(ModelError, match=r"token 'bb' cannot be added .*\(BPE\): .*add_tokens"):
        fuse(AVERAGE, folders[0], folders[1:], tmp_path / "out", "", vocabulary="union")
    assert not (tmp_path / "out").exists()


def test_padding_of_an_embedding_is_no_token(base, tmp_path) -> None:
    padded = copied(base, tmp_path / "padded")
    reconfigured(padded, vocab_size=400)
    broken(padded, lambda ts: ts.update({WORDS: torch.cat([ts[WORDS] + 1, torch.ones(11, 16)])}))
    with pytest.raises(ModelError, match="has shape .400, 16.*--vocabulary union"):
        fuse(AVERAGE, Folder(str(base)), [Folder(str(padded))], tmp_path / "out", "")
    models = [Folder(str(padded))]
    fuse(AVERAGE, Folder(str(base)), models, tmp_path / "out", "", vocabulary="union")
    before, after = (load_file(f / "model.safetensors")[WORDS] for f in (base, tmp_path / "out"))
    assert torch.allclose(after, before + 1)


def test_the_choices_are_named(base, tmp_path) -> None:
    with pytest.raises(ColdFlowerError, match="unknown vocabulary 'onion'.*union"):
        api.fuse("average", base=base, models=[base], out=tmp_path / "x", vocabulary="onion")


def test_union_needs_vocabularies_that_fit(base, tmp_path) -> None:
    short = copied(base, tmp_path / "short")
    broken(short, lambda ts: ts.update({WORDS: ts[WORDS][:7]}))
    none = copied(base, tmp_path / "none")
    (none / "tokenizer.json").unlink()
    for folder, words in ((short, "has id 388, the embedding has 7 rows"), (none, "no vocab")):
        with pytest.raises(ModelError, match=words):
            models = [Folder(str(folder))]
            fuse(AVERAGE, Folder(str(base)), models, tmp_path / "out", "", vocabulary="union")
    assert not (tmp_path / "out").exists()
