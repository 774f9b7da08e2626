"""The handshake."""

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from cold_flower.config import Wait
from cold_flower.errors import RunError
from cold_flower.server import roster
from tests.conftest import FakeGrid, error_reply

ABOUT = {"task": "t", "examples": 5, "tokens": 50, "protocol": 1, "code": "c", "model": "m"}
NAMES = {1: "ann", 2: "bob"}


def gather(client=None, nodes=(1, 2), planned=2, wait=0.3, say=lambda line: None):
    def answer(message: Message) -> Message:
        name = NAMES[message.metadata.dst_node_id]
        changes = client(name) if client else {}
        content = RecordDict({"contributor": ConfigRecord({**ABOUT, "name": name, **changes})})
        return Message(content, reply_to=message)

    grid = FakeGrid(answer, nodes)
    return roster.gather(
        grid, planned, wait=Wait(nodes=wait, replies=wait), code="c", model="m", say=say
    )


def test_everybody_by_name() -> None:
    assert gather() == {
        "ann": roster.Member("ann", 1, 5, 50),
        "bob": roster.Member("bob", 2, 5, 50),
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "ann"}, "two nodes call themselves ann"),
        ({"name": "../../x"}, "calls itself '../../x'"),
        ({"protocol": 2}, "another protocol: '2', the server has 1"),
        ({"code": "old"}, "another code: 'old'"),
        ({"model": "other"}, "another model: 'other'"),
        ({"examples": 0}, "it has '0' examples, expected a number from 1"),
        ({"examples": 1e9}, "it has '1000000000.0' examples"),
        ({"examples": True}, "it has 'True' examples"),
    ],
)
def test_who_does_not_fit_is_refused(changes, words) -> None:
    with pytest.raises(RunError, match=words):
        gather(lambda name: changes if name == "bob" else {})


def test_a_node_without_a_task_is_left_out() -> None:
    lines: list[str] = []
    found = gather(lambda name: {"name": ""} if name == "bob" else {}, planned=1, say=lines.append)
    assert list(found) == ["ann"]
    assert "node 2 has no task" in lines[0]


def test_the_longest_work_is_handed_out_first() -> None:
    members = [roster.Member(n, 1, 5, t) for n, t in (("a", 10), ("c", 30), ("b", 30))]
    assert [member.name for member in roster.longest_first(members)] == ["b", "c", "a"]


def test_nobody_comes() -> None:
    with pytest.raises(RunError, match=r"no contributor came online within 0.3 s \(wait.nodes\)"):
        gather(nodes=())


def test_fewer_than_planned_is_said_with_the_way_to_raise_it(monkeypatch) -> None:
    monkeypatch.setattr(roster, "SETTLED", 0.1)
    lines: list[str] = []
    assert list(gather(nodes=(1,), planned=2, say=lines.append)) == ["ann"]
    assert "1 of 2 contributors are online" in lines[0]
    assert "num-supernodes=2" in lines[0]


def test_a_contributor_that_cannot_start_says_why() -> None:
    grid = FakeGrid(lambda m: error_reply(m, "TaskError: no column 'x'"), [1])
    with pytest.raises(RunError, match="cannot start: TaskError: no column 'x'"):
        roster.gather(grid, 1, wait=Wait(1, 1), code="c", model="m", say=lambda line: None)
