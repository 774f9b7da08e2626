"""A site's own settings, its trainer, and what may leave."""

import json
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from flwr.app import Array, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict

from cold_flower.client_app import app
from cold_flower.commands.rehearsal import rehearse
from cold_flower.config import Config
from cold_flower.contributors.contributor import Contributor
from cold_flower.contributors.egress import Egress
from cold_flower.contributors.own_code import imported
from cold_flower.contributors.site import Limits, load_site
from cold_flower.errors import ColdFlowerError, LimitError, SiteError
from cold_flower.models.starting import starting_model
from strategies import records
from strategies.fusion import fingerprint
from tests.federation import block
from tests.test_cli import cold_flower

ROWS = [{"review": f"a{i % 7} b{i % 5} c", "stars": ("bad", "good")[i % 2]} for i in range(160)]
TOML = """
name = "clinic-a"
base-model = "demo"
{top}
[task]
source = "files"
path = "data"
text = ["review"]
label = "{label}"
splits = {{ train = "train", validation = "", test = "test" }}
[limits]
{limits}
"""
RUN = Config.from_flat({"finetune.max-epochs": 1, "finetune.precision": "fp32"}).flat()


@pytest.fixture
def site(tmp_path):
    """Return a function that writes a site and returns its file."""

    def write(top="", limits="", label="stars") -> Path:
        (tmp_path / "data").mkdir(exist_ok=True)
        for split in ("train", "test"):
            lines = "".join(json.dumps(row) + "\n" for row in ROWS)
            (tmp_path / "data" / f"{split}.jsonl").write_text(lines)
        path = tmp_path / "site.toml"
        path.write_text(TOML.format(top=top, limits=limits, label=label))
        return path

    return write


LOADED = """
import pathlib, sys
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from cold_flower.client_app import app
from cold_flower.config import Config
from cold_flower.models.base import load_base
from cold_flower.models.starting import starting_model
from strategies import records

TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
keys = {
    "recipe": False, "tasks": "travel,music", "attacks": "{music = 'sign-flip'}",
    "finetune.max-examples": 120, "finetune.max-epochs": 1, "finetune.precision": "fp32",
    "evaluate.protocols": "frozen", "evaluate.max-test-examples": 50, "probe.epochs": 1,
}
arrays = records.pack(starting_model(load_base("demo"), seed=0)[1].items())
config = ConfigRecord({"iteration": 1})
for node in ({"site": sys.argv[1]}, {"partition-id": 0}):
    for kind in (MessageType.QUERY, MessageType.TRAIN, MessageType.EVALUATE):
        message = Message(RecordDict({"arrays": arrays, "config": config}), 1, kind)
        message.metadata.__dict__["_message_id"] = "m"
        reply = app(message, Context(1, 1, node, RecordDict(), Config.from_flat(keys).flat()))
        assert not reply.has_error(), reply.error.reason
    print("cold_flower.contributors.attacks" in sys.modules)
"""  # answers each kind of message as a site, then as a simulation that rehearses harm; says whether
# the code that does it is loaded


@pytest.fixture(scope="module")
def arrays(tiny):
    return records.pack(starting_model(tiny, seed=0)[1].items())


def send(kind, content, path, **run_config) -> Message:
    message = Message(RecordDict(content), 1, kind)
    message.metadata.__dict__["_message_id"] = "m"
    node = {"site": str(path)}
    return app(message, Context(1, 1, node, RecordDict(), {**RUN, **run_config}))


def train(path, arrays, **run_config) -> Message:
    config = ConfigRecord({"iteration": 3, "run": "r", "base": "b"})
    return send(MessageType.TRAIN, {"arrays": arrays, "config": config}, path, **run_config)


def log(own_home) -> list[dict]:
    path = own_home / "clinic-a" / "sent.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_limits_hold_whatever_the_run_asks(site) -> None:
    limited = load_site(site(limits="max-examples = 140\nmax-seconds = 60\nmicro-batch-size = 8"))
    keys = {"finetune.max-examples": 500, "partition.kind": "shards", "base-model": "theirs"}
    applied = limited.apply(Config.from_flat(keys))
    assert (applied.finetune.max_examples, applied.finetune.max_seconds) == (140, 60.0)
    fewer = limited.apply(Config.from_flat({"finetune.dev-examples": 60})).finetune
    assert fewer.dev_examples == applied.finetune.dev_examples == 1000
    fewer = limited.apply(Config.from_flat({"finetune.max-dev-examples": 60})).finetune
    assert fewer.max_dev_examples == 0
    assert (applied.finetune.micro_batch_size, applied.base_model) == (8, "demo")
    assert applied.partition.kind == "tasks"
    harm = limited.apply(Config.from_flat({"attacks": "{clinic-a = 'noise'}"}))
    assert harm.attacks == ""
    assert Limits() == load_site(site()).limits
    assert (Limits().min_examples, Limits().min_test_examples) == (100, 50)


@pytest.mark.parametrize(
    ("key", "least"),
    [
        ("finetune.max-examples", "limits.min-examples = 100"),
        ("finetune.validate-every-examples", "limits.min-examples = 100"),
        ("finetune.dev-examples", "limits.min-test-examples = 50"),
        ("finetune.max-dev-examples", "limits.min-test-examples = 50"),
        ("evaluate.max-test-examples", "limits.min-test-examples = 50"),
    ],
)
def test_no_key_of_the_coordinator_singles_a_record_out(site, arrays, own_home, key, least) -> None:
    said = f"LimitError: {key} is 1, which is less than {least} of this site"
    config = ConfigRecord({"protocols": "frozen"})
    for reply in (
        train(site(), arrays, **{key: 1}),
        send(MessageType.EVALUATE, {"arrays": arrays, "config": config}, site(), **{key: 1}),
        send(MessageType.QUERY, {}, site(), **{key: 1}),
    ):
        assert reply.error.reason == said
    assert [row["error"] for row in log(own_home)] == [said] * 3
    with pytest.raises(SiteError, match=f"{key} is 1"):
        list(rehearse(load_site(site()), Config.from_flat({**RUN, key: 1})))


ERASING = {"finetune.batch-size": 1, "finetune.weight-decay": 10.0}


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_no_recipe_erases_all_but_the_last_examples(site, arrays, own_home, optimizer) -> None:
    erasing = {**ERASING, "finetune.learning-rate": 0.1, "finetune.optimizer": optimizer}
    for reply in (train(site(), arrays, **erasing), send(MessageType.QUERY, {}, site(), **erasing)):
        assert reply.error.reason == (
            "LimitError: finetune.learning-rate * finetune.weight-decay is 1: each step would "
            "erase that share of the weights, and the body that leaves would hold the last "
            "examples alone. A site takes 0.01 at most: lower one of the two"
        )
    mine = load_site(site())
    for rate, decay, refused in ((0.1, 0.1, False), (0.0011, 10.0, True), (0.001, 10.0, False)):
        keys = {"finetune.learning-rate": rate, "finetune.weight-decay": decay}
        with pytest.raises(LimitError) if refused else nullcontext():
            mine.apply(Config.from_flat(keys))


def test_a_site_uses_its_rows_whatever_the_run_asks(site, arrays) -> None:
    """The same ones each time, so that no two answers differ by a row."""
    fewer = {"finetune.max-examples": 110, "evaluate.max-test-examples": 60, "seed": 7}
    mine = load_site(site())
    data = [
        Contributor(Config.from_flat({**RUN, **keys}), site=mine).splits()
        for keys in ({}, {**fewer, "finetune.dev-examples": 50})
    ]
    assert [len(part) for part in (data[0].train, data[0].dev, data[0].test)] == [144, 16, 160]
    assert all(torch.equal(a.labels, b.labels) for a, b in zip(*map(parts, data), strict=True))
    path = site(limits="max-examples = 120")
    drawn = [
        Contributor(Config.from_flat({**RUN, "seed": seed}), site=load_site(path)).splits().train
        for seed in (0, 7)
    ]
    assert len(drawn[0]) == 120
    assert torch.equal(drawn[0].labels, drawn[1].labels)
    reply = train(path, arrays, **fewer)
    assert records.metrics_of(reply.content)["num-examples"] == 120


def parts(data):
    return data.train, data.dev, data.test


def test_a_site_that_has_too_little_says_so_itself(site, arrays, tmp_path) -> None:
    path = site()
    for split, word in (("test", "min-test-examples = 50 examples to test on"),
                        ("train", "min-examples = 100 examples to train on")):  # fmt: skip
        lines = (tmp_path / "data" / f"{split}.jsonl").read_text().splitlines()[:40]
        (tmp_path / "data" / f"{split}.jsonl").write_text("\n".join(lines))
        reply = train(path, arrays)
        assert reply.error.reason.startswith(f"LimitError: fewer than limits.{word} at this site")
    allowed = path.read_text() + "min-examples = 30\nmin-test-examples = 40\n"
    path.write_text(allowed)
    assert not train(path, arrays).has_error()
    path.write_text(allowed + "max-examples = 20\n")
    with pytest.raises(SiteError, match="max-examples is 20, less than limits.min-examples = 30"):
        load_site(path)


FEW = "max-examples = 20\nmin-examples = 20"  # of 160 rows 16 are dev: fewer than 50
TRAINED = {"dev-start", "dev-accuracy", "dev-majority", "improving"}
OF_DEV = {*TRAINED, "steps"}  # early stopping is decided on dev


def test_of_few_dev_rows_nothing_leaves(site, arrays, own_home, tmp_path) -> None:
    """Neither beside a body nor beside a score, from our loop or the site's own."""
    (tmp_path / "own_trainer.py").write_text(
        "def finetune(job):\n    return job.body, {'dev-accuracy': 0.25, 'improving': 1.0}\n"
    )
    asked = ConfigRecord({"protocols": "finetuned"})
    for top in ("", 'trainer = "own_trainer:finetune"'):
        reply = train(site(top, FEW), arrays).content
        assert not OF_DEV & records.metrics_of(reply).keys()
        assert "stopped" not in records.config_of(reply, "contribution")
    scored = send(MessageType.EVALUATE, {"arrays": arrays, "config": asked}, site("", FEW)).content
    assert records.metrics_of(scored)["num-examples"] == 160
    assert not records.trained(records.config_of(scored, "contributor"))
    assert not any(word in (own_home / "clinic-a" / "sent.jsonl").read_text() for word in TRAINED)


def test_of_dev_rows_enough_it_leaves(site, arrays) -> None:
    path = site("", FEW + "\nmin-test-examples = 16")
    assert records.metrics_of(train(path, arrays).content).keys() >= OF_DEV
    asked = ConfigRecord({"protocols": "finetuned"})
    reply = send(MessageType.EVALUATE, {"arrays": arrays, "config": asked}, path).content
    stated = records.config_of(reply, "contributor")
    assert records.trained(stated).keys() == {*TRAINED, "stopped"}


def test_no_score_of_few_dev_rows_leaves(site, arrays, own_home) -> None:
    asked = {"arrays": arrays, "config": ConfigRecord({"protocols": "frozen", "split": "dev"})}
    reason = send(MessageType.EVALUATE, asked, site()).error.reason
    assert reason.startswith(
        "LimitError: fewer than limits.min-test-examples = 50 examples in the dev split at this"
    )
    reply = send(MessageType.EVALUATE, asked, site(limits="min-test-examples = 16"))
    assert records.metrics_of(reply.content)["num-examples"] == 16


def test_a_clock_leaves_no_body_of_a_few_examples(site, arrays, monkeypatch) -> None:
    jumps = SimpleNamespace(perf_counter=count(0, 10).__next__)  # ten seconds at each look
    monkeypatch.setattr("cold_flower.training.finetune.time", jumps)
    reply = train(site(), arrays, **{"finetune.max-seconds": 1, "finetune.batch-size": 1})
    assert reply.error.reason.startswith("LimitError: fewer than limits.min-examples = 100")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"top": 'trainr = "x"'}, "Did you mean 'trainer'"),
        ({"top": "dry-run = 1"}, "dry-run is of type bool, got 1"),
        ({"limits": "max-example = 1"}, "Did you mean 'max-examples'"),
        ({"limits": "threads = 1.5"}, "limits.threads is of type int .*got 1.5"),
        ({"limits": "threads = 99999"}, "limits.threads is at least 0 and at most 1,024"),
        ({"limits": "memory-gb = -1"}, "limits.memory-gb is 0 or at least 0.5 and .*got -1"),
        ({"limits": "memory-gb = nan"}, "limits.memory-gb is 0 or at least 0.5 and .*got nan"),
        ({"limits": "memory-gb = 1e300"}, "limits.memory-gb .*at most 1,000,000, got 1e"),
        ({"limits": "max-seconds = 1e-6"}, "limits.max-seconds is 0 or at least 1 and"),
        ({"limits": "max-seconds = inf"}, "limits.max-seconds .*got inf"),
        ({"top": 'app = "a:b"', "limits": "min-examples = 9"}, "limits.min-examples: .* own hands"),
        ({"top": 'app = "a:b"\ntrainer = "c:d"'}, "app answers instead of ours, trainer has no"),
    ],
)
def test_a_wrong_key_says_what_was_expected(site, changes, words) -> None:
    with pytest.raises(SiteError, match=words):
        load_site(site(**changes))


def test_a_name_that_cannot_be_registered(site) -> None:
    path = site()
    path.write_text(path.read_text().replace('"clinic-a"', '"../x"'))
    with pytest.raises(SiteError, match=r"name is '../x', expected the name that the coordinator"):
        load_site(path)


def test_the_node_decides_and_what_leaves_is_written_down(site, arrays, own_home) -> None:
    path = site(limits="max-examples = 20\nmin-examples = 20")
    query = send(MessageType.QUERY, {}, path, suite="/nowhere.toml", recipe=True).content
    assert records.config_of(query, "contributor")["name"] == "clinic-a"
    reply = train(path, arrays).content
    metrics = records.metrics_of(reply)
    assert metrics["num-examples"] == 20
    assert metrics.keys() <= set(records.LISTED)
    rows = log(own_home)
    assert [row["kind"] for row in rows] == ["query", "train"]
    body = fingerprint(records.unpack(reply.array_records["arrays"]))
    assert (rows[1]["sha256"], rows[1]["iteration"], rows[1]["run"]) == (body, 3, "r")
    assert rows[1]["bytes"] == records.size_of(reply) > 4 * 90_000
    assert rows[1]["metrics"] == metrics
    assert rows[0]["contributor"]["examples"] == 20
    assert all(row["code"] and row["sent"] for row in rows)


def mode(path) -> str:
    return oct(path.stat().st_mode & 0o777)


def test_what_a_site_keeps_is_its_own(site, arrays, own_home) -> None:
    """Also a folder that is there; its log may quote data."""
    (own_home / "clinic-a").mkdir(parents=True, mode=0o755)
    (own_home / "clinic-a" / "errors.log").touch(0o644)
    assert not send(MessageType.QUERY, {}, site()).has_error()
    assert mode(own_home / "clinic-a") == "0o700"
    (own_home / "clinic-a").chmod(0o755)
    assert train(site(label="nowhere"), arrays).has_error()
    assert mode(own_home / "clinic-a") == "0o700"
    assert [mode(own_home / "clinic-a" / name) for name in ("errors.log", "sent.jsonl")] == [
        "0o600"
    ] * 2


def test_dry_run_trains_and_keeps_the_answer(site, arrays, own_home) -> None:
    path = site(top="dry-run = true", limits="max-examples = 20\nmin-examples = 20")
    assert not send(MessageType.QUERY, {}, path).has_error()
    reply = train(path, arrays)
    assert "dry-run: the answer to train" in reply.error.reason
    assert not reply.has_content()
    kept = log(own_home)[1]
    assert (kept["sent"], kept["kind"], len(kept["sha256"])) == (False, "train", 64)


def test_a_site_never_loads_what_does_harm(site) -> None:
    path = site(limits="max-examples = 20\nmin-examples = 20")
    command = [sys.executable, "-c", LOADED, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


@pytest.mark.parametrize("kind", [MessageType.TRAIN, MessageType.EVALUATE])
def test_a_path_from_the_coordinator_is_neither_read_nor_written(site, tmp_path, kind) -> None:
    (tmp_path / "run" / "incoming" / "0001").mkdir(parents=True)
    asked = {"iteration": 1, "base": "b", "reference": 0, "protocols": "frozen"}
    elsewhere = {"run-dir": str(tmp_path / "run"), "transport": "shared-dir"}
    reply = send(kind, {"config": ConfigRecord(asked)}, site(), **elsewhere)
    assert "bodies by reference" in reply.error.reason
    assert not list((tmp_path / "run").rglob("*.safetensors*"))


def test_no_word_of_the_data_leaves_with_an_error(site, arrays, own_home, capsys) -> None:
    path = site(top='[task]\nlabels = ["bad"]\n')
    path.write_text(
        path.read_text().replace('[task]\nlabels = ["bad"]\n\n[task]', '[task]\nlabels = ["bad"]')
    )
    for reply in (train(path, arrays), send(MessageType.QUERY, {}, path)):
        assert reply.error.reason == "TaskError: the details are in the site's own log"
    assert "label 'good' in column 'stars' is outside the list" in capsys.readouterr().err
    assert "label 'good'" in (own_home / "clinic-a" / "errors.log").read_text()
    assert log(own_home)[0]["error"] == reply.error.reason


def test_a_wrong_column_is_clear_at_the_site(site, own_home) -> None:
    reply = send(MessageType.QUERY, {}, site(label="tone"))
    assert reply.has_error()
    written = (own_home / "clinic-a" / "errors.log").read_text()
    assert "no column 'tone'" in written
    assert "the columns there are review, stars" in written


def test_an_unexpected_error_does_not_leave_either(site, arrays, monkeypatch) -> None:
    def quotes(*_, **__):
        raise ValueError("row 'Mr Smith is ill'")

    monkeypatch.setattr("cold_flower.contributors.contributor.Contributor.finetune", quotes)
    reply = train(site(), arrays)
    assert reply.error.reason == "ValueError: the details are in the site's own log"


def test_a_gpu_that_is_full_is_said_and_written_down(site, arrays, own_home, monkeypatch) -> None:
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has")

    monkeypatch.setattr("cold_flower.contributors.contributor.Contributor.finetune", full)
    reason = train(site(), arrays).error.reason
    assert reason.startswith("out of GPU memory (CUDA out of memory): lower finetune.micro-batch")
    assert log(own_home)[0]["error"] == reason  # what left is what the log has
    assert "Tried to allocate" in (own_home / "clinic-a" / "errors.log").read_text()


def test_a_broken_site_file_does_not_leave(site, own_home) -> None:
    path = site()
    path.write_text("name = 'x")
    reason = send(MessageType.QUERY, {}, path).error.reason
    assert "this node's site.toml cannot be used" in reason
    (row,) = (json.loads(line) for line in (own_home / "sent.jsonl").read_text().splitlines())
    assert (row["kind"], row["error"]) == ("error", reason)
    assert str(path) not in reason
    assert str(path) in (own_home / "errors.log").read_text()


def test_a_log_that_cannot_be_written_keeps_the_answer(site, own_home, capfd) -> None:
    own_home.mkdir()
    (own_home / "clinic-a").write_text("")  # where the folder would be
    reply = send(MessageType.QUERY, {}, site())
    assert reply.error.reason == "OSError: this site's own log cannot be written"
    said = capfd.readouterr().err  # why: here, at the site, alone
    assert said.startswith("cold-flower, site clinic-a: Traceback")
    assert f"cannot be written: [Errno 17] File exists: '{own_home}/clinic-a'" in said


def test_a_line_that_a_full_disk_cut_off_hides_none_after_it(site, own_home, tmp_path) -> None:
    file = site()
    assert not send(MessageType.QUERY, {}, file).has_error()
    sent = own_home / "clinic-a" / "sent.jsonl"
    sent.write_text(sent.read_text() + '{"time": "1", "kind"')
    assert not send(MessageType.QUERY, {}, file).has_error()
    whole, torn, next_whole = sent.read_text().splitlines()
    assert torn == '{"time": "1", "kind"'
    assert json.loads(whole)["sent"]
    assert json.loads(next_whole)["sent"]
    done = cold_flower("site", "log", str(file), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert 'a line that was cut off (a full disk, a kill): {"time": "1", "kind"\n' in done.stdout
    assert done.stdout.count(" query  numbers, no weights\n") == 2


W = records.pack([("w", torch.zeros(2))])
GOOD = {
    "query": {
        "contributor": ConfigRecord(
            {
                "name": "clinic-a", "task": "clinic-a", "metric": "accuracy", "examples": 9,
                "unknown": 0.1, "versions": "flwr=1.41.0 torch=2.13.0+cpu", "model": "0" * 64,
                "device": "cuda", "visible-gpus": "GPU-3f2a,1", "worker": 7,
            }
        )
    },
    "train": {
        "metrics": MetricRecord({"num-examples": 1, "train-loss": 0.5}),
        "contribution": ConfigRecord({"contributor": "clinic-a", "iteration": 1, "base": "b"}),
    },
    "evaluate": {
        "metrics": MetricRecord({"num-examples": 1, "frozen": 0.5}),
        "contributor": ConfigRecord({"contributor": "clinic-a", "seconds": 0.5}),
    },
}  # fmt: skip


def test_nothing_hides_behind_an_array(arrays) -> None:
    """numpy reads what the shape needs, and leaves what comes behind it alone."""
    content = RecordDict({**GOOD["train"], "arrays": records.pack(records.unpack(arrays))})
    name, array = next(iter(content.array_records["arrays"].items()))
    whole = Array(array.dtype, array.shape, array.stype, array.data + b"Mr Smith is ill. " * 100)
    content.array_records["arrays"][name] = whole
    asked = RecordDict({"arrays": arrays, "config": ConfigRecord({"base": "b"})})
    with pytest.raises(SiteError, match=f"{name} holds more bytes than its shape needs"):
        Egress("clinic-a").check("train", content, asked)


@pytest.mark.parametrize(
    ("kind", "record", "change", "words"),
    [
        ("train", "metrics", {"age": 3.0}, "'age' is not one that leaves in an answer to train"),
        (
            "train",
            "metrics",
            {"train-loss": [0.5, 0.1]},
            r"train-loss is '\[0.5, 0.1\]', expected a",
        ),
        (
            "train",
            "metrics",
            {"train-loss": float("nan")},
            "train-loss is 'nan', expected a finite",
        ),
        ("evaluate", "metrics", {"frozen": float("inf")}, "frozen is 'inf', expected a finite"),
        ("evaluate", "metrics", {"steps": 1}, "'steps' is not one"),
        ("query", "metrics", {"loss": 1.0}, "'loss' is not one"),
        ("train", "Mr Smith is ill", {"train-loss": 1.0}, "a record called 'Mr Smith is ill'"),
        ("evaluate", "notes", {"row": "Mr Smith"}, "a record called 'notes'"),
        ("train", "contribution", {"row": "Mr Smith"}, "'row' is not one"),
        ("train", "contribution", {"contributor": "Mr Smith"}, "expected one of clinic-a"),
        ("train", "contribution", {"base": "Mr Smith"}, "expected one of b"),
        ("train", "contribution", {"iteration": "Mr Smith"}, "expected a finite number"),
        ("train", "contribution", {"iteration": True}, "expected a finite number"),
        ("query", "contributor", {"versions": "Mr Smith is ill"}, "versions is 'Mr Smith is ill'"),
        ("query", "contributor", {"device": b"Mr Smith"}, "device is "),
        ("query", "contributor", {"metric": "Smith"}, "expected one of accuracy, pearson"),
        ("query", "contributor", {"examples": [1, 2]}, "examples is"),
        ("train", "head", W, r"held \['arrays', 'head'\]"),
        ("train", "arrays", W, "not of the base's names"),
        ("evaluate", "arrays", W, "answer to evaluate held"),
    ],
)
def test_what_is_not_listed_is_not_sent(arrays, kind, record, change, words) -> None:
    egress = Egress("clinic-a")
    content = RecordDict(dict(GOOD[kind]))
    if kind == "train":
        content["arrays"] = arrays
    asked = RecordDict({"arrays": arrays, "config": ConfigRecord({"base": "b"})})
    egress.check(kind, content, asked)
    if isinstance(change, dict):
        make = MetricRecord if kind != "query" and record[0] in "mM" else ConfigRecord
        make = MetricRecord if record == "metrics" else make
        content[record] = make({**content.get(record, {}), **change})
    else:
        content[record] = change
    with pytest.raises(SiteError, match=words):
        egress.check(kind, content, asked)


TRAINER = """
import torch
def finetune(job):
    assert len(job.train) > 9 and job.labels == ("bad", "good") and job.iteration == 3
    state = {name: tensor + 1 for name, tensor in job.body.items()}
    return {**state, "classifier.weight": torch.ones(2)}, {"train-loss": 0.5, "secret": 7.0}
def whole(job):
    assert not any("cold_flower" in type(m).__module__ for m in job.model.modules())
    words = job.tokenizer(["good bad good"], return_tensors="pt")
    states = job.model.base_model(**words).last_hidden_state
    assert states.shape[1] == words["input_ids"].shape[1] > 1  # all tokens
    return job.body, {}
def nothing(job):
    return None
def short(job):
    return {}, {}
def diverged(job):
    return job.body, {"train-loss": float("nan")}
"""


def test_a_trainer_of_ones_own(site, arrays, own_home, tmp_path) -> None:
    (tmp_path / "my_trainer.py").write_text(TRAINER)
    reply = train(site(top='trainer = "my_trainer:finetune"'), arrays).content
    assert set(reply.array_records["arrays"]) == set(arrays)
    before, after = (dict(records.unpack(a)) for a in (arrays, reply.array_records["arrays"]))
    assert all(torch.allclose(after[k], before[k] + 1) for k in before)
    metrics = records.metrics_of(reply)
    assert metrics.keys() == {"num-examples", "train-loss", "seconds"}
    assert metrics["num-examples"] == 144
    assert "secret" not in (own_home / "clinic-a" / "sent.jsonl").read_text()


def test_a_trainer_of_ones_own_gets_the_librarys_model(site, arrays, tmp_path) -> None:
    (tmp_path / "my_trainer.py").write_text(TRAINER)
    reply = train(site(top='trainer = "my_trainer:whole"'), arrays)
    assert not reply.has_error(), reply.error


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("my_trainer:absent", "cannot be imported"),
        ("nowhere", "cannot be imported"),
        ("my_trainer:nothing", "returned NoneType, expected"),
        ("my_trainer:short", "returned no tensor"),
        ("my_trainer:diverged", "returned train-loss = nan, expected a finite number"),
    ],
)
def test_a_trainer_that_does_not_do_its_work(site, arrays, own_home, tmp_path, name, words) -> None:
    (tmp_path / "my_trainer.py").write_text(TRAINER)
    assert train(site(top=f'trainer = "{name}"'), arrays).has_error()
    assert words in (own_home / "clinic-a" / "errors.log").read_text()


RAISES = """
import json, sys, torch
def look_up(row):
    raise KeyError(f"Mr Smith\\nis ill: {row}")
def raises(job):
    return look_up(job.train.texts[0])
def leaves(job):
    sys.exit("Mr Smith")
def called_wrongly():
    pass
def library(job):
    return json.loads("{")
def gpu(job):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to")
def nan_body(job):
    return {name: tensor * float("nan") for name, tensor in job.body.items()}, {}
def no_tensors(job):
    return {name: tensor.numpy() for name, tensor in job.body.items()}, {}
def no_numbers(job):
    return job.body, {"train-loss": "low"}
def app(message, context):
    raise ValueError("Mr Smith")
"""


def write_own_code(folder, monkeypatch, name="own_code", text=RAISES) -> None:
    (folder / f"{name}.py").write_text(text)
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(folder))  # before the folders of other tests


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("raises", "OwnCodeError", '/own_code.py, line 4: KeyError: "Mr Smith'),
        ("leaves", "OwnCodeError", "/own_code.py, line 8: SystemExit: Mr Smith"),
        ("called_wrongly", "OwnCodeError", "failed: TypeError: called_wrongly() takes 0"),
        (
            "library",
            "OwnCodeError",
            "/own_code.py, line 12: JSONDecodeError: Expecting property name",
        ),
        ("nan_body", "SiteError", "embeddings.word_embeddings.weight holds NaN or infinity"),
        ("no_tensors", "SiteError", "no tensor 'embeddings.word_embeddings.weight', but ndarray"),
        ("no_numbers", "SiteError", "returned train-loss = low, expected a finite number"),
    ],
)
def test_own_code_that_fails_is_one_line_at_the_site(
    site, arrays, own_home, tmp_path, monkeypatch, capsys, name, kind, words
) -> None:
    write_own_code(tmp_path, monkeypatch)
    reason = train(site(top=f'trainer = "own_code:{name}"'), arrays).error.reason
    assert reason == f"{kind}: the details are in the site's own log"
    (line,) = (own_home / "clinic-a" / "errors.log").read_text().splitlines()
    assert words in line
    assert capsys.readouterr().err.splitlines()[-1].endswith(line.partition(" ")[2])


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def f(:", "SyntaxError: invalid syntax (bad_code.py, line 1)"),
        ("\nraise ValueError('x')", "bad_code.py, line 2: ValueError: x"),
        (
            "import nowhere_at_all",
            "bad_code.py, line 1: ModuleNotFoundError: No module named 'nowhere_at_all'",
        ),
    ],
)
def test_own_code_that_cannot_be_imported(
    site, arrays, own_home, tmp_path, monkeypatch, code, words
) -> None:
    write_own_code(tmp_path, monkeypatch, "bad_code", code)
    assert train(site(top='trainer = "bad_code:f"'), arrays).has_error()
    (line,) = (own_home / "clinic-a" / "errors.log").read_text().splitlines()
    assert "SiteError: 'bad_code:f' cannot be imported: " in line
    assert words in line


def test_an_app_of_ones_own_that_fails_is_one_line(
    site, arrays, own_home, tmp_path, monkeypatch
) -> None:
    write_own_code(tmp_path, monkeypatch)
    reason = train(site(top='app = "own_code:app"'), arrays).error.reason
    assert reason == "OwnCodeError: the details are in the site's own log"
    (line,) = (own_home / "clinic-a" / "errors.log").read_text().splitlines()
    assert "own_code.py, line 22: ValueError: Mr Smith" in line


def test_a_gpu_that_a_trainer_fills_is_said(site, arrays, tmp_path, monkeypatch) -> None:
    write_own_code(tmp_path, monkeypatch)
    reason = train(site(top='trainer = "own_code:gpu"'), arrays).error.reason
    assert reason.startswith("out of GPU memory (CUDA out of memory): lower finetune.micro-batch")


NO_MEMORY = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ("memory-gb = 900", "out of main memory within limits.memory-gb = 900: raise it, or lower"),
        ("", "out of main memory: lower limits.micro-batch-size"),
    ],
)
@pytest.mark.parametrize("own", [False, True])
def test_memory_that_is_short_is_said(
    site, arrays, tmp_path, monkeypatch, limits, words, own
) -> None:
    def short(*_, **__):
        raise RuntimeError(NO_MEMORY)

    monkeypatch.setattr("cold_flower.contributors.site.Site.apply_limits", lambda _: None)
    monkeypatch.setattr("cold_flower.training.protocols.finetune", short)
    write_own_code(
        tmp_path, monkeypatch, text=f"def f(job):\n    raise RuntimeError({NO_MEMORY!r})"
    )
    top = 'trainer = "own_code:f"' if own else ""
    reason = train(site(top, limits), arrays).error.reason
    assert reason.startswith(f"LimitError: this site is {words}")


@pytest.mark.filterwarnings("ignore:'pin_memory'")
def test_the_trainer_of_the_page(site, arrays, tmp_path) -> None:
    pytest.importorskip("accelerate")
    (tmp_path / "my_site.py").write_text(block("file: my_site.py"))
    path = site(top='trainer = "my_site:finetune"', limits="max-examples = 32\nmin-examples = 32")
    reply = train(path, arrays, **{"finetune.learning-rate": 1e-3})
    assert not reply.has_error(), reply.error.reason
    metrics = records.metrics_of(reply.content)
    assert metrics["num-examples"] == 32
    assert metrics["train-loss"] > 0
    body = fingerprint(records.unpack(reply.content.array_records["arrays"]))
    assert body != fingerprint(records.unpack(arrays))


def test_the_clock_ends_a_finetuning(site, arrays) -> None:
    endless = {"finetune.max-epochs": 100_000, "finetune.early-stop-examples": 10**9}
    reply = train(site(limits="max-seconds = 1\nmin-test-examples = 16"), arrays, **endless).content
    assert records.metrics_of(reply)["steps"] > 1


def test_the_clock_ends_an_evaluation(site, arrays) -> None:
    """All that it asks together: it would train for hours."""
    endless = {"probe.epochs": 100_000, "few-shot.epochs": 100_000, "few-shot.draws": 9}
    asked = ConfigRecord({"protocols": "frozen,few-shot,finetuned"})
    content, started = {"arrays": arrays, "config": asked}, time.perf_counter()
    reply = send(MessageType.EVALUATE, content, site(limits="max-seconds = 1"), **endless)
    assert records.metrics_of(reply.content).keys() >= {"frozen", "few-shot", "finetuned"}
    assert time.perf_counter() - started < 30  # 2 s, on a machine that does nothing else


def test_the_rehearsal_lists_what_leaves(site) -> None:
    lines = list(rehearse(load_site(site()), Config.from_flat(RUN)))
    text = "\n".join(lines)
    for words in (
        "base model demo: sha256",
        "data: 144 training, 16 dev, 160 test examples",
        "  of each class: training, dev, test\n  'bad': 71, 9, 80\n  'good': 73, 7, 80",
        '(shown here, never sent):\n  "<s>',
        "warning: split test: 160 of 160 rows (100.0%) stand in train, too",
        "dev examples are fewer than limits.min-test-examples: whether it trained stays here",
        "finetuned on 64 examples with our loop",
        "an iteration takes an estimated",
        "float32 tensors, 383104 bytes",
        "  metrics: num-examples, train-loss, seconds\n"
        "  where the finetuned score of the base is due: finetuned, num-test-examples\n"
        "  contribution: contributor, iteration, base, device, visible-gpus, worker\n",
        "no statistic of the data, which some fusion rules ask for: statistics is empty\n",
        "embeddings.word_embeddings.weight (",
    ):
        assert words in text
    enough = "\n".join(
        rehearse(load_site(site(limits="min-test-examples = 16")), Config.from_flat(RUN))
    )
    for words in (
        "seconds, steps, dev-start, dev-accuracy, dev-majority, improving\n",
        "worker, stopped\n",
        "of a finetuned one: dev-start, dev-accuracy, dev-majority, improving, stopped\n",
    ):
        assert words in enough and words not in text
    with pytest.raises(ColdFlowerError, match=r"limits.memory-gb is 0.9; lower limits.micro-batch"):
        small = replace(load_site(site()), limits=Limits(memory_gb=0.9))
        object.__setattr__(small, "apply_limits", lambda: None)
        list(rehearse(small, Config.from_flat({**RUN, "finetune.batch-size": 100_000})))


TRAIN, TEST = (
    [{"review": f"{word} {i}", "stars": ("bad", "good")[i % 2]} for i in range(160)]
    for word in ("first", "second")
)  # nothing of the one stands in the other


def check(path, *more: str):
    """Return what `cold-flower site check` prints, on its own data, and its last line."""
    for split, rows in (("train", TRAIN), ("test", TEST)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (path.parent / "data" / f"{split}.jsonl").write_text(lines)
    quick = ("--set", "finetune.precision=fp32", *more)
    done = cold_flower("site", "check", str(path), *quick, cwd=path.parent)
    return done, done.stdout.splitlines()[-1]


@pytest.fixture
def small(monkeypatch):
    """Leave the process's own limits alone, and what torch draws of a large machine."""
    monkeypatch.setattr("cold_flower.contributors.site.Site.apply_limits", lambda _: None)
    monkeypatch.setattr("cold_flower.data.remarks.MUCH", 1.0)  # the toy knows none of these words


def test_a_site_that_is_ready(site, small) -> None:
    done, last = check(site())
    assert (done.returncode, last) == (0, "ready"), done.stderr
    assert "warning" not in done.stdout


def test_without_a_base_model_a_site_is_told_that_it_was_a_toy(site, small) -> None:
    path = site()
    path.write_text(path.read_text().replace('base-model = "demo"', ""))
    done, last = check(path)
    assert (done.returncode, last) == (0, "ready with 1 warning")
    assert "warning: no base-model is set, so this is rehearsed with a toy" in done.stdout


DOUBTFUL = """
def unchanged(job):
    return dict(job.body), {}
def nan(job):
    return job.body, {"train-loss": float("nan")}
def raises(job):
    raise KeyError("Mr Smith")
def gpu(job):
    import torch
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
def memory(job):
    raise MemoryError
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nan", "returned train-loss = nan, expected a finite number: did it diverge?"),
        ("raises", "doubtful.py, line 7: KeyError: 'Mr Smith'"),
        ("gpu", "error: out of GPU memory (CUDA out of memory): lower limits.micro-batch-size"),
        ("memory", "error: this site is out of main memory: lower limits.micro-batch-size"),
        ("absent", "'doubtful:absent' cannot be imported: AttributeError"),
    ],
)
def test_a_site_that_is_not_ready(site, small, tmp_path, monkeypatch, name, words) -> None:
    write_own_code(tmp_path, monkeypatch, "doubtful", DOUBTFUL)
    done, last = check(site(top=f'trainer = "doubtful:{name}"'))
    assert (done.returncode, last) == (1, "not ready")
    (line,) = done.stderr.splitlines()
    assert words in line


def test_a_body_that_did_not_change_is_doubted(site, small, tmp_path, monkeypatch) -> None:
    write_own_code(tmp_path, monkeypatch, "doubtful", DOUBTFUL)
    done, last = check(site(top='trainer = "doubtful:unchanged"'))
    assert (done.returncode, last) == (0, "ready with 1 warning"), done.stdout
    assert "warning: the trained body is the base, unchanged" in done.stdout
    assert "no train-loss" in done.stdout


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label": "tone"}, "no column 'tone'"),
        ({"limits": "min-examples = 500"}, "fewer than limits.min-examples = 500 examples"),
        ({"top": 'trainr = "x"'}, "Did you mean 'trainer'"),
    ],
)
def test_what_a_site_lacks_is_said(site, small, change, words) -> None:
    done, last = check(site(**change))
    assert (done.returncode, last) == (1, "not ready")
    (line,) = done.stderr.splitlines()
    assert words in line


def test_a_site_of_numbers_is_told_which(site, small, tmp_path, monkeypatch) -> None:
    rows = [{"review": f"a {i}", "stars": i / 2} for i in range(120)]
    monkeypatch.setattr(sys.modules[__name__], "TRAIN", rows)
    path = site()
    path.write_text(path.read_text().replace("[limits]", 'kind = "regression"\n[limits]'))
    monkeypatch.setattr(sys.modules[__name__], "TEST", rows[:60])
    done, last = check(path)
    assert "  test: numbers from 0 to 29.5, mean 14.75" in done.stdout
    assert last == "ready with 1 warning"  # all of test stands in train


@pytest.mark.parametrize(
    "text", ["review;stars\na;good\n", '"review";"stars"\n"a";"good"\n', "review, x;stars\na,b;c\n"]
)
def test_a_file_with_semicolons_is_said(site, small, tmp_path, text) -> None:
    path = site()
    for split in ("train", "test"):
        (tmp_path / "data" / f"{split}.jsonl").unlink()
        (tmp_path / "data" / f"{split}.csv").write_text(text)
    done = cold_flower("site", "check", str(path), cwd=tmp_path)
    assert done.returncode == 1
    assert "are its columns separated by commas? Spreadsheets may write semicolons" in done.stderr


def test_memory_is_limited(site) -> None:
    path = site(limits="memory-gb = 2\nthreads = 1")
    code = (
        "import torch, pathlib; from cold_flower.contributors.site import load_site\n"
        f"load_site(pathlib.Path({str(path)!r})).apply_limits()\n"
        "assert torch.get_num_threads() == 1\n"
        "try: torch.ones(3_000_000_000 // 4)\n"
        "except RuntimeError as error: assert 'memory' in str(error)\n"
        "else: raise AssertionError('3 GB were given')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_apps_of_a_node_that_never_ran_are_asked_for(site, tmp_path) -> None:
    done = cold_flower("site", "log", str(site()), "--apps", str(tmp_path / "flwr"), cwd=tmp_path)
    assert done.returncode == 1
    assert f"no apps in {tmp_path / 'flwr'}: expected the FLWR_HOME of a SuperNode" in done.stderr


def test_a_trainer_may_be_a_file_beside_site_toml(tmp_path) -> None:
    (tmp_path / "beside.py").write_text("def mine(job): return 7\n")
    assert imported("beside.py:mine", tmp_path)(None) == 7
    with pytest.raises(SiteError, match=f"there is no file {tmp_path}/nowhere.py"):
        imported("nowhere.py:mine", tmp_path)
