"""Run an experiment as a Flower simulation, safely: start, watch, check, stop.

Flower 1.41 shares one local SuperLink per port, imports modules from the directory it
was started in, may install dependencies at each run, and exits 0 when a run failed. So
every run here has its own SuperLink on a private port, started in an empty directory,
with an app folder that holds this code and nothing else, and its outcome is read from
the run's status and from the ``result.json`` that the ServerApp writes last.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import tomli_w

from cold_flower import __version__
from cold_flower.config import Config
from cold_flower.errors import RunError
from cold_flower.identity import PACKAGES, ROOT
from cold_flower.journal import CONFIG, PROGRESS, RESULT, WORKERS

CONNECTION = "cold-flower"
START_SECONDS = 60
LOG = "flower.log"


def simulate(config: Config, contributors: int, say: Callable[[str], None]) -> None:
    """Run to the end; return only if the run completed.

    Args:
        config: resolved, checked; ``run-dir`` is absolute.
        contributors: how many nodes the simulation has.
        say: prints a line of progress.

    Raises:
        RunError: with the cause, and how to resume.
    """
    if " " in sys.prefix:
        raise RunError(
            "Ray cannot start its workers from an environment whose path has a space: "
            f"{sys.prefix!r}. Move it (or the checkout that holds it)."
        )
    run_dir = Path(config.run_dir)
    workers = min(contributors, _cores())
    (run_dir / RESULT).unlink(missing_ok=True)  # of the run that is resumed
    # Ray puts sockets there, whose paths are limited to 107 characters: keep it short.
    with tempfile.TemporaryDirectory(prefix="cf-") as short:
        scratch = Path(short)
        environment = _environment(scratch, run_dir, workers)
        app = stage(scratch / "cold-flower", config)
        run_log = run_dir.parent / f".{run_dir.name}.log"
        run_log.parent.mkdir(parents=True, exist_ok=True)
        say(f"{contributors} contributors on {workers} workers of one core each")
        try:
            with run_log.open("w") as log, _stoppable(), _superlink(scratch, environment, log):
                run = _start(app, contributors, workers, scratch, environment, log)
                _watch(run, run_dir, say)
                status = _status(environment, scratch)
        finally:
            if run_dir.exists():
                with (run_dir / LOG).open("ab") as whole:
                    whole.write(run_log.read_bytes())
                run_log.unlink()
    _judge(run_dir, status)


def _cores() -> int:
    """Return the cores that this process may use (`taskset` and containers limit them)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def stage(app: Path, config: Config) -> Path:
    """Write the Flower app: this code and nothing else, with the run's configuration.

    What runs is thereby fixed at the start, whatever happens in the checkout, and the
    name of the checkout's folder does not matter (Flower refuses some).
    """
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


@contextmanager
def _stoppable() -> Iterator[None]:
    """Make SIGTERM and SIGHUP stop a run as Ctrl-C does: nothing stays behind."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    signs = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(sign, stop) for sign in signs]
    try:
        yield
    finally:
        for sign, handler in zip(signs, before, strict=True):
            signal.signal(sign, handler)


def _environment(scratch: Path, run_dir: Path, workers: int) -> dict[str, str]:
    """Return what the SuperLink and all its children see."""
    defaults = {"COLD_FLOWER_HOME": str(run_dir / "contributors")}
    own = {
        WORKERS: str(workers),
        "FLWR_HOME": str(scratch / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(scratch),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        # flwr starts its own tools by name: those of this environment.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
    # A cluster's address does not go together with a number of workers of our own.
    inherited = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return {**defaults, **inherited, **own}


def _tool(name: str) -> str:
    return str(Path(sys.executable).parent / name)


@contextmanager
def _superlink(scratch: Path, environment: Mapping[str, str], log: Any) -> Iterator[None]:
    """Start a SuperLink in an empty directory on a free port; stop it and its children."""
    home = Path(environment["FLWR_HOME"])
    empty = scratch / "empty"
    for folder in (home, empty):
        folder.mkdir()
    port = _free_port()
    command = [_tool("flower-superlink"), "--insecure", "--simulation", "--host", "127.0.0.1"]
    command += ["--port", str(port)]  # state in memory: it ends with the run
    connection = {"address": f"127.0.0.1:{port}", "insecure": True}
    (home / "config.toml").write_text(
        tomli_w.dumps({"superlink": {"default": CONNECTION, CONNECTION: connection}})
    )
    process = subprocess.Popen(
        command, cwd=empty, env=environment, stdout=log, stderr=log, start_new_session=True
    )
    try:
        _wait_healthy(process, port)
        yield
    finally:
        _stop(process)


def _wait_healthy(process: "subprocess.Popen[bytes]", port: int) -> None:
    local = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RunError(f"flower-superlink ended at once with code {process.returncode}")
        with suppress(OSError):
            local.open(f"http://127.0.0.1:{port}/health", timeout=1).close()
            return
        time.sleep(0.1)
    raise RunError(f"flower-superlink did not come up within {START_SECONDS} s")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _stop(process: "subprocess.Popen[bytes]", patience: float = 15) -> None:
    """Stop a process and all that it started, some of it in sessions of its own."""
    family: list[int] = []
    with suppress(OSError):  # no `ps` here: the SuperLink stops its children, too
        family = _descendants(process.pid)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(patience)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and any(map(_alive, family)):
        time.sleep(0.05)
    for pid in [*family, process.pid]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def _descendants(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True)
    pairs = [tuple(map(int, line.split())) for line in listed.stdout.splitlines()]
    found = [pid]
    for parent in found:  # grows while it is walked
        found += [child for child, its_parent in pairs if its_parent == parent]
    return found[1:]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _start(
    app: Path,
    contributors: int,
    workers: int,
    scratch: Path,
    environment: Mapping[str, str],
    log: Any,
) -> "subprocess.Popen[bytes]":
    federation = (
        f"num-supernodes={contributors} client-resources-num-cpus=1 "
        f"client-resources-num-gpus=0.0 init-args-num-cpus={workers}"
    )
    command = [_tool("flwr"), "run", str(app), CONNECTION, "--stream"]
    command += ["--federation-config", federation]
    return subprocess.Popen(command, cwd=scratch / "empty", env=environment, stdout=log, stderr=log)


def _watch(run: "subprocess.Popen[bytes]", run_dir: Path, say: Callable[[str], None]) -> None:
    """Print the run's progress until it ended; `flwr run --stream` returns with it."""
    progress = run_dir / PROGRESS
    try:
        position = progress.stat().st_size if progress.exists() else 0
        ended = False
        while not ended:
            ended = run.poll() is not None or (run_dir / RESULT).exists()
            with suppress(FileNotFoundError), progress.open() as file:
                file.seek(position)
                while (line := file.readline()).endswith("\n"):
                    position = file.tell()
                    say(line.rstrip())
            if not ended:
                time.sleep(0.2)
        with suppress(subprocess.TimeoutExpired):
            run.wait(timeout=30)
    finally:
        if run.poll() is None:
            run.terminate()
            run.wait()


def _status(environment: Mapping[str, str], scratch: Path) -> str:
    """Ask the SuperLink how the run ended, with its details."""
    command = [_tool("flwr"), "ls", CONNECTION, "--format", "json"]
    answer = subprocess.run(
        command, cwd=scratch / "empty", env=environment, capture_output=True, text=True
    )
    try:
        runs: Sequence[Mapping[str, Any]] = json.loads(answer.stdout)["runs"]
        return f"{runs[0]['status']} {runs[0].get('status-details', '')}".strip()
    except (ValueError, KeyError, IndexError):
        return f"unknown: {answer.stdout.strip()} {answer.stderr.strip()}"


def _judge(run_dir: Path, status: str) -> None:
    """Believe nothing but a completed status together with a completed result."""
    try:
        result: Mapping[str, Any] = json.loads((run_dir / RESULT).read_text())
    except (OSError, ValueError):
        result = {"status": "missing", "cause": f"the ServerApp wrote no {RESULT}"}
    if result["status"] == "completed" and status.startswith("finished:completed"):
        return
    log = run_dir / LOG
    where = log if log.exists() else run_dir.parent / f".{run_dir.name}.log"
    cause = result["cause"] or status
    if result["status"] == "failed":
        status = status.split()[0]  # its details repeat the cause
    kept = (run_dir / CONFIG).exists()
    resume = f" What arrived is kept: --resume --run-dir {run_dir}" if kept else ""
    raise RunError(f"the run failed: {cause} (Flower says {status}; log: {where}).{resume}")
