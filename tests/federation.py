"""A federation on loopback, built by the very commands of docs/deployment.md.

Each process has its own directories; SuperLink with TLS, node keys and a database. All that is
started works in the federation's directory, and is stopped by that.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from cold_flower.repository.journal import Journal
from cold_flower.runtime import processes

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "deployment.md").read_text()
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}


def block(name: str) -> str:
    """Return a block of the page by the comment before it, such as ``run: ca``."""
    (found,) = re.findall(rf"<!-- {re.escape(name)} -->\n```\w+\n(.*?)```", PAGE, re.S)
    return str(found)


def free_port() -> int:
    """Return a port of the tests' own range that nobody listens on."""
    for port in range(18000 + os.getpid() % 900, 19000):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port
    raise AssertionError("no port is free")


_given: set[int] = set()


class Place:
    """A directory of somebody's own, the settings of the page, and what runs there."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        bin_folder = str(Path(sys.executable).parent)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("FLWR_")}
        self.env = {
            **inherited,
            **QUIET,
            "PATH": os.pathsep.join([bin_folder, os.environ["PATH"]]),
            "PYTHONPATH": str(ROOT),
            **{k: str(v) for k, v in settings.items()},
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def run(self, name: str, check: bool = True, timeout: float = 120, **more: Any) -> str:
        """Run a ``run:`` block of the page as it stands; return what it printed."""
        env = {**self.env, **{k: str(v) for k, v in more.items()}}
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block(f"run: {name}")],
            cwd=self.folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode:
            raise AssertionError(f"{name} exited with {done.returncode}:\n{done.stdout}")
        return done.stdout

    def start(self, name: str, **more: Any) -> "subprocess.Popen[bytes]":
        """Start a ``start:`` block of the page; its output goes into a log."""
        env = {**self.env, **{k: str(v) for k, v in more.items()}}
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                ["bash", "-c", block(f"start: {name}")],
                cwd=self.folder,
                env=env,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.processes[name] = process
        return process

    def log(self, name: str) -> str:
        """Return what a started block has printed."""
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def kill(self, name: str, signum: int = signal.SIGKILL, family: bool = True) -> None:
        """Send a signal to a started block, by default to its children, too."""
        process = self.processes.pop(name)
        for pid in processes.descendants(process.pid) if family else {process.pid}:
            with suppress(ProcessLookupError):
                os.kill(pid, signum)
        process.wait(60)


class Federation:
    """A coordinator and its sites."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        home = folder / "coordinator"
        self.coordinator = Place(
            home, DIR=home, HOST="localhost", PORT=self.port, FLWR_HOME=home / "flwr",
            COLD_FLOWER_HOME=home, CHECKOUT=ROOT, NO_PROXY="127.0.0.1,localhost",
        )  # fmt: skip
        self.sites: dict[str, Place] = {}

    def open(self) -> None:
        """Make CA, certificate, database and connection; start the SuperLink."""
        for name in ("ca", "certificate", "connection"):
            self.coordinator.run(name)
        self.start_superlink()

    def start_superlink(self) -> None:
        """Start the SuperLink and wait until it listens."""
        process = self.coordinator.start("superlink")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert process.poll() is None, self.coordinator.log("superlink")
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.2)
        raise AssertionError(self.coordinator.log("superlink"))

    def site(self, name: str, *, register: bool = True, port: int = 0, **settings: Any) -> Place:
        """Make a site's directory and key; have the coordinator register it."""
        home = self.folder / name
        place = Place(
            home, SITE=home, NAME=name, SUPERLINK=f"localhost:{port or self.port}",
            RUNTIME_PORT=free_port(), FLWR_HOME=home / "flwr", COLD_FLOWER_HOME=home / "own",
            NO_PROXY="127.0.0.1,localhost", **settings,
        )  # fmt: skip
        place.run("site-key")
        (home / "ca.crt").write_bytes((self.coordinator.folder / "ca.crt").read_bytes())
        if register:
            self.register(place, name)
        self.sites[name] = place
        return place

    def register(self, place: Place, name: str) -> None:
        """Register a site's key under a name, as the page does for clinic-a."""
        home = self.coordinator.folder
        (home / f"{name}.pub").write_bytes((place.folder / "key.pub").read_bytes())
        text = block("run: register").replace("clinic-a", name)
        subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=home,
            env=self.coordinator.env,
            check=True,
            capture_output=True,
            timeout=60,
        )

    def deploy(self, settings: str, run_dir: str, *more: str) -> "subprocess.Popen[str]":
        """Start the page's deploy with an experiment of one's own."""
        home = self.coordinator.folder
        (home / "partners.toml").write_text(settings)
        command = block("run: deploy").replace('"$DIR/first"', f'"$DIR/{run_dir}"').strip()
        return subprocess.Popen(
            ["bash", "-c", " ".join([f"exec {command}", *more])],
            cwd=home,
            env=self.coordinator.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def rows(self, run_dir: str, name: str) -> list[dict[str, Any]]:
        """Read the lines of a run's file, also while it goes on."""
        return Journal(self.coordinator.folder / run_dir).rows(name)

    def close(self) -> None:
        """Stop everything that was started here."""
        for place in [*self.sites.values(), self.coordinator]:
            for name in list(place.processes):
                with suppress(subprocess.TimeoutExpired):
                    place.kill(name, signal.SIGTERM, family=False)
        processes.stop(None, self.folder)


def wait_for(what: Any, seconds: float, why: str = "") -> Any:
    """Wait until a function returns something true; return that."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.2)
    raise AssertionError(f"not within {seconds:g} s: {why}")
