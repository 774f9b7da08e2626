"""The app bundle (FAB) that Flower makes of this checkout, unpacked elsewhere."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from cold_flower.identity import PACKAGES, ROOT
from cold_flower.runtime.processes import tool

# What tells that the code of the bundle runs, and that all it reads is there.
LOOK = """
import cold_flower, cold_flower.server_app, cold_flower.client_app
from cold_flower.config import Config
from cold_flower.data.plan import plan
from cold_flower.data.suite import load_suite
from cold_flower.reporting import catalogue, reference
from cold_flower.runtime.experiments import configure
from strategies.fusion import load
assert len(load_suite("paper").tasks) == 36 and reference.read("table1")
assert plan(configure("demo", {})).unseen and load("ties")
print(cold_flower.__file__, len(list(catalogue.shipped())))
"""


def unpacked(folder: Path) -> Path:
    """Build the bundle of this checkout; return where it is unpacked: another name and place."""
    sources = folder / "cold-flower"
    shutil.copytree(ROOT, sources, ignore=shutil.ignore_patterns(".*", "runs", "__pycache__"))
    done = subprocess.run(
        [tool("flwr"), "build", "--app", str(sources)], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (fab,) = folder.glob("*.fab")
    with zipfile.ZipFile(fab) as bundle:
        bundle.extractall(folder / "elsewhere" / "an-app")
    return folder / "elsewhere" / "an-app"


@pytest.mark.real
def test_nothing_that_a_run_reads_is_left_out(tmp_path) -> None:
    app = unpacked(tmp_path)
    assert (app / "LICENSE").exists()
    for package in PACKAGES:
        files = [path for kind in ("*.py", "*.toml") for path in (ROOT / package).rglob(kind)]
        missing = [path for path in files if not (app / path.relative_to(ROOT)).exists()]
        assert files
        assert missing == []
    looked = subprocess.run(
        [sys.executable, "-c", LOOK], cwd=app, capture_output=True, text=True, timeout=120
    )
    assert looked.returncode == 0, looked.stderr
    file, experiments = looked.stdout.split()
    assert Path(file).is_relative_to(app)
    assert int(experiments) == len(list((ROOT / "simulations").glob("*.toml")))
