"""Real runs that stand alone: what fails, what is stopped, GPUs, real data, harm."""

import os
import signal
import subprocess
import time
from collections import Counter

import pytest
from transformers import AutoModel

from cold_flower.repository.bases import Repository
from tests.conftest import REAL, needs_real
from tests.test_cli import COLD_FLOWER, cold_flower
from tests.test_simulation import MARK, SMALL, installed, marked, rows, simulate

pytestmark = pytest.mark.real


def test_a_run_that_fails_says_so_with_its_exit_code(tmp_path) -> None:
    done = installed(
        "simulate", "demo", *SMALL, "--run-dir", "run", "--set", "finetune.learning-rate=1e30",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert "the quorum is 2" in done.stderr
    assert "lower finetune.learning-rate" in done.stderr
    assert "--resume" in done.stderr


def test_sigterm_stops_everything_that_was_started(tmp_path) -> None:
    process = subprocess.Popen(
        [COLD_FLOWER, "simulate", "demo", "--run-dir", "run"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, MARK: str(tmp_path)},
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "progress.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "what arrived is kept: add --resume" in stderr
    assert marked(str(tmp_path)) == []


def test_gpus_are_shared_as_asked(tmp_path, monkeypatch) -> None:
    """Two pretended GPUs, half for each: four Ray actors, two on each GPU."""
    monkeypatch.setenv("RAY_prestart_worker_first_driver", "0")  # else a process for each of them
    done = simulate(
        tmp_path, "run", "--fake-gpus", "2", "--gpus-per-contributor", "0.5",
        "--set", "tasks=weather,kitchen,sports,travel,music,garden,office,market",
        "--set", "contributors-per-iteration=0", "--set", "iterations=1",
    )  # fmt: skip
    assert "4 contributors at once, 4 cores each, 0.5 of a GPU each" in done.stdout
    given = rows(tmp_path / "run", "contributions.jsonl")
    gpu = {row["worker"]: row["visible_gpus"] for row in given}
    shares = Counter(gpu.values())
    assert shares <= Counter(["0", "0", "1", "1"])  # one of the four may have come too late
    assert shares.total() >= 3
    assert all(gpu[row["worker"]] == row["visible_gpus"] for row in given)
    manifest = Repository(tmp_path / "run").manifest(1)
    assert {c["device"] for c in manifest["contributors"]} == {"cpu"}


@needs_real
def test_real_datasets_and_a_real_encoder(tmp_path) -> None:
    done = cold_flower(
        "simulate", "real_small", "--run-dir", "run",
        "--set", f"suite={REAL}/data/suite.toml",
        "--set", f"base-model={REAL}/models/minilm",
        "--set", "tasks=trec_coarse,rotten_tomatoes,sst2",
        "--set", "unseen=sst2",
        "--set", "contributors-per-iteration=0",
        "--set", "finetune.max-examples=64",
        "--set", "evaluate.max-test-examples=64",
        "--set", "iterations=1",
        cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    moved = [c["diff-norm"] for c in Repository(run).manifest(1)["contributors"]]
    assert len(moved) == 2
    assert all(0 < norm < 100 for norm in moved)
    before = AutoModel.from_pretrained(f"{REAL}/models/minilm").state_dict()
    after = AutoModel.from_pretrained(run / "iterations" / "latest").state_dict()
    assert before.keys() == after.keys()


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
        f"quarantine/{i}/music.safetensors" for i in ("0001", "0002")
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
    assert "from 0001; average, 1 accepted, 2 refused; frozen seen" in log[0]
