"""Run an experiment on a SuperLink that is up, with sites of their own as contributors.

Stages an app folder (`cold_flower.runtime.simulate.stage`), submits it, follows the run
directory and the SuperLink, and judges by both: `flwr run` exits 0 when a run failed.
"""

import hashlib
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from cold_flower.config import Config
from cold_flower.errors import ConfigError, RunError
from cold_flower.identity import code_sha256
from cold_flower.repository.journal import CONFIG, PROGRESS, RESULT, Journal, check_new, check_same
from cold_flower.runtime.experiments import check_strategy
from cold_flower.runtime.processes import Stopped, stoppable, tool
from cold_flower.runtime.simulate import stage, status_of
from cold_flower.server import sites

POLL = 0.5  # seconds between two looks at the run directory
RESUMES = 3  # times that a run which was lost with its SuperLink is taken up again
ASK = 15.0  # seconds between two questions to the SuperLink: each starts Flower's command line


def deploy(config: Config, connection: str, say: Callable[[str], object]) -> None:
    """Run to the end; return only if the run completed.

    Args:
        config: resolved; ``run-dir`` is absolute and on the SuperLink's machine.
        connection: of ``FLWR_HOME/config.toml``; empty is its default.
        say: takes each line.

    Raises:
        ConfigError, RunError: what is wrong before the start, or why the run failed.
        Stopped: by Ctrl-C or a signal; the run was stopped, too.
    """
    if not config.sites.allow:
        raise ConfigError(
            "deploy is for sites of their own: --set sites.allow='clinic-a,clinic-b' names them "
            "(* = all that are registered). `cold-flower simulate` needs no sites"
        )
    sites.check(config)
    check_strategy(config, config.quorum or config.sites.minimum)
    run_dir = Path(config.run_dir)
    if config.resume:
        check_same(run_dir, config)
    else:
        check_new(run_dir)
    with stoppable():
        status = _run(config, connection, say)
        for _ in range(RESUMES):
            if not _lost(run_dir, status):
                break
            say("the ServerApp ended without a result (the SuperLink was restarted?): resuming")
            status = _run(replace(config, resume=True), connection, say)
    _judge(run_dir, status)


def _run(config: Config, connection: str, say: Callable[[str], object]) -> str:
    """Submit and follow; return how it ended."""
    run_dir = Path(config.run_dir)
    (run_dir / RESULT).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="cf-") as scratch:
        app = stage(Path(scratch) / "cold-flower", config)
        fab = fab_sha256(app)
        say(f"run directory {run_dir}\ncode sha256 {code_sha256()}\nFAB sha256 {fab}")
        seen = len(_lines(run_dir))
        run = _submit(app, connection, fab)
        say(f"run {run} on {connection or 'the default SuperLink'}")
        try:
            return _follow(run, connection, run_dir, seen, say)
        except Stopped:
            _flwr("stop", run, connection)
            say(f"stopped; what arrived is kept: add --resume --run-dir {run_dir}")
            raise


def _lost(run_dir: Path, status: str) -> bool:
    """Return whether a run had begun and failed without writing its result.

    Flower 1.41 ends the ServerApp when the SuperLink that started it goes away; what it had
    collected is in the run directory.
    """
    begun = (run_dir / CONFIG).exists() and not (run_dir / RESULT).exists()
    return begun and status.startswith("finished:failed")


def fab_sha256(app: Path) -> str:
    """Build the bundle that the sites will get; return its sha256."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [tool("flwr"), "build", "--app", str(app)]
        done = subprocess.run(command, cwd=scratch, capture_output=True, text=True)
        made = list(Path(scratch).glob("*.fab"))
        if done.returncode or not made:
            raise RunError(f"flwr build failed: {(done.stderr or done.stdout).strip()}")
        return hashlib.sha256(made[0].read_bytes()).hexdigest()


def _submit(app: Path, connection: str, fab: str) -> str:
    answer = _flwr("run", str(app), connection)
    if not answer.get("success") or not answer.get("run-id"):
        raise RunError(f"the SuperLink did not take the run: {_cause(answer)}")
    if not fab.startswith(str(answer["fab-hash"])):
        raise RunError(f"flwr sent another FAB ({answer['fab-hash']}) than was built ({fab[:8]})")
    return str(answer["run-id"])


def _follow(
    run: str, connection: str, run_dir: Path, seen: int, say: Callable[[str], object]
) -> str:
    """Say what the run does until it has ended; return its status."""
    asked, silent = -ASK, False
    while True:
        for line in _lines(run_dir)[seen:]:
            say(line)
            seen += 1
        ended = (run_dir / RESULT).exists()
        if ended or time.monotonic() - asked > ASK:
            answer = _flwr("ls", "", connection, "--run-id", run)
            asked = time.monotonic()
            status = status_of(answer)
            if status.startswith("finished"):
                return status
            if not status and not silent:  # it may be restarting
                say(f"the SuperLink does not answer: {_cause(answer)}; waiting for it")
            silent = not status
        time.sleep(POLL)


def _lines(run_dir: Path) -> list[str]:
    """Read what the run said."""
    return [str(row["line"]) for row in Journal(run_dir).rows(PROGRESS)]


def _flwr(verb: str, what: str, connection: str, *more: str) -> Mapping[str, Any]:
    """Run a command of Flower's; return the JSON it printed."""
    command = [tool("flwr"), verb, *(part for part in (what, connection) if part)]
    done = subprocess.run([*command, *more, "--format", "json"], capture_output=True, text=True)
    for text in (done.stdout, done.stdout.strip().rpartition("\n")[2]):
        with suppress(ValueError):
            found = json.loads(text)
            if isinstance(found, dict):
                return found
    return {"error-message": f"{done.stdout} {done.stderr}".strip()}


def _cause(answer: Mapping[str, Any]) -> str:
    text = str(answer.get("error-message") or answer)
    return " ".join(text.split())[:500]


def _judge(run_dir: Path, status: str) -> None:
    """Believe nothing but a completed status together with a completed result."""
    try:
        result: Mapping[str, Any] = json.loads((run_dir / RESULT).read_text())
    except (OSError, ValueError):
        result = {
            "status": "missing",
            "cause": f"the ServerApp wrote no {RESULT} into {run_dir} (does the SuperLink run on "
            "this machine, and may it write there?)",
        }
    if result["status"] != "completed" or not status.startswith("finished:completed"):
        raise RunError(
            f"the run failed: {result['cause'] or status} (Flower says {status.split()[0]}). What "
            f"arrived is kept: add --resume --run-dir {run_dir}"
        )
