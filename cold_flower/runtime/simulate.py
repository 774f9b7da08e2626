"""Run an experiment as a Flower simulation, safely: start, watch, check, stop.

Flower 1.41 shares one local SuperLink per port, imports modules from the directory it
was started in, may install dependencies at each run, and exits 0 when a run failed. So
every run here has its own SuperLink on a private port, started in an empty directory,
with an app folder that holds this code and nothing else, and its outcome is read from
the run's status and from the ``result.json`` that the ServerApp writes last.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from cold_flower.config import Config
from cold_flower.errors import RunError
from cold_flower.reporting.progress import Event
from cold_flower.repository.journal import FULL, LOG, RESULT, RUNNER, WAITS, WORKERS
from cold_flower.runtime.bundle import stage
from cold_flower.runtime.events import Events
from cold_flower.runtime.flower import (
    STATUS_SECONDS,
    error_of,
    flwr,
    judge,
    last_error,
    status_of,
    without_colours,
)
from cold_flower.runtime.machine import killed_for_memory
from cold_flower.runtime.processes import Stopped, alive, stoppable, tool
from cold_flower.runtime.resources import Allocation
from cold_flower.runtime.scratch import scratch
from cold_flower.runtime.superlink import CONNECTION, superlink

# Weights come and go by the hundred megabytes; where glibc and Linux have such pages.
LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
STARTING = "Flower to start"
_FULL_DISK = 1 << 16  # bytes free, or fewer


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
    # The nodes of a cluster have sockets of their own, but read the app there: beside the run,
    # which they share.
    shared = run_dir.parent if allocation.cluster else None
    run_log = run_dir.parent / f".{run_dir.name}.log"
    killed_before = killed_for_memory()
    with stoppable(), scratch(shared) as folder:
        try:
            with run_log.open("w") as log:
                status, waiting = _run(config, contributors, allocation, show, folder, log)
            error = last_error(run_log)  # of this run: in LOG those before it lie, too
        except Stopped:
            if not run_dir.exists():
                run_log.unlink()
            raise
        finally:
            if run_dir.exists():
                with suppress(OSError), (run_dir / LOG).open("ab") as whole:  # a full disk
                    whole.write(without_colours(run_log.read_bytes()))
                    run_log.unlink()
    full = shutil.disk_usage(run_dir.parent).free < _FULL_DISK
    log_path = run_dir / LOG if (run_dir / LOG).exists() else run_log
    judge(
        run_dir,
        status,
        no_result=FULL if full else _ended(error, waiting),
        again=again,
        log=log_path,
        meanwhile=_killed(killed_for_memory() - killed_before),
    )


def _ended(error: str, waiting: str) -> str:
    """Say what is known of a ServerApp that ended without a result."""
    when = f", while waiting for {waiting}" if waiting else ""
    known = f"the last error in the log is {error}" if error else "the log has no error"
    return f"the ServerApp ended without a {RESULT}{when}; {known}"


def _killed(number: int) -> str:
    """Say that the kernel killed processes, of this run or of others."""
    if number < 1:
        return ""
    return f"the kernel killed {number} process{'es' * (number > 1)} here for lack of memory"


def _run(
    config: Config,
    contributors: int,
    allocation: Allocation,
    show: Callable[[Event], None],
    folder: Path,
    log: Any,
) -> tuple[str, str]:
    """Run on a SuperLink that lives for this run alone.

    Returns:
        What Flower says of it, and what it was waiting for when it ended.
    """
    run_dir, empty = Path(config.run_dir), folder / "empty"
    empty.mkdir()
    environment = _environment(folder, run_dir, allocation)
    app = stage(folder / "cold-flower", config)
    show({"time": time.time(), "line": "starting Flower", WAITS: STARTING})
    events = Events(run_dir, STARTING)
    with superlink(empty, environment, log) as link:
        command = [tool("flwr"), "run", str(app), CONNECTION, "--stream"]
        command += ["--federation-config", allocation.federation(contributors)]
        run = subprocess.Popen(command, cwd=empty, env=environment, stdout=log, stderr=log)
        _watch(run, link, run_dir, events, show)
        answer = flwr("ls", CONNECTION, cwd=empty, environment=environment, seconds=STATUS_SECONDS)
    return status_of(answer) or f"nothing ({error_of(answer)})", events.waiting


def _environment(folder: Path, run_dir: Path, allocation: Allocation) -> dict[str, str]:
    """Return what the SuperLink and all its children see."""
    defaults = {"COLD_FLOWER_HOME": str(run_dir / "contributors"), **LARGE_PAGES}
    spared = os.environ.get("NO_PROXY") or os.environ.get("no_proxy")
    no_proxy = ",".join(filter(None, [spared, "127.0.0.1", "localhost"]))
    own = {
        WORKERS: str(allocation.workers),
        RUNNER: str(os.getpid()),
        "FLWR_HOME": str(folder / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TMPDIR": str(folder),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "NO_PROXY": no_proxy,
        "no_proxy": no_proxy,
        # flwr starts its own tools by name: those of this environment.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
    }
    if allocation.cluster:
        del own["RAY_TMPDIR"]
        own["RAY_ADDRESS"] = allocation.cluster
    return {**defaults, **os.environ, **own}


def _watch(
    run: "subprocess.Popen[bytes]",
    link: "subprocess.Popen[bytes]",
    run_dir: Path,
    events: Events,
    show: Callable[[Event], None],
) -> None:
    """Show the run's progress until it ended; `flwr run --stream` returns with it.

    Where SuperLink or ServerApp are killed, Flower would notice after a minute or never; here
    the result that is missing tells.
    """
    server, ended = 0, False
    try:
        while not ended:
            ended = run.poll() is not None or (run_dir / RESULT).exists()
            for event in events.new():
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
