"""Labels: one rule for every source, and nothing counted as a class that is none."""

import json
import math

import pytest

from cold_flower.commands import verify
from cold_flower.data.remarks import remarks
from cold_flower.data.rows import read_split, read_task
from cold_flower.errors import TaskError
from tests.test_tasks import task, write

NAN = float("nan")


def csv(tmp_path, train, test=("0", "1")) -> None:
    (tmp_path / "data").mkdir(exist_ok=True)
    for split, labels in {"train": train, "test": test}.items():
        lines = [f"{split} {i},{label}" for i, label in enumerate(labels)]
        (tmp_path / "data" / f"{split}.csv").write_text("\n".join(["first,label", *lines]))


def jsonl(tmp_path, train, test=(0, 1)) -> None:
    (tmp_path / "data").mkdir(exist_ok=True)
    for split, labels in {"train": train, "test": test}.items():
        lines = [json.dumps({"first": f"{split} {i}", "label": x}) for i, x in enumerate(labels)]
        (tmp_path / "data" / f"{split}.jsonl").write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["01", "1", "10", "010"], ("01", "010", "1", "10")),
        (["1.1", "1.10"], ("1.1", "1.10")),
        (["1", "2.0"], ("1", "2")),  # all are whole numbers
        (["1.0", "1.5"], ("1.0", "1.5")),  # a version, say
        (["true", "false"], ("false", "true")),
        (["NA", "EU"], ("EU", "NA")),
        (["2020-01-01", "2020-1-1"], ("2020-01-01", "2020-1-1")),
        (["-2", "0", "3"], ("-2", "0", "3")),
    ],
)
def test_classes_of_a_table_are_what_it_says(tmp_path, values, names) -> None:
    csv(tmp_path, values)
    rows, found = read_split(task(tmp_path, labels=None), "train")
    assert found == names
    assert len(set(rows.labels)) == len(values)


@pytest.mark.parametrize(
    ("labels", "values", "indices"),
    [
        (["false", "true"], [True, False], [1, 0]),
        (["False", "True"], [True, False], [1, 0]),
        (["false", "true"], ["True", "FALSE"], [1, 0]),
        (["no", "yes"], [1.0, 0.0], [1, 0]),
        (["no", "yes"], [1, 0], [1, 0]),
        (["no", "yes"], ["yes", "no"], [1, 0]),
        (["1", "2", "3"], [1, 2, 3], [0, 1, 2]),
        (["1", "2", "3"], [2.0, 3.0], [1, 2]),
        (["1", "0"], [1, 0], [0, 1]),
        (["-1", "0", "1"], [-1, 1], [0, 2]),
        (["0.5", "1.0", "1.5"], [1.0, 1.5, 0.5], [1, 2, 0]),  # and no places in the list
        ([0.5, 1.0, 2.0], [2.0, 1.0], [2, 1]),
        (["-1.0", "0.0", "1.0"], [-1.0, 1.0], [0, 2]),
        (["1.0", "2.0", "other"], [2.0, 1.0], [1, 0]),
        (None, [True, False], [1, 0]),
        (None, [2.0, 1.0], [1, 0]),
    ],
)
def test_a_label_becomes_the_index_of_its_class(tmp_path, labels, values, indices) -> None:
    jsonl(tmp_path, values)
    assert read_split(task(tmp_path, labels=labels), "train")[0].labels == indices
    if not any(isinstance(value, bool) for value in values):
        (tmp_path / "data" / "train.jsonl").unlink()
        csv(tmp_path, values)
        (tmp_path / "data" / "test.jsonl").unlink()
        assert read_split(task(tmp_path, labels=labels), "train")[0].labels == indices


@pytest.mark.parametrize(
    ("labels", "values", "words"),
    [
        (["no", "yes"], ["0", "1"], r"label '0' .* outside the list \['no', 'yes'\]"),  # text
        (["no", "yes"], [True, False], "label 'true' .* outside the list"),
        (["no", "yes"], [0.5, 1], "label '0.5' .* outside"),
        (["no", "yes"], [0, 2], r"row 1: label 2 .*\(or 0 to 1\)"),
        (["1", "2", "3"], [1, 0], "row 1: label 0 .*which is of numbers and so taken as they are"),
        (["0.5", "1.0"], [0.5, 2], "row 1: label 2 .*which is of numbers and so taken as they are"),
        (["1.0", "1.00"], [1, 1], "row 0: label 1 .* outside"),  # which of the two?
        (None, [1.5, math.inf], "row 1: column 'label' holds inf, expected a class"),
        (["many", "0", "1"], [0, 1], "label 0 .* ambiguous: a name in the list .*, or a place"),
        (None, [None, None], "none of 2 rows has a label"),
        (None, [0, 1, -1], r"1 rows have the label -1, .* labels = \['-1', '0', '1'\]"),
        (None, [[1], [0]], "row 0: column 'label' holds list"),
    ],
)
def test_a_label_of_no_class_is_refused(tmp_path, labels, values, words) -> None:
    jsonl(tmp_path, values)
    with pytest.raises(TaskError, match=words):
        read_split(task(tmp_path, labels=labels), "train")


def test_parts_and_splits_of_decimals_have_the_same_classes(tmp_path) -> None:
    """A part that happens to hold whole numbers alone is not of another type."""
    csv(tmp_path, ["2.0", "1.0"], ["1.0", "2.0"])
    data = tmp_path / "data"
    (data / "train.csv").rename(data / "train-00000-of-00002.csv")
    (data / "train-00001-of-00002.csv").write_text("first,label\na,0.5\nb,1.0\nc,2.0")
    read = read_task(task(tmp_path, labels=None))
    assert read.labels == ("0.5", "1.0", "2.0")
    assert (read.train.labels, read.test.labels) == ([2, 1, 0, 1, 2], [1, 2])


def test_train_and_test_mean_the_same_though_one_has_a_gap(tmp_path) -> None:
    csv(tmp_path, ["3", "1", "2"], ["3.0", "", "1.0"])  # as pandas writes them
    read = read_task(task(tmp_path, labels=None))
    assert (read.train.labels, read.test.labels) == ([2, 0, 1], [2, 0])
    assert read.labels == ("1", "2", "3")


@pytest.mark.parametrize("write_rows", [csv, jsonl])
def test_rows_without_label_are_left_out_and_counted(tmp_path, write_rows) -> None:
    missing = ["", "  ", "-1"] if write_rows is csv else [None, "", NAN, -1, -1.0]
    write_rows(tmp_path, [1, *missing, 0], [0, 1])
    mine = task(tmp_path)
    read = read_task(mine)
    assert read.train.texts == [("train 0",), (f"train {len(missing) + 1}",)]
    assert read.train.labels == [1, 0]
    assert read.sizes == {"train": 2, "test": 2}
    assert read.without_label == {"train": len(missing), "test": 0}
    assert f"split train: {len(missing)} rows without label are left out" in remarks(mine, read)
    finding = verify.examine(mine)
    assert (finding.train, finding.unlabelled) == ("2", str(len(missing)))


@pytest.mark.parametrize("value", [None, "", NAN, "1,5", "1_000", "nan"])
def test_a_regression_has_a_number_in_every_row(tmp_path, value) -> None:
    jsonl(tmp_path, [0.5, value], [1.0])
    mine = task(tmp_path, labels=None, kind="regression")
    with pytest.raises(TaskError, match="split train, row 1: .*'label' is"):
        read_split(mine, "train")
    jsonl(tmp_path, [0.5, -1], [1.0])
    assert read_split(mine, "train")[0].labels == [0.5, -1.0]


def test_what_is_odd_is_said(tmp_path) -> None:
    rows = {"first": ["a", "b", " ", "d"], "label": ["pos", "pos ", "neg", "Neg"]}
    write(tmp_path / "data", ".jsonl", rows)
    write(tmp_path / "data", ".jsonl", {"first": ["a", "x"], "label": ["pos", "new"]}, "test")
    mine = task(tmp_path, labels=["pos", "pos ", "neg", "Neg", "new"])
    assert list(remarks(mine, read_task(mine))) == [
        "split train: 1 of 4 rows have no text",
        "classes ['pos', 'pos '] differ by case or blanks alone: are they one?",
        "classes ['neg', 'Neg'] differ by case or blanks alone: are they one?",
        "4 classes in 4 training rows: does column 'label' hold the classes?",
        "no row of train has the classes ['new']",
        "split test: 1 of 2 rows have classes train lacks: ['new']",
        "split test: 2 rows, fewer than 50: scores move much by chance",
        "split test: 1 of 2 rows (50.0%) stand in train, too",
    ]
    with pytest.raises(TaskError, match="split test, row 1: label 'new' .* outside the list"):
        read_task(task(tmp_path, labels=None))


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        (["a", "b"] * 30, ["a", "b"] * 25, []),
        (["a", "b"] * 30 + ["c"], ["a", "b"] * 25, ["classes ['c'] have one training row each"]),
        ([f"id{i}" for i in range(60)], ["id1", "id2"] * 25, ["60 classes in 60 training rows"]),
        (["0.5", "1.2"] * 30, ["0.5", "1.2"] * 25, ["classes ['0.5', '1.2'] look like numbers"]),
        (["a", "b"] * 30, ["a"] * 50, ["split test: every row is 'a'"]),
        (["a", "b"] * 30, ["a", "b"] * 24, ["split test: 48 rows, fewer than 50"]),
    ],
)
def test_classes_that_are_doubtful_are_said(tmp_path, train, test, said) -> None:
    csv(tmp_path, train, test)
    mine = task(tmp_path, labels=None)
    found = list(remarks(mine, read_task(mine)))
    assert len(found) == len(said)
    assert all(line.startswith(words) for line, words in zip(found, said, strict=True))


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_a_decimal_comma_is_said(tmp_path, kind) -> None:
    jsonl(tmp_path, ["0,5", "1,0"], ["0,7", "1,0"])
    with pytest.raises(TaskError, match=r"with a point before the decimals: 0.5, not 0,5"):
        read_task(task(tmp_path, labels=None, kind=kind))


def test_of_many_classes_a_message_lists_some(tmp_path) -> None:
    csv(tmp_path, [f"id{i:03}" for i in range(300)], ["id300", "id301"])
    with pytest.raises(TaskError, match=r"'id019'\] and 280 more$"):
        read_task(task(tmp_path, labels=None))
