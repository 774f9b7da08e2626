"""Who is asked to score a base, for what, and what is not asked again."""

import math

import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from cold_flower.config import Config
from cold_flower.data.plan import plan
from cold_flower.repository.journal import PROGRESS, SCORES, Journal
from cold_flower.server.evaluation import Evaluation
from cold_flower.server.participants import Contributors
from strategies import records
from strategies.errors import RunStopped
from strategies.participants import Member
from tests.conftest import FakeGrid, error_reply

TASKS = {"music": 30, "market": 90, "travel": 60}
KEYS = {
    "tasks": "music,market,travel",
    "unseen": "travel",
    "iterations": 9,
    "evaluate.reuse": False,  # tests/test_reuse.py has it
}
VALUE = {"frozen": 0.25, "finetuned": 0.5, "few-shot": 0.125}
ARRAYS = records.pack([])


def answer(message: Message, **changes) -> Message:
    asked = records.config_of(message.content, "config")["protocols"].split(",")
    about = ConfigRecord(changes.pop("about", {"metric": "accuracy", "seconds": 2.0}))
    without = changes.pop("without", "")
    metrics = {"num-examples": 40, **{p: VALUE[p] for p in asked}, **changes}
    metrics.pop(without, None)
    content = RecordDict({"metrics": MetricRecord(metrics), "contributor": about})
    return Message(content, reply_to=message)


class Fixture:
    def __init__(self, folder, client=answer, window=2, **keys) -> None:
        config = Config.from_flat({**KEYS, **keys})
        whole = plan(config)
        nodes = {name: node for node, name in enumerate(whole.names)}
        self.names = {node: name for name, node in nodes.items()}
        members = [Member(name, node, 5, TASKS.get(name, 10)) for name, node in nodes.items()]
        self.participants = Contributors(config, whole, members)
        self.members = self.participants.members
        self.grid = FakeGrid(client, nodes.values())
        self.journal = Journal(folder)
        self.evaluation = Evaluation(
            self.grid, config, self.participants, self.journal, window=window
        )

    @property
    def events(self) -> list[dict]:
        return self.journal.rows(PROGRESS)

    def evaluate(self, iteration, sha256="a"):
        before = len(self.grid.sent)
        self.evaluation.evaluate(iteration, ARRAYS, sha256)
        return [
            (
                self.names[m.metadata.dst_node_id],
                records.config_of(m.content, "config")["protocols"],
            )
            for m in self.grid.sent[before:]
        ]


def test_workers_share_protocols_and_the_longest_goes_first(tmp_path) -> None:
    run = Fixture(tmp_path)
    assert run.evaluate(0) == [
        ("market", "finetuned"),
        ("travel", "finetuned"),
        ("music", "finetuned"),
        ("market", "frozen"),
        ("travel", "frozen"),
        ("music", "frozen"),
    ]
    rows = run.journal.rows(SCORES)
    assert len(rows) == 6
    assert {r["group"] for r in rows if r["task"] == "travel"} == {"unseen"}
    assert all(r["base"] == "a" and r["n_test"] == 40 for r in rows)
    assert [event.get("busy") for event in run.events[1:3]] == [2.0, 4.0]
    assert run.events[-1]["scores"] == (
        "frozen seen 25.0, finetuned seen 50.0, frozen unseen 25.0, finetuned unseen 50.0"
    )


def test_a_site_of_its_own_gets_one_message(tmp_path) -> None:
    asked = Fixture(tmp_path, window=0).evaluate(0)
    assert asked == [(name, "finetuned,frozen") for name in ("market", "travel", "music")]


def test_nothing_is_computed_twice(tmp_path) -> None:
    def dies(message):
        busy = message.metadata.dst_node_id == 1
        return error_reply(message, "boom") if busy else answer(message)

    cut = Fixture(tmp_path, dies)
    with pytest.raises(RunStopped, match="not evaluated at market: boom"):
        cut.evaluate(1, "b")
    there = {(r["task"], r["protocol"]) for r in cut.journal.rows(SCORES)}
    resumed = Fixture(tmp_path)
    assert len(there) + len(resumed.evaluate(1, "b")) == 6
    assert resumed.evaluate(1, "b") == []
    # A later base with the same bytes has the same scores.
    assert resumed.evaluate(2, "b") == []
    rows = resumed.journal.rows(SCORES)
    assert len(rows) == 12
    one, two = ([{**r, "iteration": 0} for r in rows if r["iteration"] == i] for i in (1, 2))
    assert one == two
    assert len(resumed.evaluate(3, "c")) == 6


def test_a_base_whose_scores_were_cut_off_is_to_be_logged_once_they_are_there(tmp_path) -> None:
    run = Fixture(tmp_path)
    assert run.evaluation.evaluate(1, ARRAYS, "a") is True
    assert run.evaluation.evaluate(1, ARRAYS, "a") is False
    scores = tmp_path / SCORES
    scores.write_text("".join(scores.read_text().splitlines(keepends=True)[:-1]))
    assert Fixture(tmp_path).evaluation.evaluate(1, ARRAYS, "a") is True


def test_fresh_shards_are_scored_anew_with_their_own_sample(tmp_path) -> None:
    keys = {"partition.kind": "shards", "partition.fresh": True, "tasks": "music", "unseen": ""}
    run = Fixture(tmp_path, **keys)
    expected = [("shard-000", "finetuned"), ("shard-000", "frozen")]
    assert run.evaluate(0, "a") == expected
    assert run.evaluate(1, "a") == expected
    assert run.evaluate(1, "a") == []


def test_only_the_fixed_evaluation_tasks_are_asked(tmp_path) -> None:
    run = Fixture(tmp_path, **{"evaluate.tasks": "travel", "evaluate.protocols": "few-shot"})
    assert run.evaluate(0) == [("travel", "few-shot")]


def test_when_a_base_is_evaluated(tmp_path) -> None:
    run = Fixture(tmp_path, **{"evaluate.every": 4})
    assert [i for i in range(10) if run.evaluation.due(i)] == [0, 4, 8, 9]


@pytest.mark.parametrize(
    ("client", "words"),
    [
        (lambda m: answer(m, best=1.0), "unexpected protocol 'best', asked for finetuned"),
        (lambda m: answer(m, frozen=0.5), "unexpected protocol 'frozen', asked for finetuned"),
        (lambda m: answer(m, without="finetuned"), "missing protocol 'finetuned'"),
        (lambda m: answer(m, finetuned=7.0), "finetuned is 7.0, which no accuracy can be"),
        (lambda m: answer(m, finetuned=-0.5), "finetuned is -0.5, which no accuracy"),
    ],
)
def test_scores_that_cannot_be_are_refused(tmp_path, client, words) -> None:
    run = Fixture(tmp_path, client)
    with pytest.raises(RunStopped, match=f"not evaluated at market: {words}"):
        run.evaluate(0)
    assert run.journal.rows(SCORES) == []


def test_what_a_contributor_says_beside_its_scores_cannot_harm(tmp_path) -> None:
    run = Fixture(tmp_path, lambda m: answer(m, about={"seconds": "soon", "metric": b"x"}))
    run.evaluate(0)
    assert {row["metric"] for row in run.journal.rows(SCORES)} == {"accuracy"}
    assert run.events[1]["busy"] == 0


def test_whether_a_finetuned_evaluation_trained_is_recorded_beside_its_score(tmp_path) -> None:
    said = {"dev-start": 0.25, "dev-accuracy": 0.5, "dev-majority": 0.5, "improving": 1}
    about = {"seconds": 1.0, "metric": "accuracy", **said, "stopped": "epochs"}
    run = Fixture(tmp_path, lambda m: answer(m, about=about))
    run.evaluate(0)
    kept = {key.replace("-", "_"): value for key, value in said.items()} | {"stopped": "epochs"}
    for row in run.journal.rows(SCORES):
        assert (kept.items() <= row.items()) == (row["protocol"] == "finetuned")

    for spoilt in ({**about, "dev-start": math.nan}, {**about, "stopped": 3}, {"dev-start": 0.5}):
        assert records.trained(spoilt) == {}


def test_the_gate_asks_those_who_contribute_once_for_each_model(tmp_path) -> None:
    run = Fixture(tmp_path, **{"gate.protocol": "frozen"})

    def validate(iteration: int, sha256: str):
        before = len(run.grid.sent)
        scores = run.evaluation.validate(iteration, sha256, lambda: ARRAYS, "the current base 0")
        asked = [run.names[m.metadata.dst_node_id] for m in run.grid.sent[before:]]
        return scores, asked

    scores, asked = validate(1, "a")
    assert scores == {"market": 0.25, "music": 0.25}  # travel is unseen
    assert asked == ["market", "music"]
    first = run.events[0]
    assert first["line"] == "iteration 1, gate: validating the current base 0"
    assert (first["phase"], first["done"], first["of"]) == ("validate", 0, 2)
    config = records.config_of(run.grid.sent[0].content, "config")
    assert (config["split"], config["protocols"], config["iteration"]) == ("dev", "frozen", 1)
    assert validate(2, "a") == (scores, [])
    assert validate(2, "b") == (scores, ["market", "music"])
    assert run.journal.rows(SCORES) == []
    del run.members["market"]  # what it said of "a" no longer counts
    assert validate(3, "a") == ({"music": 0.25}, [])


def test_fresh_shards_are_validated_anew_each_iteration(tmp_path) -> None:
    keys = {"tasks": "music", "unseen": "", "gate.protocol": "frozen", "partition.kind": "shards"}
    run = Fixture(tmp_path, **keys, **{"partition.shards": 2, "partition.fresh": True})
    for iteration, asked in ((1, 2), (1, 2), (2, 4)):
        run.evaluation.validate(iteration, "a", lambda: ARRAYS, "a candidate")
        assert len(run.grid.sent) == asked


def test_every_base_is_scored_with_the_same_draws(tmp_path) -> None:
    run = Fixture(tmp_path, seed=5)
    for iteration, base in ((0, "a"), (1, "b")):
        run.evaluate(iteration, base)
    asked = [records.config_of(message.content, "config") for message in run.grid.sent]
    assert {config["seed"] for config in asked} == {5}
    assert {config["split"] for config in asked} == {"test"}
