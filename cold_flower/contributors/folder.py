"""A site's own folder: its tokenised data and its logs, which nobody else on its machine reads."""

from contextlib import suppress
from pathlib import Path


def private(folder: Path) -> None:
    """Make a folder its owner's alone, also one that is there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(PermissionError):  # it is somebody else's, who lets us write there
        folder.chmod(0o700)


def append(path: Path, line: str) -> None:
    """Add a line to a file that its owner alone may read."""
    with path.open("a") as file:
        with suppress(PermissionError):
            path.chmod(0o600)
        file.write(f"{line}\n")
