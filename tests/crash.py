"""The crash matrix: kill -9 at random moments, resume, compare (``tests.acceptance crash``)."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cold_flower.repository.journal import PROGRESS
from tests.test_simulation import MARK, MEMORY, SMALL, command_of, marked

COLD_FLOWER = str(Path(sys.executable).parent / "cold-flower")
GATE = ["--set", "gate.protocol=frozen", "--set", "gate.tolerance=1", "--set", "gate.task-tolerance=1"]  # fmt: skip
# Three contributors on two workers, each a second: one has arrived, others are at work or wait.
LONGER = ["--set", "contributors-per-iteration=3", "--set", "finetune.max-examples=200", "--set", "finetune.max-epochs=10"]  # fmt: skip
VICTIMS = {
    "server": "flwr-simulation",
    "superlink": "flower-superlink",
    "actor": "ray::ClientAppActor",
    "runner": "",
    "tree": "",
}
Events = list[dict[str, Any]]


def phase(name: str, iteration: int, done: int) -> Callable[[Path, Events], bool]:
    """Wait until so much of a phase is done."""
    return lambda _, events: any(
        e.get("phase") == name and e.get("iteration") == iteration and e.get("done", -1) >= done
        for e in events
    )


def publishing(folder: Path, _: Events) -> bool:
    """Wait for the moment in which iteration 1 is being written."""
    return (folder / "iterations" / ".0001").exists()


MOMENTS: dict[str, tuple[Callable[[Path, Events], bool], float]] = {
    "before the first message": (lambda _, events: any("server" in e for e in events), 1.5),
    "mid-collection": (phase("finetune", 2, 1), 0.3),
    "mid-fuse": (phase("finetune", 1, 3), 0.05),
    "mid-publish": (publishing, 0.0),
    "mid-evaluation": (phase("evaluate", 1, 2), 0.5),
}
"""When each begins, and the most seconds after that until the blow."""


def pids(mark: str, pattern: str) -> list[int]:
    """Return the processes of a run whose command line has the pattern."""
    return [pid for pid in marked(mark) if pattern in command_of(pid)]


def crash(folder: Path, outcome: Callable[[Path], Any], events: Callable[[Path], Events]) -> bool:
    """Kill each kind of process at each kind of moment; all runs end as the one left alone.

    Args:
        folder: for the runs.
        outcome: what a finished run is judged by.
        events: reads a run's progress.
    """
    settings = [*SMALL, *LONGER, *MEMORY, *GATE]
    whole = folder / "left-alone"
    command = [COLD_FLOWER, "simulate", "demo", *settings, "--run-dir"]
    subprocess.run([*command, str(whole)], check=True, stdout=subprocess.DEVNULL)
    want, good, chance = outcome(whole), True, random.Random(0)
    for moment, (reached, latest) in MOMENTS.items():
        for victim in VICTIMS:
            there = folder / f"{victim}-{moment.replace(' ', '-')}"
            process = subprocess.Popen(
                [*command, str(there)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env={**os.environ, MARK: there.name},
            )
            while not reached(there, events(there)) and process.poll() is None:
                time.sleep(0.01)
            while victim == "actor" and not pids(there.name, VICTIMS[victim]):
                time.sleep(0.1)  # before the first message there may be none yet
            time.sleep(chance.uniform(0, latest))
            if victim == "runner":
                targets = [process.pid]
            elif victim == "tree":
                targets = marked(there.name)
            else:
                targets = pids(there.name, VICTIMS[victim])[:1]
            line = (events(there) or [{"line": "nothing yet"}])[-1]["line"]
            for pid in targets:
                os.kill(pid, signal.SIGKILL)
            started = time.monotonic()
            said = process.communicate(timeout=180)[1].strip().splitlines()[-1:]
            took = time.monotonic() - started
            # Ray's agents notice within a minute that their raylet is gone; the rest at once.
            while marked(there.name) and time.monotonic() < started + 120:
                time.sleep(0.1)
            gone = time.monotonic() - started
            left = [command_of(pid)[:80] for pid in marked(there.name)]
            kept = sorted(p.stem for p in there.glob("incoming/*/[a-z]*.safetensors"))
            resume = ["--resume"] if (there / "config.json").exists() else []
            again = subprocess.run([*command, str(there), *resume], capture_output=True, text=True)
            asked = [e["line"] for e in events(there) if "already here" in e["line"]]
            same = again.returncode == 0 and outcome(there) == want
            fine = same and process.returncode != 0 and not left and bool(targets)
            good &= fine
            print(
                f"{'ok  ' if fine else 'FAIL'} {victim:9} {moment:24} after {line[:48]!r}: exit "
                f"{process.returncode} after {took:.1f} s, all gone after {gone:.1f} s {left}; "
                f"inbox "
                f"{kept}; {asked}; same {same}; {said} {again.stderr.strip()[-200:]}",
                flush=True,
            )
    if not good:
        print(f"progress files: {folder}/*/{PROGRESS}")
    return good
