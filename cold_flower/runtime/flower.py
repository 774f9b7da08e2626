"""Flower's command line: its answers as JSON, and whether a run completed.

`flwr run` exits 0 when a run failed, and Flower calls a run completed in which nobody
answered. So a run completed only if Flower and the ServerApp's ``result.json`` both say so.
"""

import json
import os
import re
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cold_flower.errors import RunError
from cold_flower.repository.journal import CONFIG, RESULT
from cold_flower.runtime.processes import tool

STATUS_SECONDS = 30  # for an answer about a run; each starts Flower's command line
_TAIL = 1 << 18  # bytes of a log that are looked at
_COLOUR = re.compile(rb"\x1b\[[0-9;]*m")
# What Ray puts before a worker's line, and Python before those of an exception group's.
_BEFORE = re.compile(r"^(\(\w+ pid=\d+[^)]*\) ?)?( *\| )?")
_EXCEPTION = re.compile(r"[\w.<>]+(:|$)")
_FROM = (
    "The above exception was the direct cause of the following exception:",
    "During handling of the above exception, another exception occurred:",
)


def flwr(
    *arguments: str,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    seconds: float | None = None,
) -> Mapping[str, Any]:
    """Run a command of Flower's; return the JSON that it printed.

    Where it printed none, ``error-message`` holds what it said. Arguments that are empty are
    left out.
    """
    command = [tool("flwr"), *filter(None, arguments), "--format", "json"]
    # A notebook's kernel asks for colours (FORCE_COLOR), and Flower would put them into the JSON.
    plain = {**(environment or os.environ), "TERM": "dumb"}
    try:
        done = subprocess.run(
            command, cwd=cwd, env=plain, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return {"error-message": f"no answer within {seconds:g} s"}
    for text in (done.stdout, done.stdout.strip().rpartition("\n")[2]):  # warnings come before it
        with suppress(ValueError):
            answer = json.loads(text)
            if isinstance(answer, dict):
                return answer
    return {"error-message": f"{done.stdout} {done.stderr}"}


def error_of(answer: Mapping[str, Any]) -> str:
    """Return what Flower said instead of what it was asked for, as one line."""
    said = " ".join(str(answer.get("error-message") or answer).split())
    return said[-500:]  # warnings come before it


def status_of(answer: Mapping[str, Any]) -> str:
    """Return a run's status and its details from what `flwr ls` says; empty where it has none."""
    try:
        run = answer["runs"][0]
        return f"{run['status']} {run.get('status-details', '')}".strip()
    except (KeyError, IndexError):
        return ""


def result_of(run_dir: Path) -> Mapping[str, Any]:
    """Return what the ServerApp wrote last; status ``missing`` where it wrote nothing."""
    try:
        result: Mapping[str, Any] = json.loads((run_dir / RESULT).read_text())
    except (OSError, ValueError):
        return {"status": "missing", "iterations": 0, "cause": ""}
    return result


def without_colours(log: bytes) -> bytes:
    """Return what Flower and Ray printed as text: they colour it for files, too."""
    return _COLOUR.sub(b"", log)


def last_error(log: Path) -> str:
    """Return the last exception in a log, as its last line says it; empty where there is none.

    Of exceptions that were raised from one another it is the first, which knows what happened.
    """
    if not log.exists():
        return ""
    text = without_colours(log.read_bytes()[-_TAIL:]).decode(errors="replace")
    found, traced, from_another = "", set[str | None](), False
    for line in text.splitlines():
        before = _BEFORE.match(line)
        assert before
        who, said = before[1], line[before.end() :]
        if "Traceback (most recent call last):" in said:
            traced.add(who)
        elif who in traced and _EXCEPTION.match(said):  # the lines between are indented
            found = found if from_another else said
            traced.discard(who)
            from_another = False
        elif said.endswith(_FROM):
            from_another = True
    return found[:500]


def completed(run_dir: Path, iterations: int) -> bool:
    """Return whether a run is complete, with as many iterations or more."""
    result = result_of(run_dir)
    return bool(result["status"] == "completed" and result["iterations"] >= iterations)


def judge(
    run_dir: Path,
    status: str,
    *,
    no_result: str,
    again: str,
    log: Path | None = None,
    meanwhile: str = "",
) -> None:
    """Return only if the run completed.

    Args:
        run_dir: the run's.
        status: what Flower says, with details.
        no_result: what is known where the ServerApp wrote no result.
        again: how the user goes on after a failure.
        log: where Flower's own output lies.
        meanwhile: what happened to the machine during the run, if it may be the cause.

    Raises:
        RunError: the cause, and the way out.
    """
    result = result_of(run_dir)
    # Where nobody waits some are still at work at the end, and Flower waits for these.
    if result["status"] == "completed" and status.startswith(("finished:completed", "running")):
        return
    if result["status"] == "missing":
        cause = no_result
    else:
        cause = result["cause"] or status
        status = status.split()[0]  # its details are in the cause
    more = f"; log: {log}" if log else ""
    kept = f" What arrived is kept: {again}" if (run_dir / CONFIG).exists() else ""
    happened = f"; meanwhile {meanwhile}" if meanwhile else ""
    raise RunError(f"the run failed: {cause}{happened} (Flower says {status}{more}).{kept}")
