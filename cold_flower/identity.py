"""What this code is: a hash of the files, and the versions it runs on."""

import hashlib
from importlib.metadata import version
from pathlib import Path

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
