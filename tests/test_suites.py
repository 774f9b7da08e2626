"""Data as published: sizes, label sets and fixed test rows; `cold-flower suites --verify`."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from cold_flower.commands import cli, verify
from cold_flower.config import Config
from cold_flower.data import demo
from cold_flower.data.labels import check_labels
from cold_flower.data.rows import read_split, read_task
from cold_flower.data.splits import load_splits
from cold_flower.data.suite import load_suite
from cold_flower.errors import ConfigError, TaskError
from cold_flower.seeds import shuffled
from tests.conftest import REAL, needs_real
from tests.test_cli import cold_flower
from tests.test_tasks import ROWS, suite, task, write

# What the paper's scores were counted on, from their granularity (one item of CB is 1.8 points).
PAPER = {
    "20_newsgroups": 7532, "ag_news": 3000, "amazon_reviews": 5000, "anli": 3200, "boolq": 3270,
    "cb": 56, "cola": 1043, "copa": 100, "dbpedia": 3000, "esnli": 9824,
    "financial_phrasebank": 1000, "imdb": 25000, "isear": 1534, "mnli": 9832, "mrpc": 408,
    "multirc": 4848, "poem_sentiment": 104, "qnli": 5463, "qqp": 40430, "rotten_tomatoes": 1066,
    "rte": 277, "sst2": 872, "sst5": 2210, "trec_coarse": 500, "trec_fine": 500,
    "tweet_emoji": 50000, "tweet_emotion": 1421, "tweet_hate": 2970, "tweet_irony": 784,
    "tweet_offensive": 860, "tweet_sentiment": 12284, "wic": 638, "wnli": 71, "wsc": 104,
    "yahoo_answers": 3000,
}  # fmt: skip
TRAIN = {
    "cola": 8551, "mrpc": 3668, "qqp": 363846, "mnli": 392702, "qnli": 104743, "rte": 2490,
    "wnli": 635, "sst2": 67349, "stsb": 5749, "boolq": 9427, "cb": 250, "copa": 400,
    "multirc": 27243, "wic": 5428, "wsc": 554, "anli": 162865, "esnli": 549367,
    "rotten_tomatoes": 8530, "poem_sentiment": 892, "tweet_emoji": 45000, "tweet_emotion": 3257,
    "tweet_hate": 9000, "tweet_irony": 2862, "tweet_offensive": 11916, "tweet_sentiment": 45615,
    "financial_phrasebank": 4846,
}  # fmt: skip
CLASSES = {
    "20_newsgroups": 20, "ag_news": 4, "amazon_reviews": 5, "anli": 3, "boolq": 2, "cb": 3,
    "cola": 2, "copa": 2, "dbpedia": 14, "esnli": 3, "financial_phrasebank": 3, "imdb": 2,
    "isear": 7, "mnli": 3, "mrpc": 2, "multirc": 2, "poem_sentiment": 4, "qnli": 2, "qqp": 2,
    "rotten_tomatoes": 2, "rte": 2, "sst2": 2, "sst5": 5, "trec_coarse": 6, "trec_fine": 50,
    "tweet_emoji": 20, "tweet_emotion": 4, "tweet_hate": 2, "tweet_irony": 2,
    "tweet_offensive": 2, "tweet_sentiment": 3, "wic": 2, "wnli": 2, "wsc": 2, "yahoo_answers": 10,
}  # fmt: skip


@pytest.fixture
def data(tmp_path):
    """Train and test of 20 rows each, labels 0 and 1."""
    for split in ("train", "test"):
        write(tmp_path / "data", ".csv", split=split)
    return tmp_path


def test_the_paper_suite_states_every_size_and_label_set() -> None:
    tasks = load_suite("paper").tasks
    tested = {name: task.test_sample or task.rows["test"] for name, task in tasks.items()}
    assert tested == PAPER | {"stsb": 1500}  # no granularity shows STS-B's; GLUE's validation set
    listed = {name: len(task.labels) for name, task in tasks.items()}
    assert listed == CLASSES | {"stsb": 0}
    assert tasks["mnli"].splits == {  # so train is whole
        "train": "train", "validation": "validation_matched", "test": "validation_mismatched",
    }  # fmt: skip
    stated = {name: task.rows["train"] for name, task in tasks.items() if "train" in task.rows}
    assert stated == TRAIN
    sampled = {name: task.train_sample for name, task in tasks.items() if task.train_sample}
    assert sampled == dict.fromkeys(("ag_news", "dbpedia", "yahoo_answers"), 15000)
    assert tasks["dbpedia"].text == ("content",)
    assert "{best_answer}" in tasks["yahoo_answers"].text[0]


def test_the_page_and_the_suite_agree_on_what_can_be_compared() -> None:
    page = (Path(__file__).parents[1] / "docs" / "datasets.md").read_text()
    said = re.findall(r"^\| (\w+) \| .* \| (yes|nearly|no) \| (\S+) \|$", page, re.M)
    tasks = load_suite("paper").tasks
    assert {name: word for name, word, _ in said} == {n: t.comparable for n, t in tasks.items()}
    pairs = {name for name, task in tasks.items() if len(task.text) == 2}
    assert all(word != "yes" for name, word, _ in said if name in pairs)  # no " <SEP> " here
    assert {name: licence for name, _, licence in said if licence != "-"} == {
        "anli": "cc-by-nc-4.0", "dbpedia": "cc-by-sa-3.0", "esnli": "cc-by-sa-4.0",
        "financial_phrasebank": "cc-by-nc-sa-3.0", "poem_sentiment": "cc-by-4.0",
    }  # fmt: skip


def test_a_size_that_differs_names_both(data) -> None:
    right = task(data, rows={"train": 20, "test": 20})
    few = Config.from_flat({"evaluate.max-test-examples": 3})
    assert len(load_splits(right, few).test) == 3  # stated is what is read, not what a run draws
    wrong = task(data, rows={"test": 872})
    words = r"task mine .*suite.toml\): split test \('test'\) has 20 rows, but the suite states 872"
    with pytest.raises(TaskError, match=words):
        load_splits(wrong, few)


def test_a_class_that_never_occurs_is_named_where_sizes_are_stated(data) -> None:
    labels = ["even", "odd", "prime"]
    with pytest.raises(TaskError, match=r"labels \['prime'\] never occur .* lists 3 .* hold 2"):
        load_splits(task(data, labels=labels, rows={"test": 20}), Config())
    assert load_splits(task(data, labels=labels), Config()).labels == ("even", "odd", "prime")


def hub(tmp_path, names, monkeypatch):
    """Write a repository as the hub's are: parquet with named classes, one row unlabelled."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
    )
    for split, labels in {"train": [0, 1, 1, 0], "validation": [1], "test": [-1, 1, 0]}.items():
        rows = {"text": [f"{split} {i}" for i in range(len(labels))], "label": labels}
        dataset = datasets.Dataset.from_dict(rows, features=features)
        dataset.to_parquet(tmp_path / "repository" / f"{split}.parquet")
    return {"source": "hub", "path": str(tmp_path / "repository"), "text": ["text"]}


def test_a_hub_repository_with_named_classes(tmp_path, monkeypatch) -> None:
    entry = hub(tmp_path, ["neg", "pos"], monkeypatch) | {"labels": ["negative", "positive"]}
    splits = {"train": "train+validation", "test": "test"}
    rows = read_task(task(tmp_path, **entry, splits=splits, rows={"train": 5, "test": 2}))
    assert rows.train.labels == [0, 1, 1, 0, 1]
    assert rows.test.texts == [("test 1",), ("test 2",)]  # -1 is no label
    for labels in (["pos", "neg"], ["neg", "neutral", "pos"]):
        words = rf"labels are \['{labels[0]}', .* in its entry, but \['neg', 'pos'\] in the data"
        with pytest.raises(TaskError, match=words):
            read_split(task(tmp_path, **(entry | {"labels": labels})), "train")


# The hub's own class names, from its pages.
HUB = {
    "ag_news": ["World", "Sports", "Business", "Sci/Tech"],
    "boolq": ["False", "True"],
    "cb": ["entailment", "contradiction", "neutral"],
    "copa": ["choice1", "choice2"],
    "esnli": ["entailment", "neutral", "contradiction"],
    "imdb": ["neg", "pos"],
    "mrpc": ["not_equivalent", "equivalent"],
    "poem_sentiment": ["negative", "positive", "no_impact", "mixed"],
    "qnli": ["entailment", "not_entailment"],
    "qqp": ["not_duplicate", "duplicate"],
    "rotten_tomatoes": ["neg", "pos"],
    "rte": ["entailment", "not_entailment"],
    "tweet_emotion": ["anger", "joy", "optimism", "sadness"],
    "tweet_hate": ["non-hate", "hate"],
    "tweet_irony": ["non_irony", "irony"],
    "tweet_offensive": ["non-offensive", "offensive"],
    "tweet_sentiment": ["negative", "neutral", "positive"],
    "wic": ["False", "True"],
    "wnli": ["not_entailment", "entailment"],
}


@pytest.mark.parametrize("name", HUB)
def test_labels_of_the_paper_suite_are_in_the_order_of_the_hub(name) -> None:
    entry, names = load_suite("paper").tasks[name], tuple(HUB[name])
    check_labels(entry, "train", names)
    with pytest.raises(TaskError, match="list them in the order of the data"):
        check_labels(entry, "train", (*names, "another"))
    if {n.casefold() for n in names} & {n.casefold() for n in entry.labels}:
        with pytest.raises(TaskError, match="list them in the order of the data"):
            check_labels(entry, "train", names[::-1])


def test_a_test_sample_is_the_same_whatever_the_seed(data) -> None:
    mine = task(data, **{"test-sample": 6, "rows": {"test": 20}})
    drawn = [load_splits(mine, Config.from_flat({"seed": seed})).test for seed in (0, 1)]
    assert drawn[0] == drawn[1]
    rows = sorted(shuffled(20, 0, "published test", "mine")[:6])
    assert drawn[0].texts == [(ROWS["first"][i],) for i in rows]


def test_a_test_set_is_held_out_of_train_and_never_trained_on(data) -> None:
    mine = task(
        data, **{"splits": {"train": "train", "test": ""}, "test-sample": 6, "rows": {"train": 20}}
    )
    one, two = (load_splits(mine, Config.from_flat({"seed": seed})) for seed in (0, 1))
    assert one.test == two.test
    assert (len(one.train), len(one.dev), len(one.test)) == (13, 1, 6)
    parts = [set(rows.texts) for rows in (one.train, one.dev, one.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 20
    with pytest.raises(TaskError, match="test-sample is 20, but split train has 20 rows"):
        load_splits(replace(mine, test_sample=20), Config())
    with pytest.raises(TaskError, match="test-sample is 21, but split test has 20 rows"):
        load_splits(task(data, **{"test-sample": 21}), Config())


def test_a_train_sample_is_the_same_whatever_the_seed_and_leaves_test_alone(data) -> None:
    keys = {"train-sample": 10, "rows": {"train": 20, "test": 20}}
    parts = [load_splits(task(data, **keys), Config(seed=seed)) for seed in (0, 1)]
    train = [sorted([*part.train.texts, *part.dev.texts]) for part in parts]
    assert train[0] == train[1] and len(set(train[0])) == 10
    assert (len(parts[0].train), len(parts[0].dev), len(parts[0].test)) == (9, 1, 20)
    # Of what is left where test rows are held out of train.
    held = {"splits": {"train": "train", "test": ""}, "test-sample": 6, "train-sample": 14}
    both = load_splits(task(data, **held), Config())
    assert not {*both.train.texts, *both.dev.texts} & {*both.test.texts}
    assert len(both.train) + len(both.dev) == 14
    with pytest.raises(TaskError, match="train-sample is 21, but split train has 20 rows"):
        load_splits(task(data, **{"train-sample": 21}), Config())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rows": 872}, "rows gives the size of train, test, got 872"),
        ({"rows": {"tets": 872}}, "rows gives the size of train, test, got"),
        ({"rows": {"validation": 9}}, "rows gives the size of train, test, got"),
        ({"rows": {"test": 0}}, "whole numbers from 1"),
        ({"rows": {"test": True}}, "whole numbers from 1"),
        ({"test-sample": -1}, "test-sample is a whole number from 1, got -1"),
        ({"train-sample": True}, "train-sample is a whole number from 1, got True"),
        ({"comparable": "perhaps"}, "unknown comparable 'perhaps'"),
        ({"test-sampel": 1}, "unknown key 'test-sampel'. Did you mean 'test-sample'"),
        ({"splits": {"train": "train", "test": ""}}, "say how many with test-sample"),
        ({"splits": {"train": "", "test": "test"}}, "splits names train, test"),
    ],
)
def test_a_wrong_statement(tmp_path, changes, words) -> None:
    with pytest.raises(TaskError, match=words):
        load_suite(str(suite(tmp_path, **changes)))


TEMPLATES = {
    "copa": (
        {
            "premise": "The man fell.",
            "question": "cause",
            "choice1": "He slipped.",
            "choice2": "He sang.",
            "label": 0,
        },
        ("The man fell. What was the cause?", "Option 1: He slipped. Option 2: He sang."),
    ),
    "multirc": (
        {
            "paragraph": "Ann left. Bob stayed.",
            "question": "Who stayed?",
            "answer": "Bob",
            "label": 1,
        },
        ("Ann left. Bob stayed.", "Who stayed? Bob"),
    ),
    "wic": (
        {
            "word": "bank",
            "sentence1": "We sat on the bank.",
            "sentence2": "The bank is closed.",
            "label": 0,
        },
        ("bank: We sat on the bank.", "The bank is closed."),
    ),
    "wsc": (
        {
            "text": "Mark told Pete that he won.",
            "span1_text": "Mark",
            "span2_text": "he",
            "label": 1,
        },
        ("Mark told Pete that he won.", "he refers to Mark"),
    ),
    "dbpedia": (
        {"title": "Ely", "content": "A city in England.", "label": 8},
        ("A city in England.",),
    ),
    "yahoo_answers": (
        {
            "question_title": "Why?",
            "question_content": None,
            "best_answer": "So.",
            "topic": 2,
        },
        ("Why?  So.",),
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_templates_of_the_paper_suite(tmp_path, name) -> None:
    row, texts = TEMPLATES[name]
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    entry = load_suite("paper").tasks[name]
    rows, _ = read_split(replace(entry, source="files", path=str(tmp_path)), "train")
    assert rows.texts == [texts]
    templates = " ".join(entry.text)
    assert name not in ("copa", "multirc", "wic", "wsc") or "{" in templates


def test_verify_says_what_is_there_and_what_is_not(data) -> None:
    good = suite(data, rows={"train": 20, "test": 20}).read_text()
    bad = good.replace("[tasks.mine]", "[tasks.worse]").replace('"test" = 20', '"test" = 21')
    bad = bad.replace("test = 20", "test = 21")
    gone = good.replace("[tasks.mine]", "[tasks.gone]").replace('"data"', '"nowhere"')
    (data / "odd").mkdir()
    (data / "odd" / "train.parquet").write_bytes(b"PAR1")
    odd = good.replace("[tasks.mine]", "[tasks.odd]").replace('"data"', '"odd"')
    path = data / "suite.toml"
    path.write_text("\n".join([odd, gone, bad, good]))  # what fails stops nothing
    shown = cold_flower("suites", "--verify", "suite.toml", cwd=data)
    assert shown.returncode == 1
    lines = [line.split() for line in shown.stdout.splitlines()]
    table = {line[0]: line[2:] for line in lines if line and line[-1] in ("ok", "FAILED")}
    assert table["mine"] == ["20", "/", "20", "20", "/", "20", "20", "2", "/", "2", "0", "ok"]
    assert table["worse"] == ["20", "/", "20", "20", "/", "21", "20", "2", "/", "2", "0", "FAILED"]
    assert table["gone"] == ["-", "/", "20", "-", "/", "20", "-", "-", "/", "2", "-", "FAILED"]
    assert "worse: split test ('test') has 20 rows, but the suite states 21" in shown.stdout
    assert "gone: no file for split 'train'; looked for" in shown.stdout
    assert shown.stdout.splitlines()[-1] == "1 of 4 tasks are as the suite says"
    path.write_text(good)
    shown = cold_flower("suites", "suite.toml", "--verify", cwd=data)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert shown.stdout.splitlines()[-1] == "1 of 1 tasks are as the suite says"


def test_verify_without_a_network_names_the_way_out(capsys, monkeypatch) -> None:
    paper = load_suite("paper")
    assert not verify.report(replace(paper, tasks={"cb": paper.tasks["cb"]}))
    output = capsys.readouterr().out
    assert (
        "cb: hub dataset 'aps/super_glue' (subset 'cb', split 'train') cannot be loaded" in output
    )
    assert "docs/datasets.md says how" in output
    assert output.splitlines()[-1] == "0 of 1 tasks are as the suite says"


def test_suites_of_the_command_line(capsys) -> None:
    cli.app(["suites", "paper"], standalone_mode=False)
    assert capsys.readouterr().out.startswith("paper: 36 tasks: 20_newsgroups, ag_news")
    with pytest.raises(Exception, match="--verify expects a suite: demo, paper, or a file"):
        cli.app(["suites", "--verify"], standalone_mode=False)
    with pytest.raises(TaskError, match="Did you mean 'paper'"):
        cli.app(["suites", "--verify", "papr"], standalone_mode=False)
    cli.app(["suites", "--verify", "demo"], standalone_mode=False)
    assert "12 of 12 tasks are as the suite says (12 of them" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--base-model is for --verify SUITE"):
        cli.app(["suites", "demo", "--base-model", "demo"], standalone_mode=False)


def test_verify_says_what_the_base_model_does_not_see(tmp_path, capsys) -> None:
    words = demo.vocabulary()[0]
    lines = [f"{words[i]} {'x ' * i},{i % 2}" for i in range(20)]  # up to 19 unknown ones
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        text = "\n".join(["first,label", *lines])
        (tmp_path / "data" / f"{split}.csv").write_text(text)
    short = "\n[recipe]\nfinetune.max-length = 12\n"
    path = suite(tmp_path)
    path.write_text(path.read_text() + short)
    assert verify.report(load_suite(str(path)), "demo")
    output = capsys.readouterr().out
    # With start, end and the word, ten texts have 3 to 12 tokens, and ten are cut to 12.
    (line,) = (line.split() for line in output.splitlines() if line.split()[-1:] == ["ok"])
    assert line[-3:] == ["69.2%", "50.0%", "ok"]  # (45 + 90) of (75 + 120)
    assert "mine: note: 69% of the tokens are unknown to the tokenizer" in output
    assert "mine: note: 50% of the texts are longer than a run reads, and cut" in output


@needs_real
def test_the_real_suite_is_as_it_says(capsys) -> None:
    assert verify.report(load_suite(f"{REAL}/data/suite.toml"))
    assert "35 of 35 tasks are as the suite says" in capsys.readouterr().out
