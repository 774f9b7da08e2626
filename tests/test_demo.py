"""The embedded demo."""

from cold_flower.config import Config
from cold_flower.data import demo
from cold_flower.data.plan import resolve
from cold_flower.data.splits import load_splits
from cold_flower.data.suite import load_suite


def test_twelve_tasks_of_their_own_label_spaces() -> None:
    suite = load_suite("demo")
    assert suite.tasks.keys() == demo.TASKS.keys()
    config = resolve(Config())
    for task in suite.tasks.values():
        data = load_splits(task, config)
        assert len(data.labels) == len(demo.TASKS[task.name])
        assert set(data.train.labels) == set(range(len(data.labels)))
        assert (len(data.train), len(data.dev), len(data.test)) == (360, 40, 400)
    assert len({task.labels for task in suite.tasks.values()}) == len(suite.tasks)


def test_rows_depend_on_the_seed_the_vocabulary_does_not() -> None:
    rows = demo.columns("weather", "train", 0)
    assert rows == demo.columns("weather", "train", 0)
    assert rows != demo.columns("weather", "train", 1)
    assert rows["text"] != demo.columns("weather", "test", 0)["text"]
    words = [word for concept in demo.vocabulary() for word in concept]
    assert len(words) == len(set(words)) == demo.CONCEPTS * demo.WORDS


def test_unseen_tasks_mix_concepts_that_seen_tasks_know() -> None:
    unseen = {name.strip() for name in str(load_suite("demo").recipe["unseen"]).split(",")}
    known = {c for name, concepts in demo.TASKS.items() if name not in unseen for c in concepts}
    assert all(set(demo.TASKS[name]) <= known for name in unseen)


def test_the_tokenizer_knows_every_word_and_frames_as_roberta_does(tiny) -> None:
    text = demo.columns("music", "train", 0)["text"][0]
    ids = tiny.tokenizer(text)["input_ids"]
    assert tiny.tokenizer.unk_token_id not in ids
    assert (ids[0], ids[-1], len(ids)) == (0, 2, len(text.split()) + 2)
