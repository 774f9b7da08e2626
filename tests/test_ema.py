"""The moving average of the bases: what it is, where it lies, how it is scored."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

import cold_flower
from cold_flower.config import Config
from cold_flower.errors import ConfigError
from cold_flower.repository.bases import Repository
from cold_flower.repository.journal import PROGRESS, SCORES, load_config
from cold_flower.runtime import cost as counted
from cold_flower.runtime import experiments
from strategies.fusion import Weights, fingerprint
from tests.test_evaluation import ARRAYS, Fixture
from tests.test_repository import BODY, moved, repository  # noqa: F401 - a fixture
from tests.test_simulation import rows, simulate

KEYS = {
    "tasks": "market,music,weather",
    "unseen": "weather",
    "contributors-per-iteration": 2,
    "iterations": 2,
    "evaluate.protocols": "frozen,ema-frozen",
    "fusion.ema": 0.75,
}
SETTINGS = [part for key, value in KEYS.items() for part in ("--set", f"{key}={value}")]


def grown(store: Repository, *steps: float, **manifest) -> None:
    """Publish bases that lie so far from the start."""
    for step in steps:
        head = store.latest()
        new = store.numbers()[-1] + 1
        store.publish(new, head, Weights(moved(step)), manifest, decay=0.75)


def far(store: Repository, iteration: int) -> float:
    """Return by how much an average's weights are above those of the start."""
    body = dict(store.average(iteration).items())
    (distance,) = {float(x) for k, t in body.items() for x in (t - BODY[k]).flatten()}
    return distance


def test_it_is_the_bases_weighed_by_powers_of_the_decay(repository) -> None:  # noqa: F811
    grown(repository, 1, 3)
    assert far(repository, 0) == 0
    assert far(repository, 1) == 0.25
    assert far(repository, 2) == 0.75 * 0.25 + 0.25 * 3
    told = repository.manifest(2)
    assert told["ema"]["decay"] == 0.75
    assert told["ema"]["sha256"] == fingerprint(repository.average(2).items())
    assert told["sha256"] == fingerprint(moved(3).items())
    file = load_file(repository.path(2) / "ema" / "model.safetensors")
    assert file["head"].item() == 9.0
    assert (repository.path(2) / "ema" / "config.json").exists()


def test_it_follows_the_lineage_and_waits_while_the_gate_rejects(repository) -> None:  # noqa: F811
    grown(repository, 1, 3)
    grown(repository, 3, gate={"accepted": False})
    assert repository.manifest(3)["ema"]["sha256"] == repository.manifest(2)["ema"]["sha256"]
    repository.rollback(1)
    grown(repository, 2)
    assert far(repository, 4) == 0.75 * 0.25 + 0.25 * 2
    repository.prune(1)
    assert [(repository.path(i) / "ema").exists() for i in range(5)] == [False] * 4 + [True]


def test_without_the_key_there_is_none(repository) -> None:  # noqa: F811
    repository.publish(1, 0, Weights(moved(1)), {})
    assert not (repository.path(1) / "ema").exists()
    assert "ema" not in repository.manifest(1)


def test_a_run_publishes_and_scores_it(in_process, tmp_path) -> None:
    simulate(tmp_path, "run", *SETTINGS)
    run, store = tmp_path / "run", Repository(tmp_path / "run")
    found = {(r["iteration"], r["task"], r["protocol"]): r for r in rows(run, SCORES)}
    assert len(found) == len(rows(run, SCORES)) == 3 * 3 * 2
    lines = [event["line"] for event in rows(run, PROGRESS)]
    assert not any("evaluating the average at 0" in line for line in lines)  # it is the base
    assert any("evaluating the average at 2" in line for line in lines)
    for task in ("market", "music", "weather"):
        plain, average = (found[0, task, p] for p in ("frozen", "ema-frozen"))
        assert average == plain | {"protocol": "ema-frozen"}
        assert found[2, task, "ema-frozen"]["base"] == store.manifest(2)["ema"]["sha256"]
    b0, b1, b2 = (dict(store.body(i).items()) for i in range(3))
    for name, tensor in store.average(2).items():
        wanted = 0.5625 * b0[name] + 0.1875 * b1[name] + 0.25 * b2[name]
        assert torch.allclose(tensor, wanted, atol=1e-6)
    AutoModel.from_pretrained(store.path(2) / "ema")
    # Its scores are those of the model that lies there.
    same = ("tasks", "finetune.", "probe.", "evaluate.max-test-examples")
    settings = {k: v for k, v in load_config(run).items() if k.startswith(same)}
    model = store.path(2) / "ema"
    alone = cold_flower.evaluate(
        model, suite="demo", protocols=["frozen"], settings=settings, run_dir=tmp_path / "alone"
    )
    for row in alone.scores:
        assert row["value"] == found[2, row["task"], "ema-frozen"]["value"]
    ours = cold_flower.open_run(run)
    assert ours.gains("ema-frozen").n == 3
    assert "ema-frozen" in ours.report().read_text()

    simulate(tmp_path, "parts", *SETTINGS, "--set", "iterations=1")
    simulate(tmp_path, "parts", *SETTINGS, "--resume")
    again = Repository(tmp_path / "parts")
    assert again.manifest(2)["ema"] == store.manifest(2)["ema"]


def test_an_average_that_is_known_is_not_scored_again(tmp_path) -> None:
    fixture = Fixture(tmp_path, **{"evaluate.protocols": "frozen,ema-frozen", "fusion.ema": 0.5})
    assert len(fixture.evaluate(0)) == 3
    fixture.evaluation.evaluate_average(0, pytest.fail, "a")  # the base itself
    assert len(fixture.evaluate(1, "b")) == 3
    sent = len(fixture.grid.sent)
    fixture.evaluation.evaluate_average(1, lambda: ARRAYS, "c")
    assert len(fixture.grid.sent) == sent + 3
    fixture.evaluation.evaluate_average(1, pytest.fail, "c")
    of = {(r["iteration"], r["protocol"], r["base"]) for r in fixture.journal.rows(SCORES)}
    assert of == {(i, f"{p}frozen", b) for i, p, b in [(0, "", "a"), (0, "ema-", "a"), (1, "", "b"), (1, "ema-", "c")]}  # fmt: skip


def test_the_start_is_no_average_yet_and_nobody_finetunes_it_twice(tmp_path) -> None:
    keys = {"evaluate.protocols": "finetuned,ema-finetuned", "fusion.ema": 0.5}
    reuse = {"evaluate.reuse": True, "contributors-per-iteration": 0}
    fixture = Fixture(tmp_path, **keys, **reuse)
    assert fixture.evaluate(0) == [("travel", "finetuned")]  # music and market contribute
    fixture.evaluation.evaluate_average(0, pytest.fail, "a")
    assert {row["protocol"] for row in fixture.journal.rows(SCORES)} == {"finetuned"}
    fixture.evaluation.complete(0, lambda: ARRAYS, "a", [])
    fixture.evaluation.evaluate_average(0, pytest.fail, "a")
    of = {(r["task"], r["protocol"]) for r in fixture.journal.rows(SCORES)}
    assert len(of) == 6 == len(fixture.journal.rows(SCORES))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"evaluate.protocols": "ema-frozen"}, "fusion.ema is 0: there is no average"),
        ({"evaluate.protocols": "ema", "fusion.ema": 0.5}, "ema-frozen"),
        ({"fusion.ema": 1.0}, "fusion.ema is at least 0"),
        (
            {"fusion.ema": 0.5, "baseline": "multitask", "iterations": 1},
            "makes no contributions: leave it",
        ),
    ],
)
def test_where_it_makes_no_sense_it_is_refused(keys, said) -> None:
    with pytest.raises(ConfigError, match=said):
        experiments.check_keys(Config.from_flat(keys))


def test_it_goes_with_a_stock_strategy_and_is_counted(tmp_path) -> None:
    def cost(**changed) -> counted.Cost:
        config = Config.from_flat(KEYS | {"run-dir": str(tmp_path)} | changed)
        checked = experiments.check(config)
        return counted.cost(config, checked, counted.ahead(config, checked), 100)

    stock = {"fusion.strategy": "flwr.serverapp.strategy:FedAvg"}
    with_it = cost(**stock)
    without = cost(**stock, **{"fusion.ema": 0.0, "evaluate.protocols": "frozen"})
    assert with_it.disk - without.disk == 2 * 400
    assert with_it.evaluations == 2 * without.evaluations
