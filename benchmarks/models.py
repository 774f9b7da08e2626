"""A BERT of random weights with the demo's tokenizer, as large as is wanted."""

from pathlib import Path

from cold_flower.models import demo as demo_model


def bert(folder: Path, layers: int, hidden: int, words: int) -> Path:
    """Write one; return where.

    Args:
        folder: where the model's own goes.
        layers: how many.
        hidden: the width.
        words: size of the vocabulary; the demo's tokenizer uses the first of them.
    """
    from transformers import BertConfig, BertModel

    shape = BertConfig(
        vocab_size=words,
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=4 * hidden,
        pad_token_id=1,
    )
    made = folder / "model"
    BertModel(shape, add_pooling_layer=False).save_pretrained(made, max_shard_size="100GB")
    tokenizer = demo_model.tokenizer()
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(made)
    return made
