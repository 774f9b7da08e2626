"""The matrices that take too long for every commit: ``make acceptance``, run by hand.

    python -m tests.acceptance [demo] [determinism] [real]

- demo: five seeds; after the last iteration the fused base must beat the start frozen on
  seen tasks, frozen on unseen tasks and finetuned, by more than the standard error over
  tasks, for at least four.
- determinism: one seed twice, the second time on one core, so that replies arrive in
  another order: the same sha256 of every base.
- real: real_small with three seeds and once under stock FedAvg (needs COLD_FLOWER_REAL).
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cold_flower.journal import CONTRIBUTIONS, PROGRESS, SCORES, Journal
from cold_flower.report import gains, mean_and_sem
from cold_flower.repository import Repository

COLD_FLOWER = str(Path(sys.executable).parent / "cold-flower")


def run(folder: Path, experiment: str, *settings: str, prefix: tuple[str, ...] = ()) -> Path:
    """Run an experiment; return its directory."""
    command = [*prefix, COLD_FLOWER, "simulate", experiment, "--run-dir", str(folder)]
    for setting in settings:
        command += ["--set", setting]
    started = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    print(f"{folder.name}: {time.monotonic() - started:.0f} s", flush=True)
    return folder


def gain(folder: Path, protocol: str, *groups: str) -> tuple[float, float]:
    """Return the last base's gain over the start, in points: mean and SEM over tasks."""
    rows = Journal(folder).rows(SCORES)
    last = max(row["iteration"] for row in rows)
    found = [g for group in groups for g in gains(rows, group, protocol, last)]
    mean, sem = mean_and_sem(found)
    return 100 * mean, 100 * sem


def demo(folder: Path) -> bool:
    """Five seeds of the demo."""
    good = 0
    for seed in range(5):
        done = run(folder / f"demo-{seed}", "demo", f"seed={seed}")
        figures = {
            "frozen seen": gain(done, "frozen", "seen"),
            "frozen unseen": gain(done, "frozen", "unseen"),
            "finetuned": gain(done, "finetuned", "seen", "unseen"),
            "few-shot": gain(done, "few-shot", "seen", "unseen"),
        }
        wanted = [v for k, v in figures.items() if k != "few-shot"]
        won = all(mean > sem for mean, sem in wanted)
        good += won
        shown = ", ".join(f"{k} {mean:+.1f} ± {sem:.1f}" for k, (mean, sem) in figures.items())
        print(f"seed {seed}: {shown}: {'yes' if won else 'NO'}", flush=True)
    print(f"fusing helps for {good} of 5 seeds")
    return good >= 4


def determinism(folder: Path) -> bool:
    """One seed on all cores and on one."""
    runs = [
        run(folder / "two-cores", "demo"),
        run(folder / "one-core", "demo", prefix=("taskset", "-c", "0")),
    ]
    bases = [[Repository(r).manifest(i)["sha256"] for i in range(3)] for r in runs]
    scores = [sorted(json.dumps(row) for row in Journal(r).rows(SCORES)) for r in runs]
    arrived = [[event["line"] for event in Journal(r).rows(PROGRESS)] for r in runs]
    orders = [[line.split()[1] for line in a if "finetuned in" in line] for a in arrived]
    print(f"bases {bases[0]}\narrived as {orders[0]}\n       and {orders[1]}")
    assert len(Journal(runs[0]).rows(CONTRIBUTIONS)) == 16
    return bases[0] == bases[1] and scores[0] == scores[1] and orders[0] != orders[1]


def real(folder: Path) -> bool:
    """real_small on the real copies."""
    where = os.environ["COLD_FLOWER_REAL"]
    local = [f"suite={where}/data/suite.toml", f"base-model={where}/models/minilm"]
    good = True
    for name, more in (
        *((f"seed {seed}", [f"seed={seed}"]) for seed in range(3)),
        ("seed 0, FedAvg", ["fusion.strategy=flwr.serverapp.strategy:FedAvg"]),
    ):
        done = run(
            folder / f"real-{name.replace(', ', '-').replace(' ', '-')}",
            "real_small",
            *local,
            *more,
        )
        seen, unseen = gain(done, "frozen", "seen"), gain(done, "frozen", "unseen")
        print(
            f"{name}: seen {seen[0]:+.1f} ± {seen[1]:.1f}, unseen {unseen[0]:+.1f} ± {unseen[1]:.1f}"
        )
        good &= "FedAvg" in name or seen[0] > 2 * seen[1]
    return good


def main() -> None:
    """Run what is named, or all; exit with 1 if anything does not hold."""
    known = {"demo": demo, "determinism": determinism, "real": real}
    chosen = sys.argv[1:] or [k for k in known if k != "real" or "COLD_FLOWER_REAL" in os.environ]
    folder = Path(tempfile.mkdtemp(prefix="cold-flower-acceptance-"))
    print(f"runs in {folder}")
    results = {name: known[name](folder) for name in chosen}
    print(results)
    sys.exit(not all(results.values()))


if __name__ == "__main__":
    main()
