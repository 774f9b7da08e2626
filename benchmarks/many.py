"""What contributors cost that do not take part: N tasks, 8 asked each iteration, no finetuning.

    python -m benchmarks.many [--contributors 36,300,1000,5000] [--iterations 3]
    python -m benchmarks.many --contributors 36 --iterations 200

Each contributor has a small file of its own and adds a constant instead of finetuning; four of
them evaluate. Measured is the whole ``cold-flower simulate``: until the server starts (the
command checks all data), from there to the first message of iteration 1, and around an iteration,
in the first half of them and in the second. Each in seconds, and in CPU seconds of all the run's
processes, which other work on the machine moves less. Then the server's peak of anonymous memory,
and what lies in the run directory at the end.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from benchmarks.machine import anonymous
from benchmarks.overhead import without_finetuning
from cold_flower.data import demo
from cold_flower.repository.journal import PROGRESS, Journal
from cold_flower.runtime.processes import descendants

ASKED, EVALUATED = 8, 4
ROWS = {"train": 40, "test": 20}
LIMIT = 3600.0  # seconds of one run
TICK = os.sysconf("SC_CLK_TCK")


def suite(folder: Path, contributors: int) -> Path:
    """Write a suite of as many tasks, each with files of its own; return its path."""
    tasks = {}
    source = {
        split: [
            json.dumps(dict(zip(("text", "label"), row, strict=True)))
            for row in zip(*demo.columns("travel", split, 0).values(), strict=True)
        ]
        for split in ROWS
    }
    for i in range(contributors):
        own = folder / f"task-{i:05d}"
        own.mkdir()
        for split, size in ROWS.items():
            (own / f"{split}.jsonl").write_text("\n".join(source[split][:size]) + "\n")
        tasks[own.name] = {
            "source": "files",
            "path": own.name,
            "text": ["text"],
            "label": "label",
            "splits": {split: split for split in ROWS},
        }
    path = folder / "suite.toml"
    path.write_text(tomli_w.dumps({"tasks": tasks}))
    return path


def run(suite: Path, run_dir: Path, iterations: int) -> None:
    """Run in this process, and in those that it starts."""
    from cold_flower.commands.cli import main

    without_finetuning()
    settings: Mapping[str, Any] = {
        "suite": suite,
        "unseen": "",
        "tasks": "",
        "contributors-per-iteration": ASKED,
        "iterations": iterations,
        "evaluate.every": 1,
        "evaluate.protocols": "frozen",
        "evaluate.tasks": ",".join(f"task-{i:05d}" for i in range(EVALUATED)),
        "keep-iterations": 1,
    }
    given = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    sys.argv = ["cold-flower", "simulate", "demo", "--run-dir", str(run_dir), *given]
    main()


class Used:
    """What a run has used so far, sampled: CPU seconds of all its processes, the server's bytes."""

    def __init__(self, pid: int, run_dir: Path) -> None:
        self._pid, self._journal, self._server = pid, Journal(run_dir), 0
        self._seconds: dict[int, float] = {}  # by process, also of those that ended
        self._samples: list[tuple[float, float]] = []
        self.bytes = 0

    def sample(self) -> None:
        """Look once."""
        if not self._server:
            events = self._journal.rows(PROGRESS)
            self._server = next((e["server"] for e in events if "server" in e), 0)
        for pid in descendants(self._pid):
            with suppress(OSError, IndexError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                self._seconds[pid] = (int(fields[11]) + int(fields[12])) / TICK
        self.bytes = max(self.bytes, anonymous(self._server))
        self._samples.append((time.time(), sum(self._seconds.values())))

    def seconds(self, moment: float) -> float:
        """Return the CPU seconds until a moment, between two samples on their line."""
        times, used = zip(*self._samples, strict=True)
        return float(np.interp(moment, times, used))


def measure(contributors: int, iterations: int) -> dict[str, float]:
    """Run once in a process of its own; return figures by name."""
    with tempfile.TemporaryDirectory(prefix="many-") as name:
        folder = Path(name)
        run_dir = folder / "run"
        command = [sys.executable, "-m", "benchmarks.many", "--run", str(run_dir)]
        command += ["--suite", str(suite(folder, contributors)), "--iterations", str(iterations)]
        began = time.time()
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
            used = Used(process.pid, run_dir)
            while process.poll() is None:
                used.sample()
                time.sleep(0.5)
                if time.time() - began > LIMIT:
                    process.terminate()
                    process.wait()
                    raise SystemExit(f"{contributors} contributors: not within {LIMIT:g} s")
        if process.returncode:
            raise SystemExit(f"failed:\n{(folder / 'log').read_text()[-3000:]}")
        return figures(run_dir, began, used, iterations)


def figures(run_dir: Path, began: float, used: Used, iterations: int) -> dict[str, float]:
    """Read the figures of a run out of what it left."""
    events = Journal(run_dir).rows(PROGRESS)
    server = next(e["time"] for e in events if "server" in e)
    asked = [e["time"] for e in events if f": asking {ASKED} contributors" in e["line"]]
    asked.append(events[-1]["time"])
    each = [end - start for start, end in pairwise(asked)]
    cpu = [used.seconds(end) - used.seconds(start) for start, end in pairwise(asked)]
    half = max(1, iterations // 2)
    kept = list((run_dir / "contributors").rglob("*"))
    return {
        "check s": server - began,
        "check CPU s": used.seconds(server),
        "first message s": asked[0] - server,
        "first message CPU s": used.seconds(asked[0]) - used.seconds(server),
        "iteration s": statistics.median(each[:half]),
        "in the second half": statistics.median(each[-half:]),
        "iteration CPU s": statistics.fmean(cpu[:half]),
        "CPU in the second half": statistics.fmean(cpu[-half:]),
        "server MB": used.bytes / 1e6,
        "contributors' files": sum(path.is_file() for path in kept),
        "folders": sum(path.is_dir() for path in kept),
        "files in all": sum(path.is_file() for path in run_dir.rglob("*")),
    }


def main() -> None:
    """Measure each number of contributors; print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contributors", default="36,300,1000,5000")
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--suite", type=Path, help="internal")
    parser.add_argument("--run", type=Path, help="internal")
    chosen = parser.parse_args()
    if chosen.run:
        run(chosen.suite, chosen.run, chosen.iterations)
        return
    for contributors in map(int, chosen.contributors.split(",")):
        found = measure(contributors, chosen.iterations)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
        print(f"{contributors} contributors: {shown}", flush=True)


if __name__ == "__main__":
    main()
