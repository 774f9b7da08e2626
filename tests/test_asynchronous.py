"""Nobody waits: iterations of the first few contributions, late ones, and a run repeated."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from flwr.app import Message

from cold_flower.config import Config
from cold_flower.errors import ConfigError, RunError
from cold_flower.repository.arrivals import ARRIVALS, Arrivals, Replayed
from cold_flower.repository.bases import Repository
from cold_flower.repository.journal import Journal
from cold_flower.runtime import cost as counted
from cold_flower.runtime import experiments
from cold_flower.server import turns
from strategies import records
from strategies.cold_fusion import ColDFusion
from strategies.collecting import Collector
from strategies.contributions import Contribution, Start
from strategies.errors import QuorumError
from strategies.fusion import Weights, fingerprint, load
from strategies.fusion._deltas import Difference, Scaled
from strategies.screening import Screen
from strategies.staleness import discount
from strategies.turns import Buffered, Together
from tests.conftest import FakeGrid
from tests.test_inbox import BASE, NAMES, ROSTER, STEP, Here, inbox_of, lines_to, trained
from tests.test_simulation import rows, simulate

KEYS = ["--set", "schedule=asynchronous", "--set", "buffer=2"]


class Kept:
    """The bases of a run, in memory."""

    def __init__(self) -> None:
        self.bodies = [dict(BASE)]

    def recent(self, most: int) -> list[tuple[int, str]]:
        found: list[tuple[int, str]] = []
        for number in range(len(self.bodies) - 1, -1, -1):
            sha256 = fingerprint(self.bodies[number].items())
            if not found or found[-1][1] != sha256:
                found.append((number, sha256))
        return found[:most]

    def body(self, iteration: int) -> Weights:
        return Weights(self.bodies[iteration])


class Pace:
    """Contributors that answer when it is their turn: at the n-th look for replies from then on."""

    def __init__(self, **looks: int) -> None:
        self.looks, self.waited = looks, dict[str, int]()
        self.asked: list[tuple[str, int]] = []

    def __call__(self, message: Message) -> Message | None:
        name = NAMES[message.metadata.dst_node_id]
        iteration = records.config_of(message.content, records.CONFIG)["iteration"]
        if (name, iteration) not in self.asked:
            self.asked.append((name, iteration))
        self.waited[name] = self.waited.get(name, 0) + 1
        if self.waited[name] <= self.looks.get(name, 0):
            return None
        self.waited[name] = 0
        return trained(message)


class Repeated:
    """A run of the plain mean over the roster."""

    def __init__(self, folder: Path, client, *, participants=None, **options) -> None:
        self.bases, self.told = Kept(), list[tuple[str, int, int]]()
        self.grid = FakeGrid(client, ROSTER.values())
        self.parts: list[list[Contribution]] = []
        self.inbox = inbox_of(
            self.grid,
            folder,
            participants,
            bases=self.bases,
            arrived=lambda one, number: self.told.append((one.name, number, self.inbox.iteration)),
            **options,
        )

    def run(self, rounds: int, timeout: float | None = 30) -> list[dict]:
        def publish(server_round, arrays) -> None:
            if server_round:
                self.bases.bodies.append({k: t.clone() for k, t in records.unpack(arrays)})
                self.parts.append(self.inbox.accepted())
                self.inbox.drop({})

        ColDFusion(load("average"), inbox=self.inbox).start(
            self.inbox,
            records.pack(BASE.items()),
            num_rounds=rounds,
            timeout=timeout,
            evaluate_fn=publish,
        )
        return self.bases.bodies


def values(bodies: Iterable[dict]) -> list[float]:
    return [float(body["w"][0, 0]) for body in bodies]


def test_what_is_added_is_the_difference_from_its_own_base() -> None:
    old, new = Weights({"w": torch.tensor([1.0, 2.0])}), Weights({"w": torch.tensor([10.0, 20.0])})
    given = Weights({"w": torch.tensor([3.0, 6.0])}, name="ann", examples=7, steps=9)
    stale = Scaled(new, given, discount(3), old)
    assert stale.get("w").tolist() == [11.0, 22.0]  # + 1/2 * (2, 4)
    assert (stale.name, stale.examples, stale.steps) == ("ann", 7, 9)
    assert Difference(new, stale).read("w", slice(None)).tolist() == [1.0, 2.0]
    clipped = Scaled(new, stale, 0.5)
    assert Difference(new, clipped).read("w", slice(None)).tolist() == [0.5, 1.0]
    assert clipped.get("w").tolist() == [10.5, 21.0]


def test_the_first_ones_make_an_iteration_and_the_slow_one_counts_later(tmp_path) -> None:
    """ann adds 1, bob 2, cat 6; cat needs long."""
    run = Repeated(tmp_path, Pace(cat=3), turns=Buffered(2, 3), staleness=3)
    bodies = run.run(3)
    first, second = [[(one.name, one.staleness) for one in part] for part in run.parts[:2]]
    assert first == [("ann", 0), ("bob", 0)]
    assert values(bodies)[1] == 1.5
    late = next(i for i, part in enumerate(run.parts) if any(o.name == "cat" for o in part))
    assert second == first or late == 1
    cat = next(one for one in run.parts[late] if one.name == "cat")
    assert cat.staleness == late and cat.start == Start(1, fingerprint(BASE.items()))
    (other,) = [one for one in run.parts[late] if one.name != "cat"]
    step = (6 * discount(late) + STEP[other.name]) / 2
    assert values(bodies)[late + 1] == pytest.approx(values(bodies)[late] + step)
    assert ("cat", 0, late + 1) in run.told


def test_who_has_given_waits_and_nobody_begins_twice_from_a_base(tmp_path) -> None:
    pace = Pace(cat=5)
    run = Repeated(tmp_path, pace, turns=Buffered(2, 3), staleness=3)
    run.run(6)
    assert len(set(pace.asked)) == len(pace.asked)
    sent = [
        (NAMES[m.metadata.dst_node_id], records.config_of(m.content, "config")["iteration"])
        for m in run.grid.sent
    ]
    assert len(set(sent)) == len(sent)
    assert all(len({one.name for one in part}) == 2 for part in run.parts)


def test_only_so_many_are_at_work_and_all_take_their_turn(tmp_path) -> None:
    under_way: list[int] = []

    class Counting(FakeGrid):
        def push_messages(self, messages):
            ids = super().push_messages(messages)
            under_way.append(len(self._pending))
            return ids

    run = Repeated(tmp_path, trained, turns=Buffered(2, 1), staleness=3)
    run.inbox._collector._post._grid = Counting(trained, ROSTER.values())
    run.run(3)
    assert max(under_way) == 1
    assert sorted(o.name for part in run.parts for o in part) == sorted([*ROSTER] * 2)


def test_with_all_in_the_buffer_it_is_the_synchronous_run(tmp_path) -> None:
    there = Repeated(tmp_path / "a", Pace(cat=3, ann=1), turns=Buffered(3, 3), staleness=3).run(3)
    here = Repeated(tmp_path / "b", trained).run(3)
    assert [fingerprint(b.items()) for b in there] == [fingerprint(b.items()) for b in here]


def test_what_is_too_old_is_dropped_and_said(tmp_path) -> None:
    said: list[str] = []
    run = Repeated(tmp_path, Pace(cat=30), turns=Buffered(2, 3), staleness=1, say=lines_to(said))
    run.run(20)
    assert not any(one.name == "cat" and one.staleness > 1 for part in run.parts for one in part)
    assert any("cat began from a base that is more than 1 older" in line for line in said)
    sent = [NAMES[m.metadata.dst_node_id] for m in run.grid.sent]
    assert sent.count("cat") > 1  # it begins anew


def test_too_few_to_fill_an_iteration_stops_and_keeps_them(tmp_path) -> None:
    def only_ann(message):
        return trained(message) if message.metadata.dst_node_id == 11 else None

    run = Repeated(tmp_path, only_ann, turns=Buffered(2, 3), staleness=3)
    with pytest.raises(QuorumError, match="1 of 2 contributions are good"):
        run.run(1, timeout=0.3)
    assert (tmp_path / "0001" / "ann.safetensors").exists()
    again = Repeated(tmp_path, trained, turns=Buffered(2, 3), staleness=3)
    again.run(1)
    assert "ann" not in [NAMES[m.metadata.dst_node_id] for m in again.grid.sent]
    assert again.told[0][0] == "ann"


def test_a_stale_one_that_had_arrived_outlives_a_stop(tmp_path) -> None:
    """cat began from base 0, arrives for iteration 2, and the server is stopped then."""

    class Stopped(Exception): ...

    def stop_after_cat(one, number) -> None:
        if one.name == "cat":
            raise Stopped

    first = Repeated(tmp_path, Pace(cat=3), turns=Buffered(2, 3), staleness=3)
    first.inbox._collector._tell_of = stop_after_cat
    with pytest.raises(Stopped):
        first.run(9)
    iteration = first.inbox.iteration
    assert iteration > 1
    second = Repeated(tmp_path, trained, turns=Buffered(2, 3), staleness=3, first=iteration)
    second.bases.bodies = first.bases.bodies
    inbox, bodies = second.inbox, second.bases.bodies
    ColDFusion(load("average"), inbox=inbox).start(
        inbox, records.pack(bodies[-1].items()), num_rounds=1, timeout=30
    )
    cat = inbox.contributions["cat"]
    assert cat.staleness == iteration - 1
    assert ("cat", 0, iteration) in second.told


def test_a_stale_copy_of_its_own_base_is_unchanged(tmp_path) -> None:
    """Compared with the base that it began from: the newest one it is not."""
    pace = Pace(cat=6)

    def client(message):
        reply = pace(message)
        if reply is not None and message.metadata.dst_node_id == 33:
            return trained(message, body=BASE)
        return reply

    run = Repeated(
        tmp_path, client, turns=Buffered(2, 3), staleness=9, quorum=1,
        screen=Screen(("unchanged",)),
    )  # fmt: skip
    seen: list[Contribution] = []
    refuse = run.inbox.refuse

    def note(name: str, reason: str) -> None:
        refuse(name, reason)
        seen.append(run.inbox.contributions[name])

    run.inbox.refuse = note
    run.run(6)
    assert [(one.name, one.reason) for one in seen][:1] == [
        ("cat", "unchanged: the base, unchanged")
    ]
    assert seen[0].staleness > 0


def test_a_late_one_counts_in_the_next_iteration(tmp_path) -> None:
    said: list[str] = []
    allowed: set[int] = set()

    def client(message):
        asked = records.config_of(message.content, records.CONFIG)["iteration"]
        if message.metadata.dst_node_id == 33 and asked == 1 and asked not in allowed:
            return None
        return trained(message)

    run = Repeated(tmp_path, client, quorum=2, staleness=1, say=lines_to(said))
    publish = run.inbox.drop

    def then(*refused) -> None:
        publish(*refused)
        allowed.add(1)

    run.inbox.drop = then
    bodies = run.run(3, timeout=0.3)
    assert [[(o.name, o.staleness) for o in part] for part in run.parts] == [
        [("ann", 0), ("bob", 0)],
        [("ann", 0), ("bob", 0), ("cat", 1)],
        [("ann", 0), ("bob", 0), ("cat", 0)],
    ]
    assert values(bodies)[2] == pytest.approx(1.5 + (1 + 2 + 6 * 2**-0.5) / 3)
    assert any("one that comes later counts in the next iteration" in line for line in said)
    assert any("still at work: cat" in line for line in said)
    assert any("cat finetuned in 0.5 s, from base 0" in line for line in said)


def test_one_that_never_answers_is_asked_anew(tmp_path) -> None:
    silent = {1, 2}

    def client(message):
        asked = records.config_of(message.content, records.CONFIG)["iteration"]
        return None if message.metadata.dst_node_id == 33 and asked in silent else trained(message)

    run = Repeated(tmp_path, client, quorum=2, staleness=1)
    run.run(4, timeout=0.2)
    sent = [
        records.config_of(m.content, "config")["iteration"]
        for m in run.grid.sent
        if m.metadata.dst_node_id == 33
    ]
    assert sent[:2] == [1, 3]  # in iteration 2 it was still waited for


def test_arrivals_are_written_once_and_only_what_was_taken_is_repeated(tmp_path) -> None:
    journal, store = Journal(tmp_path), Repository(tmp_path)
    arrivals = Arrivals(journal)
    ann = Contribution("ann", sha256="a", start=Start(1, "x"))
    arrivals.record(1, ann, 0)
    Arrivals(journal).record(1, ann, 0)
    arrivals.record(1, Contribution("bob", sha256="b", start=Start(1, "x")), 0)
    assert [row["contributor"] for row in journal.rows(ARRIVALS)] == ["ann", "bob"]
    assert journal.rows(ARRIVALS)[1] == {
        "arrival": 2, "contributor": "bob", "iteration": 1, "base": 0, "asked": 1, "sha256": "b",
    }  # fmt: skip
    with pytest.raises(RunError, match="has 0 iterations, but iterations = 1"):
        Replayed(tmp_path, 1)
    for number, names in enumerate(([], [{"name": "ann", "verdict": "accepted", "sha256": "a"}])):
        folder = store.path(number)
        folder.mkdir(parents=True)
        parent = number - 1 if number else None
        told = {"iteration": number, "parent": parent, "contributors": names, "sha256": str(number)}
        (folder / "manifest.json").write_text(json.dumps(told | {"prefix": "", "body": []}))
    (store.folder / "latest").symlink_to("0001")
    replayed = Replayed(tmp_path, 1)
    assert replayed.starts(1, lambda number: f"mine {number}") == {"ann": Start(1, "mine 0")}
    with pytest.raises(RunError, match="holds no run"):
        Replayed(tmp_path / "nowhere", 1)


def test_a_base_that_comes_back_is_new_again(tmp_path) -> None:
    class Back:
        def recent(self, most: int) -> list[tuple[int, str]]:
            return [(2, "a"), (1, "b"), (0, "a")][:most]

    collector = Collector(None, tmp_path, Here(), bases=Back(), older=3)
    assert collector._bases_from("a") == {"a": (0, 2), "b": (1, 1)}


@pytest.mark.usefixtures("in_process")
def test_a_run_is_repeated_to_the_bit_and_goes_on_after_a_stop(tmp_path) -> None:
    """By message; repeated by reference, in two parts."""
    keys = [*KEYS, "--set", "iterations=4", "--set", "contributors-per-iteration=3"]
    simulate(tmp_path, "run", *keys, "--set", "keep-iterations=1")
    run = tmp_path / "run"
    arrived = rows(run, ARRIVALS)
    assert [row["arrival"] for row in arrived] == [*range(1, len(arrived) + 1)]
    assert [row["iteration"] for row in arrived] == [1, 1, 2, 2, 3, 3, 4, 4]
    stale = [row for row in rows(run, "contributions.jsonl") if row.get("staleness")]
    ages = {(r["iteration"], r["contributor"]): r["iteration"] - 1 - r["base"] for r in arrived}
    assert {(r["iteration"], r["contributor"]): r["staleness"] for r in stale} == {
        key: age for key, age in ages.items() if age
    }
    assert not (run / "incoming").exists() or not [*(run / "incoming").rglob("*.safetensors")]

    again = ["--replay", str(run), "--set", "transport=shared-dir"]
    command(tmp_path, "again", *again, "--set", "iterations=2")
    command(tmp_path, "again", *again, "--resume")
    first, second = Repository(run), Repository(tmp_path / "again")
    assert [first.sha256(i) for i in range(5)] == [second.sha256(i) for i in range(5)]
    lines = [event["line"] for event in rows(tmp_path / "again", "progress.jsonl")]
    assert not any("is not the one of" in line for line in lines)

    other = command(tmp_path, "other", *again, "--set", "finetune.learning-rate=0.01", "--set", "iterations=1")  # fmt: skip
    assert "WARNING: base 1 is not the one of" in other.stdout


def command(cwd: Path, run_dir: str, *more: str):
    from tests.test_cli import cold_flower

    done = cold_flower("simulate", "--run-dir", run_dir, *more, cwd=cwd, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


ASYNCHRONOUS = {"schedule": "asynchronous"}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"buffer": 2}, "buffer is about schedule = 'asynchronous'"),
        ({"staleness": 2}, "staleness is about schedule = 'asynchronous'"),
        ({"late": "next"}, "set quorum"),
        ({**ASYNCHRONOUS, "late": "next"}, "every contribution may come later"),
        ({**ASYNCHRONOUS, "buffer": 13}, "buffer is 13, but there are 12 contributors"),
        (
            {**ASYNCHRONOUS, "fusion.strategy": "flwr.serverapp.strategy:FedAvg"},
            "weighs nothing by its age",
        ),
        ({**ASYNCHRONOUS, "baseline": "multitask", "iterations": 1}, "has no contributions"),
        ({**ASYNCHRONOUS, "fusion.rule": "krum", "buffer": 2}, "an iteration may have 2"),
    ],
)
def test_what_cannot_go_together_is_refused(keys, said) -> None:
    with pytest.raises(ConfigError, match=said):
        experiments.check_keys(Config.from_flat(keys))


def test_the_size_of_an_iteration_and_who_is_at_work() -> None:
    def made(workers: int, **keys):
        config = Config.from_flat({**ASYNCHRONOUS, **keys})
        return turns.turns(config, 8, workers)

    assert (made(0)._size, made(0)._at_once) == (4, 8)
    assert made(2)._at_once == 2
    assert made(2, quorum=3)._size == 3
    assert made(2, quorum=3, buffer=5)._size == 5
    assert made(0, **{"contributors-per-iteration": 3})._size == 2
    assert isinstance(turns.turns(Config(), 8, 2), Together)
    assert isinstance(made(2, replay="/somewhere"), Together)
    config = Config.from_flat({**ASYNCHRONOUS, "fusion.momentum": 0.5})
    assert "2401.09135" in turns.remarks(config)[0]
    assert not turns.remarks(Config.from_flat(ASYNCHRONOUS))


def test_its_cost_is_counted(tmp_path) -> None:
    keys = {**ASYNCHRONOUS, "iterations": 3, "buffer": 2, "run-dir": str(tmp_path)}
    config = Config.from_flat(keys)
    checked = experiments.check(config)
    left = counted.ahead(config, checked)
    assert counted.cost(config, checked, left, 100).contributions == 6
