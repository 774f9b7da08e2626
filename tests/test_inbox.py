"""The inbox: cohort, screening, deadlines, quorum, dead workers, what is on disk."""

import math
import threading
import time
from collections.abc import Callable
from functools import partial

import flwr.serverapp.strategy as strategies_of_flower
import httpx
import pytest
import torch
from flwr.app import Array, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from google.protobuf.message import DecodeError

from cold_flower.config import Config
from cold_flower.seeds import derive
from cold_flower.server import stock
from cold_flower.server.strategy import draws
from strategies import exchange, records, waiting
from strategies.cold_fusion import ColDFusion
from strategies.collecting import Collector
from strategies.contributions import Contribution, Start, Store
from strategies.diagnostics import diagnose
from strategies.errors import DeadActorError, FusionError, QuorumError, Refused, StrategyError
from strategies.fusion import Weights, fingerprint, load, read_metadata
from strategies.gate import Gate
from strategies.inbox import Inbox
from strategies.participants import Member, Participants
from strategies.screening import Screen, Verdict
from strategies.turns import Together
from tests.conftest import FakeGrid, error_reply, is_train

BASE = {"w": torch.zeros(2, 2), "b": torch.tensor([1.0, 2.0])}
ROSTER = {"ann": 11, "bob": 22, "cat": 33}
NAMES = {node: name for name, node in ROSTER.items()}
STEP = {"ann": 1.0, "bob": 2.0, "cat": 6.0}


@pytest.fixture(autouse=True, scope="module")
def impatient():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exchange, "POLL", 0.001)
        yield


class Here(Participants):
    """The roster, of whom an iteration asks these."""

    def __init__(self, *asked: str, later=(), simulated=True, banned="") -> None:
        super().__init__(Member(name, node) for name, node in ROSTER.items())
        self.asked, self.later = asked or tuple(ROSTER), later
        self.simulated, self.banned = simulated, banned

    def cohort(self, iteration: int) -> list[str]:
        return sorted(self.later if self.later and iteration > 1 else self.asked)

    def allowed(self, name: str) -> bool:
        return name != self.banned


def lines_to(kept: list[str]) -> Callable[..., None]:
    """Return a ``say`` that keeps what is to be read, without the facts."""

    def say(line: str, **facts) -> None:
        if line:
            kept.append(line)

    return say


def trained(message: Message, **changes) -> Message:
    """Answer as a contributor does that adds its own number everywhere."""
    config = records.config_of(message.content, records.CONFIG)
    name = NAMES[message.metadata.dst_node_id]
    body = {k: t + STEP[name] for k, t in records.unpack(message.content.array_records["arrays"])}
    about = {"contributor": name, "iteration": config["iteration"], "base": config["base"]}
    metrics = {"num-examples": 10, "train-loss": STEP[name], "seconds": 0.5}
    reply = records.train_reply(
        changes.pop("body", body).items(),
        changes.pop("metrics", metrics),
        {**about, **changes.pop("about", {})},
    )
    assert not changes
    return Message(reply, reply_to=message)


FILES = [f"{name}.{kind}" for name in ROSTER for kind in ("safetensors", "sha256")]  # of a store


JUDGING = ("quorum", "least", "keep_arrays", "screen")  # what is the inbox's own


def inbox_of(grid, folder, participants=None, **options) -> Inbox:
    own = {key: options.pop(key) for key in JUDGING if key in options}
    return Inbox(Collector(grid, folder, participants or Here(), **options), **own)


def make(tmp_path, client=trained, *, order="", participants=None, **options):
    grid = FakeGrid(client, ROSTER.values(), order)
    return grid, inbox_of(grid, tmp_path, participants, **options)


def start(inbox, rounds=1, timeout=30):
    strategy = ColDFusion(load("average"), inbox=inbox)
    result = strategy.start(inbox, records.pack(BASE.items()), num_rounds=rounds, timeout=timeout)
    return dict(records.unpack(result.arrays))


def test_rounds_fuse_the_cohort_uniformly(tmp_path) -> None:
    grid, inbox = make(tmp_path)
    assert torch.equal(start(inbox, rounds=2)["w"], torch.full((2, 2), 6.0))
    assert [records.config_of(m.content, "config")["iteration"] for m in grid.sent] == [1] * 3 + [
        2
    ] * 3
    assert sorted(p.name for p in (tmp_path / "0002").iterdir()) == FILES


def test_what_a_rule_draws_is_drawn_anew_in_every_iteration(tmp_path) -> None:
    seeds = []

    def noting(base, given, *, seed):
        seeds.append(seed)
        return base.items()

    _, inbox = make(tmp_path)
    strategy = ColDFusion(noting, inbox=inbox, draws=partial(draws, Config(seed=5)))
    strategy.start(inbox, records.pack(BASE.items()), num_rounds=3)
    assert seeds == [derive(5, iteration, "fuse") for iteration in (1, 2, 3)]


def test_only_the_cohort_is_asked(tmp_path) -> None:
    grid, inbox = make(tmp_path, participants=Here("bob", later=("ann", "cat")))
    start(inbox, rounds=2)
    assert [NAMES[m.metadata.dst_node_id] for m in grid.sent] == ["bob", "ann", "cat"]


def test_the_order_of_arrival_does_not_change_a_bit(tmp_path) -> None:
    def noisy(message):
        name = NAMES[message.metadata.dst_node_id]
        torch.manual_seed(ROSTER[name])
        return trained(message, body={k: t + torch.randn_like(t) for k, t in BASE.items()})

    def run(order, kind, folder):
        _, inbox = make(folder, noisy, order=order, keep_arrays=kind == "FedAvg")
        if kind == "ColDFusion":
            return fingerprint(start(inbox).items())
        strategy = FedAvg(fraction_evaluate=0.0)
        result = strategy.start(inbox, records.pack(BASE.items()), num_rounds=1, timeout=1)
        return fingerprint(records.unpack(result.arrays))

    for kind in ("ColDFusion", "FedAvg"):
        there, back = (run(o, kind, tmp_path / kind / (o or "x")) for o in ("", "reversed"))
        assert there == back


BAD = {
    "error reply: boom": lambda m: error_reply(m, "Traceback\n  many lines\nboom"),
    "missing tensor b": lambda m: trained(m, body={"w": BASE["w"]}),
    "unexpected tensor 'head'": lambda m: trained(m, body={**BASE, "head": torch.zeros(1)}),
    "b has shape (3,), the base has (2,)": lambda m: trained(m, body={**BASE, "b": torch.zeros(3)}),
    "b is float64, expected float32": lambda m: trained(m, body={**BASE, "b": BASE["b"].double()}),
    "w holds NaN or infinity": lambda m: trained(
        m, body={**BASE, "w": torch.full((2, 2), math.nan)}
    ),
    "contributor is 'ann', expected 'cat'": lambda m: trained(m, about={"contributor": "ann"}),
    "base is 'stale'": lambda m: trained(m, about={"base": "stale"}),
    "iteration is '7', expected 1": lambda m: trained(m, about={"iteration": 7}),
    "metric 'num-examples' is 0": lambda m: trained(m, metrics={"num-examples": 0}),
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_reply_is_dropped_with_its_reason_not_the_run(tmp_path, reason) -> None:
    def client(message):
        bad = NAMES[message.metadata.dst_node_id] == "cat"
        return BAD[reason](message) if bad else trained(message)

    _, inbox = make(tmp_path, client, quorum=2)
    assert torch.equal(start(inbox)["w"], torch.full((2, 2), 1.5))
    cat = inbox.contributions["cat"]
    assert cat.verdict == "refused"
    assert reason in cat.reason
    assert not (tmp_path / "0001" / "cat.safetensors").exists()


def test_a_body_that_is_not_finite_is_kept_aside_as_it_came(tmp_path) -> None:
    spoilt = {"w": torch.tensor([[1.0, math.nan], [2.0, math.inf]]), "b": torch.ones(2)}

    def client(message):
        bad = NAMES[message.metadata.dst_node_id] == "cat"
        return trained(message, body=spoilt) if bad else trained(message)

    _, inbox = make(tmp_path / "incoming", client, quorum=2)
    start(inbox)
    kept = dict(Weights(tmp_path / "quarantine" / "0001" / "cat.safetensors").items())
    assert torch.equal(kept["w"].nan_to_num(7, 8), torch.tensor([[1.0, 7.0], [2.0, 8.0]]))
    assert torch.equal(kept["b"], torch.ones(2))
    assert inbox.contributions["cat"].reason == "w holds NaN or infinity"


def test_what_lies_there_at_the_deadline_is_taken(monkeypatch) -> None:
    """All have answered at once, and the first answer took longer to store than there was time."""
    clock = iter([0.0, 0.0])
    monkeypatch.setattr(exchange.time, "monotonic", lambda: next(clock, 100.0))
    grid = FakeGrid(lambda m: None if m.metadata.dst_node_id == 33 else trained(m), ROSTER.values())
    arrays, config = records.pack(BASE.items()), ConfigRecord({"iteration": 1, "base": "b"})
    content = RecordDict({"arrays": arrays, "config": config})
    asked = {n: Message(content, node, MessageType.TRAIN) for n, node in ROSTER.items()}
    taken = dict(exchange.exchange(grid, asked, timeout=50.0))
    assert [name for name, reply in taken.items() if reply] == ["ann", "bob"]
    assert taken["cat"] is None
    clock = iter([0.0])  # nothing is asked when there is no time left
    late = list(exchange.exchange(grid, asked, timeout=50.0))
    assert late == [("ann", None), ("bob", None), ("cat", None)]


def test_one_that_never_answers_is_missing_after_the_deadline(tmp_path) -> None:
    _, inbox = make(
        tmp_path, lambda m: None if m.metadata.dst_node_id == 33 else trained(m), quorum=2
    )
    start(inbox, timeout=1)  # the others answer at once
    assert inbox.contributions["cat"].verdict == "missing"
    assert (
        inbox.contributions["cat"].reason == "no reply within 1 s; one that comes later is dropped"
    )


def test_a_message_that_the_superlink_refuses_is_lost(tmp_path) -> None:
    class Full(FakeGrid):
        def push_messages(self, messages):
            (message,) = messages
            return [] if message.metadata.dst_node_id == 33 else super().push_messages([message])

    inbox = inbox_of(Full(trained, ROSTER.values()), tmp_path, quorum=2)
    start(inbox, timeout=None)
    cat = inbox.contributions["cat"]
    assert (cat.verdict, cat.reason) == ("missing", "lost")


def test_an_error_without_a_node_id_is_mapped_by_its_message(tmp_path) -> None:
    def client(message):
        if message.metadata.dst_node_id != 22:
            return trained(message)
        reply = error_reply(message, "node offline", code=5)
        reply.metadata.__dict__["_src_node_id"] = 1  # the SuperLink's own
        return reply

    _, inbox = make(tmp_path, client, quorum=2)
    start(inbox)
    assert inbox.contributions["bob"].reason == "error reply: node offline"


def test_below_the_quorum_stops_and_keeps_what_arrived(tmp_path) -> None:
    def client(message):
        bob = message.metadata.dst_node_id == 22
        return error_reply(message, "out of disk") if bob else trained(message)

    _, inbox = make(tmp_path, client)
    with pytest.raises(QuorumError, match=r"2 of 3 .* quorum is 3 \(bob refused: .*out of disk"):
        start(inbox)
    assert (tmp_path / "0001" / "ann.safetensors").exists()


def test_what_had_arrived_is_not_asked_for_again(tmp_path) -> None:
    _, whole = make(tmp_path / "whole")
    expected = start(whole)
    _, first = make(
        tmp_path / "cut", lambda m: None if m.metadata.dst_node_id == 33 else trained(m)
    )
    with pytest.raises(QuorumError):
        start(first, timeout=0.5)
    for keep_arrays in (False, True):  # a stock strategy resumes as well
        grid, second = make(tmp_path / "cut", keep_arrays=keep_arrays)
        if not keep_arrays:
            assert fingerprint(start(second).items()) == fingerprint(expected.items())
            assert [m.metadata.dst_node_id for m in grid.sent] == [33]
        else:
            replies = FedAvg(fraction_evaluate=0.0).start(
                second, records.pack(BASE.items()), num_rounds=1, timeout=1
            )
            assert grid.sent == []
            assert torch.equal(dict(records.unpack(replies.arrays))["w"], expected["w"])


def test_a_file_of_another_base_is_not_taken(tmp_path) -> None:
    _, first = make(tmp_path)
    start(first)
    grid, second = make(tmp_path)
    strategy = ColDFusion(load("average"), inbox=second)
    other = records.pack((k, t + 1) for k, t in BASE.items())
    strategy.start(second, other, num_rounds=1, timeout=1)
    assert len(grid.sent) == 3


def test_what_an_undone_rollback_left_behind_is_not_taken_as_an_old_one(tmp_path) -> None:
    """Files of this number, but of the base before; with staleness they count as what they are."""
    newer = {key: t + 1 for key, t in BASE.items()}
    both = [(1, fingerprint(newer.items())), (0, fingerprint(BASE.items()))]

    class Bases:
        def recent(self, most):
            return both[:most]

        def body(self, number):
            return Weights(BASE if number == 0 else newer)

    for staleness, asked in ((0, 3), (1, 0)):
        _, first = make(tmp_path / str(staleness))
        start(first)
        options = {"bases": Bases(), "older": 3, "staleness": staleness}
        grid, second = make(tmp_path / str(staleness), **options)
        strategy = ColDFusion(load("average"), inbox=second)
        strategy.start(second, records.pack(newer.items()), num_rounds=1, timeout=1)
        assert len(grid.sent) == asked


def test_who_is_to_begin_from_too_old_a_base_is_named(tmp_path) -> None:
    def starts(iteration):
        return {"bob": Start(iteration, "gone")}

    class Bases:
        def recent(self, most):
            return [(0, fingerprint(BASE.items()))]

    _, inbox = make(tmp_path, starts=starts, bases=Bases())
    with pytest.raises(
        StrategyError, match="bob is to begin from a base that is more than 0 older"
    ):
        start(inbox)


def test_a_dead_worker_is_fatal(tmp_path) -> None:
    _, inbox = make(
        tmp_path, lambda m: error_reply(m, "ray.exceptions.ActorDiedError: worker died", 0)
    )
    with pytest.raises(DeadActorError, match="ann died"):
        start(inbox)


def test_stock_fedavg_weighs_by_examples_and_survives_a_bad_reply(tmp_path) -> None:
    def client(message):
        name = NAMES[message.metadata.dst_node_id]
        if name == "cat":
            return trained(message, body={"other": torch.zeros(1)})
        return trained(message, metrics={"num-examples": {"ann": 30, "bob": 10}[name]})

    _, inbox = make(tmp_path, client, quorum=2, keep_arrays=True)
    strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=1)
    result = strategy.start(inbox, records.pack(BASE.items()), num_rounds=1, timeout=1)
    assert torch.equal(dict(records.unpack(result.arrays))["w"], torch.full((2, 2), 1.25))


def test_the_reply_is_on_disk_and_out_of_memory(tmp_path) -> None:
    _, inbox = make(tmp_path)
    messages = [
        Message(
            RecordDict({"arrays": records.pack(BASE.items()), "config": ConfigRecord()}),
            node,
            MessageType.TRAIN,
        )
        for node in inbox.get_node_ids()
    ]
    replies = inbox.send_and_receive(messages, timeout=1)
    assert [len(reply.content.array_records["arrays"]) for reply in replies] == [0, 0, 0]
    about = read_metadata(tmp_path / "0001" / "ann.safetensors")
    assert about["base"] == fingerprint(BASE.items())
    inbox.drop({})
    assert not (tmp_path / "0001").exists()


def test_no_more_than_the_window_is_under_way(tmp_path) -> None:
    under_way: list[int] = []

    def client(message):
        under_way.append(len(grid._pending))
        return trained(message)

    grid, inbox = make(tmp_path, client, turns=Together(2))
    assert torch.equal(start(inbox)["w"], torch.full((2, 2), 3.0))
    assert max(under_way) == 2
    grid, inbox = make(tmp_path / "all", client)
    start(inbox)
    assert max(under_way) == 3


def test_other_messages_pass_through(tmp_path) -> None:
    def client(message):
        assert not is_train(message)
        return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=message)

    _, inbox = make(tmp_path, client)
    message = Message(RecordDict(), 11, MessageType.EVALUATE)
    assert len(inbox.send_and_receive([message])) == 1
    assert inbox.send_and_receive([]) == []


@pytest.mark.parametrize("name", ["../x", "A", "", "a" * 65, "a/b", ".hidden"])
def test_a_name_is_never_a_path(tmp_path, name) -> None:
    with pytest.raises(ValueError, match="not a contributor name"):
        Collector(FakeGrid(trained, []), tmp_path, Participants([Member(name, 1)]))


def test_arrays_that_are_no_arrays_are_refused(tmp_path) -> None:
    def client(message):
        reply = trained(message)
        if message.metadata.dst_node_id == 33:
            good = reply.content.array_records["arrays"]["w"]
            reply.content.array_records["arrays"]["w"] = Array(
                good.dtype, good.shape, good.stype, b"garbage"
            )
        return reply

    _, inbox = make(tmp_path, client, quorum=1)
    start(inbox)
    assert "cannot be decoded" in inbox.contributions["cat"].reason


def test_a_cohort_is_screened_together_and_the_refused_put_aside(tmp_path) -> None:
    def client(message):
        if NAMES[message.metadata.dst_node_id] != "bob":
            return trained(message)
        return trained(message, body={k: t + STEP["ann"] for k, t in BASE.items()})

    folder = tmp_path / "incoming"
    _, inbox = make(folder, client, quorum=2, screen=Screen(checks=("duplicate",)))
    assert torch.equal(start(inbox)["w"], torch.full((2, 2), 3.5))  # of ann 1 and cat 6
    bob = inbox.contributions["bob"]
    assert (bob.verdict, bob.reason) == ("refused", "duplicate: the same weights as ann")
    assert inbox.contributions["ann"].figures["diff-norm"] == pytest.approx(math.sqrt(6))
    inbox.drop({"bob": "NaN"})
    assert [p.name for p in tmp_path.rglob("*.safetensors")] == ["bob.safetensors"]
    assert (tmp_path / "quarantine" / "0001" / "bob.safetensors").exists()


def test_what_is_accepted_is_measured_once(tmp_path, monkeypatch) -> None:
    measured = []

    def counted(base, given, mean):
        measured.append([one.name for one in given])
        return diagnose(base, given, mean)

    monkeypatch.setattr("strategies.inbox.diagnose", counted)
    _, inbox = make(tmp_path, screen=Screen())
    start(inbox)
    before = Weights(BASE)
    assert inbox.diagnosis(before).norms == pytest.approx([math.sqrt(6) * n for n in (1, 2, 6)])
    assert measured == [["ann", "bob", "cat"]]
    inbox.refuse("bob", "for a reason")
    assert len(inbox.diagnosis(before).norms) == 2
    assert measured[1:] == [["ann", "cat"]]


def test_the_plain_mean_is_made_while_screening_reads(tmp_path) -> None:
    """The rule is asked where one was refused since, or where the mean is not finite."""
    fused = []

    def rule(base, given, *, seed):
        fused.append([one.name for one in given])
        return load("average")(base, given, seed=seed)

    rule.plain_mean = True

    def run(folder, screen, base=BASE, client=trained):
        _, inbox = make(folder, client, screen=screen, quorum=2)
        strategy, first = ColDFusion(rule, inbox=inbox), records.pack(base.items())
        return dict(records.unpack(strategy.start(inbox, first, num_rounds=1, timeout=1).arrays))

    assert torch.equal(run(tmp_path / "a", Screen())["w"], torch.full((2, 2), 3.0))
    assert fused == []
    one_less = run(tmp_path / "b", lambda sha256, given, _: {"bob": Verdict("for a reason")})
    assert torch.equal(one_less["w"], torch.full((2, 2), 3.5))
    run(tmp_path / "c", None)  # nothing is read before the rule reads it
    assert fused == [["ann", "cat"], [*ROSTER]]

    def far(message):
        return trained(message, body={key: torch.full_like(t, 3e38) for key, t in BASE.items()})

    with pytest.raises(FusionError, match="average: w holds NaN or infinity"):
        low = {key: torch.full_like(t, -3e38) for key, t in BASE.items()}
        run(tmp_path / "d", Screen(checks=()), low, far)
    assert len(fused) == 3


def test_what_a_power_cut_left_in_pieces_is_asked_for_again(tmp_path) -> None:
    """One file cut off, one whose last bytes never reached the disk, one whose sha256 is torn."""
    _, first = make(tmp_path)
    whole = start(first)
    ann, bob = (tmp_path / "0001" / f"{name}.safetensors" for name in ("ann", "bob"))
    ann.write_bytes(ann.read_bytes()[:-4])
    bob.write_bytes(bob.read_bytes()[:-4] + bytes(4))
    (tmp_path / "0001" / "cat.sha256").write_bytes(b"\xff\xfe\x00")
    grid, second = make(tmp_path)
    again = start(second)
    assert sorted(NAMES[m.metadata.dst_node_id] for m in grid.sent) == sorted(ROSTER)
    assert all(torch.equal(again[key], whole[key]) for key in whole)


def test_fewer_than_the_rule_needs_stop_at_the_door_and_a_refused_one_is_asked_again(
    tmp_path,
) -> None:
    """Two of three are more than half; but a rule that needs three would fail at every resume."""
    screen, bad = Screen(checks=("duplicate",)), ["cat"]

    def client(message):
        name = NAMES[message.metadata.dst_node_id]
        body = {k: torch.ones_like(t) for k, t in BASE.items()}
        return trained(message, body=body) if name in ("ann", *bad) else trained(message)

    _, inbox = make(tmp_path, client, screen=screen)
    start(inbox)
    assert len(inbox.accepted()) == 2
    _, inbox = make(tmp_path / "more", client, screen=screen, least=3)
    with pytest.raises(QuorumError, match="2 of 3 .* good, the fusion rule needs 3 .cat refused"):
        start(inbox)
    bad.clear()
    _, again = make(tmp_path / "more", client, screen=screen, least=3)
    start(again)
    assert len(again.accepted()) == 3


def test_below_the_quorum_a_refused_one_is_asked_again(tmp_path) -> None:
    def client(message):
        return trained(message, body={k: t + 1.0 for k, t in BASE.items()})

    folder = tmp_path / "incoming"
    _, first = make(folder, client, screen=Screen(checks=("duplicate",)))
    with pytest.raises(QuorumError, match="1 of 3 .*quorum is 3 .bob refused: duplicate: the same"):
        start(first)
    grid, second = make(folder)
    start(second)
    assert [NAMES[m.metadata.dst_node_id] for m in grid.sent] == ["bob", "cat"]


def test_what_screening_refuses_ends_no_run_that_has_more_good_ones(tmp_path) -> None:
    """Two of three are good. But one that did not answer, or another quorum, is no chance."""

    def copies(message):
        return trained(message, body={k: t + 1.0 for k, t in BASE.items()})

    def client(message):
        is_bob = NAMES[message.metadata.dst_node_id] == "bob"
        return copies(message) if is_bob else trained(message)

    screen = Screen(checks=("duplicate",))
    _, inbox = make(tmp_path / "a", client, screen=screen)
    assert torch.equal(start(inbox)["w"], torch.full((2, 2), 3.5))  # of ann 1 and cat 6
    assert inbox.contributions["bob"].verdict == "refused"
    _, strict = make(tmp_path / "b", client, screen=screen, quorum=3)
    with pytest.raises(QuorumError, match="2 of 3 contributions are good, the quorum is 3"):
        start(strict)

    def silent(message):
        return None if NAMES[message.metadata.dst_node_id] == "cat" else client(message)

    participants = Here(simulated=False)
    _, fewer = make(tmp_path / "c", silent, screen=screen, participants=participants)
    with pytest.raises(QuorumError, match="1 of 3 contributions are good"):
        start(fewer, timeout=0.3)


def test_the_gate_leaves_the_base_as_it_is_or_one_contribution_out(tmp_path) -> None:
    def run(folder, worst: float):
        """A model scores by its first weight: up to 3 is fine, more is worse."""
        _, inbox = make(folder)

        def score(arrays):
            return {"x": 0.5 if float(dict(records.unpack(arrays))["w"][0, 0]) <= worst else 0.1}

        gate = Gate(score, lambda: {"x": 0.5}, tolerance=0, task_tolerance=0, budget=3)
        strategy = ColDFusion(load("average"), inbox=inbox, gate=gate)
        made = strategy.start(inbox, records.pack(BASE.items()), num_rounds=1, timeout=1)
        return dict(records.unpack(made.arrays)), gate.judgement

    made, judged = run(tmp_path / "a", worst=3.0)  # the mean of 1, 2, 6 fits
    assert torch.equal(made["w"], torch.full((2, 2), 3.0))
    assert judged.candidates == 1
    made, judged = run(tmp_path / "b", worst=2.0)  # 6 moves the mean most: it goes first
    assert torch.equal(made["w"], torch.full((2, 2), 1.5))
    assert (judged.left_out, judged.candidates) == (("cat",), 2)
    made, judged = run(tmp_path / "c", worst=0.5)
    assert made == {}  # Flower's result of a run without a new base
    assert not judged.accepted


def test_a_fuse_that_takes_long_says_how_far_it_is(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(waiting, "EVERY", 0.001)
    said = []

    def hear(words: str) -> None:
        until = time.monotonic() + 60
        while not any(line.startswith(words) for line in said):
            assert time.monotonic() < until, words
            time.sleep(0.001)

    def slow(base, given, *, seed):
        hear("fusing: 0 of 2 tensors, ")  # it reads all models before it returns
        return passing(base)

    def passing(base):
        for done, item in enumerate(base.items(), start=1):
            yield item
            hear(f"fusing: {done} of 2 tensors, ")

    _, inbox = make(tmp_path)
    strategy = ColDFusion(slow, inbox=inbox, say=lambda line, done, of: said.append(line))
    strategy.start(inbox, records.pack(BASE.items()), num_rounds=1)
    assert not [one for one in threading.enumerate() if "tell" in one.name]


@pytest.mark.parametrize("whose", ["the rule's", "the reader's"])
def test_nothing_is_said_after_a_fuse_that_failed(whose: str) -> None:
    def rule():
        yield "w", torch.zeros(1)
        raise FusionError("the rule's")

    with (
        pytest.raises(FusionError, match=whose),
        waiting.told(rule, 2, lambda line, done, of: None) as fused,
    ):
        for _ in fused:
            if whose == "the reader's":
                raise FusionError(whose)
    assert not [one for one in threading.enumerate() if "tell" in one.name]


def test_a_rule_is_told_the_steps_that_a_contributor_says(tmp_path) -> None:
    def client(message, **more):
        name = NAMES[message.metadata.dst_node_id]
        steps = {} if name in more else {"steps": STEP[name]}
        return trained(message, metrics={"num-examples": 10, **steps})

    def fuse(folder, **more):
        _, inbox = make(folder, lambda message: client(message, **more))
        strategy = ColDFusion(load("fednova"), inbox=inbox)
        made = strategy.start(inbox, records.pack(BASE.items()), num_rounds=1)
        return dict(records.unpack(made.arrays))["w"]

    # each added as much as it took steps, 3 in the mean: what a step added is 1
    assert torch.equal(fuse(tmp_path / "a"), torch.full((2, 2), 3.0))
    with pytest.raises(FusionError, match=r"which 1 of 3 contributions do not say: bob\."):
        fuse(tmp_path / "b", bob="silent")


def test_what_a_site_gave_before_a_stop_counts_though_it_is_away(tmp_path) -> None:
    _, first = make(tmp_path, quorum=3)
    start(first)
    grid, second = make(tmp_path, participants=Here("bob", "cat"), quorum=2)
    assert torch.equal(start(second)["w"], torch.full((2, 2), 3.0))  # of 1, 2 and 6
    assert grid.sent == []


def test_what_a_site_gave_that_may_take_part_no_more_is_put_aside(tmp_path) -> None:
    _, first = make(tmp_path / "incoming", quorum=3)
    start(first)
    _, second = make(tmp_path / "incoming", participants=Here("ann", "bob", banned="cat"))
    assert torch.equal(start(second)["w"], torch.full((2, 2), 1.5))  # of 1 and 2
    assert (tmp_path / "quarantine" / "0001" / "cat.safetensors").exists()


def test_what_fits_another_base_is_not_waited_for(tmp_path) -> None:
    """After a rollback the same number comes again; who gave to the old base may be away."""
    _, first = make(tmp_path)
    start(first)
    lines: list[str] = []
    _, second = make(tmp_path, participants=Here("ann", "bob"), say=lines_to(lines))
    moved = {key: tensor + 1 for key, tensor in BASE.items()}
    result = ColDFusion(load("average"), inbox=second).start(
        second, records.pack(moved.items()), num_rounds=1
    )
    assert torch.equal(dict(records.unpack(result.arrays))["w"], torch.full((2, 2), 2.5))
    assert lines[-1].startswith("2/2 ")


def test_without_a_quorum_all_that_count_must_be_good(tmp_path) -> None:
    _, first = make(tmp_path)
    start(first)
    (tmp_path / "0001" / "ann.safetensors").unlink()  # ann is asked again, and fails
    _, second = make(tmp_path, lambda m: error_reply(m, "no"), participants=Here("ann"))
    with pytest.raises(QuorumError, match="2 of 3 contributions are good"):
        start(second)


@pytest.mark.parametrize("name", ["FedAvg", "FedAdam", "FedMedian"])
def test_what_a_flower_strategy_makes_is_a_base(tmp_path, name) -> None:
    config = Config.from_flat({"fusion.strategy": f"flwr.serverapp.strategy:{name}"})
    _, inbox = make(tmp_path, keep_arrays=True)  # the second round begins with what the first made
    arrays = records.pack(BASE.items())
    made = stock.stock_strategy(config)
    made = dict(records.unpack(made.start(inbox, arrays, num_rounds=2, timeout=1).arrays))
    assert {key: tensor.dtype for key, tensor in made.items()} == dict.fromkeys(BASE, torch.float32)
    assert not torch.equal(made["w"], BASE["w"])


def test_a_flower_strategy_that_makes_no_numbers_stops_the_run(tmp_path, monkeypatch) -> None:
    class Broken(FedAvg):
        def aggregate_train(self, server_round, replies):
            _, metrics = super().aggregate_train(server_round, replies)
            return records.pack((k, t / 0) for k, t in BASE.items()), metrics

    monkeypatch.setattr(strategies_of_flower, "Broken", Broken, raising=False)
    config = Config.from_flat({"fusion.strategy": "flwr.serverapp.strategy:Broken"})
    _, inbox = make(tmp_path, keep_arrays=True)
    with pytest.raises(FusionError, match="what Broken made: w holds NaN or infinity"):
        stock.stock_strategy(config).start(inbox, records.pack(BASE.items()), num_rounds=1)


def test_a_flower_strategy_gets_the_arrays_in_the_order_of_the_base(tmp_path) -> None:
    """FedAvgM, QFedAvg and the privacy wrappers match them by position; files sort them by name."""
    base = {"w": torch.zeros(2), "b": torch.ones(2)}

    class Seen(FedAvg):
        def aggregate_train(self, server_round, replies):
            replies = list(replies)
            self.orders = [list(reply.content[records.ARRAYS]) for reply in replies]
            return super().aggregate_train(server_round, replies)

    _, inbox = make(tmp_path, keep_arrays=True)
    stock = Seen(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)
    stock.start(inbox, records.pack(base.items()), num_rounds=1, timeout=1)
    assert stock.orders == [["w", "b"]] * 3


def test_a_flower_strategy_gets_the_metrics_that_all_have(tmp_path) -> None:
    def client(message):
        few = message.metadata.dst_node_id == 22
        return trained(message, metrics={"num-examples": 10}) if few else trained(message)

    _, inbox = make(tmp_path, client, keep_arrays=True)
    stock = FedAvg(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)
    result = stock.start(inbox, records.pack(BASE.items()), num_rounds=1, timeout=1)
    fused = dict(records.unpack(result.arrays))["w"]
    assert torch.allclose(fused, torch.full((2, 2), 3.0))


@pytest.mark.parametrize(
    "error", [KeyError("dtype\x1b[2J"), IndexError("5"), RecursionError(), DecodeError("wire")]
)
def test_a_reply_that_flower_cannot_read_is_refused(tmp_path, error) -> None:
    class Hostile(FakeGrid):
        def pull_messages(self, message_ids):
            replies = super().pull_messages(message_ids)
            if any(r.metadata.src_node_id == 33 for r in replies):
                raise error
            return replies

    inbox = inbox_of(Hostile(trained, ROSTER.values()), tmp_path, quorum=2)
    assert torch.equal(start(inbox)["w"], torch.full((2, 2), 1.5))
    assert inbox.contributions["cat"].reason.startswith(
        f"error reply: the reply cannot be read: {type(error).__name__}"
    )
    assert inbox.contributions["cat"].reason.isprintable()


def test_a_connection_that_fails_is_nobodys_reply(tmp_path) -> None:
    class Cut(FakeGrid):
        def pull_messages(self, message_ids):
            raise httpx.ReadTimeout("slow")

    inbox = inbox_of(Cut(trained, ROSTER.values()), tmp_path)
    with pytest.raises(httpx.ReadTimeout):
        start(inbox)


def test_a_site_cannot_stop_the_others_by_a_word(tmp_path) -> None:
    def client(message):
        dead = message.metadata.dst_node_id == 33
        return error_reply(message, "ActorDiedError: mine") if dead else trained(message)

    _, simulated = make(tmp_path / "a", client, quorum=2)
    with pytest.raises(DeadActorError):
        start(simulated)
    _, at_sites = make(tmp_path / "b", client, quorum=2, participants=Here(simulated=False))
    assert torch.equal(start(at_sites)["w"], torch.full((2, 2), 1.5))


def test_reasons_are_short_and_can_be_shown(tmp_path) -> None:
    def client(message):
        if message.metadata.dst_node_id != 33:
            return trained(message)
        reply = trained(message)
        array = reply.content["arrays"]["w"]
        reply.content["arrays"]["w"] = Array(
            "\x1b[2J" + "x" * 9999, array.shape, "numpy.ndarray", array.data
        )
        return reply

    _, inbox = make(tmp_path, client, quorum=2)
    start(inbox)
    reason = inbox.contributions["cat"].reason
    assert reason.startswith("w is ?[2Jxxx")
    assert len(reason) == 500


def referring(tmp_path, spoil=lambda name, store, about: None, **options):
    """An inbox by reference, and contributors that leave their bodies in its folder."""

    def client(message):
        assert not message.content.array_records
        config = records.config_of(message.content, records.CONFIG)
        assert config[records.REFERENCE] == 7
        name = NAMES[message.metadata.dst_node_id]
        metrics, where = {"num-examples": 10.0, "seconds": 0.5}, {"device": "cpu"}
        store = Store(tmp_path / "incoming", int(config["iteration"]))
        body = {key: tensor + STEP[name] for key, tensor in BASE.items()}
        about = {"contributor": name, "iteration": config["iteration"], "base": config["base"]}
        about |= where
        start = Start(int(config["iteration"]), str(config["base"]))
        stated = Contribution(name, metrics=metrics, facts=where, start=start)
        about["xxh3"] = store.offer(stated, body)
        spoil(name, store, about)
        return Message(records.train_reply(None, metrics, about), reply_to=message)

    return make(tmp_path / "incoming", client, reference=lambda: 7, **options)


def test_by_reference_no_weights_travel(tmp_path) -> None:
    _, inbox = referring(tmp_path)
    assert torch.equal(start(inbox)["w"], torch.full((2, 2), 3.0))
    assert inbox.contributions["bob"].facts == {"device": "cpu"}
    folder = tmp_path / "incoming" / "0001"
    assert sorted(p.name for p in folder.iterdir()) == FILES
    grid, again = referring(tmp_path)  # what is there is not asked for again
    start(again)
    assert grid.sent == []


def rewrite(store, name, **changes):
    """Offer another body than was said."""
    store.offer(Contribution(name), {**BASE, **changes})


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda store, about: store._offered("cat").unlink(), "it left no body in "),
        (lambda store, about: about.update(xxh3="0" * 32), "is not what its message says"),
        (lambda store, about: about.pop("xxh3"), "is not what its message says"),
        (lambda store, about: rewrite(store, "cat"), "is not what its message says"),
        (lambda store, about: rewrite(store, "cat", b=torch.zeros(3)), "b has shape (3,)"),
        (lambda store, about: rewrite(store, "cat", c=torch.zeros(3)), "unexpected tensor 'c'"),
        (lambda store, about: rewrite(store, "cat", w=torch.full((2, 2), math.nan)), "holds NaN"),
        (lambda store, about: store._offered("cat").write_bytes(b"x" * 99), "cannot be read"),
    ],
)
def test_by_reference_a_file_that_is_not_as_said_is_refused(tmp_path, spoil, reason) -> None:
    def one(name, store, about):
        if name == "cat":
            spoil(store, about)

    _, inbox = referring(tmp_path, one, quorum=2)
    assert torch.equal(start(inbox)["w"], torch.full((2, 2), 1.5))
    assert reason in inbox.contributions["cat"].reason
    aside = tmp_path / "quarantine" / "0001" / "cat.safetensors"
    assert aside.exists() == (reason == "holds NaN")
    assert not (tmp_path / "incoming" / "0001" / "cat.safetensors").exists()


def test_by_reference_a_link_is_not_followed(tmp_path) -> None:
    def link(name, store, about):
        if name == "cat":
            file = store._offered("cat")
            file.symlink_to(file.rename(tmp_path / "elsewhere"))

    _, inbox = referring(tmp_path, link, quorum=2)
    start(inbox)
    assert "it left no body" in inbox.contributions["cat"].reason


def test_by_reference_nothing_is_left_after_the_iteration(tmp_path) -> None:
    store = Store(tmp_path / "incoming", 1)
    with pytest.raises(Refused, match="the iteration is over"):
        store.offer(Contribution("ann"), BASE)
    assert not (tmp_path / "incoming").exists()


@pytest.mark.parametrize("base", ["b", "another"])
def test_an_offered_file_has_to_say_what_its_message_says(tmp_path, base) -> None:
    """Its base and metrics count in a resumed run, which reads them from the file."""
    store = Store(tmp_path, 1)
    store.open()
    mine = Contribution("ann", metrics={"num-examples": 10}, start=Start(1, "b"))
    xxh3 = store.offer(mine, BASE)
    stated = {"num-examples": 10 if base == "another" else 99}
    claimed = Contribution("ann", metrics=stated, start=Start(1, base))
    template = Weights(BASE).template()
    with pytest.raises(Refused, match="its file is not what its message says"):
        store.take(claimed, template, store, xxh3)
    kept = store.take(mine, template, store, xxh3)
    assert kept.sha256 == fingerprint(BASE.items())
    assert kept.path == tmp_path / "0001" / "ann.safetensors"


def test_an_answer_that_is_not_there_at_once_is_waited_for() -> None:
    asked_before: set[int] = set()

    def slow(message):
        node = message.metadata.dst_node_id
        if node in asked_before:
            return trained(message)
        asked_before.add(node)
        return None

    config = ConfigRecord({"iteration": 1, "base": "b"})
    content = RecordDict({"arrays": records.pack(BASE.items()), "config": config})
    asked = {"ann": Message(content, 11, MessageType.TRAIN)}
    ((name, reply),) = exchange.exchange(FakeGrid(slow, [11]), asked, timeout=30)
    assert name == "ann"
    assert reply is not None


def test_many_sites_are_looked_at_in_turn_and_not_all_the_time(monkeypatch) -> None:
    """Each look is a request to the SuperLink, which has theirs to serve."""
    looked: list[int] = []

    def client(message):
        looked.append(message.metadata.dst_node_id)
        return trained(message) if message.metadata.dst_node_id in ready else None

    ready = {3}
    clock, slept = [0.0], []
    monkeypatch.setattr(exchange.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(exchange.time, "sleep", slept.append)
    for simulated, pause in ((False, 4.0), (True, exchange.POLL)):
        looked.clear()
        slept.clear()
        post = exchange.Post(FakeGrid(client, []), simulated=simulated)
        for node in range(80):
            post.send(f"site-{node}", Message(RecordDict(), node, MessageType.QUERY))
        post.rest()
        post.rest(0.05)
        post.rest(-1.0)
        assert slept == pytest.approx([pause, min(pause, 0.05), 0.0])
        for node in (3, 7, 5):
            ready = {node}
            letter, _ = post.first()
            assert letter.name == f"site-{node}"
        of_sites = [*range(8), *range(8, 80), 0, 1, 2, 4, 5]  # goes on behind the last one
        of_a_simulation = [*range(4), 0, 1, 2, *range(4, 8), 0, 1, 2, 4, 5]
        assert looked == (of_a_simulation if simulated else of_sites)


def test_an_answer_that_was_lost_is_asked_for_once_more(tmp_path) -> None:
    """A SuperNode does not repeat an upload that failed; the SuperLink tells when it gives it up."""

    def client_that_loses(times: int) -> Callable[[Message], Message]:
        lost = []

        def client(message):
            if message.metadata.dst_node_id == 33 and len(lost) < times:
                lost.append(message.metadata.message_id)
                return error_reply(message, "objects are unavailable", code=exchange.LOST)
            return trained(message)

        return client

    said: list[str] = []
    grid, inbox = make(tmp_path / "once", client_that_loses(1), say=lines_to(said))
    assert torch.equal(start(inbox)["w"], torch.full((2, 2), 3.0))
    assert said.count("cat: its answer was lost on its way: asked once more") == 1
    first, second = [m for m in grid.sent if m.metadata.dst_node_id == 33]
    assert first is not second
    assert first.metadata.created_at != second.metadata.created_at
    _, inbox = make(tmp_path / "twice", client_that_loses(2), quorum=2)
    start(inbox)
    assert inbox.contributions["cat"].reason == "error reply: objects are unavailable"


def test_nobody_is_asked_again_for_what_nobody_can_use() -> None:
    """Too late, begun from too old a base, never answered at all; or a contributor that failed."""
    said: list[str] = []

    def post_to(client, **more) -> tuple[FakeGrid, exchange.Post]:
        grid = FakeGrid(client, [33])
        post = exchange.Post(grid, say=said.append, **more)
        post.send("cat", Message(RecordDict(), 33, MessageType.TRAIN, ttl=100.0))
        return grid, post

    def lost(message):
        return error_reply(message, "unavailable", code=exchange.LOST)

    def silent(message):
        message.metadata.__dict__["_created_at"] -= 100.0
        return lost(message)

    now = exchange.time.monotonic()
    for client, more, deadline in (
        (lost, {}, now),
        (lost, {"wanted": lambda name: name != "cat"}, math.inf),
        (silent, {}, math.inf),
        (lambda message: error_reply(message, "boom"), {}, math.inf),
    ):
        grid, post = post_to(client, **more)
        letter, reply = post.first(deadline)
        assert (letter.name, reply.has_error()) == ("cat", True)
        assert (len(grid.sent), len(post)) == (1, 0)
    assert not said
    grid, post = post_to(lost)
    assert post.first() is None
    assert (len(grid.sent), len(post), len(said)) == (2, 1, 1)


def test_a_reply_with_more_than_it_can_need_is_refused(tmp_path) -> None:
    def client(message):
        reply = trained(message)
        if message.metadata.dst_node_id == 33:
            for i in range(9):
                reply.content[f"r{i}"] = ConfigRecord()
        return reply

    _, inbox = make(tmp_path, client, quorum=2)
    start(inbox)
    assert "records, expected at most 8" in inbox.contributions["cat"].reason


@pytest.mark.parametrize("few", [{}, {"steps": 0.5}])
def test_what_the_rule_needs_to_know_is_asked_for_at_the_door(tmp_path, few) -> None:
    """One that does not say its steps is refused then, and not the whole fuse later."""

    def silent(message):
        metrics = {"num-examples": 10, "train-loss": 0.0, "seconds": 0.5}
        steps = few if NAMES[message.metadata.dst_node_id] == "ann" else {"steps": 4}
        return trained(message, metrics=metrics | steps)

    _, inbox = make(tmp_path, silent, needed=load("fednova").metrics, quorum=1)
    start(inbox)
    one = inbox.contributions["ann"]
    assert (one.verdict, one.reason) == (
        "refused",
        "it does not say its steps, which the fusion rule needs",
    )
    assert len(inbox.accepted()) == len(ROSTER) - 1
