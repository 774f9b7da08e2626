"""docs/messages.md: a contributor without cold_flower, and our clients under stock FedAvg."""

import ast
import json
import sys
from pathlib import Path

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, MessageType, RecordDict
from flwr.serverapp.strategy import FedAvg

from cold_flower.client_app import app
from cold_flower.config import Config
from cold_flower.repository.journal import CONTRIBUTIONS, SCORES, SITES, Journal
from cold_flower.server import sites
from cold_flower.server.coordinator import Coordinator
from strategies import records
from strategies.fusion import fingerprint
from tests.conftest import FakeGrid
from tests.test_dropbox import begun
from tests.test_site import ROWS, TOML

PAGE = (Path(__file__).parent.parent / "docs" / "messages.md").read_text()


def shown(name: str) -> str:
    """Return a file of the page."""
    return PAGE.split(f"<!-- file: {name} -->\n```python\n")[1].split("```")[0]


@pytest.fixture
def base(folders) -> Path:
    return folders("roberta", "RobertaForMaskedLM")


@pytest.fixture
def places(tmp_path, base, monkeypatch) -> dict[int, Path]:
    """Two sites by node id: clinic-a with our ClientApp, clinic-b with the page's."""
    ours, theirs = tmp_path / "a", tmp_path / "b"
    (ours / "data").mkdir(parents=True)
    for split in ("train", "test"):
        lines = "".join(json.dumps(row) + "\n" for row in ROWS)
        (ours / "data" / f"{split}.jsonl").write_text(lines)
    made = TOML.format(top="", limits="", label="stars")
    (ours / "site.toml").write_text(made.replace('"demo"', f'"{base}"'))
    theirs.mkdir()
    (theirs / "peer.py").write_text(shown("peer.py"))
    (theirs / "site.toml").write_text('name = "clinic-b"\napp = "peer:app"\n')
    monkeypatch.setenv("PEER_BASE", str(base))
    yield {1: ours / "site.toml", 2: theirs / "site.toml"}
    sys.modules.pop("peer", None)
    sys.path[:] = [entry for entry in sys.path if entry != str(theirs)]


def grid(places, run_config, monkeypatch) -> FakeGrid:
    """Answer as the two sites would, by Flower's messages alone."""
    from flwr.proto.node_pb2 import NodeInfo

    def client(message):
        node = {"site": str(places[message.metadata.dst_node_id])}
        return app(message, Context(1, 1, node, RecordDict(), run_config))

    made = FakeGrid(client, places)
    names = {1: "clinic-a", 2: "clinic-b"}
    monkeypatch.setattr(
        made, "get_nodes", lambda: [NodeInfo(node_id=i, name=n) for i, n in names.items()]
    )
    return made


def test_the_peer_imports_nothing_of_ours_and_is_short() -> None:
    text = shown("peer.py")
    tree = ast.walk(ast.parse(text))
    modules = {n.module for n in tree if isinstance(n, ast.ImportFrom)}
    assert not any(m.split(".")[0] in ("cold_flower", "strategies") for m in modules)
    assert len([line for line in text.splitlines() if line.strip()]) <= 60


def test_a_plain_peer_takes_part_beside_ours(places, base, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sites, "POLL", 0.01)
    run_dir = tmp_path / "run"
    config = Config.from_flat(
        {
            "recipe": False,
            "sites.allow": "clinic-a,clinic-b",
            "sites.minimum": 2,
            "base-model": str(base),
            "iterations": 2,
            "contributors-per-iteration": 0,
            "finetune.max-epochs": 1,
            "finetune.precision": "fp32",
            "probe.epochs": 1,
            "run-dir": str(run_dir),
            "wait.nodes": 5.0,
            "wait.replies": 60.0,
        }
    )
    journal = Journal(run_dir)
    journal.open(config, {})
    Coordinator(config, run_dir, grid(places, config.flat(), monkeypatch)).run()
    rows = journal.rows(CONTRIBUTIONS)
    got = [(r["iteration"], r["contributor"], r["verdict"]) for r in rows]
    assert got == [(i, f"clinic-{x}", "accepted") for i in (1, 2) for x in "ab"]
    assert {r["task"] for r in journal.rows(SCORES)} == {"clinic-a", "clinic-b"}
    assert len(journal.rows(SCORES)) == 2 * 2 * 3
    joined = {r["site"]: r["code"] for r in journal.rows(SITES)}
    assert joined["clinic-b"] == "" != joined["clinic-a"]  # recorded, and free to differ
    assert json.loads((run_dir / "iterations/0002/manifest.json").read_text())["parent"] == 1


def test_our_clients_under_stock_fedavg(places, base, tmp_path, monkeypatch) -> None:
    """What docs/messages.md's their_server.py does, without a process."""
    places = {1: places[1], 2: places[1]}
    run = Config.from_flat(
        {"finetune.max-epochs": 1, "probe.epochs": 1, "evaluate.protocols": "frozen"}
    ).flat()
    repository = begun(tmp_path / "theirs", str(base))
    theirs: dict = {}
    exec(shown("their_server.py"), theirs)
    start = theirs["body"](repository.path(1))
    body = dict(repository.body(1).items())
    assert fingerprint(records.unpack(ArrayRecord(start))) == repository.sha256(1)
    strategy = FedAvg(min_train_nodes=2, min_evaluate_nodes=2, min_available_nodes=2)
    result = strategy.start(
        grid=grid(places, run, monkeypatch), initial_arrays=ArrayRecord(start), num_rounds=1
    )
    assert set(result.arrays) == set(body)
    assert fingerprint(records.unpack(result.arrays)) != fingerprint(body.items())
    assert result.train_metrics_clientapp[1]["train-loss"] > 0
    assert 0 <= result.evaluate_metrics_clientapp[1]["frozen"] <= 1


def test_a_peer_passes_the_same_gate(places, monkeypatch, own_home) -> None:
    from flwr.app import Message

    path = places[2].parent / "peer.py"
    path.write_text(path.read_text().replace('"examples": len(ROWS),', '"examples": 1 // 0,'))
    message = Message(RecordDict({"config": ConfigRecord({})}), 2, MessageType.QUERY)
    message.metadata.__dict__["_message_id"] = "m"
    node = {"site": str(places[2])}
    reply = app(message, Context(1, 1, node, RecordDict(), {}))
    assert reply.error.reason == "OwnCodeError: the details are in the site's own log"
    assert "ZeroDivisionError" in (own_home / "clinic-b" / "errors.log").read_text()
