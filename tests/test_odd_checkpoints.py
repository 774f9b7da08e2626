"""Checkpoints that would be read otherwise than their files say: refused, and why."""

import json
import re
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from cold_flower.data import demo
from cold_flower.data.encode import encode
from cold_flower.errors import ModelError, TokensError
from cold_flower.models import vocabularies
from cold_flower.models.base import load_base
from cold_flower.models.folder import WEIGHTS, Folder
from cold_flower.models.starting import save_starting_model, starting_model
from tests.test_model import PAIRS, STARTS

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [word for concept in demo.vocabulary() for word in concept]
CASED = [*WORDS[:99], *(word.title() for word in WORDS[:99]), "the", "The", "café", "cafe"]
PLAIN = "PreTrainedTokenizerFast"  # is tokenizer.json, as it is written


def framing(begin="[CLS]", end="[SEP]", second=1):
    """Frame texts as BERT does it."""
    pair = (begin, "$A", end, f"$B:{second}", end and f"{end}:{second}")
    return processors.TemplateProcessing(
        single=[*filter(None, (begin, "$A", end))],
        pair=[*filter(None, pair)],
        special_tokens=[(token, SPECIAL.index(token)) for token in (begin, end) if token],
    )


def wordpiece(*, normalizer, words=CASED, cut=None, frame=None):
    """Return the tokenizer.json of a BERT."""
    ids = {word: i for i, word in enumerate([*SPECIAL, *words])}
    made = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    made.normalizer = normalizer
    made.pre_tokenizer = cut or pre_tokenizers.BertPreTokenizer()
    made.post_processor = frame or framing()
    made.add_special_tokens(SPECIAL)
    return made


def byte_pairs(prefix):
    """Return the tokenizer.json of a RoBERTa."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {token: i for i, token in enumerate([*SPECIAL, *letters, "Th", "ĠTh"])}
    made = Tokenizer(models.BPE(ids, [("T", "h"), ("Ġ", "Th")], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    made.add_special_tokens(SPECIAL)
    return made


def pieces(normalizer, unknown):
    """Return the tokenizer.json of an ALBERT or a DeBERTa, whose classes count from token 0."""
    special = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]", "[PAD]"]
    tokens = [*special, *map(chr, range(ord("A"), ord("z"))), "▁the", "▁The", "▁", "caf"]
    made = Tokenizer(models.Unigram([(t, -1.0 * len(tokens)) for t in tokens], unk_id=unknown))
    made.normalizer = normalizer
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    return made


CASE = normalizers.BertNormalizer(lowercase=False)
LOWER = normalizers.BertNormalizer(lowercase=True)
ACCENTS = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
NO_SPACES = pre_tokenizers.WhitespaceSplit()


def model(folders, family, tokenizer, settings=None):
    """Write a model with this tokenizer.json and this tokenizer_config.json."""
    changes = {} if family == "distilbert" else {"type_vocab_size": 2}
    folder = folders(family, STARTS[family][0], vocab_size=400, **changes)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    if tokenizer:
        tokenizer.save(str(folder / "tokenizer.json"))
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize(
    ("family", "tokenizer", "settings"),
    [
        ("bert", wordpiece(normalizer=CASE), None),
        ("bert", wordpiece(normalizer=CASE), {}),
        ("bert", wordpiece(normalizer=CASE), {"model_max_length": 512}),
        ("bert", wordpiece(normalizer=CASE), {"tokenizer_class": "BertTokenizer"}),
        ("bert", wordpiece(normalizer=CASE), {"do_lower_case": True}),
        ("bert", wordpiece(normalizer=LOWER), {"do_lower_case": False}),
        ("bert", wordpiece(normalizer=ACCENTS), {"do_lower_case": False}),
        ("bert", wordpiece(normalizer=LOWER, cut=NO_SPACES), {}),
        ("distilbert", wordpiece(normalizer=CASE), {"tokenizer_class": "DistilBertTokenizer"}),
        ("electra", wordpiece(normalizer=CASE), {"tokenizer_class": "ElectraTokenizerFast"}),
        ("mpnet", wordpiece(normalizer=CASE), {"model_max_length": 512}),
        ("mpnet", wordpiece(normalizer=CASE, words=["Nome", "nome"]), {}),  # no usual word
        ("albert", pieces(normalizers.NFKC(), 1), {"model_max_length": 512}),
        ("deberta-v2", pieces(normalizers.Lowercase(), 1), {}),
        ("roberta", byte_pairs(True), {}),
        ("roberta", byte_pairs(False), {"add_prefix_space": True}),
    ],
)
def test_a_tokenizer_json_that_is_read_otherwise_is_refused(
    folders, family, tokenizer, settings
) -> None:
    folder = model(folders, family, tokenizer, settings)
    said = "no tokenizer_config.json, and" if settings is None else "tokenizer_config.json counts:"
    with pytest.raises(ModelError, match=rf"{folder}.*{said}.*otherwise than tokenizer.json says"):
        load_base(str(folder))
    way_out = {"tokenizer_class": PLAIN, "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(way_out))
    table = json.loads((folder / "tokenizer.json").read_text())
    if not table["post_processor"]:  # theirs is in the class alone
        return
    text = "The café"
    made = load_base(str(folder)).tokenizer(text)["input_ids"]
    assert made == Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids


@pytest.mark.parametrize(
    ("family", "tokenizer", "settings"),
    [
        ("bert", wordpiece(normalizer=CASE), {"do_lower_case": False, "model_max_length": 512}),
        ("bert", wordpiece(normalizer=LOWER), {"do_lower_case": True}),
        ("bert", wordpiece(normalizer=LOWER), {}),
        ("bert", wordpiece(normalizer=LOWER, words=WORDS[:9]), None),
        ("distilbert", wordpiece(normalizer=LOWER), {"tokenizer_class": "DistilBertTokenizer"}),
        ("electra", wordpiece(normalizer=LOWER), {"do_lower_case": True}),
        ("mpnet", wordpiece(normalizer=LOWER), {"do_lower_case": True}),
        ("roberta", byte_pairs(False), {"model_max_length": 512}),
        ("roberta", byte_pairs(True), {"add_prefix_space": True}),
        ("deberta-v2", pieces(normalizers.NFC(), 1), {"do_lower_case": False}),
    ],
)
def test_files_of_the_hub_are_read_as_they_are(folders, family, tokenizer, settings) -> None:
    assert load_base(str(model(folders, family, tokenizer, settings)))


def test_a_cased_vocabulary_says_whether_texts_are_lower_cased(folders) -> None:
    """Of BERT's own vocab.txt transformers reads all in lower case, unless it is told."""
    folder = model(folders, "bert", None, {"tokenizer_class": "BertTokenizer"})
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *CASED]))
    with pytest.raises(ModelError, match=r'cased.*"do_lower_case": false.*tokenizer_config.json'):
        load_base(str(folder))
    for lower, word in ((False, "The"), (True, "the")):  # either is an answer
        load_base.cache_clear()
        (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}))
        tokenizer = load_base(str(folder)).tokenizer
        assert tokenizer.tokenize("The") == [word]
    load_base.cache_clear()
    (folder / "tokenizer_config.json").unlink()
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *WORDS[:99]]))
    assert load_base(str(folder)).tokenizer.tokenize(WORDS[0].upper()) == [WORDS[0]]


def changed(folder, change) -> None:
    whole = load_file(folder / WEIGHTS)
    change(whole)
    save_file(whole, folder / WEIGHTS, {"format": "pt"})


@pytest.mark.parametrize(("family", "start"), PAIRS)
def test_layers_that_are_stored_and_not_read_are_refused(folders, family, start) -> None:
    deep, flat = ({"distilbert": "n_layers", "t5": "num_layers"}.get(family, "num_hidden_layers"),
                  folders(family, start))  # fmt: skip
    starting_model(load_base(str(flat)), 0)
    if family == "albert":  # its layers are one
        deep = "num_hidden_groups"
        flat = folders(family, start, num_hidden_groups=2)
    config = json.loads((flat / "config.json").read_text())
    config[deep] -= 1
    if "layer_types" in config:
        config["layer_types"].pop()
    (flat / "config.json").write_text(json.dumps(config))
    load_base.cache_clear()
    with pytest.raises(
        ModelError, match=rf"{flat}.*hold more of the body .*, \d+ of their tensors"
    ):
        starting_model(load_base(str(flat)), 0)


def test_relative_positions_that_the_library_gave_up_are_refused(folders) -> None:
    folder = folders("bert", "BertForMaskedLM")
    name = "bert.encoder.layer.0.attention.self.distance_embedding.weight"
    changed(folder, lambda whole: whole.update({name: torch.ones(79, 8)}))
    with pytest.raises(ModelError, match=rf"more of the body.* 1 of their.*{re.escape(name)}"):
        starting_model(load_base(str(folder)), 0)


@pytest.mark.parametrize(("family", "start"), PAIRS)
def test_what_old_files_hold_beside_the_body_is_no_matter(folders, family, start) -> None:
    folder = folders(family, start)

    def old(whole) -> None:
        prefix = next(iter(Folder(str(folder)).body.values())).split("embeddings.")[0]
        if family == "t5":
            name = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
            whole[name] = torch.ones(32, 2)
            whole["encoder.embed_tokens.weight"] = whole["shared.weight"].clone()
            return
        for name in ("embeddings.position_ids", "embeddings.token_type_ids"):
            whole[prefix + name] = torch.arange(40)[None]
        whole[f"{prefix}pooler.dense.weight"] = torch.ones(16, 16)
        whole[f"{prefix}pooler.dense.bias"] = torch.ones(16)
        whole["lm_predictions.lm_head.bias"] = torch.ones(3)  # DeBERTa-v3's
        for key in [key for key in whole if "LayerNorm." in key]:
            renamed = key.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta")
            whole[renamed] = whole.pop(key)

    changed(folder, old)
    starting_model(load_base(str(folder)), 0)


def test_a_decoder_is_no_encoder(folders) -> None:
    """Its first token, which the head reads, sees no other."""
    folder = folders("bert", "BertForMaskedLM", is_decoder=True)
    with pytest.raises(ModelError, match=rf"{folder}.*is_decoder is true"):
        load_base(str(folder))


def test_a_shape_that_is_not_the_configurations_is_named(folders) -> None:
    folder = folders("bert", "BertForMaskedLM")
    file = folder / "config.json"
    config = json.loads(file.read_text())
    stored = config["max_position_embeddings"]
    file.write_text(json.dumps({**config, "max_position_embeddings": 4 * stored}))
    words = rf"position_embeddings.weight is \[{stored}, \d+\] .* by config.json \[{4 * stored}, "
    with pytest.raises(ModelError, match=words):
        starting_model(load_base(str(folder)), 0)


@pytest.mark.parametrize("family", ["bert", "t5"])
def test_integers_are_no_weights(folders, family) -> None:
    folder = folders(family, STARTS[family][0])
    name = next(key for key, t in load_file(folder / WEIGHTS).items() if t.ndim == 2)
    changed(folder, lambda whole: whole.update({name: (whole[name] * 100).to(torch.int8)}))
    with pytest.raises(ModelError, match=rf"{folder}.*{re.escape(name)} is torch.int8.*quantised"):
        starting_model(load_base(str(folder)), 0)


@pytest.mark.parametrize("family", [*STARTS])
def test_texts_that_are_not_framed_are_refused(folders, family) -> None:
    folder = folders(family, STARTS[family][0])
    table = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**table, "post_processor": None}))
    with pytest.raises(ModelError, match=rf"{folder}.*adds no token.*post_processor"):
        load_base(str(folder))


def test_a_pair_is_told_apart_and_only_a_mean_needs_no_first_token(folders) -> None:
    glued = wordpiece(normalizer=CASE, frame=framing(end=""))
    folder = model(folders, "bert", glued, {"tokenizer_class": PLAIN})
    with pytest.raises(ModelError, match="between the texts of a pair"):
        load_base(str(folder))
    blank = Tokenizer(models.BPE({token: i for i, token in enumerate([*SPECIAL, "x"])}, []))
    blank.post_processor = framing()  # its words leave no token, and it is framed all the same
    assert load_base(str(model(folders, "bert", blank, {"tokenizer_class": PLAIN})))
    ends = wordpiece(normalizer=CASE, frame=framing(begin=""))  # as T5's, and no more
    settings = {"tokenizer_class": PLAIN, "pad_token": "<pad>", "eos_token": "</s>"}
    for family in STARTS:
        folder = model(folders, family, ends, settings)
        for pooling in ("mean", "cls"):  # of ModernBERT
            load_base.cache_clear()
            config = json.loads((folder / "config.json").read_text())
            text = json.dumps({**config, "classifier_pooling": pooling})
            (folder / "config.json").write_text(text)
            if family == "t5" or (family, pooling) == ("modernbert", "mean"):
                assert load_base(str(folder))
                continue
            with pytest.raises(ModelError, match="adds no token before a text"):
                load_base(str(folder))


def test_types_of_texts_that_are_framed_are_given(folders, tmp_path) -> None:
    typed = wordpiece(normalizer=CASE)
    silent = {"tokenizer_class": PLAIN, "pad_token": "<pad>"}  # which gives none by default
    base = load_base(str(model(folders, "bert", typed, silent)))
    data = encode(base.tokenizer, [("the", "The cafe")], [0], max_length=32)
    assert data.types.tolist() == [0, 0, 0, 1, 1, 1]
    save_starting_model(starting_model(base, 0)[0], base, tmp_path / "published")
    again = load_base(str(tmp_path / "published")).tokenizer("the", "The cafe")
    assert again["token_type_ids"] == data.types.tolist()
    untyped = wordpiece(normalizer=CASE, frame=framing(second=0))  # all are 0 anyhow
    names = {**silent, "model_input_names": ["input_ids", "attention_mask"]}
    assert load_base(str(model(folders, "bert", untyped, names)))
    with pytest.raises(ModelError, match=r"model_input_names in .* without token_type_ids.*Add"):
        load_base(str(model(folders, "bert", typed, names)))


@pytest.mark.parametrize(
    ("family", "tokenizer", "key", "default"),
    [
        ("bert", wordpiece(normalizer=CASE), "do_lower_case", True),
        ("electra", wordpiece(normalizer=CASE), "do_lower_case", True),
        ("deberta-v2", pieces(normalizers.NFC(), 1), "do_lower_case", False),
        ("roberta", byte_pairs(False), "add_prefix_space", False),
        ("bert", wordpiece(normalizer=CASE), "tokenize_chinese_chars", True),
    ],
)
def test_a_setting_that_is_not_written_is_its_classs_default(
    folders, family, tokenizer, key, default
) -> None:
    silent, same, other = (
        vocabularies.read(Folder(str(model(folders, family, tokenizer, settings))))
        for settings in ({"model_max_length": 40}, {key: default}, {key: not default})
    )
    vocabularies.check(silent, same)
    vocabularies.check(same, silent)
    for base, one in ((silent, other), (other, silent), (same, other)):
        with pytest.raises(TokensError, match=f"{key} is "):
            vocabularies.check(base, one)


def test_a_head_that_no_class_reads_is_named(folders, tmp_path) -> None:
    folder = folders("bert", "BertForMaskedLM")
    config = json.loads((folder / "config.json").read_text())
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "config.json").write_text(json.dumps({**config, "architectures": ["OwnBert"]}))
    with pytest.warns(
        UserWarning, match=r"OwnBert.*5 of its tensors.*cls\.predictions\.bias.*BertModel"
    ):
        body = starting_model(load_base(str(other)), 0)[1]
    ours = starting_model(load_base(str(folder)), 0)[1]
    assert all(torch.equal(body[k], ours[k]) for k in body if "pooler" not in k)
    for settled in (["BertModel"], None):  # said, or as DeBERTa-v3's own file has it
        load_base.cache_clear()
        (other / "config.json").write_text(json.dumps({**config, "architectures": settled}))
        starting_model(load_base(str(other)), 0)
    assert isinstance(starting_model(load_base(str(folder)), 0)[0], transformers.BertForMaskedLM)
