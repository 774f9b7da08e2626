"""The events of a run, read as the ServerApp writes them into its progress file."""

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from cold_flower.reporting.progress import AGAIN, Event
from cold_flower.repository.journal import PROGRESS, WAITS

SAY_SECONDS = 20.0  # of waiting, between two lines that say so


class Events:
    """Events of a run from now on, each once.

    Args:
        run_dir: the run's; it need not exist yet.
        waits: what the first event is waited for.
    """

    def __init__(self, run_dir: Path, waits: str = "") -> None:
        self._path = run_dir / PROGRESS
        before = self._path.read_bytes() if self._path.exists() else b""
        # After the last whole line: the ServerApp drops one that was cut off.
        self._position = before.rfind(b"\n") + 1
        self._waits = waits
        self._since = self._said = time.monotonic()

    def new(self) -> Iterator[Event]:
        """Yield what came since the last call; where a wait is long, an event that says so."""
        with suppress(FileNotFoundError), self._path.open("rb") as file:
            file.seek(self._position)
            while (line := file.readline()).endswith(b"\n"):
                self._position = file.tell()
                event: Event = json.loads(line)
                self._waits = event.get(WAITS, "")
                self._since = self._said = time.monotonic()
                yield event
        if self._waits and time.monotonic() - self._said >= SAY_SECONDS:
            self._said = time.monotonic()
            said = f"still waiting for {self.waiting}"
            yield {"time": time.time(), "line": said, WAITS: self._waits, AGAIN: True}

    @property
    def waiting(self) -> str:
        """Return what is waited for, and how long already; empty where that is not known."""
        return f"{self._waits}, {time.monotonic() - self._since:.0f} s" if self._waits else ""
