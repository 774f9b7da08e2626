"""Where the rows of a growing JSON-lines file are, by the value of one of their keys.

A run looks after every step at the rows of one iteration or one base. With an index that takes
the same time at the first step and at the thousandth, and the rows stay on the disk.
"""

import json
import os
from pathlib import Path
from typing import Any


class Index:
    """Finds rows; looks at a line of the file once.

    Args:
        path: the file; it need not exist yet. Lines are appended, by whomever.
        key: of the rows.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path, self._key = path, key
        self._clear()

    def rows(self, value: Any) -> list[dict[str, Any]]:
        """Return the rows whose key has this value, in their order; see `Journal.rows`."""
        if not self._path.exists():
            self._clear()
            return []
        with self._path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < self._end:  # another file by now
                self._clear()
            file.seek(self._end)
            while (line := file.readline()).endswith(b"\n"):
                self._places.setdefault(json.loads(line).get(self._key), []).append(self._end)
                self._end += len(line)
            found = []
            for place in self._places.get(value, ()):
                file.seek(place)
                found.append(json.loads(file.readline()))
        return found

    def _clear(self) -> None:
        self._places: dict[Any, list[int]] = {}
        self._end = 0
