"""One command at a time for a run directory, from its first check to its last line."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cold_flower.errors import RunError
from cold_flower.repository.journal import CONFIG, Journal

PATIENCE = 10  # seconds: the server of a command that was killed ends a moment after it


@contextmanager
def alone(run_dir: Path) -> Iterator[None]:
    """Keep other commands from a run, which may have no directory yet.

    The server locks the directory itself, but some twenty seconds after the command began: until
    then a second one would remove the first one's result and log.

    Raises:
        RunError: another command is at work with it, or another's server.
    """
    path = run_dir.parent / f".{run_dir.name}.lock"
    made = [folder for folder in run_dir.parents if not folder.exists()]  # the nearest first
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino
        except OSError:
            mine = False
        if not mine:  # the other one may just have ended, and removed the file
            raise RunError(
                f"another command is at work with {run_dir}: wait until it ends, or name another "
                "directory (--run-dir)"
            )
        try:
            _wait_for_server(run_dir)
            yield
        finally:
            path.unlink(missing_ok=True)
            with suppress(OSError):  # as soon as one is not empty
                for folder in made:
                    folder.rmdir()


def _wait_for_server(run_dir: Path) -> None:
    if not (run_dir / CONFIG).exists():
        return
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            with Journal(run_dir).locked():
                return
        except RunError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)
