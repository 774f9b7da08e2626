"""`cold-flower suites --prepare`: a run on the folder is a run on the source."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet
import pytest
import tomli_w
from typer.testing import CliRunner

from cold_flower import toml
from cold_flower.commands import cli
from cold_flower.commands.prepare import RECORDS, SUITE, Folder, prepare
from cold_flower.config import Config
from cold_flower.data import prepared, sources
from cold_flower.data.rows import read_task
from cold_flower.data.splits import load_splits
from cold_flower.data.suite import load_suite, read_suite
from cold_flower.data.task import KEYS, PLACE
from cold_flower.errors import ConfigError, TaskError
from tests.conftest import REAL, needs_real

SIZES = {"train_r1": 30, "train_r2": 20, "dev": 10, "test": 14}
SPLITS = {"train": "train_r1", "validation": "dev", "test": "test"}
WHOLE = {"train": "train_r1+train_r2", "validation": "", "test": "test"}
HELD_OUT = {"train": "train_r1+train_r2+dev+test", "test": ""}
HUB: dict[str, dict[str, Any]] = {
    "by-index": {"text": ["text"], "label": "index", "labels": ["a", "b"], "splits": SPLITS},
    "named-there": {"text": ["text"], "label": "index", "splits": WHOLE},
    "by-name": {"text": ["text"], "label": "name", "labels": ["no", "yes"], "splits": WHOLE},
    "found": {"text": ["number"], "label": "stars", "splits": SPLITS, "paper-name": "Found"},
    "pairs": {"text": ["text", "second"], "label": "name", "splits": SPLITS},
    "templates": {"text": ["{text}: {number:>4}", "{second}"], "label": "flag", "splits": WHOLE},
    "regression": {
        **{"text": ["text", "second"], "label": "score", "kind": "regression"},
        **{"metric": "pearson", "splits": {"train": "train_r1", "test": "dev"}},
    },
    "held-out": {"text": ["second"], "label": "index", "splits": HELD_OUT, "test-sample": 9},
    "sampled": {
        **{"text": ["text"], "label": "index", "labels": ["a", "b"], "splits": WHOLE},
        **{"test-sample": 5, "rows": {"train": 42, "test": 12}},
    },
}


def hub(folder: Path) -> None:
    """Write a repository of the hub's format: a card, four splits, every seventh row unlabelled."""
    import datasets

    datasets.disable_progress_bars()
    features = {
        "text": datasets.Value("string"),
        "second": datasets.Value("string"),
        "number": datasets.Value("int32"),
        "index": datasets.ClassLabel(names=["A", "B"]),
        "name": datasets.Value("string"),
        "stars": datasets.Value("int8"),
        "flag": datasets.Value("bool"),
        "score": datasets.Value("float32"),
        "unused": datasets.Value("string"),
    }
    for split, size in SIZES.items():
        i = range(size)
        rows = {
            "text": [f"{split} {n}\r\n\u2028ä" for n in i],
            "second": [None if n % 5 == 0 else f"s{n}" for n in i],
            "number": [n * n for n in i],
            "index": [-1 if n % 7 == 0 else n % 2 for n in i],
            "name": [None if n % 7 == 0 else ("no", "yes")[n % 2] for n in i],
            "stars": [n % 3 + 1 for n in i],
            "flag": [n % 2 == 0 for n in i],
            "score": [n / 3 for n in i],
            "unused": ["x"] * size,
        }
        dataset = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
        dataset.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in SIZES]
    card = {"license": "mit", "configs": [{"config_name": "default", "data_files": files}]}
    (folder / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n# It\n")


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """Return a function that writes a suite file and returns its path."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    hub(tmp_path / "hub")

    def write(tasks: dict[str, Any], **more: Any) -> str:
        place = {"source": "hub", "path": str(tmp_path / "hub")}
        entries = {name: place | entry for name, entry in tasks.items()}
        path = tmp_path / "given.toml"
        path.write_text(tomli_w.dumps({"tasks": entries, **more}))
        return str(path)

    return write


@pytest.fixture
def reads(monkeypatch):
    """Record which split of which task is read from its source."""
    done: list[str] = []

    def read(task, split):
        if task.suite.endswith(SUITE):  # the folder, as a run reads it
            return original(task, split)
        done.append(f"{task.name} {split}")
        return original(task, split)

    original = sources.read
    monkeypatch.setattr(sources, "read", read)
    return done


def same(name: str, out: Path) -> None:
    """Assert that runs on a suite and on its folder read and draw the same."""
    before, after = load_suite(name), load_suite(str(out / SUITE))
    assert [*after.tasks] == [*before.tasks]
    assert after.recipe == before.recipe
    shards = {"partition.kind": "shards", "partition.shards": 2, "partition.examples": 4}
    for task in before.tasks:
        given, there = before.tasks[task], after.tasks[task]
        assert read_task(there) == read_task(given)
        for seed in (0, 1):
            config = Config.from_flat({"seed": seed, "finetune.dev-examples": 3})
            assert load_splits(there, config) == load_splits(given, config)
            config = Config.from_flat({"seed": seed, **shards})
            assert load_splits(there, config, shard=1) == load_splits(given, config, shard=1)


def verified(out: Path) -> bool:
    return CliRunner().invoke(cli.app, ["suites", "--verify", str(out / SUITE)]).exit_code == 0


def test_every_kind_of_entry_reads_and_draws_the_same_from_the_folder(suite, tmp_path) -> None:
    name, out = suite(HUB, recipe={"finetune": {"max-length": 9}}), tmp_path / "deep" / "out"
    assert prepare(name, out)
    same(name, out)
    assert verified(out)
    table = pyarrow.parquet.read_table(out / "by-index" / "train.parquet")
    assert sorted(table.column_names) == ["index", "text"]
    assert len(table) == 30  # those without label, too


FILES = {
    "csv": {"train.csv": "text,label\n01,1\n2.50,0\nNA,\nx,1\n", "test.csv": "text,label\ny,1.0\n"},
    "names": {"train.tsv": 'text\tlabel\n"a"\tyes\nb\tno\n', "test.tsv": "text\tlabel\nc\tyes\n"},
    "mixed": {
        "train.jsonl": '{"text": 1, "label": 1}\n{"text": 1.0, "label": 2.5}\n{"text": true, "label": 3}\n',
        "test.jsonl": '{"text": null, "label": "2"}\n{"text": "x", "label": "0.5"}\n',
    },
    "parts": {
        "train-00000-of-00002.jsonl": '{"text": "a", "label": true}\n',
        "train-00001-of-00002.jsonl": '{"text": "b", "label": false}\n',
        "test.json": '[{"text": "c", "label": null}, {"text": "d", "label": true}]',
    },
}  # fmt: skip


def files(tmp_path: Path) -> str:
    entries = {}
    for name, content in FILES.items():
        (tmp_path / "mine" / name).mkdir(parents=True)
        for file, text in content.items():
            (tmp_path / "mine" / name / file).write_text(text, "cp1252")
        entries[name] = {
            **{"source": "files", "path": name, "text": ["text"], "label": "label"},
            **{"splits": {"train": "train", "test": "test"}, "encoding": "cp1252"},
        }
    entries["mixed"]["kind"] = "regression"
    path = tmp_path / "mine" / "suite-of-files.toml"
    path.write_text(tomli_w.dumps({"tasks": entries}))
    return str(path)


def test_files_read_the_same_from_the_folder(tmp_path) -> None:
    name, out = files(tmp_path), tmp_path / "out"
    assert prepare(name, out)
    before, after = load_suite(name), load_suite(str(out / SUITE))
    for task in before.tasks:
        assert read_task(after.tasks[task]) == read_task(before.tasks[task])
    assert read_task(after.tasks["mixed"]).train.texts == [("1",), ("1.0",), ("true",)]
    assert verified(out)


def test_the_demo_of_seed_0(tmp_path, capsys) -> None:
    assert prepare("demo", tmp_path / "out", ["travel", "music"])
    assert "note: the demo's rows are of seed 0 here" in capsys.readouterr().out
    assert [*load_suite(str(tmp_path / "out" / SUITE)).tasks] == ["travel", "music"]
    assert prepare("demo", tmp_path / "out")
    before, after = load_suite("demo"), load_suite(str(tmp_path / "out" / SUITE))
    assert [*after.tasks] == [*before.tasks]  # as the suite has them, whoever came first
    assert after.recipe == before.recipe
    for name, task in before.tasks.items():
        assert load_splits(after.tasks[name], Config()) == load_splits(task, Config())


def test_every_field_of_an_entry_is_kept_but_where_the_rows_are(tmp_path) -> None:
    tasks = load_suite("paper").tasks
    folder = Folder(tmp_path / "out", read_suite("paper"), tasks)
    entries = {name: folder._entry(task) for name, task in tasks.items()}
    path = tmp_path / "suite.toml"
    path.write_text(tomli_w.dumps({"tasks": entries}))
    for name, task in load_suite(str(path)).tasks.items():
        kept = {key.replace("-", "_") for key in KEYS if key not in PLACE}
        assert all(getattr(task, key) == getattr(tasks[name], key) for key in kept)
        assert (task.source, task.path, task.subset) == ("files", name, "")
        assert {s for s, there in task.splits.items() if there} == {
            s for s, there in tasks[name].splits.items() if there
        }


def test_what_is_said_and_recorded(suite, tmp_path, capsys) -> None:
    name, out = suite({k: HUB[k] for k in ("by-index", "sampled")}), tmp_path / "an out"
    assert prepare(name, out)
    lines = capsys.readouterr().out.splitlines()
    size = r"\d+ kB"
    words = (
        rf"by-index: train 25, validation 8, test 12 rows; {size}; licence: mit",
        rf"sampled: train 42, test 12 rows; {size}; licence: mit",
        rf"2 of 2 tasks are in {out}: {size}",
        rf"next: cold-flower suites --verify '{out / SUITE}'",
        rf"runs: --set suite='{out.absolute() / SUITE}'",
    )
    for line, pattern in zip(lines, words, strict=True):
        assert re.fullmatch(pattern, line), line
    record = toml.read(out / RECORDS, "record", ConfigError)["sampled"]
    assert record.pop("bytes") == sum(p.stat().st_size for p in (out / "sampled").iterdir())
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", record.pop("read"))
    assert record == {
        "source": f"hub:{tmp_path / 'hub'}",
        "licence": "mit",
        "rows": {"train": 42, "test": 12},
    }


def test_what_is_there_is_not_read_again(suite, tmp_path, reads, capsys) -> None:
    name, out = suite({k: HUB[k] for k in ("by-index", "found")}), tmp_path / "out"
    assert prepare(name, out)
    assert len(reads) == 6
    bytes_before = {path: path.read_bytes() for path in out.rglob("*.*")}
    reads.clear()
    capsys.readouterr()
    assert prepare(name, out)
    assert reads == []
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == bytes_before
    assert (
        "by-index: already there: train 25, validation 8, test 12 rows" in capsys.readouterr().out
    )
    # A file that was cut, and one that a killed process left half written.
    file = out / "by-index" / "test.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    (out / "by-index" / ".test.parquet").write_bytes(b"PAR1")
    assert prepare(name, out)
    assert reads == ["by-index test"]
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == bytes_before
    assert "licence: mit (train, validation: already there)" in capsys.readouterr().out
    # Another entry: other columns are read; another name in the paper needs no reading.
    reads.clear()
    other = {"by-index": HUB["by-index"] | {"text": ["second"]}, "found": HUB["found"] | {"paper-name": "F"}}  # fmt: skip
    assert prepare(suite(other), out)
    assert reads == ["by-index train_r1", "by-index dev", "by-index test"]
    assert load_suite(str(out / SUITE)).tasks["found"].paper_name == "F"
    same(name, out)
    # Another test split: that one alone.
    reads.clear()
    other["found"] = HUB["found"] | {"splits": SPLITS | {"test": "train_r2"}}
    assert prepare(suite(other), out)
    assert reads == ["found train_r2"]
    same(name, out)


def test_files_that_changed_are_read_again(tmp_path, reads) -> None:
    name, out = files(tmp_path), tmp_path / "out"
    assert prepare(name, out)
    reads.clear()
    (tmp_path / "mine" / "csv" / "test.csv").write_text("text,label\nz,0\n")
    assert prepare(name, out)
    assert reads == ["csv train", "csv test"]
    assert read_task(load_suite(str(out / SUITE)).tasks["csv"]).test.texts == [("z",)]


def test_a_stop_leaves_nothing_half_visible_and_is_gone_on_from(
    suite, tmp_path, reads, monkeypatch
) -> None:
    name, out = suite({k: HUB[k] for k in ("found", "by-index")}), tmp_path / "out"

    def write(file, *arguments):
        if reads[-1] == "by-index dev":
            file.write(b"PAR1")
            raise KeyboardInterrupt
        original(file, *arguments)

    original = prepared.write
    monkeypatch.setattr(prepared, "write", write)
    with pytest.raises(KeyboardInterrupt):
        prepare(name, out)
    assert sorted(path.name for path in (out / "by-index").iterdir()) == ["train.parquet"]
    assert [*load_suite(str(out / SUITE)).tasks] == ["found"]  # can be used as it is
    assert verified(out)
    monkeypatch.setattr(prepared, "write", original)
    reads.clear()
    assert prepare(name, out)
    assert reads == ["by-index dev", "by-index test"]
    same(name, out)


def test_one_bad_task_is_one_line_and_the_rest_goes_on(suite, tmp_path, capsys, reads) -> None:
    bad = {
        "wrong": HUB["by-index"] | {"rows": {"test": 13}},
        "gone": HUB["by-index"] | {"path": str(tmp_path / "nowhere")},
        "absent": HUB["by-index"] | {"label": "absent"},
        "good": HUB["by-index"],
    }
    name, out = suite(bad), tmp_path / "out"
    done = CliRunner().invoke(cli.app, ["suites", "--prepare", name, "--out", str(out)])
    assert done.exit_code == 1
    lines = done.output.splitlines()
    assert lines[0].startswith("wrong: FAILED: split test ('test') has 12 rows, but the suite stat")
    assert "given.toml" not in lines[0]
    assert lines[1].startswith("gone: FAILED: hub dataset")
    assert lines[2].startswith("absent: FAILED: no column 'absent' in")
    assert lines[3].startswith("good: train 25")
    assert lines[4].startswith(f"1 of 4 tasks are in {out}: ")
    assert lines[5].startswith("3 failed: wrong, gone, absent. Mend that and repeat the command")
    assert [*load_suite(str(out / SUITE)).tasks] == ["good"]
    assert not [*(out / "wrong").iterdir()]
    assert verified(out)
    reads.clear()
    assert prepare(
        suite({"wrong": HUB["by-index"] | {"rows": {"test": 12}}, "good": bad["good"]}), out
    )
    assert reads == ["wrong train_r1", "wrong dev", "wrong test"]


def test_a_task_that_is_bad_now_is_in_the_suite_no_more(suite, tmp_path) -> None:
    out = tmp_path / "out"
    assert prepare(suite({"one": HUB["by-index"], "two": HUB["found"]}), out)
    assert not prepare(
        suite({"one": HUB["by-index"] | {"rows": {"test": 1}}, "two": HUB["found"]}), out
    )
    assert [*load_suite(str(out / SUITE)).tasks] == ["two"]
    assert not prepare(
        suite({"one": HUB["by-index"], "two": HUB["found"] | {"rows": {"test": 1}}}), out, ["two"]
    )
    assert not (out / SUITE).exists()
    assert prepare(suite({"one": HUB["by-index"], "two": HUB["found"]}), out)


def test_labels_of_several_kinds_have_no_place_in_parquet(tmp_path, capsys) -> None:
    name = files(tmp_path)
    (tmp_path / "mine" / "csv" / "train.csv").unlink()
    (tmp_path / "mine" / "csv" / "train.jsonl").write_text(
        '{"text": "a", "label": "x"}\n{"text": "b", "label": 1}\n'
    )
    assert not prepare(name, tmp_path / "out", ["csv"])
    words = r"csv: FAILED: split train: column 'label' cannot be written as Parquet, where a .* of one kind"
    assert re.search(words, capsys.readouterr().out)


def test_a_full_disk_stops_and_keeps_what_is_there(suite, tmp_path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    name, out = suite({k: HUB[k] for k in ("found", "by-index")}), tmp_path / "out"
    (out / "by-index").mkdir(parents=True)
    (out / RECORDS).touch()
    (out / "by-index" / ".dev.parquet").touch()
    (out / "by-index" / ".validation.parquet").symlink_to("/dev/full")
    words = f"--out {out} cannot be written: No space left on device. What is there is whole: mend"
    with pytest.raises(ConfigError, match=re.escape(words)):
        prepare(name, out)
    assert [*load_suite(str(out / SUITE)).tasks] == ["found"]
    assert prepare(name, out)
    same(name, out)


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("--prepare expects a folder to write: --out DIR", ["--prepare", "demo"]),
        ("--prepare expects a suite: demo, paper, or a file", ["--prepare", "--out", "x"]),
        ("--out is for --prepare SUITE", ["demo", "--out", "x"]),
        ("--tasks is for --prepare SUITE", ["demo", "--tasks", "travel"]),
        ("--verify and --prepare are two commands", ["demo", "--verify", "--prepare"]),
        ("Did you mean 'paper'", ["--prepare", "papr", "--out", "x"]),
        ("unknown task 'musik'. Did you mean 'music'", ["--prepare", "demo", "--out", "x", "--tasks", "musik"]),
        ("--out pyproject cannot be written: Not a directory", ["--prepare", "demo", "--out", "pyproject"]),
        ("--out full holds files, but no SOURCES.toml", ["--prepare", "demo", "--out", "full"]),
        ("--out other holds another suite: there one is from hub:elsewhere, in this suite from no such task", ["--prepare", "demo", "--out", "other"]),
        ("--out same holds another suite: there music is from hub:mine, in this suite from demo", ["--prepare", "demo", "--out", "same"]),
        ("prepared file broken/SOURCES.toml is not TOML", ["--prepare", "demo", "--out", "broken"]),
    ],
)  # fmt: skip
def test_errors_name_the_thing_and_change_nothing(words, arguments, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject").write_text("")
    for folder, name, text in (
        ("full", "suite.toml", "mine"),
        ("other", RECORDS, '[one]\nsource = "hub:elsewhere"\n'),
        ("same", RECORDS, '[music]\nsource = "hub:mine"\n'),
        ("broken", RECORDS, "= 3"),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(text)
    before = {path: path.is_file() and path.read_text() for path in tmp_path.rglob("*")}
    with pytest.raises((ConfigError, TaskError), match=re.escape(words)):
        cli.app(["suites", *arguments], standalone_mode=False)
    assert {path: path.is_file() and path.read_text() for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ({"license": "cc-by-4.0"}, "cc-by-4.0"),
        ({"license": ["mit", "apache-2.0"]}, "mit, apache-2.0"),
        ({"license": "other", "license_name": "llama"}, "llama"),
        ({"license": "other"}, "other"),
        ({}, "not stated"),
        (None, "not stated"),
    ],
)
def test_the_licence_is_what_the_card_states(card, licence, monkeypatch) -> None:
    import huggingface_hub

    data = huggingface_hub.DatasetCardData(**card) if card is not None else None
    about = SimpleNamespace(card_data=data, sha="abc123")
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda _, path: about)
    said = prepared.read_card(load_suite("paper").tasks["sst2"])
    assert (said["licence"], said["revision"]) == (licence, "abc123")


def test_a_card_that_is_missing_or_cannot_be_read(suite, tmp_path) -> None:
    task = load_suite("paper").tasks["sst2"]
    assert prepared.read_card(task)["licence"].startswith("not known, the card cannot be read (")
    mine = replace(task, path=str(tmp_path / "hub"))
    assert prepared.read_card(mine)["licence"] == "mit"
    (tmp_path / "hub" / "README.md").unlink()
    assert prepared.read_card(mine)["licence"] == "not stated"
    assert prepared.read_card(replace(task, source="files"))["licence"] == "not stated"


@needs_real
def test_real_files_read_and_draw_the_same_from_the_folder(tmp_path) -> None:
    name, out, chosen = f"{REAL}/data/suite.toml", tmp_path / "out", ["cb", "stsb"]
    assert prepare(name, out, chosen)
    before, after = load_suite(name).tasks, load_suite(str(out / SUITE)).tasks
    assert [*after] == [task for task in before if task in chosen]
    for task in chosen:
        assert load_splits(after[task], Config()) == load_splits(before[task], Config())
