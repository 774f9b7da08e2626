"""The events of a run, read as the ServerApp writes them into its progress file."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from cold_flower.reporting.progress import Event
from cold_flower.repository.journal import PROGRESS


class Events:
    """Events of a run from now on, each once.

    Args:
        run_dir: the run's; it need not exist yet.
    """

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / PROGRESS
        before = self._path.read_bytes() if self._path.exists() else b""
        # After the last whole line: the ServerApp drops one that was cut off.
        self._position = before.rfind(b"\n") + 1

    def new(self) -> Iterator[Event]:
        """Yield what came since the last call."""
        with suppress(FileNotFoundError), self._path.open("rb") as file:
            file.seek(self._position)
            while (line := file.readline()).endswith(b"\n"):
                self._position = file.tell()
                yield json.loads(line)
