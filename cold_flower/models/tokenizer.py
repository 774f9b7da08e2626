"""A base model's tokenizer: one that reads texts for this model, or an error that says why not.

The library is silent where it matters. From a folder without vocabulary files transformers 5
makes a tokenizer to which every word is unknown; a token that the embedding has no row for is
noticed when the first text has it.
"""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import TOKENIZER_MAPPING, AutoTokenizer
from transformers.utils import has_file

from cold_flower.errors import ModelError, sentence
from cold_flower.models.families import BEHIND_PADDING

_POINTER = b"version https://git-lfs"  # what a checkout holds where Git LFS fetched nothing
_MIXED = "The CAFÉ of 1,000  naïve 北京 words"
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
            than its file says; it has tokens that the embedding has no row for; padding means
            another token to the model.
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
    """Check that tokenizer.json is read as it is written.

    Of most families transformers 5 takes the words from there, and how a text is prepared (in
    lower case, say) from tokenizer_config.json alone.
    """
    whole, settings = Path(name, "tokenizer.json"), Path(name, "tokenizer_config.json")
    if not whole.is_file() or settings.is_file():
        return
    written = Tokenizer.from_file(str(whole))
    written.no_truncation()
    written.no_padding()
    if written.encode(_MIXED).ids != tokenizer(_MIXED)["input_ids"]:
        raise ModelError(
            f"base-model {name!r} has no tokenizer_config.json, and without it transformers reads "
            f"texts otherwise than tokenizer.json says: {_MIXED!r}. {_WAY_OUT}"
        )


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
