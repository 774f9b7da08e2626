"""Whole runs without Flower's engine (tests/in_process.py): resumed, compared, harmed."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM

from cold_flower.repository.bases import STATE, Repository
from tests import in_process
from tests.test_cli import cold_flower
from tests.test_model import STARTS
from tests.test_simulation import MEMORY, SMALL, body_of, rows, simulate

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with in_process.here(tmp_path_factory.mktemp("finished")) as cwd:
        simulate(cwd, "run", *MEMORY)
    return cwd / "run"


def test_in_two_parts_and_by_reference_a_run_ends_with_the_same_bits(
    finished, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("strategies.waiting.EVERY", 0.0001)
    settings = [*MEMORY, "--set", "transport=shared-dir"]
    short = simulate(tmp_path, "run", *settings, "--set", "iterations=1")
    assert "iteration 1" in short.stdout
    longer = simulate(tmp_path, "run", *settings, "--resume")
    assert "iteration 2 published" in longer.stdout
    told = [
        event for event in rows(tmp_path / "run", "progress.jsonl") if "fusing: " in event["line"]
    ]
    assert {(event["phase"], event["iteration"]) for event in told} == {("fuse", 1), ("fuse", 2)}
    assert told[0]["line"] in short.stdout
    assert "iteration 1 published" not in longer.stdout  # that was the other run
    run = tmp_path / "run"
    assert [body_of(run, i) for i in range(3)] == [body_of(finished, i) for i in range(3)]
    memory = [(folder / "iterations/0002" / STATE).read_bytes() for folder in (run, finished)]
    assert memory[0] == memory[1]
    assert rows(run, "scores.jsonl") == rows(finished, "scores.jsonl")
    assert not list((run / "incoming").rglob("*.safetensors*"))


def test_a_stock_flower_strategy_drives_the_same_contributors(finished, tmp_path) -> None:
    stock = "fusion.strategy=flwr.serverapp.strategy:FedAvg"
    simulate(tmp_path, "run", "--set", stock, "--set", "iterations=1")
    assert body_of(tmp_path / "run", 0) == body_of(finished, 0)
    mine, theirs = (rows(r, "contributions.jsonl") for r in (finished, tmp_path / "run"))
    assert [r["sha256"] for r in theirs] == [r["sha256"] for r in mine if r["iteration"] == 1]


def test_a_baseline_is_scored_as_iteration_1(finished, tmp_path) -> None:
    done = simulate(tmp_path, "run", "--set", "baseline=multitask", "--set", "iterations=1")
    assert "multitask: 3 tasks, 192 training examples" in done.stdout
    run = tmp_path / "run"
    assert Repository(run).manifest(1)["rule"] == "multitask"
    scores = rows(run, "scores.jsonl")
    assert {r["iteration"] for r in scores} == {0, 1}
    assert scores[:4] == rows(finished, "scores.jsonl")[:4]  # the start's
    assert (run / "report.html").exists()


def test_harm_is_refused_and_a_base_is_rolled_back(tmp_path) -> None:
    """A NaN, a copy, and a base that somebody does not like."""
    chosen = [
        "--set", "attacks={travel = 'nan', music = {kind = 'copy', of = 'kitchen'}}",
        "--set", "contributors-per-iteration=0", "--set", "quorum=1",
        "--set", "gate.protocol=frozen", "--set", "gate.tolerance=1", "--set",
        "gate.task-tolerance=1", "--set", "keep-iterations=2",
    ]  # fmt: skip
    simulate(tmp_path, "run", *chosen)
    run = tmp_path / "run"
    given = {
        (row["iteration"], row["contributor"]): row["reason"]
        for row in rows(run, "contributions.jsonl")
    }
    assert given == {
        (i, name): reason
        for i in (1, 2)
        for name, reason in {
            "kitchen": "",
            "music": "duplicate: the same weights as kitchen",
            "travel": "embeddings.word_embeddings.weight holds NaN or infinity",
        }.items()
    }
    assert sorted(p.relative_to(run).as_posix() for p in run.glob("quarantine/*/*")) == [
        f"quarantine/{i}/{name}.safetensors"
        for i in ("0001", "0002")
        for name in ("music", "travel")  # what holds NaN is kept, too
    ]
    validated = rows(run, "validation.jsonl")
    assert {(row["iteration"], row["contributor"]) for row in validated} == {
        (i, name) for i in (1, 2) for name in ("kitchen", "music", "travel")
    }
    assert len(validated) == 9  # the start's, and each candidate's; never a base's twice
    assert Repository(run).manifest(2)["gate"]["accepted"]

    back = cold_flower("rollback", "run", "1", cwd=tmp_path)
    assert "latest is 0001 (was 0002); nothing is deleted" in back.stdout
    simulate(tmp_path, "run", *chosen, "--set", "iterations=3", "--resume")
    assert [Repository(run).manifest(i)["parent"] for i in (1, 2, 3)] == [0, 1, 1]
    log = cold_flower("log", "run", cwd=tmp_path).stdout.splitlines()
    assert [line.split("  ")[0] for line in log] == [
        "* 0003 (latest)", "| x 0002", "* 0001", "* 0000",
    ]  # fmt: skip
    assert "from 0001; average, 1 accepted, 2 refused, length 1.00; frozen seen" in log[0]


def test_a_base_model_that_was_made_anew_is_no_resume(folders, tmp_path, monkeypatch) -> None:
    """What lay in the folder at the start is what the scores are of, wherever a run goes on."""
    base = folders("roberta", "RobertaForMaskedLM").rename(tmp_path / "fused")
    few = ["tasks=music,travel", "evaluate.max-test-examples=30", "probe.epochs=1"]
    few = [part for setting in few for part in ("--set", setting)]
    evaluate = ("evaluate", "./fused", "--suite", "demo", "--protocols", "frozen", *few)
    assert cold_flower(*evaluate, cwd=tmp_path).returncode == 0
    training = [
        "evaluate.protocols=frozen",
        "finetune.max-examples=40",
        "finetune.max-epochs=1",
        "finetune.batch-size=20",
    ]
    training += ["unseen=", "iterations=1", "contributors-per-iteration=0", "base-model=fused"]
    few += [part for setting in training for part in ("--set", setting)]
    monkeypatch.chdir(tmp_path)
    simulate(tmp_path, "run", *few)
    sweep = ("simulate", "demo", *few, "--sweep", "seed=0", "--run-dir", "cells")
    assert cold_flower(*sweep, cwd=tmp_path).returncode == 0
    baseline = [*few, "--set", "baseline=multitask"]
    simulate(tmp_path, "union", *baseline)

    again = cold_flower(*evaluate, cwd=tmp_path)
    assert "is complete: nothing is left to do" in again.stdout
    weights = base / "model.safetensors"
    tensors = load_file(weights)
    save_file(dict(reversed(tensors.items())), weights, {"format": "pt"})  # another file, the same
    assert cold_flower(*evaluate, cwd=tmp_path).returncode == 0

    tensors["roberta.encoder.layer.1.output.dense.bias"][0] += 1e-6
    save_file(tensors, weights, {"format": "pt"})
    more = ("--run-dir", "run", "--set", "iterations=2", "--resume")
    union = ("simulate", "demo", *SMALL, *baseline, "--run-dir", "union", "--resume")
    for command, run in (
        (evaluate, "runs/evaluate-fused"),
        (("simulate", "demo", *SMALL, *few, *more), "run"),
        (sweep, "cells/seed=0"),
        (union, "union"),
    ):
        refused = cold_flower(*command, cwd=tmp_path)
        assert refused.returncode == 1
        assert refused.stderr == (
            f"error: cannot resume {tmp_path / run}: base-model {base} holds other weights than "
            "when that run began, and its scores are of that. For this one give it a directory of "
            "its own (--run-dir)\n"
        )


@pytest.mark.parametrize("family", ["albert", "camembert", "xlm-roberta"])
def test_a_whole_run_of_albert_camembert_and_xlm_roberta(folders, tmp_path, family) -> None:
    base = folders(family, STARTS[family][1])
    settings = ("tasks=music,travel", "unseen=", "contributors-per-iteration=0", "iterations=1")
    settings += ("finetune.max-examples=64", "probe.epochs=2", "evaluate.max-test-examples=50")
    pairs = [part for setting in (f"base-model={base}", *settings) for part in ("--set", setting)]
    simulate(tmp_path, "run", *pairs)
    scored = {(row["iteration"], row["task"]) for row in rows(tmp_path / "run", "scores.jsonl")}
    assert scored == {(iteration, task) for iteration in (0, 1) for task in ("music", "travel")}
    folder = tmp_path / "run" / "iterations" / "latest"
    before, after = (AutoModelForMaskedLM.from_pretrained(f).state_dict() for f in (base, folder))
    head = ("lm_head", "predictions")  # it is not fused; its decoder is the word embedding
    for key, tensor in before.items():
        moved = not torch.equal(tensor, after[key])
        assert moved == (not key.startswith(head) or "decoder.weight" in key), key
