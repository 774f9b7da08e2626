"""The demo's base model: a tiny RoBERTa and its tokenizer, made on the spot."""

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, RobertaConfig

from cold_flower.data.demo import CONCEPTS, WORDS, vocabulary

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def config() -> RobertaConfig:
    """Return the model's configuration: 2 layers of 64, about 0.1 million parameters."""
    return RobertaConfig(
        vocab_size=len(SPECIAL) + CONCEPTS * WORDS,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=40,
        type_vocab_size=1,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        architectures=["RobertaForMaskedLM"],
    )


def tokenizer() -> PreTrainedTokenizerFast:
    """Make the tokenizer: a word is a token, and a text is framed as RoBERTa does it."""
    words = [*SPECIAL, *(word for concept in vocabulary() for word in concept)]
    ids = {word: i for i, word in enumerate(words)}
    backend = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=38,
    )
