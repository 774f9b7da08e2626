"""The crash matrices: kill -9 at random moments, resume, compare (``tests.acceptance crash``)."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cold_flower.repository.arrivals import ARRIVALS
from cold_flower.repository.bases import Repository
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
ASYNCHRONOUS = ["--set", "schedule=asynchronous", "--set", "buffer=2", "--set", "iterations=4"]
Events = list[dict[str, Any]]
Rows = list[dict[str, Any]]
Moments = dict[str, tuple[Callable[[Path, Events], bool], float]]


def phase(name: str, iteration: int, done: int) -> Callable[[Path, Events], bool]:
    """Wait until so much of a phase is done."""
    return lambda _, events: any(
        e.get("phase") == name and e.get("iteration") == iteration and e.get("done", -1) >= done
        for e in events
    )


def publishing(folder: Path, _: Events) -> bool:
    """Wait for the moment in which iteration 1 is being written."""
    return (folder / "iterations" / ".0001").exists()


MOMENTS: Moments = {
    "before the first message": (lambda _, events: any("server" in e for e in events), 1.5),
    "mid-collection": (phase("finetune", 2, 1), 0.3),
    "mid-fuse": (phase("finetune", 1, 3), 0.05),
    "mid-publish": (publishing, 0.0),
    "mid-evaluation": (phase("evaluate", 1, 2), 0.5),
}
"""When each begins, and the most seconds after that until the blow."""
MOMENTS_OF_ASYNCHRONOUS: Moments = {
    "mid-collection": (phase("finetune", 2, 1), 0.3),
    "mid-fuse": (phase("finetune", 1, 2), 0.05),
    "others at work": (phase("evaluate", 2, 1), 0.5),
}


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
    want = outcome(whole)
    return _matrix(
        folder, settings, MOMENTS, [*VICTIMS], events, lambda there, _: outcome(there) == want
    )


def crash_asynchronous(folder: Path, events: Callable[[Path], Events]) -> bool:
    """Kill runs in which nobody waits: what had arrived counts, and they can be repeated."""
    settings = [*SMALL, *LONGER, *ASYNCHRONOUS]
    return _matrix(folder, settings, MOMENTS_OF_ASYNCHRONOUS, [*VICTIMS][:4], events, _repeated)


def _repeated(run: Path, arrived: Rows) -> bool:
    """Return whether a run lost nothing that had arrived, and is repeated to the bit."""
    store = Repository(run)
    numbers = range(1, (store.latest() or 0) + 1)
    taken = {
        (i, row["name"], row["sha256"])
        for i in numbers
        for row in store.manifest(i)["contributors"]
    }
    lost = [r for r in arrived if (r["iteration"], r["contributor"], r["sha256"]) not in taken]
    again = run.with_name(f"{run.name}-again")
    command = [COLD_FLOWER, "simulate", "--replay", str(run), "--run-dir", str(again)]
    subprocess.run([*command, "--set", "evaluate.protocols="], check=True, capture_output=True)
    theirs = Repository(again)
    return not lost and all(store.sha256(i) == theirs.sha256(i) for i in numbers)


def _matrix(
    folder: Path,
    settings: list[str],
    moments: Moments,
    victims: list[str],
    events: Callable[[Path], Events],
    good_end: Callable[[Path, Rows], bool],
) -> bool:
    """Kill each of some kinds of process at each of some moments, and go on.

    Args:
        folder: for the runs.
        settings: of the demo.
        moments: as `MOMENTS`.
        victims: of `VICTIMS`.
        events: reads a run's progress.
        good_end: judges a run that ended, and what had arrived when it was killed.
    """
    command = [COLD_FLOWER, "simulate", "demo", *settings, "--run-dir"]
    good, chance = True, random.Random(0)
    for moment, (reached, latest) in moments.items():
        for victim in victims:
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
            log = there / ARRIVALS
            lines = log.read_text().splitlines() if log.exists() else []
            arrived = [json.loads(line) for line in lines]
            kept = sorted(p.stem for p in there.glob("incoming/*/[a-z]*.safetensors"))
            resume = ["--resume"] if (there / "config.json").exists() else []
            again = subprocess.run([*command, str(there), *resume], capture_output=True, text=True)
            asked = [e["line"] for e in events(there) if "already here" in e["line"]]
            same = again.returncode == 0 and good_end(there, arrived)
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
