"""The main job through `flwr run`: real SuperLink, real Ray, real processes."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from transformers import AutoModel, AutoTokenizer

from cold_flower.repository.bases import STATE, Repository
from cold_flower.repository.journal import Journal
from cold_flower.runtime import processes
from strategies.fusion import fingerprint
from tests.test_cli import COLD_FLOWER, cold_flower

SMALL = [
    "--set", "tasks=travel,music,kitchen,market",
    "--set", "unseen=market",
    "--set", "contributors-per-iteration=2",
    "--set", "finetune.max-examples=64",
    "--set", "finetune.max-epochs=1",
    "--set", "evaluate.max-test-examples=50",
    "--set", "evaluate.protocols=frozen",
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
    """Run the small demo; called in this process with one worker, which is half the work to start.

    One thread each, as where two workers share two cores: then the bits are the same.
    """
    alone = ["--cpus-per-contributor", str(len(os.sched_getaffinity(0)))]
    chosen = more if command is installed or "--fake-gpus" in more else (*alone, *more)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        done = command(
            "simulate", "demo", *SMALL, "--run-dir", run_dir, *chosen, cwd=cwd, timeout=300
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


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run by reference, and in two parts."""
    cwd = tmp_path_factory.mktemp("extended")
    settings = [*MEMORY, "--set", "transport=shared-dir"]
    short = simulate(cwd, "run", *settings, "--set", "iterations=1")
    assert "iteration 1" in short.stdout
    longer = simulate(cwd, "run", *settings, "--resume")
    assert "iteration 2 published" in longer.stdout
    assert "iteration 1 published" not in longer.stdout  # that was the other run
    return cwd / "run"


def test_the_run_directory_is_as_documented(finished) -> None:
    assert json.loads((finished / "result.json").read_text()) == {
        "status": "completed",
        "iterations": 2,
        "cause": "",
    }
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


def test_heads_and_data_stay_with_the_contributors(finished) -> None:
    start = Repository(finished).manifest(0)["body"]
    assert not [name for name in start if "classifier" in name]
    assert {p.name for p in (finished / "contributors").iterdir()} == {
        "travel",
        "music",
        "kitchen",
        "market",
    }


def test_an_extended_run_equals_one_of_full_length(finished, extended) -> None:
    assert body_of(extended, 2) == body_of(finished, 2)
    memory = [(run / "iterations/0002" / STATE).read_bytes() for run in (extended, finished)]
    assert memory[0] == memory[1]
    assert len(rows(extended, "scores.jsonl")) == len(rows(finished, "scores.jsonl"))


def test_by_reference_a_run_ends_with_the_same_bits(finished, extended) -> None:
    assert [body_of(extended, i) for i in range(3)] == [body_of(finished, i) for i in range(3)]
    assert sorted(map(str, rows(extended, "scores.jsonl"))) == sorted(
        map(str, rows(finished, "scores.jsonl"))
    )
    assert not list((extended / "incoming").rglob("*.safetensors*"))


def test_a_stock_flower_strategy_drives_the_same_contributors(finished, tmp_path) -> None:
    simulate(
        tmp_path,
        "run",
        "--set",
        "fusion.strategy=flwr.serverapp.strategy:FedAvg",
        "--set",
        "iterations=1",
    )
    assert body_of(tmp_path / "run", 0) == body_of(finished, 0)
    mine, theirs = (rows(r, "contributions.jsonl") for r in (finished, tmp_path / "run"))
    assert [r["sha256"] for r in theirs] == [r["sha256"] for r in mine if r["iteration"] == 1]


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


def test_a_baseline_is_scored_as_iteration_1(finished, tmp_path) -> None:
    done = simulate(
        tmp_path, "run", "--set", "baseline=multitask", "--set", "iterations=1",
    )  # fmt: skip
    assert "multitask: 3 tasks, 192 training examples" in done.stdout
    run = tmp_path / "run"
    assert Repository(run).manifest(1)["rule"] == "multitask"
    scores = rows(run, "scores.jsonl")
    assert {r["iteration"] for r in scores} == {0, 1}
    # Rows stand in the order in which contributors answered, which no two runs share.
    start, same = (
        {r["task"]: r for r in found if r["iteration"] == 0}
        for found in (scores, rows(finished, "scores.jsonl"))
    )
    assert start == same
    assert (run / "report.html").exists()


def killed(run: Path, victim: str, *more: str) -> tuple[int, str]:
    """Start a run or go on with it, kill one of its processes at work; return how it ended."""
    mark, begun = str(run.parent), time.time()
    process = subprocess.Popen(
        [COLD_FLOWER, "simulate", "demo", *SMALL, *MEMORY, "--run-dir", str(run), *more],
        cwd=run.parent, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, MARK: mark},
    )  # fmt: skip
    events: list[dict] = []
    while not any(event.get("done") for event in events) and process.poll() is None:
        time.sleep(0.1)
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


def test_what_is_killed_takes_the_rest_along_and_the_run_goes_on(finished, tmp_path) -> None:
    run = tmp_path / "run"
    code, said = killed(run, "server")
    assert code == 1
    assert "the ServerApp ended without a result.json" in said
    killed(run, "runner", "--resume")
    simulate(tmp_path, "run", *MEMORY, "--resume")
    assert [body_of(run, i) for i in (1, 2)] == [body_of(finished, i) for i in (1, 2)]
