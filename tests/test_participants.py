"""Who takes part in a simulation: the handshake, and whom an iteration asks."""

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from cold_flower.config import Config
from cold_flower.data.demo import TASKS as TASKS_OF_DEMO
from cold_flower.data.plan import plan
from cold_flower.errors import ConfigError, RunError
from cold_flower.server import participants, simulation
from strategies import records
from strategies.participants import Member
from tests.conftest import FakeGrid, error_reply

ABOUT = {"task": "t", "examples": 5, "tokens": 50, "protocol": 1, "code": "c", "model": "m"}
NAMES = {1: "ann", 2: "bob"}
TASKS = "music,market,travel"


@pytest.fixture(autouse=True)
def same_code(monkeypatch) -> None:
    monkeypatch.setattr(simulation, "code_sha256", lambda: "c")


def planned(number: int, **keys) -> Config:
    """A run of so many contributors."""
    tasks = ",".join(TASKS.split(",")[:number])
    return Config.from_flat({"tasks": tasks, "wait.nodes": 0.3, "wait.replies": 0.3, **keys})


def gather(client=None, nodes=(1, 2), number=2, say=lambda line, **facts: None):
    def answer(message: Message) -> Message:
        name = NAMES[message.metadata.dst_node_id]
        changes = client(name) if client else {}
        content = RecordDict({"contributor": ConfigRecord({**ABOUT, "name": name, **changes})})
        return Message(content, reply_to=message)

    grid = FakeGrid(answer, nodes)
    return simulation.Simulation(grid, planned(number), "m", say).members


def test_everybody_by_name() -> None:
    assert gather() == {
        "ann": Member("ann", 1, 5, 50),
        "bob": Member("bob", 2, 5, 50),
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
    found = gather(
        lambda name: {"name": ""} if name == "bob" else {},
        number=1,
        say=lambda line, **facts: lines.append(line),
    )
    assert list(found) == ["ann"]
    assert any("node 2 has no task" in line for line in lines)


def test_what_the_user_set_is_said_to_everybody() -> None:
    asked: list[dict] = []

    def answer(message: Message) -> Message:
        asked.append(records.config_of(message.content, "config"))
        content = RecordDict({"contributor": ConfigRecord({**ABOUT, "name": "ann"})})
        return Message(content, reply_to=message)

    say = lambda line, **facts: None  # noqa: E731
    for keys in ({}, {"explicit": "seed,iterations"}):
        simulation.Simulation(FakeGrid(answer, [1]), planned(1, **keys), "m", say)
    assert asked == [{}, {"explicit": "seed,iterations"}]


def test_what_the_model_does_not_see_of_the_texts_is_said() -> None:
    said: list[tuple[str, dict]] = []
    gather(
        lambda name: {"unknown": 0.25, "cut": 0.02} if name == "bob" else {"unknown": 7.0},
        say=lambda line, **facts: said.append((line, facts)),
    )
    said = [(line, facts) for line, facts in said if "waits" not in facts]
    assert [line for line, _ in said] == [
        "texts as the base model reads them: at most 25.0% unknown tokens (bob), at most 2.0% of a "
        "task's texts cut (bob), at 250 tokens or the model's own limit",
        "WARNING: tokens that the base model's tokenizer does not know: bob 25%",
    ]
    shares = {"ann": {"unknown": 0.0, "cut": 0.0}, "bob": {"unknown": 0.25, "cut": 0.02}}
    assert said[0][1] == {"read": shares}  # of nonsense, nothing is said


def test_the_longest_work_is_handed_out_first() -> None:
    members = [Member(n, 1, 5, t) for n, t in (("a", 10), ("c", 30), ("b", 30))]
    assert [member.name for member in participants.longest_first(members)] == ["b", "c", "a"]


def test_nobody_comes() -> None:
    with pytest.raises(RunError, match=r"no contributor came online within 0.3 s \(wait.nodes\)"):
        gather(nodes=())


def test_fewer_than_planned_is_said_with_the_way_to_raise_it(monkeypatch) -> None:
    monkeypatch.setattr(simulation, "SETTLED", 0.1)
    lines: list[str] = []
    assert list(gather(nodes=(1,), number=2, say=lambda line, **facts: lines.append(line))) == [
        "ann"
    ]
    assert "1 of 2 contributors are online" in lines[0]
    assert "num-supernodes=2" in lines[0]


def test_a_contributor_that_cannot_start_says_why() -> None:
    grid = FakeGrid(lambda m: error_reply(m, "TaskError: no column 'x'"), [1])
    with pytest.raises(RunError, match="cannot start: TaskError: no column 'x'"):
        simulation.Simulation(grid, planned(1), "m", lambda line, **facts: None)


def test_what_one_gave_that_is_away_counts() -> None:
    """A run by `flwr run` is resumed with fewer nodes than it was begun with."""
    config = planned(3, unseen="travel")
    here = participants.Contributors(config, plan(config), [Member("music", 1, 5, 50)])
    assert here.cohort(1) == ["music"]
    assert [name for name in ("music", "market", "travel") if here.allowed(name)] == [
        "music", "market",
    ]  # fmt: skip


def test_more_asked_than_planned_is_an_error_fewer_there_is_not() -> None:
    config = planned(3, **{"contributors-per-iteration": 9})
    members = [Member(name, node) for node, name in enumerate(TASKS.split(","))]
    with pytest.raises(ConfigError, match="is 9, but only 3 contributors are seen"):
        participants.Contributors(config, plan(config), members).cohort(1)
    assert participants.Contributors(config, plan(config), members[:2]).cohort(1) == [
        "market", "music",
    ]  # fmt: skip


MANY = tuple(TASKS_OF_DEMO)


class Many:
    """A simulation of the demo's twelve contributors, whose data were checked before."""

    def __init__(self, number=lambda node: node, wrong="", checked=True, left=(), **keys) -> None:
        self.lines: list[str] = []
        config = Config.from_flat(
            {"contributors-per-iteration": 2, "evaluate.tasks": "market,music", **keys}
        )

        def answer(message: Message) -> Message:
            name = plan(config).names[number(message.metadata.dst_node_id)]
            about = {**ABOUT, "name": name, "examples": 0 if name == wrong else 5}
            return Message(RecordDict({"contributor": ConfigRecord(about)}), reply_to=message)

        self.grid = FakeGrid(answer, range(len(MANY)))
        self.made = simulation.Simulation(
            self.grid, config, "m", lambda line, **_: self.lines.append(line), checked=checked,
            left=left,
        )  # fmt: skip


def test_who_has_nothing_to_do_is_not_asked() -> None:
    world, everybody = Many(), Many(checked=False)
    assert len(everybody.grid.sent) == len(everybody.made.members) == len(MANY)
    cohorts = {i: everybody.made.cohort(i) for i in range(1, 9)}
    assert {*world.made.members} == {"market", "music", *cohorts[1]}
    assert (len(world.made.there), world.made.training) == (len(MANY), [*MANY])
    for iteration, cohort in cohorts.items():
        before = {*world.made.members}
        assert world.made.cohort(iteration) == cohort
        assert {*world.made.members} == before | {*cohort}
        assert len(world.grid.sent) == len(world.made.members)  # each once
    assert any("asking 2 more contributors" in line for line in world.lines)


def test_a_run_that_only_evaluates_asks_nobody_else() -> None:
    assert {*Many(iterations=0).made.members} == {"market", "music"}


def test_nodes_that_are_numbered_otherwise_are_found_all_the_same() -> None:
    world = Many(number=lambda node: len(MANY) - 1 - node)
    assert world.made.cohort(1) == Many().made.cohort(1)
    nodes = {name: member.node for name, member in world.made.members.items()}
    assert nodes == {name: len(MANY) - 1 - i for i, name in enumerate(MANY)}
    with pytest.raises(RunError, match="two nodes call themselves weather"):
        Many(number=lambda node: 0)


def test_who_is_asked_later_is_refused_with_the_same_words() -> None:
    first = {"market", "music", *Many().made.cohort(1)}
    world = Many(wrong=next(name for name in MANY if name not in first))
    with pytest.raises(RunError, match="it has '0' examples, expected a number from 1"):
        world.made.asked(MANY)


@pytest.mark.parametrize("checked", [True, False])
def test_who_left_is_no_contributor_any_more(checked) -> None:
    """The nodes keep their numbers: the others are who they were."""
    size = {"contributors-per-iteration": 0}
    world, before = Many(checked=checked, left=["music"], **size), Many(checked=checked, **size)
    others = [name for name in before.made.cohort(1) if name != "music"]
    assert world.made.cohort(1) == others
    assert {n: m.node for n, m in world.made.members.items()} == {
        n: m.node for n, m in before.made.members.items() if n != "music"
    }
    assert not world.made.allowed("music")
    assert world.made.plan.evaluated == ("market",)
    asked = [message.metadata.dst_node_id for message in world.grid.sent]
    assert (MANY.index("music") in asked) != checked  # where nodes are not known, all are asked
    assert "music left this run" in world.lines[0]


def test_a_cohort_of_all_is_of_those_who_stay() -> None:
    world = Many(left=["music"], **{"contributors-per-iteration": 12})
    assert world.made.cohort(1) == [
        n for n in Many(**{"contributors-per-iteration": 12}).made.cohort(1) if n != "music"
    ]
