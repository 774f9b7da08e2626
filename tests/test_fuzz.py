"""Whatever comes in is accepted, or refused with one clear error.

COLD_FLOWER_FUZZ sets how many examples each test draws (``make acceptance``: 3,000).
"""

import json
import os
from collections import OrderedDict
from typing import Any

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cold_flower.config import Config, describe
from cold_flower.data.plan import plan, resolve
from cold_flower.data.suite import load_suite
from cold_flower.errors import ColdFlowerError
from cold_flower.repository.bases import Repository
from cold_flower.runtime import experiments
from cold_flower.server.strategy import check
from strategies import records
from strategies.collecting import Collector
from strategies.errors import StrategyError
from strategies.inbox import Inbox
from strategies.participants import Member, Participants
from strategies.screening import Screen
from tests.conftest import FakeGrid
from tests.test_repository import BODY, save

many = settings(
    max_examples=int(os.environ.get("COLD_FLOWER_FUZZ", "40")),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
BASE = {"w": torch.zeros(2, 2), "b": torch.tensor([1.0, 2.0])}

words = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["../../x", "/etc/passwd", "\x1b[2J", "a" * 300, "w", "b", "ann", "base"]),
)
scalars = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.floats(), st.booleans(), words, st.binary(max_size=8)
)
json_values = st.recursive(
    st.one_of(st.none(), scalars.filter(lambda v: not isinstance(v, bytes))),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(words, inner, max_size=4)),
    max_leaves=8,
)


@st.composite
def arrays(draw) -> Array:
    """An array that says one thing and may hold another."""
    good = Array(draw(st.sampled_from([*BASE.values(), torch.zeros(3), torch.ones(2, 2)])).numpy())
    return Array(
        dtype=draw(st.sampled_from([good.dtype, good.dtype, "float64", "int8", "object", "x"])),
        shape=draw(st.sampled_from([tuple(good.shape), (2,), (2, 2), (2**40,), (-1,), ()])),
        stype=draw(st.sampled_from([good.stype, good.stype, "pickle"])),
        data=draw(st.sampled_from([good.data, good.data, good.data[:-3], b"", b"PK\x03\x04", b"\x80\x04."])),
    )  # fmt: skip


@st.composite
def replies(draw) -> RecordDict:
    """Something between a good reply and none at all."""
    bodies = st.dictionaries(st.sampled_from(["w", "b", "../../x", ""]), arrays(), max_size=3)
    drawn = draw(st.one_of(st.just({}), bodies))
    body = ArrayRecord(OrderedDict(drawn)) if drawn else records.pack(BASE.items())
    numbers = st.one_of(st.integers(-5, 2**40), st.floats())
    metrics: dict[str, Any] = {"num-examples": draw(st.one_of(st.just(10), numbers))}
    metrics |= draw(st.dictionaries(words, numbers, max_size=3))
    about = {"contributor": "ann", "iteration": 1, "base": draw(st.sampled_from(["", "x"]))}
    about |= draw(st.dictionaries(words, scalars, max_size=3))
    content = RecordDict(
        {
            draw(st.sampled_from(["arrays", "arrays", "arrays", "../arrays"])): body,
            "metrics": MetricRecord(metrics),
            "contribution": ConfigRecord(about),
        }
    )
    for i in range(draw(st.sampled_from([0, 0, 0, 1, 20]))):
        content[f"more-{i}"] = ConfigRecord(draw(st.dictionaries(words, scalars, max_size=3)))
    return content


@many
@given(content=replies())
def test_replies(tmp_path_factory, content) -> None:
    folder = tmp_path_factory.mktemp("run")

    def answer(message: Message) -> Message:
        about = records.config_of(content, "contribution")
        if about.get("base") == "":  # it knows the base: then the rest is what decides
            about["base"] = records.config_of(message.content, "config")["base"]
            content["contribution"] = ConfigRecord(about)
        return Message(content, reply_to=message)

    grid, there = FakeGrid(answer, [7]), Participants([Member("ann", 7)])
    inbox = Inbox(Collector(grid, folder / "incoming", there), quorum=1, screen=Screen())
    outgoing = RecordDict({"arrays": records.pack(BASE.items()), "config": ConfigRecord()})
    try:
        taken = inbox.send_and_receive([Message(outgoing, 7, "train")], timeout=5)
    except StrategyError as error:
        assert str(error).isprintable()
        assert inbox.contributions["ann"].reason
        taken = []
    assert len(taken) == (inbox.contributions["ann"].verdict == "accepted")
    written = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    ours = ("incoming/0001/ann.safetensors", "incoming/0001/ann.sha256")
    assert written <= {*ours, "quarantine/0001/ann.safetensors"}


@many
@given(
    change=st.one_of(
        st.text(max_size=60),
        json_values.map(json.dumps),
        st.dictionaries(
            st.sampled_from(["iteration", "parent", "prefix", "body", "contributors"]),
            json_values,
            min_size=1,
        ),
    )
)
def test_manifests(tmp_path_factory, change) -> None:
    repository = Repository(tmp_path_factory.mktemp("run"))
    repository.create(save, BODY, "net.", {})
    path = repository.path(0) / "manifest.json"
    if isinstance(change, dict):
        change = json.dumps({**json.loads(path.read_text()), **change})
    path.write_bytes(change.encode("utf-8", "surrogatepass"))
    try:
        assert repository.recover() == 0
        assert repository.lineage() == [0]
        repository.body(0).keys()
        [row["name"] for row in repository.manifest(0).get("contributors", [])]
    except ColdFlowerError as error:
        assert str(path) in str(error)


def toml(value: Any) -> str:
    """Write a value as TOML, as well as TOML can."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value) if isinstance(value, str | bool | int) else repr(str(value))


entry = st.fixed_dictionaries(
    {"source": st.sampled_from(["files", "hub", "demo", ""]), "text": json_values},
    optional={
        key: json_values
        for key in ("path", "label", "labels", "kind", "metric", "splits", "subset", "x")
    },
)


@many
@given(
    text=st.one_of(
        st.text(max_size=60),
        st.dictionaries(st.one_of(words, st.just("good")), entry, min_size=1, max_size=2).map(
            lambda table: "".join(f"tasks.{json.dumps(k)} = {toml(v)}\n" for k, v in table.items())
        ),
    )
)
def test_suite_files(tmp_path_factory, text) -> None:
    path = tmp_path_factory.mktemp("suite") / "suite.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        load_suite(str(path))
    except ColdFlowerError as error:
        assert str(path) in str(error)


@many
@given(
    key=st.one_of(words, st.sampled_from([*describe()])),
    value=st.one_of(
        words,
        st.floats().map(str),
        st.integers().map(str),
        st.sampled_from(["{}", "{k = 0.2}", "average", "a.b:c", "os:system", "true", "1e400"]),
    ),
)
def test_config_strings(key, value) -> None:
    try:
        settings = experiments.parse_settings([f"{key}={value}"])
        config = resolve(Config.from_flat({"suite": "demo", "base-model": "demo", **settings}))
        plan(config)
        config.protocols()
        check(config)
    except (ColdFlowerError, StrategyError) as error:
        assert str(error)


def test_hostile_names_cannot_leave_the_run_directory(tmp_path) -> None:
    for name in ("../../x", "/etc/x", "a/b", "..", "_state", "A", "", "a" * 65, "a\n"):
        with pytest.raises(ValueError, match="not a contributor name"):
            Collector(FakeGrid(lambda m: None, []), tmp_path, Participants([Member(name, 1)]))
