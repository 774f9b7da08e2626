"""Flower's own strategies: each is run for an iteration, or refused with its sentence."""

import re
from pathlib import Path

import flwr.serverapp.strategy as flower
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.common.logger import FLOWER_LOGGER
from flwr.serverapp.strategy import FedAvg, Strategy

from cold_flower import client_app
from cold_flower.config import Config
from cold_flower.errors import ConfigError
from cold_flower.models.base import load_base
from cold_flower.models.starting import starting_model
from cold_flower.repository.bases import Repository
from cold_flower.runtime import experiments
from cold_flower.runtime.experiments import check_strategy
from cold_flower.server import stock
from strategies import records
from strategies.errors import FusionError
from tests.test_cli import cold_flower

PAGE = (Path(__file__).parent.parent / "docs" / "fusion-rules.md").read_text()
TINY = {
    "tasks": "travel,music,kitchen",
    "unseen": "",
    "contributors-per-iteration": 0,
    "finetune.max-examples": 16,
    "finetune.max-epochs": 2,
    "finetune.batch-size": 4,
    "finetune.dev-examples": 8,
    "evaluate.protocols": "",
    "iterations": 1,
}
RUN = {
    "FedAvg": "",
    "FedAvgM": "{server_momentum = 0.9}",
    "FedAdagrad": "{eta = 0.001}",
    "FedAdam": "{eta = 0.001}",
    "FedYogi": "{eta = 0.001}",
    "FedMedian": "",
    "FedTrimmedAvg": "{beta = 0.34}",
    "Krum": "",
    "MultiKrum": "{num_nodes_to_select = 2}",
    "Bulyan": "",
    "FedProx": "{proximal_mu = 1}",
    "QFedAvg": "{client_learning_rate = 1}",
}
REFUSED = {
    "FedXgbBagging": "cannot fuse here: it fuses XGBoost's trees",
    "FedXgbCyclic": "cannot fuse here: it fuses XGBoost's trees",
    "DifferentialPrivacyClientSideFixedClipping": "cannot fuse here: it expects contributors that",
    "DifferentialPrivacyClientSideAdaptiveClipping": "cannot fuse here: it expects contributors",
    "DifferentialPrivacyServerSideFixedClipping": "cannot fuse here: it wraps another strategy",
    "DifferentialPrivacyServerSideAdaptiveClipping": "cannot fuse here: it wraps another strategy",
}


def named(name: str, options: str = "", **more) -> Config:
    module = "flwr.serverapp.strategy:" if ":" not in name else ""
    return Config.from_flat(
        {"fusion.strategy": f"{module}{name}", "fusion.options": options, **more}
    )


def run(folder: Path, name: str, options: str = "", **more) -> dict[str, torch.Tensor]:
    """Run an iteration; return the base it made."""
    given = {**TINY, "fusion.options": options, **more}
    if name:
        given["fusion.strategy"] = f"flwr.serverapp.strategy:{name}" if ":" not in name else name
    done = cold_flower(
        *("simulate", "demo", "--run-dir", str(folder), "--cpus-per-contributor", "1"),
        *(part for key, value in given.items() for part in ("--set", f"{key}={value}")),
        cwd=folder.parent,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    repository = Repository(folder)
    manifest = repository.manifest(1)
    assert [one["verdict"] for one in manifest["contributors"]] == ["accepted"] * 3
    assert manifest["sha256"] != repository.manifest(0)["sha256"]
    body = repository.body(1)
    return {key: body.get(key) for key in body.keys()}


def apart(a, b) -> float:
    return max(float((a[key] - b[key]).abs().max()) for key in a)


def test_every_strategy_of_flower_is_in_a_list_and_on_the_page() -> None:
    found = {
        name
        for name in flower.__all__
        if isinstance(kind := getattr(flower, name), type) and issubclass(kind, Strategy)
    }
    assert found - {"Strategy"} == RUN.keys() | REFUSED.keys()
    assert all(name in PAGE for name in RUN)
    assert all(name.removeprefix("DifferentialPrivacy") in PAGE for name in REFUSED)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("name", RUN)
def test_it_makes_a_base(tmp_path, name) -> None:
    run(tmp_path / "run", name, RUN[name])


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_with_its_reason(name) -> None:
    with pytest.raises(ConfigError, match=REFUSED[name]):
        check_strategy(named(name), 3)


@pytest.mark.usefixtures("in_process")
def test_fedprox_reaches_the_contributors_and_so_does_the_key(tmp_path) -> None:
    plain = run(tmp_path / "a", "FedAvg")
    prox = run(tmp_path / "b", "FedProx", "{proximal_mu = 1000}")
    key = run(tmp_path / "c", "FedProx", **{"finetune.proximal-mu": 1000})
    with_a_rule = run(tmp_path / "d", "", **{"finetune.proximal-mu": 1000})
    rule = run(tmp_path / "e", "")
    assert apart(prox, key) == 0.0
    start = Repository(tmp_path / "a").body(0)
    base = {k: start.get(k) for k in start.keys()}
    assert 0 < apart(prox, base) < 0.8 * apart(plain, base)
    assert 0 < apart(with_a_rule, base) < 0.8 * apart(rule, base)


@pytest.mark.parametrize(
    ("name", "options", "more", "words"),
    [
        ("FedProx", "", {}, "without a proximal term is FedAvg: set finetune.proximal-mu"),
        ("FedProx", "{proximal_mu = 0.5}", {"finetune.proximal-mu": 0.1},
         "finetune.proximal-mu is 0.1, but proximal_mu in fusion.options is 0.5: give one"),
        ("FedProx", "{proximal_mu = 0}", {"finetune.proximal-mu": 0.1}, "give one"),
        ("FedProx", "{proximal_mu = -1}", {}, "proximal_mu in fusion.options is at least 0, got"),
        ("FedProx", "{proximal_mu = 'a'}", {}, "option proximal_mu of FedProx is a float, got 'a'"),
        ("QFedAvg", "", {}, r"needs client_learning_rate: fusion.options = \{client_learning_rate"),
        ("FedAvgM", "{momentum = 0.9}", {}, "Did you mean 'server_momentum'"),
        ("FedAvg", "{fraction_train = 0.5}", {}, "option fraction_train of FedAvg is cold-flower's"),
        ("FedTrimmedAvg", "{beta = 0.7}", {}, "cannot be made: .*range"),
        ("Bulyan", "{num_malicious_nodes = 1}", {},
         "Bulyan needs 7 contributions with these options, but an iteration may have 3"),
        ("flwr.serverapp:Grid", "", {}, "is no flwr.serverapp.strategy.Strategy"),
        ("nowhere:Mine", "", {}, "is not usable: No module named 'nowhere'"),
        ("flwr.serverapp.strategy:Strategy", "", {}, "cannot be made: Can't instantiate abstract"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(name, options, more, words) -> None:
    with pytest.raises((ConfigError, FusionError), match=words):
        check_strategy(named(name, options, **more), 3)


def test_a_proximal_term_without_contributions_is_refused() -> None:
    config = Config.from_flat({"baseline": "multitask", "iterations": 1, "finetune.proximal-mu": 1})
    with pytest.raises(ConfigError, match="baseline = 'multitask' makes no contributions"):
        experiments.check_keys(config)


def test_a_check_leaves_flowers_remarks_out(caplog) -> None:
    config = named("FedProx", "{proximal_mu = 0}")
    check_strategy(config, 3)
    assert caplog.messages == []
    assert not FLOWER_LOGGER.disabled
    stock.stock_strategy(config)  # in the run itself
    (said,) = caplog.messages  # and nothing of an evaluation that is left out
    assert "This makes the strategy equivalent to FedAvg" in said


class Nothing(FedAvg):
    def aggregate_train(self, server_round, replies):
        return None, None


def test_one_that_makes_nothing_or_lacks_a_metric_is_named() -> None:
    made = stock.stock_strategy(named("tests.test_stock:Nothing"))
    with pytest.raises(FusionError, match="Nothing made nothing of 2 contributions"):
        made.aggregate_train(1, ["a", "b"])
    fair = stock.stock_strategy(named("QFedAvg", "{client_learning_rate = 1}"))
    arrays = records.pack([("w", torch.ones(2))])
    fair.current_arrays = arrays
    reply = records.train_reply([("w", torch.ones(2))], {"num-examples": 1}, {})
    message = Message(RecordDict(), dst_node_id=1, message_type=MessageType.TRAIN)
    message.metadata.__dict__["_message_id"] = "m"
    with pytest.raises(FusionError, match="QFedAvg: Missing or invalid training loss"):
        fair.aggregate_train(1, [Message(reply, reply_to=message)])


def test_a_resumed_run_says_which_memory_it_lacks() -> None:
    adam, plain = (stock.stock_strategy(named(name)) for name in ("FedAdam", "FedAvg"))
    assert "FedAdam keeps what it remembers in memory alone, so it starts anew at iteration 3" in (
        stock.memory_lost(adam, 3)
    )
    assert stock.memory_lost(adam, 1) == stock.memory_lost(plain, 3) == ""
    fixed = flower.DifferentialPrivacyServerSideFixedClipping
    assert "starts anew at iteration 3" in stock.memory_lost(fixed(adam, 1.0, 1.0, 3), 3)
    assert stock.memory_lost(fixed(plain, 1.0, 1.0, 3), 3) == ""
    adaptive = flower.DifferentialPrivacyServerSideAdaptiveClipping(plain, 0.1, 3)
    assert "starts anew at iteration 3" in stock.memory_lost(adaptive, 3)


@pytest.mark.usefixtures("in_process")
def test_a_wrapper_comes_with_the_class_of_the_page(tmp_path) -> None:
    (shown,) = (
        text for text in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "Private" in text
    )
    (tmp_path / "private.py").write_text(shown)
    run(tmp_path / "run", f"{tmp_path}/private.py:Private", "{noise = 0.001, clients = 3}")


def asked(mu, own: float = 0.0):
    """Have our ClientApp finetune for somebody else's FedProx."""
    base = load_base("demo")
    content = RecordDict(
        {records.ARRAYS: records.pack(starting_model(base, 0)[1].items()),
         records.CONFIG: ConfigRecord({"server-round": 1, records.PROXIMAL_MU: mu})}
    )  # fmt: skip
    message = Message(content, dst_node_id=1, message_type=MessageType.TRAIN)
    message.metadata.__dict__["_message_id"] = "m"
    settings = {**Config.from_flat({**TINY, "finetune.proximal-mu": own}).flat()}
    return client_app.app(message, Context(1, 1, {"partition-id": 0}, RecordDict(), settings))


def test_anybodys_message_may_ask_for_it() -> None:
    sent, base = {}, starting_model(load_base("demo"), 0)[1]
    for mu in (0.0, 1000.0):
        reply = asked(mu)
        assert not reply.has_error(), reply.error
        sent[mu] = apart(dict(records.unpack(reply.content[records.ARRAYS])), base)
    assert 0 < sent[1000.0] < 0.8 * sent[0.0]
    assert "the message asks for proximal-mu = 2.0: give one" in asked(2.0, own=1.0).error.reason
    assert "finetune.proximal-mu is at least 0, got -1.0" in asked(-1.0).error.reason
