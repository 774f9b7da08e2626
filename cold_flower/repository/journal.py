"""What a run leaves behind besides its iterations: config, scores, contributions, result.

Every file is either replaced in one step or grows by lines. So a run that is stopped at any
moment leaves what it had.
"""

import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from cold_flower.config import Config
from cold_flower.data.facts import DATA
from cold_flower.errors import RunError
from cold_flower.identity import timestamp
from cold_flower.repository.index import Index

CONFIG, SCORES, CONTRIBUTIONS = "config.json", "scores.jsonl", "contributions.jsonl"
VALIDATION = "validation.jsonl"  # of the gate's candidates
RESULT, PROGRESS = "result.json", "progress.jsonl"
WAITS = "waits"  # of an event there: what the run waits for next, where that may take long
READ = "read"  # of an event there: by contributor, its shares of tokens unknown and of texts cut
# Of events, too: whom a phase asks; who begins; whose answer came (verdict, seconds, worker).
ASKED, BEGUN, WHO = "asked", "begun", "who"
LEFT_OUT = "left-out"  # of an event, too: whose contributions are to say a base's finetuned score
RESUMED = "resumed"  # in CONFIG: what was no longer the same when a run went on, and when
TAKEN_OVER = "taken-over"  # of an event, too: how many contributions another run has finetuned
LOG = "flower.log"
SITES = "sites.jsonl"  # which came, left or was refused; with versions and code
FULL = "no space left on the disk of the run directory: make room there"
# Environment variables by which the runner tells the ServerApp its number of workers and its
# process id.
WORKERS, RUNNER = "COLD_FLOWER_WORKERS", "COLD_FLOWER_RUNNER"
LEFT = "left.jsonl"  # who left for good (`cold_flower.commands.leave`), and what was replayed
_MAY_CHANGE = (
    *("iterations", "resume", "run-dir", "log", "explicit", "keep-contributions"),
    *("sites.allow", "sites.minimum", "evaluate.reuse"),
)
# With sites of their own, of which one may not come back. In a simulation nobody is away, and a
# sweep takes a run that ended with other keys for another run.
_OF_SITES = ("quorum", "wait.nodes", "wait.replies")
_UNSAID = ("resume", "run-dir", "explicit")  # of those: how it was called


class Journal:
    """The records of one run directory."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._indexes: dict[tuple[str, str], Index] = {}
        self._lock = -1  # file descriptor; the lock lives as long as it is open

    def open(self, config: Config, facts: Mapping[str, Any]) -> None:
        """Start the records of a new run, or check that a resumed one is the same run.

        A run may go on with other versions or code: that is said and recorded.

        Args:
            config: the run's.
            facts: to be kept beside it, such as versions.

        Raises:
            RunError: the directory exists and ``resume`` is not set, or the other way
                round; or a key changed.
        """
        if not config.resume:
            check_new(self.run_dir)
            self.run_dir.mkdir(parents=True, exist_ok=True)
            self.lock()
            run_id = secrets.token_hex(8)
            self.write(CONFIG, {"config": config.flat(), "run": run_id, **facts})
            return
        check_same(self.run_dir, config)
        self.lock()
        (self.run_dir / RESULT).unlink(missing_ok=True)
        before = json.loads((self.run_dir / CONFIG).read_text())
        asked = config.flat()
        for key, was in before["config"].items():
            if key in asked and asked[key] != was and key not in _UNSAID:
                self.say(f"the run goes on with {key} = {asked[key]!r}; until now {was!r}")
        new = {key: value for key, value in facts.items() if values(before, key)[-1:] != [value]}
        for key, value in new.items():
            if until_now := values(before, key):
                was = until_now[-1]
                self.say(f"WARNING: the run goes on with other {key}: {value}; until now {was}")
        if new:
            before[RESUMED] = [*before.get(RESUMED, ()), {"time": timestamp(), **new}]
        self.write(CONFIG, {**before, "config": asked})

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others out of this directory for a while.

        Raises:
            RunError: a run is at work in it.
        """
        self.lock()
        try:
            yield
        finally:
            self.unlock()

    def lock(self) -> None:
        """Keep others out of this directory until `unlock`, or the end of this process.

        Raises:
            RunError: a run is at work in it.
        """
        file = os.open(self.run_dir / ".lock", os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            raise RunError(f"another run is at work in {self.run_dir}") from error
        self._lock = file

    def unlock(self) -> None:
        """Let others into this directory again."""
        os.close(self._lock)
        self._lock = -1  # the number may soon be another file's

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a JSON file, or replace it, in one step."""
        temporary = self.run_dir / f".{name}"
        with temporary.open("w") as file:
            file.write(json.dumps(value, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.run_dir / name)

    def append(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append JSON lines and make them durable. Only for the process that holds the lock."""
        with self._open_at_end(name) as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
            file.flush()
            os.fsync(file.fileno())

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Read JSON lines, without a last one that is cut off or is just being written."""
        path = self.run_dir / name
        text = path.read_bytes() if path.exists() else b""
        return [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]

    def left(self) -> list[str]:
        """Return who left this run for good."""
        return [row["contributor"] for row in self.rows(LEFT)]

    def where(self, name: str, key: str, value: Any) -> list[dict[str, Any]]:
        """Read those JSON lines whose ``key`` has a value; the time does not grow with the file."""
        index = self._indexes.setdefault((name, key), Index(self.run_dir / name, key))
        return index.rows(value)

    def _open_at_end(self, name: str) -> BinaryIO:
        """Open a file to append lines; a last line that was cut off is removed."""
        file = (self.run_dir / name).open("a+b")
        end = file.tell()
        file.seek(max(0, end - 1))
        if end and file.read(1) != b"\n":  # a process was killed while it wrote
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        return file

    def say(self, line: str, **facts: Any) -> dict[str, Any]:
        """Record an event: a line to read, and the facts that a progress display needs."""
        event = {"time": round(time.time(), 3), "line": line, **facts}
        with self._open_at_end(PROGRESS) as file:
            file.write(json.dumps(event).encode() + b"\n")
        return event


def others(run_dir: Path, facts: Mapping[str, Any]) -> list[str]:
    """Return which of these facts were others during a part of a run."""
    there = facts_of(run_dir)
    return [key for key, value in facts.items() if {*there.get(key, ())} - {value}]


def facts_of(run_dir: Path) -> dict[str, list[str]]:
    """Return what `cold_flower.data.facts` said of a run, each from its begin on."""
    file = run_dir / CONFIG
    kept = json.loads(file.read_text()) if file.exists() else {}
    keys = [key for key in kept if key in ("versions", "code") or key.endswith((" file", DATA))]
    return {key: values(kept, key) for key in keys}


def values(kept: Mapping[str, Any], key: str) -> list[Any]:
    """Return the values that a fact had, from a run's begin on; ``kept`` is its ``config.json``."""
    return [part[key] for part in (kept, *kept.get(RESUMED, ())) if key in part]


def run_id(run_dir: Path) -> str:
    """Return the run's own id: it differs also from that of an earlier run in this folder."""
    return str(json.loads((run_dir / CONFIG).read_text())["run"])


def check_new(run_dir: Path) -> None:
    """Refuse a directory with anything in it, but for what a start that was cut off leaves.

    Raises:
        RunError: naming the way out.
    """
    leftovers = {".lock", f".{CONFIG}", LOG}
    if run_dir.exists() and (
        not run_dir.is_dir() or {path.name for path in run_dir.iterdir()} - leftovers
    ):
        raise RunError(
            f"run directory {run_dir} exists: add --resume to continue that run, or name "
            "another with --run-dir (in Python: resume=True, run_dir=...)"
        )


def check_same(run_dir: Path, config: Config) -> None:
    """Check that ``config`` resumes the run that lies in ``run_dir``.

    Raises:
        RunError: no run lies there; a key changed that may not; or there are to be fewer
            iterations than before.
    """
    before = {**Config().flat(), **load_config(run_dir)}  # a key that is newer has its default
    may_change = {*_MAY_CHANGE, *(_OF_SITES if config.sites.allow else ())}
    if config.schedule == "asynchronous":
        may_change.discard("quorum")  # how many a base is made of, there
    changed = [
        f"{key} (was {before.get(key)!r}, now {value!r})"
        for key, value in config.flat().items()
        if key not in may_change and before.get(key) != value
    ]
    if changed:
        raise RunError(
            f"cannot resume {run_dir}: changed {', '.join(changed)}. With other keys it is another "
            "run: give it a directory of its own (--run-dir)"
        )
    if config.iterations < before["iterations"]:
        raise RunError(
            f"cannot resume {run_dir} with iterations = {config.iterations}: it was to have "
            f"{before['iterations']}"
        )


def load_config(run_dir: Path) -> dict[str, Any]:
    """Return the flat configuration that a run was started with, or last resumed with.

    Raises:
        RunError: the folder holds no run.
    """
    try:
        config: dict[str, Any] = json.loads((run_dir / CONFIG).read_text())["config"]
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{run_dir} holds no run (no readable {CONFIG})") from error
    return config
