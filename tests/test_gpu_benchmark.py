"""`benchmarks.gpu`: what a machine with a GPU would run, here at its smallest size."""

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import finetune, gpu, results, variants
from benchmarks.work import random
from benchmarks.workers import WorkerError, Workers

ROOT = Path(__file__).parents[1]
HIDE = """
import sys
class Hidden:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, *more):
        hidden = name.partition(".")[0] in {"flwr", "ray", "datasets", "accelerate"}
        return None if hidden else self.finder.find_spec(name, *more)
sys.meta_path[:] = map(Hidden, sys.meta_path)
"""


def environment(folder: Path) -> dict[str, str]:
    """Have processes, and theirs, find modules in a folder first."""
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="would measure the GPU")
def test_it_runs_on_cores_without_flwr_ray_datasets_and_accelerate(tmp_path, monkeypatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(HIDE)
    command = [sys.executable, "-m", "benchmarks.gpu", "--minutes", "9", "--out", "runs/a.json"]
    env = environment(tmp_path)
    for name in ("flwr", "ray", "datasets", "accelerate"):
        code = f"import importlib.util as u; raise SystemExit(bool(u.find_spec('{name}')))"
        assert subprocess.run([sys.executable, "-c", code], env=env).returncode == 0
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("no GPU here (")
    assert "traceback" not in done.stderr.lower()
    file = tmp_path / "runs" / "a.json"
    assert "NaN" not in file.read_text()
    found = json.loads(file.read_text())
    todo = [p.name for p in gpu.parts(gpu.SMALLEST, variants=False)]
    trainers = [name for name in todo if name.startswith("trainer")]
    assert found["left_out"] == dict.fromkeys(trainers, "accelerate is not installed")
    assert list(found["parts"]) == list(found["seconds"]) == [n for n in todo if n not in trainers]
    assert f"{trainers[0]}: left out, accelerate is not installed" in done.stdout
    assert f"left out: {'; '.join(trainers)}" in done.stdout
    (profiled,) = found["parts"][gpu.PROFILE]
    shares = [event["share"] for event in profiled[0]["top"]]
    assert len(shares) == 15 and shares == sorted(shares, reverse=True) and 0.3 < sum(shares) <= 1
    (memory,) = found["parts"][gpu.MEMORY]
    assert 0.2e9 < memory[0]["8"]["measured"] < 3e9
    alone, two = (found["parts"][f"{many} at once"] for many in (1, 2))
    assert [len(run) for run in (*alone, *two)] == [1, 1, 2, 2]
    assert all(row["ours"] > 0 for row in found["rows"])

    kept_in(tmp_path, monkeypatch)
    with pytest.raises(SystemExit, match="measured without a GPU"):
        results.take_up(file)
    card = [{**row, "machine": "a card"} for row in found["rows"]]
    file.write_text(json.dumps({**found, "gpu": True, "date": "2026-01-02", "rows": card}))
    results.take_up(file)
    page = results.PAGE.read_text()
    assert (
        "**a card**" in page and "python -m benchmarks.gpu --minutes 9 --out runs/a.json`" in page
    )
    assert page.count("| 2026-01-02 |") == len(card) == 8


def kept_in(folder, monkeypatch) -> None:
    monkeypatch.setattr(results, "FOLDER", folder / "results")
    monkeypatch.setattr(results, "PAGE", folder / "results.md")
    results.PAGE.write_text(f"{results.BEGIN}\n{results.END}\n")


def test_a_file_of_something_else_is_refused(tmp_path) -> None:
    (tmp_path / "a.json").write_text("[1]")
    for name in ("a.json", "none.json"):
        with pytest.raises(
            SystemExit, match=rf"{name}: expected is a file of `python -m benchmarks"
        ):
            results.take_up(tmp_path / name)


class Clock:
    """Time that passes where a worker works only."""

    def __init__(self, takes: dict[str, float]) -> None:
        self.now, self.takes, self.begun = 0.0, takes, []

    def monotonic(self) -> float:
        return self.now

    def __call__(self, threads):  # as Workers
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        pass

    def __len__(self) -> int:
        return 1

    def close(self) -> None:
        pass

    def prepare(self, many, what, options, by=math.inf) -> None:
        self.begun.append((what, options, by))
        self.what = what

    def go(self, many, by=math.inf):
        self.now += self.takes.get(self.what, 1.0)
        if self.now > by:
            self.now = by
            raise WorkerError("was not done in time")
        return [{"flops": 1e12}] * many


def part(name: str, way: str, *options, **more) -> gpu.Part:
    return gpu.Part(name, way, *options, **{"setup": 0, **more})


def bench_of(clock, monkeypatch, tmp_path, minutes=1.0):
    monkeypatch.setattr(gpu, "time", clock)
    monkeypatch.setattr(gpu, "Workers", clock)
    monkeypatch.setattr(gpu, "rows", lambda *_: [])
    size = gpu.Size("", 1e6, 256, 64, (1, 8), (64, 128), (16,), seconds=2, repetitions=3, start=10)
    return gpu.Bench(size, 60 * minutes, tmp_path / "a.json", {})


def test_nothing_is_begun_that_does_not_fit(tmp_path, monkeypatch) -> None:
    clock = Clock({"b": 8.0})
    bench = bench_of(clock, monkeypatch, tmp_path)
    matmul, large = part(gpu.MATMUL, "a"), part("large", "b", length=3)
    small = part("small", "a", setup=4)
    assert bench.estimate(large, there=1) == 2 * 2 * 3 * 4  # to warm up, and three repetitions
    assert bench.estimate(matmul, there=0) == 10 + 2 * 2 * 4
    assert bench.estimate(part("many", "a", many=9), there=1) == 10 * 2 + 16
    bench.run([matmul, large, part("larger", "b", length=3), small])
    # 3 s, then 3 x 8 s; 33 s are left
    assert bench.left_out == {"larger": "it takes an estimated 48 s, of which 33 are left"}
    assert list(bench.found) == [gpu.MATMUL, "large", "small"]
    assert [by for *_, by in clock.begun] == [60, 60, 60]  # at most until the time is up
    assert json.loads((tmp_path / "a.json").read_text())["left_out"] == bench.left_out


def test_what_takes_too_long_is_ended_and_the_rest_goes_on(tmp_path, monkeypatch) -> None:
    clock = Clock({"slow": 1000.0})
    bench = bench_of(clock, monkeypatch, tmp_path, minutes=5)
    bench.run([part(gpu.MATMUL, "a"), part("hangs", "slow", setup=8), part("next", "a")])
    assert bench.left_out == {"hangs": "it failed: was not done in time"}
    assert clock.now == 3 + 3 * 24 + 3  # three times its estimate
    assert list(bench.found) == [gpu.MATMUL, "next"]


def test_without_the_rate_of_products_nothing_is_measured(tmp_path, monkeypatch) -> None:
    bench = bench_of(Clock({"slow": 1e6}), monkeypatch, tmp_path)
    bench.run([part(gpu.MATMUL, "slow"), part("next", "a")])
    assert not bench.found
    assert bench.left_out["next"].startswith("how much to measure follows from the rate of prod")


def test_how_much_is_measured(tmp_path, monkeypatch) -> None:
    clock = Clock({})
    bench = bench_of(clock, monkeypatch, tmp_path)
    options = {"tokens": 100, "batch": 64}
    bench.run([
        part(gpu.MATMUL, "a"),
        part("one", "benchmarks.finetune:prepare", options),
        part("eight", "benchmarks.finetune:prepare", options, many=8, setup=-60),
    ])  # fmt: skip
    # 0.4 x 1e12 FLOP/s / (6 x 1e6 x 100 a token) x 2 s = 1333 examples: 21 batches of 64
    assert [o["random"] for _, o, _ in clock.begun[1:]] == [21 * 64, 4 * 64]


def test_variants_follow_what_they_are_compared_with() -> None:
    plain = [p.name for p in gpu.parts(gpu.LARGE, variants=False)]
    names = [p.name for p in gpu.parts(gpu.LARGE, variants=True)]
    more = ["packed, MNLI's lengths", "compiled, 128 tokens", "compiled, MNLI's lengths"]
    assert names == [*plain[:5], *more, *plain[5:]] and plain[4] == "trainer-best, 128 tokens"


def test_the_comparisons_by_hand() -> None:
    size = gpu.Size("R", 1, 256, 64, (1, 2), (64, 128), (16,), seconds=1, repetitions=2, start=1)

    def run(seconds, examples=100, flop=5e12, **more):
        return {"seconds": seconds, "examples": examples, "flop": flop, **more}

    found = {
        gpu.MATMUL: [[{"flops": 8e12}], [{"flops": 10e12}]],
        "ours, MNLI's lengths": [[run(1.0)], [run(2.0)]],
        "trainer-best, MNLI's lengths": [[run(4.0)], [run(4.0)]],
        "packed, MNLI's lengths": [[run(0.5, **{"with": "varlen"})]],
        "1 at once": [[run(2.0)]],
        "2 at once": [[run(2.0), run(4.0)]],
        gpu.MEMORY: [[{"16": {"estimated": 3e9, "measured": 2e9}}]],
        gpu.EVALUATION: [[{"64": 10.0, "128": 20.0}]],
    }
    said = [(r["what"], r["ours"], r["spread"], r["peer"], r["theirs"], r["note"])
            for r in gpu.rows(found, size)]  # fmt: skip
    what = "finetune, R, MNLI's lengths, batch"
    assert said == [
        ("products of matrices", 9.0, 2.0, "", None, ""),
        (f"{what} 256", 75.0, 50.0, "Trainer, best flags", 25.0, "42 % of the matmul rate"),
        (f"{what} 256, packed", 200.0, None, "the loop as it is", 75.0, "varlen"),
        (f"{what} 64, 1 at once", 50.0, None, "", None, "28 % of the matmul rate"),
        (f"{what} 64, 2 at once", 50.0, None, "1 at once", 50.0, "28 % of the matmul rate"),
        ("memory of a finetuning, R, batch 16", 3.0, None, "measured", 2.0, "ours is the estimate"),
        ("evaluation, R, MNLI's lengths, batches of 64", 10.0, None, "", None, ""),
        ("evaluation, R, MNLI's lengths, batches of 128", 20.0, None, "of 64", 10.0, ""),
    ]


@pytest.fixture
def slow(tmp_path, monkeypatch) -> str:
    (tmp_path / "slow.py").write_text(
        "import os, time\n"
        "def sleep(seconds, seed): return lambda: time.sleep(seconds)\n"
        "def loud(seed): print('noise'); return lambda: {'seed': seed, 'pid': os.getpid()}\n"
        "def dead(seed): os._exit(3)\n"
        "def wrong(seed): raise MemoryError('out of it')\n"
    )
    monkeypatch.setenv("PYTHONPATH", environment(tmp_path)["PYTHONPATH"])
    return "slow"


def test_workers_answer_side_by_side_and_are_ended_in_time(slow) -> None:
    with Workers() as some:
        some.prepare(2, "slow:loud", {})
        first, second = some.go(2), some.go(2)
        assert first == second and [a["seed"] for a in first] == [0, 1]
        for what, said in (
            ("dead", "its process ended with code 3"),
            ("wrong", "MemoryError: out"),
        ):
            with pytest.raises(WorkerError, match=said):
                some.prepare(1, f"slow:{what}", {})
            assert len(some) == 0  # all are gone, and made anew for the next
        some.prepare(1, "slow:sleep", {"seconds": 600})
        began = time.monotonic()
        with pytest.raises(WorkerError, match="was not done in time"):
            some.go(1, by=began + 0.2)
        assert time.monotonic() - began < 60
    assert not any(Path(f"/proc/{answer['pid']}").exists() for answer in first)


@pytest.mark.filterwarnings("ignore")  # of Trainer, and of nested tensors
def test_trainer_at_its_best_and_a_packed_batch(monkeypatch) -> None:
    keys = {"examples": 0, "epochs": 1, "batch": 8, "random": 32, "tokens": 0, "seed": 0}
    run = finetune.prepare("trainer-best", "", shape="tiny RoBERTa", **keys)
    assert run()["examples"] == 32

    work = random(12, 0, "tiny RoBERTa")
    models = [work.model(plain=True).eval() for _ in range(2)]
    packed, train = variants.pack(models[1], work.train)
    rows = [3, 1, 7, 0]
    labels = work.train.labels_of(rows)
    padded = models[0](**work.train.batch(rows), labels=labels)
    row = packed(**train.batch(rows), labels=labels)
    assert padded.logits.std(0).min() > 1e-3
    assert torch.allclose(padded.logits, row.logits, atol=1e-6)
    padded.loss.backward()
    row.loss.backward()
    for one, other in zip(models[0].parameters(), packed.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-6)


def test_random_lengths_are_those_of_mnli() -> None:
    lengths = random(20_000, 0, "tiny RoBERTa").train.lengths().float()
    assert abs(lengths.mean() - 39) < 1 and lengths.max() > 128
    quartiles = lengths.quantile(torch.tensor([0.25, 0.5, 0.75, 0.99]))
    assert torch.allclose(quartiles, torch.tensor([26.0, 36.0, 49.0, 99.0]), atol=5)
