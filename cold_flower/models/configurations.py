"""Whether two models compute the same with the same weights: their configurations, compared."""

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cold_flower.errors import ModelError, first_line
from cold_flower.models.folder import Folder

# What may differ: where a model comes from, how it is trained and saved, its head, and what its
# tensors show anyhow (the sizes of vocabulary and token types).
_INCIDENTAL = re.compile(
    r"_name_or_path|transformers_version|transformers_weights|architectures|auto_map|"
    r"(torch_)?dtype|use_bfloat16|torchscript|_?attn_implementation\w*|"
    r"use_cache|output_\w+|return_dict\w*|chunk_size_feed_forward|gradient_checkpointing|"
    r"reference_compile|deterministic_flash_attn|repad_logits_with_grad|"
    r"\w*dropout\w*|initializer_\w+|keys_to_ignore_at_inference|"
    r"id2label|label2id|_?num_labels|problem_type|finetuning_task|task_specific_params|"
    r"classifier_\w+|pooler_\w+|summary_\w+|sparse_pred\w+|legacy|"
    r"(bos|eos|sep|cls|mask)_token_id|tokenizer_class|max_length|"
    r"(sbert|sentence)_\w+|vocab_size|type_vocab_size"
)
_NOTHING: tuple[Any, ...] = (None, False, 0, -1, "", "none", [], {})  # as good as no such key


def check(base: Folder, model: Folder) -> None:
    """Check that two models compute the same with the same weights.

    Where the files differ, transformers' class of the family reads both: it fills in defaults and
    renames keys, so that an older file of one architecture equals a newer one.

    Raises:
        ModelError: naming the first key that differs.
    """
    ours, theirs = _relevant(base.config), _relevant(model.config)
    if ours == theirs:
        return
    keys = {"model_type"}
    if base.family == model.family:
        ours, theirs = _as_loaded(base), _as_loaded(model)
        # Tied or not: that shows in the tensors, and T5 keeps what it means in another key.
        keys = (ours.keys() | theirs.keys()) - {"tie_word_embeddings"}
    for key in sorted(keys):
        one, other = ours.get(key), theirs.get(key)
        if one == other:
            continue
        one_sided = key not in ours or key not in theirs  # the class has no default for it
        if one_sided and ((one or other) in _NOTHING or not _is_read(base.family, key)):
            continue
        raise ModelError(
            f"model {model.name} has {key} = {other!r}, the base {base.name} {one!r}: only models "
            "of one architecture can be fused"
        )


def _relevant(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not _INCIDENTAL.fullmatch(key)}


def _as_loaded(folder: Folder) -> dict[str, Any]:
    """Return a configuration as transformers' class of the family reads it."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if folder.family not in CONFIG_MAPPING:
        return _relevant(folder.config)
    try:
        return _relevant(CONFIG_MAPPING[folder.family].from_dict(dict(folder.config)).to_dict())
    except Exception as error:  # the class checks what it is given, and raises what it likes
        reason = first_line(error)
        raise ModelError(f"model {folder.name}: config.json cannot be read: {reason}") from error


def _is_read(family: str, key: str) -> bool:
    """Return whether the family's code mentions a key that its configuration class lacks.

    DeBERTa reads position_buckets so, for example.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if family not in CONFIG_MAPPING:
        return True
    folder = Path(inspect.getfile(CONFIG_MAPPING[family])).parent
    word = re.compile(rf"\b{re.escape(key)}\b")
    return any(word.search(path.read_text()) for path in folder.glob("modeling_*.py"))
