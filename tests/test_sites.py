"""The server's side of real sites: who may take part, who is there, who came and left."""

import time

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo

from cold_flower.config import Config
from cold_flower.errors import ConfigError, RunError
from cold_flower.repository.journal import LEFT, PROGRESS, SITES, Journal
from cold_flower.server import sites
from strategies.exchange import LOST
from tests.conftest import FakeGrid, error_reply

KEYS = {"sites.allow": "ann,bob,cat", "wait.nodes": 0.3, "contributors-per-iteration": 0}


class Field:
    """A SuperLink whose nodes a test turns on and off."""

    def __init__(self, monkeypatch, folder, **keys) -> None:
        monkeypatch.setattr(sites, "POLL", 0.01)
        self.config = Config.from_flat({**KEYS, **keys})
        self.nodes: dict[int, tuple[str, str]] = {}  # id: registered name, when it connected
        self.about: dict[str, dict] = {}  # by registered name: what differs in its answer
        self.journal = Journal(folder)
        self.grid = FakeGrid(self._answer, [])
        self.grid.get_nodes = lambda: [
            NodeInfo(node_id=i, name=name, last_activated_at=at)
            for i, (name, at) in self.nodes.items()
        ]

    def _answer(self, message: Message) -> Message | None:
        name = self.nodes[message.metadata.dst_node_id][0]
        about = {"name": name, "examples": 5, "tokens": 9, "protocol": 1, "model": "m"}
        about |= {"code": f"of {name}", **self.about.get(name, {})}
        if about.pop("silent", False):
            return None
        if about.pop("loses", 0):
            self.about[name]["loses"] -= 1
            return error_reply(message, "objects are unavailable", code=LOST)
        if about.pop("fails", False):
            return error_reply(message, "TaskError: the details are in the site's own log")
        content = RecordDict({"contributor": ConfigRecord(about)})
        return Message(content, reply_to=message)

    def on(self, *names: str, at="1") -> None:
        for name in names:
            self.nodes[sum(map(ord, name))] = (name, at)

    def off(self, name: str) -> None:
        del self.nodes[sum(map(ord, name))]

    def open(self) -> sites.Sites:
        return sites.Sites(self.grid, self.config, "m", self.journal)

    @property
    def lines(self) -> list[str]:
        return [event["line"] for event in self.journal.rows(PROGRESS)]

    @property
    def rows(self) -> list[dict]:
        return self.journal.rows(SITES)


@pytest.fixture
def field(monkeypatch, tmp_path_factory):
    return lambda **keys: Field(monkeypatch, tmp_path_factory.mktemp("run"), **keys)


def test_members_are_by_registered_name_and_say_what_they_run(field) -> None:
    world = field()
    world.on("cat", "ann")
    made = world.open()
    assert list(made.members) == ["ann", "cat"]
    nodes = {name: member.node for name, member in made.members.items()}
    assert nodes == {"ann": sum(map(ord, "ann")), "cat": sum(map(ord, "cat"))}
    assert made.plan.seen == made.plan.evaluated == ("ann", "cat")
    joined = [(r["site"], r["event"], r["code"]) for r in world.rows]
    assert sorted(joined) == [("ann", "joined", "of ann"), ("cat", "joined", "of cat")]


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"name": "ann"}, "bob is left out: it calls itself 'ann'"),
        ({"name": "../x"}, "bob is left out: it calls itself '../x'; a name is"),
        ({"protocol": 2}, "another protocol: '2', the server has 1"),
        ({"model": "x"}, "another model: 'x'"),
        ({"metric": "luck"}, "unknown metric 'luck'"),
        ({"fails": True}, "bob is left out: TaskError: the details are in the site's own log"),
        ({"silent": True}, "bob is left out: no answer within 0.3 s"),
    ],
)
def test_one_that_does_not_fit_is_left_out_and_the_others_go_on(field, about, words) -> None:
    world = field()
    world.on("ann", "bob")
    world.about["bob"] = about
    assert list(world.open().members) == ["ann"]
    assert any(words in line for line in world.lines), world.lines
    assert [r["event"] for r in world.rows if r["site"] == "bob"] == ["refused"]


def test_who_is_there_is_asked_once_more_where_an_answer_was_lost(field) -> None:
    world = field()
    world.on("ann", "bob")
    world.about["bob"] = {"loses": 1}
    assert list(world.open().members) == ["ann", "bob"]
    assert world.lines.count("bob: its answer was lost on its way: asked once more") == 1
    world.about["cat"] = {"loses": 2}
    world.on("cat")
    made = world.open()
    assert list(made.members) == ["ann", "bob"]
    made.refresh()  # when the next iteration begins
    assert list(made.members) == ["ann", "bob", "cat"]


def test_a_stranger_is_not_even_asked(field) -> None:
    world = field()
    world.on("ann", "eve", "")
    made = world.open()
    assert list(made.members) == ["ann"]
    assert len(world.grid.sent) == 1
    text = "\n".join(world.lines)
    assert "site eve is left out: is not in sites.allow" in text
    assert "has no registered name" in text
    world = field(**{"sites.allow": "*"})
    world.on("ann", "eve", "")
    assert list(world.open().members) == ["ann", "eve"]


@pytest.mark.parametrize("allow", ["*", "ann,bob,cat"])
def test_a_site_that_left_is_as_if_it_were_not_allowed(field, allow) -> None:
    world = field(**{"sites.allow": allow})
    world.journal.append(LEFT, [{"contributor": "bob"}])
    world.on("ann", "bob")
    made = world.open()
    assert list(made.members) == ["ann"]
    assert len(world.grid.sent) == 1
    assert (made.allowed("bob"), made.allowed("cat")) == (False, True)
    assert "site bob is left out: left this run (left.jsonl)" in world.lines


def test_the_name_of_a_site_that_is_away_is_its_own(field) -> None:
    world = field(**{"sites.allow": "*"})
    world.on("ann", "bob")
    made = world.open()
    world.off("bob")
    made.refresh()
    assert made.known == {"ann", "bob"}
    world = field(**{"sites.allow": "ann,zoe"})
    world.on("ann")
    assert world.open().known == {"ann", "zoe"}


def test_two_nodes_under_one_name(field) -> None:
    world = field()
    world.nodes = {1: ("ann", "1"), 2: ("ann", "1")}
    made = world.open()
    assert {name: member.node for name, member in made.members.items()} == {"ann": 1}
    made.refresh()
    double = "site node 2 is left out: it is registered as ann, too, as node 1 is, which is asked"
    assert len([line for line in world.lines if double in line]) == 1
    assert [(row["site"], row["event"]) for row in world.rows] == [
        *(("node 2", "refused"), ("ann", "joined"))
    ]
    del world.nodes[1]  # unregistered: the other one takes its place without a new connection
    made.refresh()
    assert {name: member.node for name, member in made.members.items()} == {"ann": 2}


def test_newcomers_are_asked_before_an_iteration_and_leavers_are_not(field) -> None:
    world = field()
    world.on("ann", "bob")
    made = world.open()
    assert made.cohort(1) == ["ann", "bob"]
    world.off("bob")
    world.on("cat")
    assert made.cohort(1) == ["ann", "bob"]  # an iteration that has begun keeps its cohort
    assert made.expected(1) == ["ann", "bob"]
    assert made.expected(2) == ["ann", "bob"]  # nobody is looked for
    assert made.cohort(2) == ["ann", "cat"]
    assert len(world.grid.sent) == 3  # each was asked once
    world.on("bob", at="2")
    assert made.cohort(3) == ["ann", "bob", "cat"]
    events = [(r["site"], r["event"]) for r in world.rows if r["site"] == "bob"]
    assert events == [("bob", "joined"), ("bob", "left"), ("bob", "joined")]


def test_one_that_was_left_out_is_asked_again_once_it_reconnected(field) -> None:
    world = field()
    world.on("ann", "bob")
    world.about["bob"] = {"fails": True}
    made = world.open()
    made.refresh()
    assert len(world.grid.sent) == 2
    world.about.clear()
    world.on("bob", at="2")
    made.refresh()
    assert list(made.members) == ["ann", "bob"]


def test_one_that_is_slow_to_answer_is_waited_for_once(field) -> None:
    world = field()
    world.about["bob"] = {"silent": True}
    world.on("ann", "bob")
    made = world.open()
    assert list(made.members) == ["ann"]
    started = time.monotonic()
    for iteration in range(1, 4):
        assert made.cohort(iteration) == ["ann"]
    assert time.monotonic() - started < 0.3  # wait.nodes: nobody waits for it a second time
    world.about["bob"] = {}  # its data are tokenised by now; it has not reconnected
    made.refresh()
    assert list(made.members) == ["ann", "bob"]
    assert len(world.grid.sent) == 2
    assert [r["event"] for r in world.rows if r["site"] == "bob"] == ["refused", "joined"]


def test_one_that_reconnects_before_it_answered_is_asked_anew(field) -> None:
    world = field()
    world.about["bob"] = {"silent": True}
    world.on("ann", "bob")
    made = world.open()
    world.about["bob"] = {}
    world.on("bob", at="2")
    made.refresh()
    assert list(made.members) == ["ann", "bob"]
    assert len(world.grid.sent) == 3


def test_one_that_reconnected_in_between_is_asked_anew(field) -> None:
    world = field()
    world.on("ann")
    made = world.open()
    world.about["ann"] = {"examples": 8}
    world.on("ann", at="2")
    assert made.cohort(1) == ["ann"]
    assert made.members["ann"].examples == 8


def test_an_iteration_waits_for_the_minimum(field) -> None:
    world = field(**{"sites.minimum": 2, "unseen": "cat"})
    world.on("ann", "cat")
    with pytest.raises(RunError, match=r"1 of 2 sites were ready within 0.3 s .* ready: ann"):
        world.open()  # one that is only evaluated does not count
    assert "waiting for more" in "\n".join(world.lines)
    world.on("bob")
    made = world.open()
    assert made.cohort(1) == ["ann", "bob"]
    assert made.plan.unseen == ("cat",)


def test_a_cohort_is_no_larger_than_asked(field) -> None:
    world = field(**{"contributors-per-iteration": 2})
    world.on("ann", "bob", "cat")
    made = world.open()
    assert len(made.cohort(1)) == 2
    world.off("ann")
    world.off("bob")
    assert made.cohort(2) == ["cat"]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"tasks": "a"}, "tasks is about the tasks of a suite"),
        ({"partition.kind": "shards"}, "partition is about"),
        ({"sites.allow": "Ann"}, "'Ann' is no site's name"),
        ({"sites.allow": "*,ann"}, r"sites.allow is \* or names"),
        ({"sites.minimum": 3, "unseen": "cat"}, "ask for 3 sites, but sites.allow names 2"),
        ({"quorum": 4}, "ask for 4 sites, but sites.allow names 3"),
    ],
)
def test_a_wrong_key_is_named_before_anything_starts(keys, words) -> None:
    with pytest.raises(ConfigError, match=words):
        sites.check(Config.from_flat({**KEYS, **keys}))
