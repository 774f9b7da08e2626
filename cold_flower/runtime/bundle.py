"""The Flower app of a run: this code and nothing else, with the run's configuration.

What runs is thereby fixed at the start, whatever happens in the checkout, and the name of the
checkout's folder does not matter (Flower refuses some).
"""

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

import tomli_w

from cold_flower.config import Config
from cold_flower.errors import RunError
from cold_flower.identity import PACKAGES, ROOT, __version__
from cold_flower.runtime.processes import tool


def stage(app: Path, config: Config) -> Path:
    """Write an app folder with this code and a run's configuration; return it."""
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package,
            app / package,
            ignore=lambda _, names: [n for n in names if not _belongs(n)],
        )
    (app / "pyproject.toml").write_text(
        tomli_w.dumps(
            {
                "project": {
                    "name": "cold-flower",
                    "version": __version__,
                    "description": "The code and configuration of one run",
                    "license": {"text": "Apache-2.0"},  # Flower warns of one that is missing
                },
                "tool": {
                    "flwr": {
                        "app": {
                            "publisher": "cold-flower",
                            "components": {
                                "serverapp": "cold_flower.server_app:app",
                                "clientapp": "cold_flower.client_app:app",
                            },
                            "config": config.flat(),
                        }
                    }
                },
            }
        )
    )
    return app


def _belongs(name: str) -> bool:
    return name.endswith((".py", ".toml")) or ("." not in name and name != "__pycache__")


def fab_sha256(app: Path) -> str:
    """Return the sha256 of the file (FAB) that sites get of an app folder.

    Raises:
        RunError: Flower cannot build it.
    """
    with tempfile.TemporaryDirectory() as scratch:
        command = [tool("flwr"), "build", "--app", str(app)]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True)
        built = list(Path(scratch).glob("*.fab"))
        if done.returncode or not built:
            raise RunError(f"flwr build failed: {(done.stderr or done.stdout).strip()}")
        return hashlib.sha256(built[0].read_bytes()).hexdigest()
