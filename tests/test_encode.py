"""Tokenised examples and batches."""

import pytest
import torch

from cold_flower.data import demo
from cold_flower.data.encode import encode, sorted_batches, standardised, training_batches


def some(base, n, seed=0):
    rows = demo.columns("sports", "train", seed)
    texts = [(" ".join(t.split()[: 3 + i % 9]),) for i, t in enumerate(rows["text"][:n])]
    return encode(base.tokenizer, texts, [label % 3 for label in rows["label"][:n]], max_length=32)


def of_pairs():
    """Return a tokenizer of two words that marks the second text of a pair."""
    from transformers import BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]
    return BertTokenizer(vocab={word: i for i, word in enumerate(words)})


def test_examples_come_back_padded(tiny) -> None:
    data = some(tiny, 5)
    assert data.lengths().tolist() == [5, 6, 7, 8, 9]
    batch = data.batch([0, 3])
    assert batch["input_ids"].shape == (2, 8)
    assert batch["input_ids"][0, 5:].tolist() == [tiny.tokenizer.pad_token_id] * 3
    assert batch["attention_mask"].sum(1).tolist() == [5, 8]
    assert "token_type_ids" not in batch


def test_taking_examples(tiny) -> None:
    data = some(tiny, 6)
    taken = data.take([4, 1])
    assert taken.labels.tolist() == [int(data.labels[4]), int(data.labels[1])]
    assert torch.equal(taken.batch([0])["input_ids"], data.batch([4])["input_ids"])


def test_pairs_mark_the_second_text(folders) -> None:
    data = encode(of_pairs(), [("a a", "b"), ("a", "b b")], [0.5, 1.0], max_length=16)
    batch = data.batch([0, 1])
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 1]]
    assert data.labels.dtype == torch.float32


def test_a_regressions_labels_have_mean_0_and_deviation_1_in_train() -> None:
    own, other = standardised([1999.0, 2001.0, 2003.0], [2001.0, 2003.0, 2010.0])
    deviation = (8 / 3) ** 0.5
    assert own == pytest.approx([-2 / deviation, 0, 2 / deviation])
    assert other == pytest.approx([0, 2 / deviation, 9 / deviation])
    assert standardised([0.1] * 1000)[0] == [0] * 1000  # as if they differed by rounding
    times = [1.7e9 + second for second in range(100)]  # that float32 cannot tell apart
    assert len({*standardised(times)[0]}) == 100


def test_long_texts_are_cut_to_what_the_model_can_hold(tiny) -> None:
    data = encode(tiny.tokenizer, [("bada " * 100,)], [0], max_length=512)
    assert data.lengths().tolist() == [38]


def test_what_is_unknown_or_cut_is_counted(tiny) -> None:
    word, other = demo.vocabulary()[0][0], "unheard"
    texts = [(word,), (f"{word} {other}",), (" ".join([word] * 20),), (" ".join([other] * 6),)]
    found = encode(tiny.tokenizer, texts, [0, 1, 0, 1], max_length=8)
    # With start and end: 3 + 4 + 8 + 8 tokens. Six more words and the ends would just fit.
    assert len(found.ids) == 23
    assert found.unknown == pytest.approx(7 / 23)
    assert found.cut == 1 / 4


def test_an_epoch_holds_each_example_once_and_pads_little(tiny) -> None:
    lengths = torch.randint(4, 100, (1000,), generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    batches = list(training_batches(lengths, 16, generator))
    assert sorted(i for batch in batches for i in batch) == list(range(1000))
    padded = sum(int(lengths[b].max()) * len(b) for b in batches)
    assert padded < 1.1 * int(lengths.sum())
    assert list(training_batches(lengths, 16, generator)) != batches
    again = training_batches(lengths, 16, torch.Generator().manual_seed(1))
    assert list(again) == batches
    assert [i for b in sorted_batches(lengths, 7) for i in b] == lengths.argsort(
        stable=True
    ).tolist()


def test_taken_pairs_keep_their_token_types(folders) -> None:
    pairs = [("a a a", "b"), ("a", "b b b"), ("a a", "b b")]
    data = encode(of_pairs(), pairs, [0, 1, 0], max_length=16)
    taken = data.take([1, 2]).batch([0, 1])["token_type_ids"]
    assert torch.equal(taken, data.batch([1, 2])["token_type_ids"])


def test_the_order_of_examples_and_of_batches_is_drawn() -> None:
    def batches(lengths):
        return list(training_batches(lengths, 4, torch.Generator().manual_seed(0)))

    alike = batches(torch.full((40,), 5))
    assert sorted(i for batch in alike for i in batch) == [*range(40)]
    assert not any(sorted(batch) == [*range(min(batch), min(batch) + 4)] for batch in alike)
    longest = [max(batch) for batch in batches(torch.arange(1, 41))]
    assert longest != sorted(longest)
    assert sorted(longest) == [*range(3, 40, 4)]  # each of examples of similar length
