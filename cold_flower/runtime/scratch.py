"""Where a simulation keeps what dies with it: a folder whose path is short enough for Ray."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cold_flower.errors import RunError

PREFIX = "cf-"
# Linux has 107 bytes for a socket's path, and this is the longest that Ray puts below a folder.
_RAYS = "/cf-12345678/ray/session_2026-11-27_12-00-00_123456_1234567/sockets/plasma_store"
LONGEST = 107 - len(_RAYS)  # bytes of that folder's path
_SHORT = ("/tmp", "/var/tmp", "/dev/shm")


@contextmanager
def scratch(shared: Path | None = None) -> Iterator[Path]:
    """Make a folder for a run, and remove it.

    Args:
        shared: where all nodes of a cluster see it; there Ray's sockets lie elsewhere.

    Raises:
        RunError: no folder for temporary files has a path that is short enough.
    """
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=shared or _short()) as folder:
        yield Path(folder)


def _short() -> str:
    """Return the folder for temporary files, or where its path is too long another one."""
    usual = tempfile.gettempdir()
    for folder in (usual, *_SHORT):
        if len(os.fsencode(folder)) <= LONGEST and os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise RunError(
        f"the folder for temporary files, {usual}, has a path of {len(os.fsencode(usual))} bytes; "
        f"Ray's sockets need one of at most {LONGEST}: set TMPDIR to a shorter one that can be "
        "written to"
    )
