"""Data that look right and are not: what is refused, and what is said."""

import pytest

from cold_flower.commands import verify
from cold_flower.config import Config
from cold_flower.data.remarks import remarks
from cold_flower.data.rows import read_split, read_task
from cold_flower.data.splits import load_splits
from cold_flower.errors import TaskError
from tests.test_labels import csv, jsonl
from tests.test_tasks import task, write

THREE = ["negative", "neutral", "positive"]


def said(mine) -> list[str]:
    """Return what is remarked beside the few test rows of a test."""
    return [line for line in remarks(mine, read_task(mine)) if "fewer than" not in line]


@pytest.mark.parametrize("text", [["label"], ["first", "{first} {label}"]])
def test_the_label_is_no_text(tmp_path, text) -> None:
    with pytest.raises(TaskError, match="text has the label's own column, 'label': .*Leave it out"):
        task(tmp_path, text=text)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json"])
def test_an_empty_file_is_called_empty(tmp_path, suffix) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}{suffix}").write_text("[]" if suffix == ".json" else "")
    with pytest.raises(TaskError, match=rf"train{suffix} is empty"):
        read_split(task(tmp_path), "train")


@pytest.mark.parametrize("write_rows", [csv, jsonl])
def test_a_class_that_is_written_as_minus_one_is_not_taken_for_no_label(
    tmp_path, write_rows
) -> None:
    write_rows(tmp_path, [-1, 0, 1, -1, 0], [0, 1])
    with pytest.raises(TaskError, match=r"train: 2 rows have the label -1, .*'positive'") as caught:
        read_task(task(tmp_path, labels=THREE))
    assert "labels = ['-1', '0', '1']" in str(caught.value)
    read = read_task(task(tmp_path, labels=["-1", "0", "1"]))
    assert (read.train.labels, read.test.labels) == ([0, 1, 2, 0, 1], [1, 2])


@pytest.mark.parametrize(
    ("labels", "train", "test"),
    [
        (THREE, [-1, 0, 1, 2], [0, 1]),  # SNLI
        (["no", "yes"], [-1, 0, 1], [0, 1]),
        (THREE, [0, 1], [0, -1]),  # a hidden test set: train decides
        (THREE, [-1, 0, "neutral"], ["neutral"]),  # not places alone
        (["0", "1", "2"], [-1, 0, 1], [1]),  # no places: numbers are looked up
    ],
)
def test_where_it_is_no_class_it_is_no_label(tmp_path, labels, train, test) -> None:
    jsonl(tmp_path, train, test)
    read = read_task(task(tmp_path, labels=labels))
    assert read.without_label == {"train": train.count(-1), "test": test.count(-1)}


def test_of_names_that_the_data_bring_no_minus_one_is_a_class(tmp_path, monkeypatch) -> None:
    """A ClassLabel has no negative class: -1 is its "none", also where a class has no row."""
    columns = {"first": ["a", "b", "c"], "label": [-1, 0, 1]}
    monkeypatch.setattr("cold_flower.data.sources.read", lambda *_: (columns, tuple(THREE)))
    assert read_split(task(tmp_path, labels=THREE), "train")[0].without_label == 1


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_the_text_minus_one_is_no_class_among_numbers(tmp_path, suffix) -> None:
    texts = ["a", "b", "c", "d"]
    write(tmp_path / "data", suffix, {"first": texts, "label": ["0", "1", "-1", "1"]})
    write(tmp_path / "data", suffix, {"first": ["x", "y"], "label": ["-1", "-1"]}, "test")
    with pytest.raises(TaskError, match=r"train: 1 rows have the label -1, .*\['-1', '0', '1'\]"):
        read_task(task(tmp_path, labels=None))
    with pytest.raises(TaskError, match="split test: none of 2 rows has a label"):
        read_task(task(tmp_path, labels=["0", "1"]))
    assert read_split(task(tmp_path, labels=["0", "1"]), "train")[0].labels == [0, 1, 1]
    assert read_split(task(tmp_path, labels=["-1", "0", "1"]), "train")[0].labels == [1, 2, 0, 2]
    write(tmp_path / "data", suffix, {"first": texts, "label": ["no", "yes", "-1", "no"]})
    assert read_split(task(tmp_path, labels=None), "train")[1] == ("-1", "no", "yes")


def test_a_listed_class_that_train_lacks_is_said(tmp_path) -> None:
    csv(tmp_path, [1, 2, 1, 2], [1, 2])
    mine = task(tmp_path, labels=THREE)
    assert said(mine) == ["no row of train has the classes ['negative']: integers count from 0"]
    csv(tmp_path, [0, 1, 1, 0], [1, 0])
    assert said(mine) == ["no row of train has the classes ['positive']"]
    csv(tmp_path, [0, 1, 2, 0, 1, 2], [1, 0])
    assert said(mine) == []
    csv(tmp_path, [1, 2, 1, 2], [1, 2])
    stated = task(tmp_path, labels=THREE, rows={"train": 4})
    assert said(stated) == []  # there it is a fault
    assert "labels ['negative'] never occur" in verify.examine(stated).faults[0]


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        ([0.5, 3.2, 1.0], [-1.0, -1.0], "split test: every row is -1; .* to be tested on.*hidden"),
        ([2.5, 2.5, 2.5], [1.0, 2.0], "split train: every row is 2.5; .* to train on$"),
        ([0.5, 3.2, 1.0], [3.2], "split test: every row is 3.2"),
    ],
)
def test_a_regression_with_a_single_number_is_refused(tmp_path, train, test, words) -> None:
    jsonl(tmp_path, train, test)
    with pytest.raises(TaskError, match=words):
        read_task(task(tmp_path, labels=None, kind="regression"))


def test_a_dev_split_with_a_single_number_is_said(tmp_path) -> None:
    jsonl(tmp_path, [0.5, 3.2, 1.0], [1.0, 2.0])
    write(tmp_path / "data", ".jsonl", {"first": ["x", "y"], "label": [1.0, 1.0]}, "dev")
    splits = {"train": "train", "validation": "dev", "test": "test"}
    mine = task(tmp_path, labels=None, kind="regression", splits=splits)
    assert said(mine) == [
        "split validation: every row is 1: no weights do better on it than others"
    ]


def test_a_side_without_text_is_said(tmp_path) -> None:
    rows = {"first": ["a", "b", "c", ""], "second": ["", " ", "d", ""], "label": [0, 1, 0, 1]}
    write(tmp_path / "data", ".jsonl", rows)
    part = {"first": ["x", "y"], "second": ["", "v"], "label": [0, 1]}
    write(tmp_path / "data", ".jsonl", part, "test")
    assert said(task(tmp_path, text=["first", "second"])) == [
        "split train: 1 of 4 rows have no text",
        "split train: 2 of 4 rows have no text in 'second' alone",
        "split test: 1 of 2 rows have no text in 'second' alone",
    ]


def test_a_column_that_some_rows_call_otherwise_is_said(tmp_path) -> None:
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        (tmp_path / "data" / f"{split}.jsonl").write_text(
            f'{{"first": "{split} a", "second": "b", "label": 0}}\n'
            f'{{"first": "{split} c", "2nd": "d", "label": 1}}\n'
            f'{{"first": "{split} e", "2nd": "f", "label": 0}}\n'
        )
    found = said(task(tmp_path, text=["first", "second"]))
    assert "split train: 2 of 3 rows have no text in 'second' alone" in found


def test_rows_of_which_some_become_dev_and_others_train_are_said(tmp_path) -> None:
    rows = {"first": [f"text {i % 10}" for i in range(100)] + ["one"], "label": [0, 1] * 50 + [1]}
    write(tmp_path / "data", ".jsonl", rows)
    write(tmp_path / "data", ".jsonl", {"first": ["x", "y"], "label": [0, 1]}, "test")
    mine = task(tmp_path)
    drawn = load_splits(mine, Config())
    assert set(drawn.dev.texts) - {("one",)} <= set(drawn.train.texts)
    assert said(mine) == [
        "split train: 100 of 101 rows (99.0%) stand there more than once, and dev is carved out "
        "of it: finetunings choose their weights on texts that they train on"
    ]
    write(tmp_path / "data", ".jsonl", {"first": ["v", "w"], "label": [0, 1]}, "dev")
    splits = {"train": "train", "validation": "dev", "test": "test"}
    assert said(task(tmp_path, splits=splits)) == []
