"""A site's own folder: its tokenised data and its logs, which nobody else on its machine reads."""

from contextlib import suppress
from io import SEEK_END
from pathlib import Path


def private(folder: Path) -> None:
    """Make a folder its owner's alone, also one that is there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(PermissionError):  # it is somebody else's, who lets us write there
        folder.chmod(0o700)


def append(path: Path, line: str) -> None:
    """Add a line to a file that its owner alone may read.

    One that was cut off before, by a full disk or a kill, keeps a line of its own.
    """
    with path.open("a+b") as file:
        with suppress(PermissionError):
            path.chmod(0o600)
        if end := file.seek(0, SEEK_END):
            file.seek(end - 1)
        cut_off = end and file.read(1) != b"\n"
        file.write(("\n" * bool(cut_off) + f"{line}\n").encode())
