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
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import tomli_w

from cold_flower.config import Config
from cold_flower.errors import RunError
from cold_flower.identity import PACKAGES, ROOT, __version__
from cold_flower.reporting.progress import Event
from cold_flower.repository.journal import CONFIG, FULL, LOG, PROGRESS, RESULT, RUNNER, WORKERS
from cold_flower.runtime.processes import Stopped, alive, stoppable, tool
from cold_flower.runtime.resources import Allocation
from cold_flower.runtime.superlink import CONNECTION, superlink

# Weights come and go by the hundred megabytes; where glibc and Linux have such pages.
LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
STATUS_SECONDS = 30
_LEAST = 1 << 16  # bytes free: with less the disk is full


def simulate(
    config: Config,
    contributors: int,
    allocation: Allocation,
    show: Callable[[Event], None],
    again: str,
) -> None:
    """Run to the end; return only if the run completed.

    Args:
        config: resolved, checked; ``run-dir`` is absolute.
        contributors: how many nodes the simulation has.
        allocation: how they share this machine.
        show: takes each event of the run.
        again: how the user goes on after a failure.

    Raises:
        RunError: with the cause, and how to resume.
        Stopped: by Ctrl-C or a signal.
    """
    if " " in sys.prefix:
        raise RunError(
            "Ray cannot start its workers from an environment whose path has a space: "
            f"{sys.prefix!r}. Move it (or the checkout that holds it)."
        )
    run_dir = Path(config.run_dir)
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    (run_dir / RESULT).unlink(missing_ok=True)  # of the run that is resumed
    # Ray puts sockets there, whose paths are limited to 107 characters: keep it short. The nodes of
    # a cluster have sockets of their own, but read the app there: beside the run, which they share.
    shared = run_dir.parent if allocation.cluster else None
    with stoppable(), tempfile.TemporaryDirectory(prefix="cf-", dir=shared) as short:
        scratch = Path(short)
        environment = _environment(scratch, run_dir, allocation)
        app = stage(scratch / "cold-flower", config)
        run_log = run_dir.parent / f".{run_dir.name}.log"
        try:
            with run_log.open("w") as log, superlink(scratch, environment, log) as link:
                federation = allocation.federation(contributors)
                run = _start(app, federation, scratch, environment, log)
                _watch(run, link, run_dir, show)
                status = _status(environment, scratch)
        except Stopped:
            if not run_dir.exists():
                run_log.unlink()
            raise
        finally:
            if run_dir.exists():
                with suppress(OSError), (run_dir / LOG).open("ab") as whole:  # a full disk
                    whole.write(run_log.read_bytes())
                    run_log.unlink()
    _judge(run_dir, status, again)


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


def _environment(scratch: Path, run_dir: Path, allocation: Allocation) -> dict[str, str]:
    """Return what the SuperLink and all its children see."""
    defaults = {"COLD_FLOWER_HOME": str(run_dir / "contributors"), **LARGE_PAGES}
    spared = os.environ.get("NO_PROXY") or os.environ.get("no_proxy")
    here = ",".join([*([spared] if spared else []), "127.0.0.1", "localhost"])
    own = {
        WORKERS: str(allocation.workers),
        RUNNER: str(os.getpid()),
        "FLWR_HOME": str(scratch / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(scratch),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "NO_PROXY": here,
        "no_proxy": here,
        # flwr starts its own tools by name: those of this environment.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
    if allocation.cluster:
        del own["RAY_TMPDIR"]
        own["RAY_ADDRESS"] = allocation.cluster
    return {**defaults, **os.environ, **own}


def _start(
    app: Path,
    federation: str,
    scratch: Path,
    environment: Mapping[str, str],
    log: Any,
) -> "subprocess.Popen[bytes]":
    command = [tool("flwr"), "run", str(app), CONNECTION, "--stream"]
    command += ["--federation-config", federation]
    return subprocess.Popen(command, cwd=scratch / "empty", env=environment, stdout=log, stderr=log)


def _watch(
    run: "subprocess.Popen[bytes]",
    link: "subprocess.Popen[bytes]",
    run_dir: Path,
    show: Callable[[Event], None],
) -> None:
    """Show the run's progress until it ended; `flwr run --stream` returns with it.

    Where SuperLink or ServerApp are killed, Flower would notice after a minute or never; here
    the result that is missing tells.
    """
    progress, server = run_dir / PROGRESS, 0
    try:
        # After the last whole line: the ServerApp drops one that was cut off.
        position = progress.read_bytes().rfind(b"\n") + 1 if progress.exists() else 0
        ended = False
        while not ended:
            ended = run.poll() is not None or (run_dir / RESULT).exists()
            with suppress(FileNotFoundError), progress.open() as file:
                file.seek(position)
                while (line := file.readline()).endswith("\n"):
                    position = file.tell()
                    event = json.loads(line)
                    server = event.get("server", server)
                    show(event)
            killed = link.poll() is not None or (server and not alive(server))
            if killed and not (run_dir / RESULT).exists():
                return
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
    command = [tool("flwr"), "ls", CONNECTION, "--format", "json"]
    try:
        answer = subprocess.run(
            command,
            cwd=scratch / "empty",
            env=environment,
            capture_output=True,
            text=True,
            timeout=STATUS_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return "nothing: its SuperLink does not answer"
    try:
        status = status_of(json.loads(answer.stdout))
    except ValueError:
        status = ""
    return status or f"unknown: {answer.stdout.strip()} {answer.stderr.strip()}"


def status_of(listed: Mapping[str, Any]) -> str:
    """Return a run's status and its details, as `flwr ls` lists it; empty where it does not."""
    try:
        found = listed["runs"][0]
        return f"{found['status']} {found.get('status-details', '')}".strip()
    except (KeyError, IndexError):
        return ""


def _judge(run_dir: Path, status: str, again: str) -> None:
    """Believe nothing but a completed status together with a completed result."""
    try:
        result: Mapping[str, Any] = json.loads((run_dir / RESULT).read_text())
    except (OSError, ValueError):
        cause = f"the ServerApp ended without a {RESULT} (killed? out of memory?)"
        full = shutil.disk_usage(run_dir.parent).free < _LEAST
        result = {"status": "missing", "cause": FULL if full else cause}
    if result["status"] == "completed" and status.startswith("finished:completed"):
        return
    log = run_dir / LOG
    where = log if log.exists() else run_dir.parent / f".{run_dir.name}.log"
    cause = result["cause"] or status
    if result["status"] == "failed":
        status = status.split()[0]  # its details repeat the cause
    kept = (run_dir / CONFIG).exists()
    resume = f" What arrived is kept: {again}" if kept else ""
    raise RunError(f"the run failed: {cause} (Flower says {status}; log: {where}).{resume}")
