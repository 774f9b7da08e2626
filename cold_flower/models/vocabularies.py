"""Which token has which id in a transformers folder, and whether two folders agree.

Reads tokenizer.json, vocab.txt or vocab.json itself. Where there is only a SentencePiece model,
transformers reads it.
"""

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

from cold_flower.errors import ModelError, TokensError, first_line
from cold_flower.models.folder import Folder

CONFIG = "config.json"
FULL, PLAIN, SETTINGS = "tokenizer.json", ("vocab.txt", "vocab.json"), "tokenizer_config.json"
MERGES, ADDED = ("merges.txt", "bpe.codes"), "added_tokens.json"
PIECES = (".model", ".spm", ".tiktoken", ".tokenizer")  # suffixes; read by transformers alone
_BYTES = ("ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer")  # they need no file
_KIND = ("model_type", "tokenizer_class")  # of config.json: which class reads the files
# Settings that change what a text becomes, beside the files of the vocabulary.
_CHANGES = (
    "do_lower_case", "strip_accents", "tokenize_chinese_chars", "do_basic_tokenize",
    "add_prefix_space",
)  # fmt: skip
# Texts that tell tokenizers apart: case, accents, figures, punctuation, other scripts. Not runs of
# spaces, which versions of one tokenizer treat differently.
_TEXTS = (
    "The quick brown Fox isn't here.",
    "ÀÉÎõü naïve Straße",
    "3.14159 10,000 2026-11-21",
    "#@user http://x.org (a-b)!?",
    "北京 Москва 한국어 👍",
)


class Located(Protocol):
    """A model's folder, with what messages call it."""

    path: Path
    name: str


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer's tokens."""

    name: str
    """Of the model, for messages."""
    ids: Mapping[str, int]
    added: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Those that were added to the ones it was trained with, and how they are matched."""
    rules: Sequence[str] = ()
    """How words are cut: the merges of a byte-pair encoding, the scores of unigrams; in order."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    backend: str = ""
    """The text of its tokenizer.json."""

    @cached_property
    def tokens(self) -> dict[int, str]:
        """Return the tokens by id."""
        return {i: token for token, i in self.ids.items()}

    def pieces(self, text: str) -> list[str]:
        """Return the tokens that a text becomes."""
        found: list[str] = self._tokenizer.encode(text).tokens
        return found

    @cached_property
    def _tokenizer(self) -> Any:
        tokenizer = parsed(self.backend, self.name)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer


def read(
    folder: Located, like: Vocabulary | None = None, *, whole: bool = False
) -> Vocabulary | None:
    """Read a folder's vocabulary; None if it has no files of one.

    Args:
        folder: of a model.
        like: one that it may be a copy of: then what they share is kept once.
        whole: with a tokenizer.json; where there is none, transformers makes it.

    Raises:
        ModelError: a file that cannot be read, or that holds no token.
    """
    try:
        found = _read(folder, like)
        if found and whole and not found.backend:
            found = _from_library(folder, found.settings)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"model {folder.name}: unreadable vocabulary: {error!r}") from error
    if found and not found.ids:
        raise ModelError(f"model {folder.name}: its vocabulary is empty")
    return found


def parsed(text: str, name: str) -> Any:
    """Return the `tokenizers.Tokenizer` of a tokenizer.json's text.

    Raises:
        ModelError: it is none; ``name`` is the model's.
    """
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing more special
        raise ModelError(f"model {name}: unreadable {FULL}: {error}") from error


def takes_bytes(folder: Folder) -> bool:
    """Return whether a folder's tokenizer takes bytes or characters, so that no file lists them."""
    settings = _json(folder.path / SETTINGS)
    named = (settings.get("tokenizer_class"), folder.config.get("tokenizer_class"))
    return any(str(name).removesuffix("Fast") in _BYTES for name in named)


def check(base: Vocabulary, model: Vocabulary, *, united: bool = False) -> None:
    """Check that two tokenizers turn a text into the same tokens, with the same ids.

    Args:
        base: of the base.
        model: of a model.
        united: tokens are matched by name, so their ids, and tokens of one side, do not count.

    Raises:
        TokensError: naming the first token, merge, setting or text that differs.
    """
    for key in _CHANGES:
        if base.settings.get(key) == model.settings.get(key):
            continue
        ours, theirs = _setting(base, key), _setting(model, key)
        if None not in (ours, theirs) and ours != theirs:
            _refuse(base, model, f"{key} is {theirs!r}", ours)
    if base.backend and base.backend == model.backend:
        return
    if not united:
        _check_ids(base, model)
    if base.rules and model.rules and base.rules != model.rules:
        pairs = enumerate(zip_longest(base.rules, model.rules))
        i, (ours, theirs) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
        _refuse(base, model, f"merge or score {i} is {theirs!r}", ours)
    if base.backend and model.backend:
        for text in (*_TEXTS, *_variants(base)):
            ours, theirs = base.pieces(text), model.pieces(text)
            if ours != theirs:
                _refuse(base, model, f"{text!r} becomes {theirs}", ours)


def _setting(vocabulary: Vocabulary, key: str) -> Any:
    """Return a setting; where it is not written, the default of the tokenizer's class."""
    from transformers.models.auto.tokenization_auto import (
        TOKENIZER_MAPPING_NAMES,
        tokenizer_class_from_name,
    )

    if (written := vocabulary.settings.get(key)) is not None:
        return written
    family = TOKENIZER_MAPPING_NAMES.get(vocabulary.settings.get("model_type"))
    kind = tokenizer_class_from_name(vocabulary.settings.get("tokenizer_class") or family or "")
    parameters = inspect.signature(kind).parameters if kind else {}
    return parameters[key].default if key in parameters else None


def _variants(vocabulary: Vocabulary) -> Iterator[str]:
    """Yield words of a vocabulary, plain and as other cases, accents and neighbours make them."""
    words = [token for token in vocabulary.ids if token.isalpha()]
    for word in words[:: max(1, len(words) // 50)]:
        yield from (
            word,
            word.upper(),
            word.title(),
            f"{word[0]}\u0301{word[1:]}",
            f"({word},{word}",
        )


def _check_ids(base: Vocabulary, model: Vocabulary) -> None:
    if base.ids.items() < model.ids.items():
        new = sorted((i, token) for token, i in model.ids.items() if token not in base.ids)
        raise TokensError(
            f"model {model.name} has tokens that the base {base.name} lacks: {len(new):,}, the "
            f"first is {new[0][1]!r} with id {new[0][0]}",
            more=True,
        )
    for i in sorted(base.tokens.keys() | model.tokens.keys()):
        ours, theirs = base.tokens.get(i), model.tokens.get(i)
        if ours != theirs:
            _refuse(base, model, f"token {i} is {theirs!r}", ours)


def _refuse(base: Vocabulary, model: Vocabulary, theirs: str, ours: Any) -> None:
    raise TokensError(
        f"model {model.name} has another tokenizer than the base {base.name}: {theirs}, the base's "
        f"is {ours!r}"
    )


def _read(folder: Located, like: Vocabulary | None) -> Vocabulary | None:
    kind = {k: v for k, v in _json(folder.path / CONFIG).items() if k in _KIND}
    settings = {**kind, **_json(folder.path / SETTINGS)}
    if (folder.path / FULL).exists():
        text = (folder.path / FULL).read_text("utf-8")
        if like and text == like.backend:
            return replace(like, name=folder.name, settings=settings)
        return _from_backend(folder.name, text, settings)
    if not any((folder.path / name).exists() for name in PLAIN):
        if not any(file.suffix in PIECES for file in folder.path.iterdir()):
            return None
        return _from_library(folder, settings)
    lines, table = (folder.path / name for name in PLAIN)
    ids = _json(table) or {line: i for i, line in enumerate(_lines(lines))}
    listed = _json(folder.path / ADDED)
    added: dict[str, Mapping[str, Any]] = {token: {} for token in listed}
    ids |= listed
    for i, flags in (settings.get("added_tokens_decoder") or {}).items():
        added[flags["content"]] = flags
        ids[flags["content"]] = int(i)
    found = (_lines(folder.path / name) for name in MERGES)
    merges = [line for line in next(filter(None, found), []) if not line.startswith("#version")]
    return Vocabulary(folder.name, ids, added, merges, settings)


def _from_backend(name: str, text: str, settings: Mapping[str, Any]) -> Vocabulary:
    whole = json.loads(text)
    vocab, rules = whole["model"]["vocab"], whole["model"].get("merges") or []
    rules = [rule if isinstance(rule, str) else " ".join(rule) for rule in rules]
    if isinstance(vocab, list):
        rules = [f"{token} {score:.5g}" for token, score in vocab]
        vocab = {token: i for i, (token, _) in enumerate(vocab)}
    added = {token["content"]: token for token in whole.get("added_tokens") or ()}
    ids = {**vocab, **{token: int(flags["id"]) for token, flags in added.items()}}
    return Vocabulary(name, ids, added, rules, settings, text)


def _from_library(folder: Located, settings: Mapping[str, Any]) -> Vocabulary:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder.path, trust_remote_code=False)
    except Exception as error:  # a broken file may raise anything
        reason = first_line(error)
        raise ModelError(f"model {folder.name}: unreadable vocabulary: {reason}") from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return Vocabulary(folder.name, tokenizer.get_vocab(), settings=settings)
    return _from_backend(folder.name, backend.to_str(), settings)


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text("utf-8"))) if path.exists() else {}


def _lines(path: Path) -> list[str]:
    return path.read_text("utf-8").rstrip("\n").split("\n") if path.exists() else []
