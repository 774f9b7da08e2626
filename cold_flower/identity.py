"""This code's version and hash, the versions it runs on, and where it keeps its files."""

import hashlib
import os
import time
from importlib.metadata import version
from pathlib import Path

__version__ = "0.1.0"
ROOT = Path(__file__).parent.parent
PACKAGES = ("cold_flower", "strategies")


def code_sha256(root: Path = ROOT) -> str:
    """Hash every source file and TOML file of this code.

    A Ray worker may import a module from another place (Flower's app bundle, the working
    directory). Server and contributors compare their hashes, so a mixture is refused.

    Args:
        root: the folder that holds the packages; by default the one that runs.
    """
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*")):
            if path.suffix in (".py", ".toml"):
                digest.update(f"{path.relative_to(root).as_posix()}\n".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


def versions() -> str:
    """Return the versions of the libraries that decide results, as one line."""
    return " ".join(f"{name}={version(name)}" for name in ("flwr", "torch", "transformers"))


def timestamp() -> str:
    """Return the time now, as records have it: 2026-11-27T10:00:00+0000."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def home() -> Path:
    """Return the folder for the contributors' own files: COLD_FLOWER_HOME, or the user's data."""
    if chosen := os.environ.get("COLD_FLOWER_HOME"):
        return Path(chosen)
    data = os.environ.get("XDG_DATA_HOME", str(Path.home() / ".local" / "share"))
    return Path(data) / "cold-flower"
