"""Suites, sources and splits."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from cold_flower.config import Config
from cold_flower.data.rows import read_split, read_task
from cold_flower.data.splits import load_splits
from cold_flower.data.suite import load_suite, suite_names
from cold_flower.errors import TaskError
from tests.conftest import REAL, needs_real

ROWS = {
    "first": [f"one {i}" for i in range(20)],
    "second": [f"two {i}" for i in range(20)],
    "label": [i % 2 for i in range(20)],
    "score": [i / 4 for i in range(20)],
    "word": ["no" if i % 2 else "yes" for i in range(20)],
}


def write(folder: Path, suffix: str, rows=ROWS, split="train") -> None:
    folder.mkdir(exist_ok=True)
    path = folder / f"{split}{suffix}"
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pa.table(rows), path)
    elif suffix == ".csv":
        pyarrow.csv.write_csv(pa.table(rows), path)
    else:
        lines = [
            dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def suite(tmp_path: Path, **changes) -> Path:
    entry = {
        "source": "files",
        "path": "data",
        "text": ["first"],
        "label": "label",
        "labels": ["even", "odd"],
        "splits": {"train": "train", "test": "test"},
        **changes,
    }
    lines = ["[tasks.mine]"]
    for key, value in entry.items():
        if value is None:
            continue
        shown = json.dumps(value)
        if isinstance(value, dict):
            shown = "{" + ", ".join(f"{k} = {json.dumps(v)}" for k, v in value.items()) + "}"
        lines.append(f"{key} = {shown}")
    path = tmp_path / "suite.toml"
    path.write_text("\n".join(lines))
    return path


def task(tmp_path: Path, **changes):
    return load_suite(str(suite(tmp_path, **changes))).tasks["mine"]


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_files_of_each_kind_give_the_same_rows(tmp_path, suffix) -> None:
    write(tmp_path / "data", suffix)
    rows, labels = read_split(task(tmp_path, text=["first", "second"]), "train")
    assert rows.texts[3] == ("one 3", "two 3")
    assert rows.labels[:4] == [0, 1, 0, 1]
    assert labels == ("even", "odd")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_record_may_be_of_any_size_and_of_many_lines(tmp_path, suffix) -> None:
    """Beyond pyarrow's own blocks of 1 MB: a long record, and line breaks all along the file."""
    texts = ["word " * 600_000, *(f'line {i}\n"next", he said' for i in range(60_000))]
    labels = [i % 2 for i in range(len(texts))]
    write(tmp_path / "data", suffix, {"first": texts, "label": labels})
    rows, _ = read_split(task(tmp_path), "train")
    assert [text for (text,) in rows.texts] == texts
    assert rows.labels == labels


def test_a_column_that_is_there_twice_is_named(tmp_path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.csv").write_text("first,label,first\na,0,b\n")
    with pytest.raises(TaskError, match=r"2 columns of .*train.csv are called 'first'; rename"):
        read_split(task(tmp_path), "train")
    (tmp_path / "data" / "train.csv").write_text("first,label,other,other\na,0,b,c\n")
    rows, _ = read_split(task(tmp_path), "train")  # nobody asks for those
    assert rows.texts == [("a",)]


def test_a_pattern_a_template_and_labels_by_name(tmp_path) -> None:
    write(tmp_path / "data", ".csv", split="x-train")
    mine = task(
        tmp_path,
        path="data/x-{split}.csv",
        text=["{first} / {second}"],
        label="word",
        labels=["no", "yes"],
    )
    rows, _ = read_split(mine, "train")
    assert rows.texts[0] == ("one 0 / two 0",)
    assert rows.labels[:2] == [1, 0]


def test_labels_that_the_data_names(tmp_path) -> None:
    write(tmp_path / "data", ".jsonl")
    _, labels = read_split(task(tmp_path, labels=None, label="word"), "train")
    assert labels == ("no", "yes")


def test_numbers_that_nobody_names_mean_the_same_class_in_every_split(tmp_path) -> None:
    """Sorted as text, 10 comes before 2: the order that train gives must hold for test."""
    for split in ("train", "test"):
        write(
            tmp_path / "data",
            ".csv",
            {"first": list("abcdefghijkl"), "label": [*range(1, 13)]},
            split,
        )
    data = load_splits(task(tmp_path, labels=None), Config())
    index = dict(zip(data.test.texts, data.test.labels, strict=True))
    own = (data.train, data.dev)
    assert all(index[t] == n for rows in own for t, n in zip(rows.texts, rows.labels, strict=True))
    assert data.labels[:4] == ("1", "10", "11", "12")


def test_regression(tmp_path) -> None:
    write(tmp_path / "data", ".parquet")
    mine = task(tmp_path, kind="regression", label="score", labels=None)
    rows, labels = read_split(mine, "train")
    assert rows.labels[2] == 0.5
    assert labels == ("",)
    assert mine.metric == "pearson"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"text": ["frist"]}, r"task mine .*no column 'frist' in .*train.csv; .* first, second"),
        ({"label": "lable"}, "no column 'lable'"),
        ({"labels": ["even"]}, r"split train, row 1: label 1 .* outside the list \['even'\]"),
        ({"path": "nowhere"}, "task mine .*no file for split 'train'; looked for .*nowhere"),
        ({"kind": "regression", "label": "word", "labels": None}, "column 'word' is no number"),
        ({"path": "data/{split}.txt"}, "is none of .parquet"),
        ({"source": "demo"}, "unknown task of the demo 'mine'"),
    ],
)
def test_bad_data_names_task_file_and_column(tmp_path, changes, words) -> None:
    write(tmp_path / "data", ".csv")
    with pytest.raises(TaskError, match=words):
        read_split(task(tmp_path, **changes), "train")


@pytest.mark.parametrize("value", ["NaN", "Infinity"])
def test_a_number_that_is_none_is_refused(tmp_path, value) -> None:
    (tmp_path / "data").mkdir()
    lines = ('{"first": "a", "score": 1.5}', f'{{"first": "b", "score": {value}}}')
    (tmp_path / "data" / "train.jsonl").write_text("\n".join(lines))
    mine = task(tmp_path, kind="regression", label="score", labels=None)
    with pytest.raises(TaskError, match="split train, row 1: 'score' is .* a finite number"):
        read_split(mine, "train")


def test_a_single_class_is_no_task(tmp_path) -> None:
    for split in ("train", "test"):
        write(tmp_path / "data", ".csv", {**ROWS, "word": ["yes"] * 20}, split)
    mine = task(tmp_path, label="word", labels=None)
    with pytest.raises(TaskError, match="split train: every row is 'yes'; .* two classes or more"):
        read_task(mine)


def test_a_column_of_a_template_is_named_as_a_whole(tmp_path) -> None:
    (tmp_path / "data").mkdir()
    row = {"meta.text": "a", "0": "b", "x[1]": "c", "label": 1}
    (tmp_path / "data" / "train.jsonl").write_text(json.dumps(row))
    mine = task(tmp_path, text=["{meta.text} {{so}} {0}", "{x[1]:>3}."])
    assert read_split(mine, "train")[0].texts == [("a {so} b", "  c.")]


def test_half_a_character_is_refused_by_row_and_column(tmp_path) -> None:
    (tmp_path / "data").mkdir()
    rows = ('{"first": "\\ud83d\\ude00", "label": 0}', '{"first": "so \\ud83d", "label": 1}')
    (tmp_path / "data" / "train.jsonl").write_text("\n".join(rows))
    with pytest.raises(TaskError, match="split train, row 1: column 'first' holds half a char"):
        read_split(task(tmp_path), "train")


def test_an_empty_split_and_a_broken_file(tmp_path) -> None:
    write(tmp_path / "data", ".parquet", {k: v[:0] for k, v in ROWS.items()})
    with pytest.raises(TaskError, match="split train is empty"):
        read_split(task(tmp_path), "train")
    (tmp_path / "data" / "train.parquet").write_bytes(b"not parquet")
    with pytest.raises(TaskError, match="train.parquet cannot be read"):
        read_split(task(tmp_path), "train")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sauce": "files"}, "unknown key 'sauce'. Did you mean 'source'"),
        (
            {"splits": {"train": "train", "validation": "test", "test": "test"}},
            "the same data twice, got .*validation",
        ),
        ({"source": "file"}, "unknown source 'file'. Did you mean 'files'"),
        ({"metric": "acuracy"}, "Did you mean 'accuracy'"),
        ({"text": ["a", "b", "c"]}, "one or two columns"),
        ({"text": None}, "text is missing"),
        ({"splits": {"train": "train"}}, "splits names train, test"),
        ({"labels": ["x", "x"]}, "different names"),
        ({"path": 3}, "path is a string, got 3"),
        ({"text": ["{first"]}, "is no template"),
        ({"text": ["{}"]}, "every {} names a column"),
        ({"metric": "pearson"}, "unknown metric 'pearson'"),
        (
            {"kind": "regression", "metric": "accuracy", "labels": None},
            "unknown metric 'accuracy'",
        ),
        ({"kind": "regression"}, "labels are of a classification, kind is 'regression'"),
        ({"text": ["{first:d}"]}, "is no template: Unknown format code 'd'"),
        ({"text": ["{first!z}"]}, "is no template: Unknown conversion specifier"),
    ],
)
def test_a_wrong_entry(tmp_path, changes, words) -> None:
    with pytest.raises(TaskError, match=words):
        load_suite(str(suite(tmp_path, **changes)))


def test_suites_by_name() -> None:
    assert suite_names() == ["demo", "paper"]
    with pytest.raises(TaskError, match="Did you mean 'paper'"):
        load_suite("papper")
    with pytest.raises(TaskError, match="/nowhere.toml cannot be read"):
        load_suite("/nowhere.toml")


def test_no_network_names_dataset_and_way_out() -> None:
    with pytest.raises(TaskError, match=r"hub dataset 'nyu-mll/glue' .* name a local copy"):
        read_split(load_suite("paper").tasks["sst2"], "train")


def test_dev_is_carved_or_taken_and_the_draws_are_stable(tmp_path) -> None:
    for split in ("train", "test", "dev"):
        write(tmp_path / "data", ".csv", split=split)
    config = Config.from_flat({"finetune.dev-examples": 5, "finetune.max-examples": 7})
    carved = load_splits(task(tmp_path), config)
    assert (len(carved.train), len(carved.dev), len(carved.test)) == (7, 2, 20)
    assert not set(carved.train.texts) & set(carved.dev.texts)
    assert carved.train.texts == load_splits(task(tmp_path), config).train.texts
    splits = {"train": "train", "validation": "dev", "test": "test"}
    own_dev = task(tmp_path, splits=splits)
    assert len(load_splits(own_dev, config).dev) == 20  # a published one is used whole
    capped = Config.from_flat({"finetune.max-dev-examples": 6})
    assert len(load_splits(own_dev, capped).dev) == 6
    assert len(load_splits(own_dev, capped).train) == 20
    few = Config.from_flat({"evaluate.max-test-examples": 3, "seed": 1})
    assert len(load_splits(task(tmp_path), few).test) == 3


def test_shards_are_disjoint_and_limited(tmp_path) -> None:
    for split in ("train", "test"):
        write(tmp_path / "data", ".csv", split=split)
    keys = {"partition.kind": "shards", "partition.shards": 4, "partition.examples": 5}
    config = Config.from_flat(keys)
    shards = [load_splits(task(tmp_path), config, i) for i in range(4)]
    texts = [t for s in shards for t in (*s.train.texts, *s.dev.texts)]
    assert len(texts) == len(set(texts)) == 20
    config = Config.from_flat({**keys, "partition.shards": 5})
    with pytest.raises(TaskError, match="5 shards of 5 need 25 training examples, there are 20"):
        load_splits(task(tmp_path), config, 0)


def test_a_carved_dev_split_is_of_so_many_at_most(tmp_path) -> None:
    write(tmp_path / "data", ".csv", {"first": [f"{i}" for i in range(100)], "label": [0, 1] * 50})
    write(tmp_path / "data", ".csv", split="test")
    for most, dev in ((3, 3), (50, 10)):
        data = load_splits(task(tmp_path), Config.from_flat({"finetune.dev-examples": most}))
        assert (len(data.dev), len(data.train)) == (dev, 100 - dev)
    fewer = load_splits(task(tmp_path), Config.from_flat({"finetune.max-dev-examples": 4}))
    assert (len(fewer.dev), len(fewer.train)) == (4, 90)  # the others do not go back to train
    assert fewer.dev.texts == load_splits(task(tmp_path), Config()).dev.texts[:4]


def test_a_shard_has_nothing_but_its_own_rows(tmp_path) -> None:
    """Not the validation split, which all shards would share."""
    for split in ("train", "validation", "test"):
        texts = [f"{split} {i}" for i in range(40)]
        write(tmp_path / "data", ".csv", {"first": texts, "label": [0, 1] * 20}, split)
    mine = task(tmp_path, splits={"train": "train", "validation": "validation", "test": "test"})
    keys = {"partition.kind": "shards", "partition.shards": 2, "partition.examples": 20}
    data = load_splits(mine, Config.from_flat(keys), shard=0)
    assert (len(data.dev), len(data.train)) == (2, 18)
    assert all(text.startswith("train") for (text,) in data.dev.texts)
    whole = load_splits(mine, Config())
    assert all(text.startswith("validation") for (text,) in whole.dev.texts)


def test_fresh_shards_are_disjoint_within_an_iteration_and_drawn_anew(tmp_path) -> None:
    for split in ("train", "test"):
        write(tmp_path / "data", ".csv", split=split)
    keys = {"partition.kind": "shards", "partition.shards": 3, "partition.examples": 5}
    config = Config.from_flat({**keys, "partition.fresh": True})

    def texts(shard, iteration):
        data = load_splits(task(tmp_path), config, shard, iteration)
        return [*data.train.texts, *data.dev.texts]

    rows = [t for shard in range(4) for t in texts(shard, 1)]  # the last one evaluates
    assert len(rows) == len(set(rows)) == 20
    assert texts(0, 1) == texts(0, 1) != texts(0, 2)
    fixed = Config.from_flat(keys)
    assert (
        load_splits(task(tmp_path), fixed, 0, 1).train
        == load_splits(task(tmp_path), fixed, 0, 2).train
    )
    more = Config.from_flat({**keys, "partition.fresh": True, "partition.shards": 4})
    words = "4 shards of 5 and one to evaluate with need 25 training examples, there are 20"
    with pytest.raises(TaskError, match=words):
        load_splits(task(tmp_path), more, 0, 1)


def test_a_total_is_split_evenly(tmp_path) -> None:
    for split in ("train", "test"):
        write(tmp_path / "data", ".csv", split=split)
    keys = {"partition.kind": "shards", "partition.shards": 3, "partition.total": 19}
    config = Config.from_flat(keys)
    assert [len(load_splits(task(tmp_path), config, i).train) for i in range(3)] == [
        5,
        5,
        5,
    ]  # and 1 dev
    with pytest.raises(TaskError, match="partition.total is 2 for 3 shards"):
        load_splits(task(tmp_path), Config.from_flat({**keys, "partition.total": 2}), 0)


def test_the_paper_suite_has_its_36_tasks() -> None:
    paper = load_suite("paper").tasks
    assert len(paper) == 36
    assert sum(t.kind == "regression" for t in paper.values()) == 1


@needs_real
def test_the_real_suite_loads_whole() -> None:
    real = load_suite(f"{REAL}/data/suite.toml")
    assert len(real.tasks) == 35
    assert set(real.tasks) - {"litl_nli"} <= set(load_suite("paper").tasks)
    config = Config.from_flat({"finetune.max-examples": 50, "evaluate.max-test-examples": 50})
    for mine in real.tasks.values():
        data = load_splits(mine, config)
        assert len(data.train) == 50
        assert len(data.test) == 50
