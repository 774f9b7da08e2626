"""What a slow contributor costs, with and without a barrier (FedBuff, Nguyen et al. 2106.06639).

    python -m benchmarks.asynchronous [--seeds 0,1,2] [--seconds 8] [--slow 10] [--figure FILE.svg]

Eight contributors of the demo, a worker each; finetuning takes each some seconds more than it
would, as if it had that much more data, and one of them ten times as many. Synchronous iterations
wait for it; with ``schedule = asynchronous`` four contributions make an iteration. Both take the
same number of contributions. Nothing is evaluated meanwhile, for contributors would go on under it;
the scores are those of the same run repeated (``--replay``).
"""

import argparse
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import results
from cold_flower.reporting.statistics import gains, mean_and_sem
from cold_flower.repository.bases import Repository
from cold_flower.repository.journal import PROGRESS, SCORES, Journal

SYNCHRONOUS: dict[str, object] = {"iterations": 3, "contributors-per-iteration": 0}
ASYNCHRONOUS: dict[str, object] = {
    **SYNCHRONOUS,
    "schedule": "asynchronous",
    "buffer": 4,
    "iterations": 6,
}
KINDS = {"synchronous": SYNCHRONOUS, "asynchronous": ASYNCHRONOUS}
WORKERS = 8
SLOW = "music"

SLEEPING = """

def slowed(self, body, _own=Contributor.finetune, **more):
    from time import sleep
    sleep({seconds} * ({slow} if self.name == "{name}" else 1))
    return _own(self, body, **more)

Contributor.finetune = slowed
"""  # at the end of what contributors run


def run(kind: str, seed: int, folder: Path, seconds: float, slow: float) -> None:
    """Run one kind; called in a process of its own."""
    from cold_flower.commands.cli import main
    from cold_flower.runtime import bundle, resources, simulate

    stage, allocate = bundle.stage, resources.allocate

    def sleeping(app: Path, config: Any) -> Path:
        stage(app, config)
        with (app / "cold_flower" / "contributors" / "contributor.py").open("a") as code:
            code.write(SLEEPING.format(seconds=seconds, slow=slow, name=SLOW))
        return app

    def all_at_once(*args: Any, **more: Any) -> resources.Allocation:
        return replace(allocate(*args, **more), workers=WORKERS, cpus=1)

    vars(simulate)["stage"] = sleeping  # the names that are called
    vars(resources)["allocate"] = all_at_once
    settings = {**KINDS[kind], "seed": seed, "evaluate.protocols": ""}
    given = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    sys.argv = ["cold-flower", "simulate", "demo", "--run-dir", str(folder), *given]
    main()


def curve(folder: Path) -> list[tuple[float, float]]:
    """Return seconds since the first message and the frozen gain on seen tasks, base by base."""
    scored = folder.with_name("scored")
    tool = str(Path(sys.executable).parent / "cold-flower")
    command = [tool, "simulate", "--replay", str(folder)]
    command += ["--run-dir", str(scored), "--set", "evaluate.protocols=frozen"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    events, rows = Journal(folder).rows(PROGRESS), Journal(scored).rows(SCORES)
    for base in sorted({row["iteration"] for row in rows}):
        if Repository(scored).sha256(base) != Repository(folder).sha256(base):
            raise SystemExit(f"base {base} was not repeated to the bit")
    started = next(e["time"] for e in events if e["line"].startswith("iteration 1:"))
    published = {e["published"]: e["time"] - started for e in events if "published" in e}
    return [
        (time, mean_and_sem(gains(rows, "seen", "frozen", i))[0])
        for i, time in sorted(published.items())
    ]


def draw(curves: dict[str, list[list[tuple[float, float]]]], path: Path) -> None:
    """Draw score against wall time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    ax = figure.subplots()
    for (kind, runs), colour in zip(curves.items(), ("#0072B2", "#D55E00"), strict=True):
        for n, points in enumerate(runs):
            x, y = zip((0.0, 0.0), *points, strict=True)
            label = kind if n == 0 else None
            ax.plot(x, [100 * v for v in y], marker="o", markersize=4, color=colour, label=label)
    ax.set_xlabel("seconds since the first message")
    ax.set_ylabel("frozen, seen: gain over the start, points")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="lower right")
    figure.savefig(path)


def main() -> None:
    """Run both kinds with each seed; print the curves and the times to the same score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--slow", type=float, default=10)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--only", choices=KINDS, help="internal")
    parser.add_argument("--run", type=Path, help="internal")
    chosen = parser.parse_args()
    if chosen.only:
        run(chosen.only, int(chosen.seeds), chosen.run, chosen.seconds, chosen.slow)
        return
    curves: dict[str, list[list[tuple[float, float]]]] = {kind: [] for kind in KINDS}
    for seed in chosen.seeds.split(","):
        for kind in KINDS:
            with tempfile.TemporaryDirectory(prefix="asynchronous-") as folder:
                there = Path(folder) / "run"
                command = [sys.executable, "-m", "benchmarks.asynchronous", "--only", kind]
                command += ["--seeds", seed, "--run", str(there)]
                command += ["--seconds", str(chosen.seconds), "--slow", str(chosen.slow)]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(f"{kind} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
                curves[kind].append(curve(there))
            points = ", ".join(f"{t:.0f} s {100 * g:+.1f}" for t, g in curves[kind][-1])
            print(f"seed {seed}, {kind}: {points}", flush=True)
    if chosen.figure:
        draw(curves, chosen.figure)
    reached = []
    for ours, theirs in zip(curves["asynchronous"], curves["synchronous"], strict=True):
        score = theirs[-1][1]
        reached.append(next((t for t, gain in ours if gain >= score), None))
    print(f"reached the score of the synchronous base 3 after {reached} s")
    ended = {kind: [points[-1][0] for points in curves[kind]] for kind in KINDS}
    what = f"24 contributions of 8, one of which takes {chosen.slow:g} times as long"
    results.keep(what, ended["asynchronous"], "synchronous", ended["synchronous"], "s")


if __name__ == "__main__":
    main()
