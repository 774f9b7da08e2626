"""A base model's tokenizer: one that reads texts for this model, or an error that says why not.

The library is silent where it matters. From a folder without vocabulary files transformers 5
makes a tokenizer to which every word is unknown; a token that the embedding has no row for is
noticed when the first text has it.
"""

from itertools import zip_longest
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import TOKENIZER_MAPPING, AutoTokenizer
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.utils import cached_file, has_file

from cold_flower.errors import ModelError, sentence
from cold_flower.models.families import BEHIND_PADDING

_POINTER = b"version https://git-lfs"  # what a checkout holds where Git LFS fetched nothing
# Case, accents, figures, punctuation, other scripts. Not runs of spaces, nor letters that are one
# with others to Unicode: there versions of one tokenizer differ.
_MIXED = "The CAFÉ of (1,000) naïve Москва 北京 words"
_FAMILIAR = 0.05  # of its words a vocabulary may have in upper case, and be one of lower case
_PAIR = ("The words", "of 1,000")
_AS_WRITTEN = '"tokenizer_class": "PreTrainedTokenizerFast", with the names of its special tokens'
_WAY_OUT = (
    "Copy the tokenizer's files from the model that this one was made from, or save it there: "
    "tokenizer.save_pretrained(folder)."
)


def load_tokenizer(name: str, config: Any) -> Any:
    """Load the tokenizer of a hub model or a folder, and check that it fits the model.

    Args:
        name: of the base model.
        config: the model's.

    Raises:
        ModelError: files are missing or damaged; it knows no words; it would read texts otherwise
            than its file says; it does not frame them as the model needs it; it has tokens that
            the embedding has no row for; padding means another token to the model.
    """
    _check_pointers(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # a broken file may raise anything
        if Path(name).is_dir() and type(config) in TOKENIZER_MAPPING:
            _check_files(name, TOKENIZER_MAPPING[type(config)])
        reason = sentence(error)
        if "tiktoken" in reason:  # tried by the library where sentencepiece cannot read the file
            reason = "its sentencepiece model is damaged, or no sentencepiece model."
        raise ModelError(
            f"base-model {name!r}: its tokenizer cannot be loaded: {reason} {_WAY_OUT}"
        ) from error
    _check_words(name, tokenizer)
    _check_settings(name, tokenizer)
    _check_frame(name, tokenizer, config)
    _give_types(name, tokenizer, config)
    _check_ids(name, tokenizer, config)
    _check_padding(name, tokenizer, config)
    return tokenizer


def _check_pointers(name: str) -> None:
    """Check that a folder's files are there, not only where Git LFS would find them."""
    for path in Path(name).iterdir() if Path(name).is_dir() else ():
        if path.is_file() and path.suffix in (".json", ".txt", ".model", ".safetensors"):
            with path.open("rb") as file:
                if file.read(len(_POINTER)) == _POINTER:
                    raise ModelError(
                        f"base-model {name!r}: {path.name} is a pointer of Git LFS, not the file. "
                        "Fetch it: git lfs pull."
                    )


def _check_files(name: str, kind: Any) -> None:
    """Name the files that a class of tokenizers has its words from, if they are not there."""
    files = dict(kind.vocab_files_names)
    whole = files.pop("tokenizer_file", "tokenizer.json")
    missing = [file for file in files.values() if not has_file(name, file)]
    if missing and not has_file(name, whole):
        raise ModelError(
            f"base-model {name!r} has no vocabulary: there is no {' and no '.join(missing)}, and "
            f"no {whole}, which would be enough. {_WAY_OUT}"
        )


def _check_words(name: str, tokenizer: Any) -> None:
    """Check that a tokenizer knows more than special tokens, and reads what it does not know."""
    special = {*tokenizer.added_tokens_encoder, *tokenizer.all_special_tokens, "▁"}  # a blank
    if not tokenizer.get_vocab().keys() - special:
        _check_files(name, type(tokenizer))
        raise ModelError(
            f"base-model {name!r}: its tokenizer knows no words, only special tokens such as "
            f"{min(special, default='(none)')}. {_WAY_OUT}"
        )
    try:
        tokenizer("\N{SNOWMAN}")
    except Exception as error:  # of a library in Rust
        raise ModelError(
            f"base-model {name!r}: its tokenizer cannot read a word that it does not know: "
            f"{sentence(error)} {_WAY_OUT}"
        ) from error


def _check_settings(name: str, tokenizer: Any) -> None:
    """Check that tokenizer.json is read as it is written, or else that case is no guess.

    Of most families transformers 5 takes the words from there, and how a text is prepared (in
    lower case, say) from tokenizer_config.json alone. What is not in that is the class's default.
    """
    if not has_file(name, "tokenizer.json"):
        _check_case(name, tokenizer)
        return
    written = Tokenizer.from_file(cached_file(name, "tokenizer.json"))
    written.no_truncation()
    written.no_padding()
    text = _sample(tokenizer)
    said = written.encode(text, add_special_tokens=False).ids
    read = tokenizer(text, add_special_tokens=False)["input_ids"]
    if said != read:
        which = "tokenizer_config.json counts: by it"
        if not has_file(name, "tokenizer_config.json"):
            which = "there is no tokenizer_config.json, and without it"
        tokens = zip_longest(map(written.id_to_token, said), tokenizer.convert_ids_to_tokens(read))
        one, other = next((pair for pair in tokens if pair[0] != pair[1]), (said, read))
        raise ModelError(
            f"base-model {name!r}: {which} transformers reads texts otherwise than tokenizer.json "
            f"says, such as {_MIXED!r} and its own words: as {other!r} instead of {one!r}. Say in "
            "tokenizer_config.json how the model was trained (do_lower_case, strip_accents, "
            "keep_accents, add_prefix_space), or have tokenizer.json count "
            f"({_AS_WRITTEN}). {_WAY_OUT}"
        )


def _sample(tokenizer: Any) -> str:
    """Return a text that tells tokenizers of one vocabulary apart: usual words and its own."""
    known = tokenizer.get_vocab().keys() - tokenizer.added_tokens_encoder.keys()
    words = sorted(word for word in known if word.isascii() and word.isalpha())
    some = words[:: max(1, len(words) // 20)]
    return " ".join([_MIXED, *some, *map(str.title, some)])


def _check_case(name: str, tokenizer: Any) -> None:
    """Check that a vocabulary with words in upper case is not read in lower case by default."""
    words = tokenizer.get_vocab().keys() - {*tokenizer.all_special_tokens}
    upper = [word for word in words if word != word.lower()]
    text = _sample(tokenizer)
    lowers = tokenizer.tokenize(text) == tokenizer.tokenize(text.lower())
    told = "do_lower_case" in get_tokenizer_config(name)
    if lowers and not told and len(upper) > _FAMILIAR * len(words):
        raise ModelError(
            f"base-model {name!r}: its vocabulary is cased, {len(upper)} of {len(words)} words "
            f"such as {min(upper)!r}, but transformers reads all texts in lower case unless it is "
            'told: put "do_lower_case": false into tokenizer_config.json (true if the model was '
            "trained so)."
        )


def _check_frame(name: str, tokenizer: Any, config: Any) -> None:
    """Check that special tokens frame a text and part a pair."""
    one, other = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in _PAIR)
    alone, pair = tokenizer(_PAIR[0])["input_ids"], tokenizer(*_PAIR)["input_ids"]
    glued, where = one + other, ""
    if one and other and any(pair[i:][: len(glued)] == glued for i in range(len(pair))):
        where = "between the texts of a pair"
    mean = config.model_type == "modernbert" and config.classifier_pooling == "mean"
    if config.model_type != "t5" and not mean and alone[: max(1, len(one))] == one:
        where = "before a text"
    if where:
        raise ModelError(
            f"base-model {name!r}: its tokenizer adds no token {where}, and the model reads it "
            "there. Take the tokenizer that belongs to the model, or give it a post_processor "
            "(tokenizers.processors.TemplateProcessing) and save it."
        )


def _give_types(name: str, tokenizer: Any, config: Any) -> None:
    """Give the model the types by which the tokenizer's frame tells the texts of a pair apart.

    In transformers 5 ALBERT's class and PreTrainedTokenizerFast leave them out by default.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    framed = backend is not None and any(backend.encode(*_PAIR).type_ids)
    asks = getattr(config, "type_vocab_size", 0) > 1
    if not framed or not asks or "token_type_ids" in tokenizer.model_input_names:
        return
    if "model_input_names" in get_tokenizer_config(name):
        raise ModelError(
            f"base-model {name!r}: model_input_names in tokenizer_config.json is without "
            "token_type_ids, but the tokenizer tells the texts of a pair apart by them, and the "
            f"model has {config.type_vocab_size} types of tokens. Add token_type_ids there; if the "
            "model was trained without, set type_id to 0 in the post_processor of tokenizer.json."
        )
    tokenizer.model_input_names = [*tokenizer.model_input_names, "token_type_ids"]


def _check_ids(name: str, tokenizer: Any, config: Any) -> None:
    """Check that the embedding has a row for every token, added ones included."""
    beyond = {i: token for token, i in tokenizer.get_vocab().items() if i >= config.vocab_size}
    if beyond:
        first = min(beyond)
        raise ModelError(
            f"base-model {name!r}: its tokenizer has {len(beyond)} tokens that the model has no "
            f"embedding for: {beyond[first]!r} is number {first}, vocab_size is "
            f"{config.vocab_size}. Take the tokenizer that belongs to the model, or give it rows "
            "(model.resize_token_embeddings(len(tokenizer))), train them and save it."
        )


def _check_padding(name: str, tokenizer: Any, config: Any) -> None:
    """Check that padding is what the model takes for it, where the outputs depend on that.

    Elsewhere the attention mask alone says what counts, so any token may fill up a batch.
    """
    ours, theirs = config.pad_token_id, tokenizer.pad_token_id
    if config.model_type in BEHIND_PADDING:
        if ours is None or theirs not in (None, ours):
            raise ModelError(
                f"base-model {name!r}: pad_token_id is {'null' if ours is None else ours} in "
                f"config.json, the tokenizer's is {theirs}. {config.model_type} counts positions "
                "from it, so another one makes another model: set it in config.json to what the "
                "model was trained with (1 in published ones)."
            )
    elif config.model_type == "t5":
        for key, value in (
            ("pad_token_id in config.json", ours),
            ("decoder_start_token_id in config.json", config.decoder_start_token_id),
            ("the tokenizer's eos_token", tokenizer.eos_token_id),
        ):
            if value is None:
                raise ModelError(f"base-model {name!r}: {key} is null, and T5 cannot do without.")
