"""What a run leaves behind besides its iterations: config, scores, contributions, result.

Every file is written whole or appended by lines, so a run that is stopped at any moment
leaves what it had.
"""

import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from cold_flower.config import Config
from cold_flower.errors import RunError

CONFIG, SCORES, CONTRIBUTIONS = "config.json", "scores.jsonl", "contributions.jsonl"
VALIDATION = "validation.jsonl"  # of the gate
RESULT, PROGRESS = "result.json", "progress.jsonl"
LOG = "flower.log"
FULL = "no space left on the disk of the run directory: make room there"
SITES = "sites.jsonl"  # who came, left, was refused; with versions and code
# Environment: the runner tells the ServerApp of its workers, and of itself.
WORKERS, RUNNER = "COLD_FLOWER_WORKERS", "COLD_FLOWER_RUNNER"
_MAY_CHANGE = ("iterations", "resume", "run-dir", "log", "sites.allow", "sites.minimum")
_locks: list[int] = []  # open for as long as the process lives


class Journal:
    """The records of one run directory."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir

    def open(self, config: Config, about: Mapping[str, Any]) -> None:
        """Start the records of a new run, or check that a resumed one is the same run.

        Raises:
            RunError: the directory exists and ``resume`` is not set, or the other way
                round; or a key changed.
        """
        path = self.run_dir / CONFIG
        if not config.resume:
            check_new(self.run_dir)
            self.run_dir.mkdir(parents=True, exist_ok=True)
            self.lock()
            about = {"run": secrets.token_hex(8), **about}
            self.write(CONFIG, {"config": config.flat(), **about})
            return
        check_same(self.run_dir, config)
        self.lock()
        (self.run_dir / RESULT).unlink(missing_ok=True)
        self.write(CONFIG, {**json.loads(path.read_text()), "config": config.flat()})

    def lock(self) -> None:
        """Keep others out of this directory for as long as this process lives.

        Raises:
            RunError: a run is at work there.
        """
        file = os.open(self.run_dir / ".lock", os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            raise RunError(f"another run is at work in {self.run_dir}") from error
        _locks.append(file)

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a JSON file whole."""
        temporary = self.run_dir / f".{name}"
        with temporary.open("w") as file:
            file.write(json.dumps(value, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.run_dir / name)

    def append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append JSON lines and make them durable; who appends holds the lock."""
        with self._end_of(name) as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
            file.flush()
            os.fsync(file.fileno())

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Read JSON lines; a last one that is cut off, or just being written, does not count."""
        path = self.run_dir / name
        text = path.read_bytes() if path.exists() else b""
        return [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]

    def _end_of(self, name: str) -> BinaryIO:
        """Open a file behind its last whole line."""
        file = (self.run_dir / name).open("a+b")
        end = file.tell()
        file.seek(max(0, end - 1))
        if end and file.read(1) != b"\n":  # a process was killed while it wrote
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        return file

    def say(self, line: str, **about: Any) -> dict[str, Any]:
        """Record an event: a line to read, and what a progress display needs beside it."""
        event = {"time": round(time.time(), 3), "line": line, **about}
        with self._end_of(PROGRESS) as file:
            file.write(json.dumps(event).encode() + b"\n")
        return event


def run_id(run_dir: Path) -> str:
    """Return what tells this run from any other, also where another had its folder before."""
    return str(json.loads((run_dir / CONFIG).read_text())["run"])


def check_new(run_dir: Path) -> None:
    """Refuse a directory that holds anything but what a start leaves that was cut off.

    Raises:
        RunError: naming the way out.
    """
    begun = {".lock", f".{CONFIG}", LOG}
    if run_dir.exists() and (not run_dir.is_dir() or {p.name for p in run_dir.iterdir()} - begun):
        raise RunError(
            f"run directory {run_dir} exists: add --resume to continue that run, or name "
            "another with --run-dir"
        )


def check_same(run_dir: Path, config: Config) -> None:
    """Check that ``config`` resumes the run that lies in ``run_dir``.

    Raises:
        RunError: no run lies there; a key changed that may not; or fewer iterations than
            there were to be.
    """
    before = load_config(run_dir)
    changed = [
        f"{key} (was {before.get(key)!r}, now {value!r})"
        for key, value in config.flat().items()
        if key not in _MAY_CHANGE and before.get(key) != value
    ]
    if changed:
        raise RunError(f"cannot resume {run_dir}: changed {', '.join(changed)}")
    if config.iterations < before["iterations"]:
        raise RunError(
            f"cannot resume {run_dir} with iterations = {config.iterations}: it was to have "
            f"{before['iterations']}"
        )


def load_config(run_dir: Path) -> dict[str, Any]:
    """Return the flat configuration that a run was started with.

    Raises:
        RunError: the folder holds no run.
    """
    try:
        found: dict[str, Any] = json.loads((run_dir / CONFIG).read_text())["config"]
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{run_dir} holds no run (no readable {CONFIG})") from error
    return found
