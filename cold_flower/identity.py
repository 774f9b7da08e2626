"""What this code is, the versions it runs on, and where it keeps things."""

import hashlib
import os
import time
from importlib.metadata import version
from pathlib import Path

__version__ = "0.1.0"
ROOT = Path(__file__).parent.parent
PACKAGES = ("cold_flower", "strategies")


def code_sha256(root: Path = ROOT) -> str:
    """Hash every source file and suite of this code, or of that in another folder.

    Ray workers may import a module from elsewhere (FAB, working directory); server and
    contributors compare this hash, so that a mixture is refused.
    """
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*")):
            if path.suffix in (".py", ".toml"):
                digest.update(f"{path.relative_to(root).as_posix()}\n".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


def versions() -> str:
    """Return the versions that matter, as one line."""
    return " ".join(f"{name}={version(name)}" for name in ("flwr", "torch", "transformers"))


def timestamp() -> str:
    """Return the time as records hold it: 2026-11-27T10:00:00+0000."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def home() -> Path:
    """Return the folder for the contributors' own things."""
    given = os.environ.get("COLD_FLOWER_HOME")
    data = os.environ.get("XDG_DATA_HOME", str(Path.home() / ".local" / "share"))
    return Path(given) if given else Path(data) / "cold-flower"
