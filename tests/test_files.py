"""Files: which are a split's, and that their texts are what they say, whatever their kind."""

import bz2
import gzip
import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from cold_flower.data import sources
from cold_flower.data.rows import read_split, read_task
from cold_flower.data.suite import load_suite
from cold_flower.errors import TaskError
from tests.test_tasks import suite, task, write

TABLE = "first,label\nCafé,0\nthé,1\n"


def put(tmp_path, name, data) -> None:
    path = tmp_path / "data" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def texts(tmp_path, **changes):
    return [text for (text,) in read_split(task(tmp_path, **changes), "train")[0].texts]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("train.CSV", TABLE),
        ("train.csv", "\ufeff" + TABLE),
        ("train.csv", TABLE.replace("\n", "\r\n")),
        ("train.csv", TABLE + "\n\n"),
        ("train.csv.gz", gzip.compress(TABLE.encode(), mtime=0)),
        ("train.csv.bz2", bz2.compress(TABLE.encode())),
        ("train.csv.zst", pa.compress(TABLE.encode(), codec="zstd", asbytes=True)),
        ("train.tsv", TABLE.replace(",", "\t")),
        ("train.jsonl", '{"first": "Café", "label": 0}\n\n{"label": 1, "first": "thé"}\n'),
        ("train.JSONL", '{"first": "Caf\\u00e9", "label": 0}\n{"label": 1, "first": "thé"}'),
        ("train.json", '[{"first": "Café", "label": 0},\n {"label": 1, "first": "thé"}]'),
        ("train.json", '{"first": "Café", "label": 0}\n{"label": 1, "first": "thé"}'),
    ],
)
def test_every_kind_of_file(tmp_path, name, data) -> None:
    put(tmp_path, name, data)
    assert texts(tmp_path) == ["Café", "thé"]
    assert read_split(task(tmp_path), "train")[0].labels == [0, 1]


@pytest.mark.parametrize("path", ["data", "data/{split}-00000-of-00002.parquet"])
def test_parts_are_one_split_and_none_may_be_missing(tmp_path, path) -> None:
    for part in range(2):
        rows = {"first": [f"{part}{i}" for i in range(4)], "label": [0, 1, 0, 1]}
        write(tmp_path / "data", ".parquet", rows, f"train-0000{part}-of-00002")
    assert texts(tmp_path, path=path) == ["00", "01", "02", "03", "10", "11", "12", "13"]
    (tmp_path / "data" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(TaskError, match=r"train-00000-of-00002.parquet; expected .*parts 0 to 1"):
        texts(tmp_path, path=path)


def test_parts_that_came_later_make_new_tokens(tmp_path) -> None:
    put(tmp_path, "train.csv", TABLE)
    put(tmp_path, "test-00000-of-00001.csv", TABLE)
    before = sources.stamp(task(tmp_path))
    put(tmp_path, "test-00000-of-00001.csv", TABLE + "x,1\n")
    assert len(before) == 2
    assert before != sources.stamp(task(tmp_path))


def test_what_lies_there_is_listed_where_a_split_is_not(tmp_path) -> None:
    put(tmp_path, "training.csv", TABLE)
    put(tmp_path, "train.xlsx", "")
    words = r"no file for split 'train'; looked for .* with .parquet, .*; there lies "
    with pytest.raises(TaskError, match=words + "train.xlsx, training.csv$"):
        texts(tmp_path)
    words = "looked for .*train.csv; there lies train.xlsx, training.csv$"
    with pytest.raises(TaskError, match=words):
        texts(tmp_path, path="data/{split}.csv")
    put(tmp_path, "train.csv", TABLE)
    put(tmp_path, "train.jsonl", '{"first": "other", "label": 0}')
    with pytest.raises(TaskError, match=r"train.csv and .*train.jsonl could both be split 'train'"):
        texts(tmp_path)
    assert texts(tmp_path, path="data/{split}.csv") == ["Café", "thé"]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("train.csv", TABLE.encode("cp1252"), r"line 2: byte 0xe9 is not UTF-8.*\"cp1252\""),
        (
            "train.csv.gz",
            gzip.compress(TABLE.encode(), mtime=0)[:-9],
            "train.csv.gz cannot be read",
        ),
        ("train.csv", "first,label\na,0\nb,c,1\n", "line 3: 3 values, the header has 2"),
        ("train.csv", 'first,label\na,0\n"b,1\n', "line 3: unexpected end of data"),
        ("train.csv", "first;label\na;0\n", "columns there are first;label; are its columns sep"),
        ("train.csv", "", "train.csv is empty"),
        ("train.jsonl", '{"first": "a", "label": 0}\n{"first": "b"', "line 2: Expecting"),
        ("train.json", '{"first": ["a"],\n "label": [0]}', "line 1: .*a list of objects"),
        ("train.json", "[1]", "object 1: expected {...}, got int"),
        ("train.jsonl", '{"first": "a", "label": 0, "label": 1}', "one key twice: first, label"),
        ("train.parquet", b"PAR1", "train.parquet cannot be read"),
    ],
)
def test_a_broken_file_is_refused_by_line(tmp_path, name, data, words) -> None:
    put(tmp_path, name, data)
    with pytest.raises(TaskError, match=words):
        texts(tmp_path)


def test_an_encoding_is_said_in_the_suite(tmp_path) -> None:
    for encoding in ("cp1252", "latin-1", "utf-16", "UTF-8"):
        put(tmp_path, "train.csv", TABLE.encode(encoding))
        assert texts(tmp_path, encoding=encoding) == ["Café", "thé"]
    with pytest.raises(TaskError, match="line 2: 0xc3 is not ascii, as its entry says"):
        texts(tmp_path, encoding="ascii")
    with pytest.raises(TaskError, match="encoding 'cp12' is unknown"):
        load_suite(str(suite(tmp_path, encoding="cp12")))
    with pytest.raises(TaskError, match="encoding is for source = \"files\", got 'hub'"):
        load_suite(str(suite(tmp_path, source="hub", encoding="cp1252")))
    (tmp_path / "data" / "train.csv").unlink()
    write(tmp_path / "data", ".parquet")
    with pytest.raises(TaskError, match="Parquet's text is always UTF-8"):
        texts(tmp_path, encoding="cp1252")


def test_a_text_is_what_the_file_says(tmp_path) -> None:
    """Nothing is taken for a number, a date, a boolean or null because it looks like one."""
    said = ["00000", "1.10", "2020-01-01", "NA", "null", "True", "1e5", " x ", 'a "b" c']
    rows = {"first": said, "label": [i % 2 for i in range(len(said))]}
    for suffix in (".csv", ".jsonl", ".parquet"):
        write(tmp_path / suffix[1:], suffix, rows)
        assert texts(tmp_path, path=suffix[1:]) == said
    put(tmp_path, "train.jsonl", '{"first": true, "label": 0}\n{"first": 1.0, "label": 1}\n')
    assert texts(tmp_path) == ["true", "1.0"]


def test_tabs_leave_quotes_alone_that_never_close(tmp_path) -> None:
    lines = ['"Who is there?" he said.', '"open', 'he said "yes."', '"all ""of"" it"', '"']
    put(tmp_path, "train.tsv", "first\tlabel\n" + "".join(f"{x}\t1\n" for x in lines))
    assert texts(tmp_path) == [*lines[:3], 'all "of" it', '"']
    put(tmp_path, "train.tsv", 'first\tlabel\n"one\nline\tmore"\t0\nnext\t1\n')
    assert texts(tmp_path) == ["one\nline\tmore", "next"]


@pytest.mark.parametrize(
    ("value", "kind"),
    [(b"caf\xe9", "bytes"), (["a", "b"], "list"), ({"bytes": b"", "path": ""}, "dict")],
)
def test_what_is_no_text_is_refused_by_row_and_column(tmp_path, value, kind) -> None:
    write(tmp_path / "data", ".parquet", {"first": [value] * 2, "label": [0, 1], "ok": ["a", "b"]})
    with pytest.raises(TaskError, match=rf"split train, row 0: column 'first' holds {kind}"):
        texts(tmp_path)
    with pytest.raises(TaskError, match=rf"split train, row 0: column 'first' holds {kind}"):
        texts(tmp_path, text=["{first} x"])
    with pytest.raises(TaskError, match=rf"row 0: column 'first' holds {kind}, expected a class"):
        texts(tmp_path, text=["ok"], label="first")


def test_class_names_in_the_metadata_of_parquet(tmp_path) -> None:
    import datasets

    for names, labels in ((["neg", "pos"], None), (["2", "1"], None), (["neg", "pos"], ["-", "+"])):
        features = datasets.Features(
            {"first": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
        )
        rows = {"first": ["a", "b", "c"], "label": [1, 0, -1]}
        for split in ("train", "test"):
            made = datasets.Dataset.from_dict(rows, features=features)
            made.to_parquet(tmp_path / "data" / f"{split}.parquet")
        read = read_task(task(tmp_path, labels=labels))
        assert read.labels == tuple(labels or names)
        assert read.train.labels == [1, 0]
        assert read.without_label == {"train": 1, "test": 1}
    with pytest.raises(TaskError, match=r"\['pos', 'neg'\] in its entry, but \['neg', 'pos'\] in"):
        read_task(task(tmp_path, labels=["pos", "neg"]))


def test_a_large_integer_and_a_date_keep_their_digits(tmp_path) -> None:
    put(
        tmp_path,
        "train.jsonl",
        json.dumps({"first": 2**63, "label": 0}) + '\n{"first": -0, "label": 1}',
    )
    assert texts(tmp_path) == [str(2**63), "0"]
