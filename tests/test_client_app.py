"""The ClientApp under anybody's ServerApp."""

import os
import weakref
from dataclasses import replace

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict

from cold_flower.client_app import app
from cold_flower.config import Config
from cold_flower.contributors.contributor import Contributor
from cold_flower.data.plan import resolve
from cold_flower.models.starting import starting_model
from cold_flower.training.finetune import Outcome
from strategies import records
from strategies.fusion import fingerprint

RUN = Config.from_flat(
    {
        "recipe": False,
        "tasks": "travel,music",
        "finetune.max-examples": 24,
        "finetune.max-epochs": 1,
        "finetune.precision": "fp32",
        "evaluate.max-test-examples": 20,
    }
).flat()


def context(index=0, **run_config) -> Context:
    node = {} if index is None else {"partition-id": index, "num-partitions": 2}
    return Context(1, 1, node, RecordDict(), {**RUN, **run_config})


def send(kind, content, where) -> Message:
    message = Message(RecordDict(content), 1, kind)
    message.metadata.__dict__["_message_id"] = "m"
    return app(message, where)


@pytest.fixture(scope="module")
def arrays(tiny):
    return records.pack(starting_model(tiny, seed=0)[1].items())


def test_the_query_says_who_this_is() -> None:
    stated = records.config_of(send(MessageType.QUERY, {}, context(1)).content, "contributor")
    assert (stated["name"], stated["task"], stated["examples"]) == ("music", "music", 24)
    assert stated["protocol"] == 1
    assert stated["tokens"] > 24 * 10
    assert {"versions", "code", "model"} <= stated.keys()


def test_keys_that_the_user_set_are_no_recipes(arrays) -> None:
    """The demo's recipe has batches of 8: 3 for 24 examples; of 256, the default, it is one."""
    for asked, steps in (({}, 3), ({"explicit": "finetune.batch-size"}, 1)):
        where = context(0, recipe=True, **{"finetune.batch-size": 256})
        config = ConfigRecord({**asked, "iteration": 1})
        reply = send(MessageType.TRAIN, {"arrays": arrays, "config": config}, where)
        assert records.metrics_of(reply.content)["steps"] == steps


def test_a_node_beyond_the_tasks_has_no_name() -> None:
    stated = records.config_of(send(MessageType.QUERY, {}, context(2)).content, "contributor")
    assert stated == {"protocol": 1}


def test_training_without_a_query_and_without_our_keys(arrays, tiny) -> None:
    """What stock FedAvg sends: arrays and a config with its own round number."""
    sent = {"arrays": arrays, "config": ConfigRecord({"server-round": 2})}
    where = context(0, **{"num-server-rounds": 3, "their-key": "x"})
    reply = send(MessageType.TRAIN, sent, where).content
    assert set(reply.array_records) == {"arrays"}
    assert set(reply.metric_records) == {"metrics"}
    assert set(reply.array_records["arrays"]) == set(arrays)
    metrics = records.metrics_of(reply)
    assert metrics.keys() == {*records.LISTED} - {*records.SCORED, records.SECONDS}
    assert metrics["num-examples"] == 24
    stated = records.config_of(reply, "contribution")
    base = fingerprint(records.unpack(arrays))
    wanted = {"contributor": "travel", "iteration": 2, "base": base}
    assert {key: stated[key] for key in wanted} == wanted
    assert (stated["device"], stated["worker"]) == ("cpu", os.getpid())
    assert stated["stopped"] == "epochs"
    assert 0 < metrics["dev-majority"] <= 1
    assert fingerprint(records.unpack(reply.array_records["arrays"])) != base


def test_a_seed_in_the_message_decides(arrays) -> None:
    def train(seed):
        config = ConfigRecord({"iteration": 1, "seed": seed})
        reply = send(MessageType.TRAIN, {"arrays": arrays, "config": config}, context())
        return fingerprint(records.unpack(reply.content.array_records["arrays"]))

    assert train(1) == train(1) != train(2)


def test_evaluation_returns_the_protocols_asked_for_and_nothing_more(arrays) -> None:
    config = ConfigRecord({"protocols": "frozen"})
    reply = send(MessageType.EVALUATE, {"arrays": arrays, "config": config}, context()).content
    assert records.metrics_of(reply).keys() == {"num-examples", "frozen"}
    assert records.config_of(reply, "contributor")["metric"] == "accuracy"
    assert not reply.array_records
    bare = send(MessageType.EVALUATE, {"arrays": arrays}, context()).content
    assert records.metrics_of(bare).keys() == {"num-examples", "frozen", "finetuned"}


@pytest.mark.parametrize(
    ("where", "words"),
    [
        (context(None), "start it with --node-config 'partition-id=0'"),
        (context(2), "partition-id 2 has no task: there are 2 contributors"),
        (context(0, suite="/nowhere.toml"), "TaskError: suite file /nowhere.toml cannot be read"),
    ],
)
def test_what_is_wrong_at_a_contributor_is_one_line(where, words, arrays) -> None:
    reply = send(MessageType.TRAIN, {"arrays": arrays}, where)
    assert reply.has_error()
    assert words in reply.error.reason
    assert "Traceback" not in reply.error.reason


def test_a_body_that_does_not_fit_is_named(arrays) -> None:
    other = records.pack([("w", torch.zeros(1))])
    reply = send(MessageType.TRAIN, {"arrays": other}, context())
    assert "ModelError: the body does not fit" in reply.error.reason


def test_a_gpu_that_is_full_names_the_ways_out(arrays, monkeypatch) -> None:
    class Large:
        pass

    held, emptied = [], []

    def full(*_, **__):
        model = Large()
        held.append(weakref.ref(model))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has")

    monkeypatch.setattr(Contributor, "finetune", full)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(held[0]() is None))
    reason = send(MessageType.TRAIN, {"arrays": arrays}, context()).error.reason
    assert reason.startswith("out of GPU memory (CUDA out of memory)")
    assert emptied == [True]  # only then can the memory be given back
    for word in ("finetune.micro-batch-size", "finetune.max-length", "--gpus-per-contributor"):
        assert word in reason


def test_a_draw_that_is_too_large_gives_both_numbers(arrays) -> None:
    config = ConfigRecord({"protocols": "few-shot"})
    sent = {"arrays": arrays, "config": config}
    reply = send(MessageType.EVALUATE, sent, context(0, **{"few-shot.examples": 25}))
    assert "few-shot.examples is 25, but it has 24 training examples" in reply.error.reason


def test_fresh_shards_leave_no_tokens_and_evaluate_beside_the_contributors(own_home) -> None:
    keys = {"partition.kind": "shards", "partition.fresh": True, "partition.shards": 2}
    config = Config.from_flat({**RUN, **keys, "tasks": "music", "partition.examples": 30})
    first, second = (Contributor(config, i) for i in range(2))
    of = {
        "first": first.splits(1),
        "second": second.splits(1),
        "scored": first.splits(1, evaluation=True),
    }
    ids = {name: splits.train.ids.tolist() for name, splits in of.items()}
    assert len({str(v) for v in ids.values()}) == 3
    assert first.splits(2).train.ids.tolist() != ids["first"]
    assert second.splits(1, evaluation=True).train.ids.tolist() == ids["scored"]
    assert not own_home.exists()


def test_tokens_are_made_once_and_kept(own_home, monkeypatch) -> None:
    config = resolve(Config.from_flat(RUN))
    first = Contributor(config, 0).splits()
    assert [p.name for p in own_home.iterdir()] == ["travel"]
    monkeypatch.setattr(
        "cold_flower.contributors.contributor.load_splits",
        lambda *_: pytest.fail("read the data again"),
    )
    again = Contributor(config, 0).splits()
    assert torch.equal(first.train.ids, again.train.ids)
    assert torch.equal(first.test.labels, again.test.labels)
    assert first.labels == again.labels == ("train", "ship")


def test_a_changed_file_is_read_again(tmp_path) -> None:
    from tests.test_tasks import ROWS, suite, write

    for split in ("train", "test"):
        write(tmp_path / "data", ".csv", split=split)
    keys = {**RUN, "suite": str(suite(tmp_path)), "tasks": "mine"}
    config = Config.from_flat(keys)
    assert len(Contributor(config, 0).splits().test) == 20
    write(tmp_path / "data", ".csv", {k: v[:9] for k, v in ROWS.items()}, "test")
    assert len(Contributor(config, 0).splits().test) == 9
    drawn = [
        Contributor(Config.from_flat({**keys, "seed": seed}), 0).splits().train
        for seed in (0, 1, 0)
    ]
    assert drawn[0].labels.tolist() == drawn[2].labels.tolist() != drawn[1].labels.tolist()


@pytest.mark.parametrize("protocol", ["frozen", "finetuned"])
def test_what_computes_nan_has_no_score_and_as_a_candidate_the_lowest(arrays, protocol) -> None:
    body = {key: t * torch.finfo(t.dtype).max for key, t in records.unpack(arrays)}  # finite
    sent = {"arrays": records.pack(body.items())}

    def ask(split):
        config = ConfigRecord({"protocols": protocol, "seed": 0, "iteration": 1, "split": split})
        return send(MessageType.EVALUATE, {**sent, "config": config}, context())

    assert ask("test").error.reason.startswith(f"DivergedError: {protocol}: ")
    assert records.metrics_of(ask("dev").content)[protocol] == 0.0


def test_tokens_are_those_of_the_seed_the_length_and_the_tokenizer(own_home) -> None:
    def tokens(**keys) -> list[int]:
        return Contributor(Config.from_flat({**RUN, **keys}), 0).splits().train.ids.tolist()

    first = tokens()
    assert tokens(seed=1) != first
    assert len(tokens(**{"finetune.max-length": 8})) <= 24 * 8 < len(first)
    assert tokens() == first
    other = Contributor(Config.from_flat(RUN), 0)
    other.base = replace(other.base, sha256="another")
    other.splits()
    assert len(list(own_home.rglob("tokens-*"))) == 4


def test_what_is_drawn_for_a_score_is_the_same_at_every_iteration(tiny, monkeypatch) -> None:
    """Only the body makes the difference then; what is trained on all is drawn anew each time."""
    scored, trained = [], []

    def evaluate(base, body, data, chosen, config, seeds):
        scored.append((seeds.get("frozen"), len(data.test)))
        return {}, {}

    def finetune(model, train, dev, *, options, metric, seed):
        trained.append(seed)
        return Outcome(0.5, 0.5, 0.5, 0.5, "epochs", False, 1, 24)

    monkeypatch.setattr("cold_flower.training.protocols.evaluate", evaluate)
    monkeypatch.setattr("cold_flower.training.protocols.finetune", finetune)
    me, body = Contributor(Config.from_flat(RUN), 0), starting_model(tiny, seed=0)[1]
    for iteration in (1, 2):
        me.evaluate(body, ["frozen"], iteration=iteration, seed=0)
        me.finetune(body, iteration=iteration, seed=0)
    assert scored[0] == scored[1]
    assert trained[0] != trained[1]
    assert me.evaluate(body, [], iteration=1, seed=0, split="dev") == ({"num-examples": 40}, {})
    assert scored[2][1] == 40 != scored[0][1]  # a tenth of 400 is dev; 20 are tested on
