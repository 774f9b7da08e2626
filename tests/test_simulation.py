"""The main job through `flwr run`: real SuperLink, real Ray, real processes."""

import json
import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from transformers import AutoModel, AutoTokenizer

from cold_flower.repository.bases import STATE, Repository
from cold_flower.repository.journal import Journal
from cold_flower.runtime import processes
from strategies.fusion import fingerprint
from strategies.stages import length
from tests.conftest import REAL, needs_real
from tests.test_cli import COLD_FLOWER, cold_flower

SMALL = [
    "--set", "tasks=travel,music,kitchen,market",
    "--set", "unseen=market",
    "--set", "contributors-per-iteration=2",
    "--set", "finetune.max-examples=64",
    "--set", "finetune.max-epochs=1",
    "--set", "evaluate.max-test-examples=50",
    "--set", "evaluate.protocols=frozen",
    "--set", "probe.epochs=2",
    "--set", "iterations=2",
]  # fmt: skip
MEMORY = ["--set", "fusion.momentum=0.5", "--set", "fusion.clip=median"]  # outlives a resume
MARK = "COLD_FLOWER_TEST_MARK"  # in the environment of all that a run starts
pytestmark = pytest.mark.real


def installed(*arguments: str, cwd: Path, timeout: int = 240) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does, in a process of its own."""
    return subprocess.run(
        [COLD_FLOWER, *arguments], cwd=cwd, capture_output=True, text=True, timeout=timeout
    )


def simulate(
    cwd: Path, run_dir: str, *more: str, command=cold_flower
) -> subprocess.CompletedProcess[str]:
    """Run the small demo. One thread each: then the bits are the same, however many workers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        done = command(
            "simulate", "demo", *SMALL, "--run-dir", run_dir, *more, cwd=cwd, timeout=300
        )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def rows(run: Path, name: str):
    return Journal(run).rows(name)


def body_of(run: Path, iteration: int) -> str:
    return fingerprint(Repository(run).body(iteration).items())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cwd = tmp_path_factory.mktemp("with space and_underscore")
    done = simulate(cwd, "run", *MEMORY, command=installed)
    assert "± SEM" in done.stdout
    return cwd / "run"


def test_the_run_directory_is_as_documented(finished) -> None:
    result = json.loads((finished / "result.json").read_text())
    assert result.pop("trained")["contributors"] == 3
    assert result == {"status": "completed", "iterations": 2, "cause": ""}
    assert json.loads((finished / "config.json").read_text())["config"]["seed"] == 0
    latest = finished / "iterations" / "latest"
    assert AutoModel.from_pretrained(latest).config.model_type == "roberta"
    assert AutoTokenizer.from_pretrained(latest).model_max_length == 38
    manifest = Repository(finished).manifest(2)
    assert manifest["parent"] == 1
    assert manifest["rule"] == "average"
    assert manifest["sha256"] == body_of(finished, 2)
    assert [c["verdict"] for c in manifest["contributors"]] == ["accepted"] * 2
    assert all(c["diff-norm"] > 0 and -1 <= c["cosine"] <= 1 for c in manifest["contributors"])
    assert not list((finished / "incoming").rglob("*.safetensors"))


def test_scores_and_contributions(finished) -> None:
    scores = rows(finished, "scores.jsonl")
    assert {(r["iteration"], r["task"]) for r in scores} == {
        (i, t) for i in range(3) for t in ("travel", "music", "kitchen", "market")
    }
    assert {r["group"] for r in scores if r["task"] == "market"} == {"unseen"}
    assert all(0 <= r["value"] <= 1 and r["n_test"] == 50 for r in scores)
    given = rows(finished, "contributions.jsonl")
    assert len(given) == 4
    assert "market" not in {r["contributor"] for r in given}
    wanted = {"iteration", "contributor", "verdict", "reason", "examples", "seconds", "diff_norm"}
    assert all(wanted <= r.keys() for r in given)
    kept = Repository(finished)
    for iteration in (1, 2):
        made = kept.manifest(iteration)
        moved = length(kept.body(iteration - 1), kept.body(iteration).items())
        assert made["step-norm"] == pytest.approx(moved)
        assert made["length"] == made["step-norm"] / made["mean-norm"]


def test_heads_and_data_stay_with_the_contributors(finished) -> None:
    start = Repository(finished).manifest(0)["body"]
    assert not [name for name in start if "classifier" in name]
    assert {p.name for p in (finished / "contributors").iterdir()} == {
        "travel",
        "music",
        "kitchen",
        "market",
    }


def marked(mark: str) -> list[int]:
    """Return the processes that carry the mark in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def command_of(pid: int) -> str:
    """Return a process's command line; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def killed(run: Path, victim: str, iteration: int, *more: str) -> tuple[int, str]:
    """Start a run or go on with it, kill one of its processes in an iteration; say how it ended."""
    mark, begun = str(run.parent), time.time()
    process = subprocess.Popen(
        [COLD_FLOWER, "simulate", "demo", *SMALL, *MEMORY, "--run-dir", str(run), *more],
        cwd=run.parent, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, MARK: mark},
    )  # fmt: skip
    events: list[dict] = []
    while not any(event.get("done") and event["iteration"] == iteration for event in events):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
        events = [event for event in rows(run, "progress.jsonl") if event["time"] > begun]
    server = next(event["server"] for event in events if "server" in event)
    scratch = Path(f"/proc/{server}/cwd").readlink().parent
    os.kill({"server": server, "runner": process.pid}[victim], signal.SIGKILL)
    said = process.communicate(timeout=120)[1]
    if victim == "server":
        assert marked(mark) == []
        assert processes.working_in(scratch) == set()
    deadline = time.monotonic() + 90  # Ray's agents may take a minute to notice
    while left := [command_of(pid) for pid in marked(mark)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    assert not (run / "result.json").exists(), "it ran on to the end"
    return process.returncode, said


def test_what_is_killed_takes_the_rest_along_and_the_run_goes_on(
    finished, in_process, tmp_path
) -> None:
    """Two processes are killed; the last resume ends the run without Flower's engine."""
    run = tmp_path / "run"
    reference = "--set", "transport=shared-dir"  # the bodies go another way, the bits are the same
    code, said = killed(run, "server", 1, *reference, "--set", "iterations=1")
    assert code == 1
    assert "the ServerApp ended without a result.json" in said
    killed(run, "runner", 2, *reference, "--resume")
    last = simulate(tmp_path, "run", *MEMORY, *reference, "--resume")
    assert "iteration 1 published" not in last.stdout  # that was the second part
    assert [body_of(run, i) for i in range(3)] == [body_of(finished, i) for i in range(3)]
    memory = [(folder / "iterations/0002" / STATE).read_bytes() for folder in (run, finished)]
    assert memory[0] == memory[1]
    assert sorted(map(str, rows(run, "scores.jsonl"))) == sorted(
        map(str, rows(finished, "scores.jsonl"))
    )
    assert not list((run / "incoming").rglob("*.safetensors*"))


def test_sigterm_stops_everything_that_was_started(tmp_path) -> None:
    process = subprocess.Popen(
        [COLD_FLOWER, "simulate", "demo", "--run-dir", "run"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, MARK: str(tmp_path)},
    )
    deadline = time.monotonic() + 240
    while not (tmp_path / "run" / "progress.jsonl").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "what arrived is kept: add --resume" in stderr
    assert marked(str(tmp_path)) == []


def test_gpus_are_shared_as_asked_and_a_run_that_fails_says_so(tmp_path, monkeypatch) -> None:
    """Two pretended GPUs, half for each: four Ray actors, two on each GPU; a stock strategy.

    In iteration 2 a contribution is refused, which is below the quorum.
    """
    monkeypatch.setenv("RAY_prestart_worker_first_driver", "0")  # else a process for each of them
    done = cold_flower(
        "simulate", "demo", *SMALL, "--run-dir", "run",
        "--fake-gpus", "2", "--gpus-per-contributor", "0.5",
        "--set", "tasks=weather,kitchen,sports,travel,music,garden,office,market",
        "--set", "contributors-per-iteration=0", "--set", "evaluate.every=2",
        "--set", "attacks={travel = {kind = 'nan', from = 2}}",
        "--set", "fusion.strategy=flwr.serverapp.strategy:FedAvg", cwd=tmp_path, timeout=600,
    )  # fmt: skip
    assert "4 contributors at once, 4 cores each, 0.5 of a GPU each" in done.stdout
    given = rows(tmp_path / "run", "contributions.jsonl")
    assert {row["iteration"] for row in given} == {1}
    gpu = {row["worker"]: row["visible_gpus"] for row in given}
    shares = Counter(gpu.values())
    assert shares <= Counter(["0", "0", "1", "1"])  # one of the four may have come too late
    assert shares.total() >= 3
    assert all(gpu[row["worker"]] == row["visible_gpus"] for row in given)
    manifest = Repository(tmp_path / "run").manifest(1)
    assert {c["device"] for c in manifest["contributors"]} == {"cpu"}

    assert done.returncode == 1
    assert "the quorum is 7" in done.stderr
    assert "holds NaN or infinity" in done.stderr
    assert "--resume" in done.stderr


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
