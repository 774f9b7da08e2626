"""Run an experiment on a SuperLink that is up, with sites of their own as contributors.

Stages an app folder (`cold_flower.runtime.bundle`), submits it, follows the run directory and
the SuperLink, and judges by both (`cold_flower.runtime.flower`).
"""

import shlex
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cold_flower.config import Config
from cold_flower.errors import ConfigError, RunError
from cold_flower.identity import code_sha256
from cold_flower.reporting.live import live
from cold_flower.reporting.progress import Event, Progress
from cold_flower.repository.journal import CONFIG, RESULT, Journal, check_new, check_same
from cold_flower.runtime.bundle import fab_sha256, stage
from cold_flower.runtime.events import Events
from cold_flower.runtime.experiments import check_strategy
from cold_flower.runtime.flower import STATUS_SECONDS, error_of, flwr, judge, status_of
from cold_flower.runtime.processes import Stopped, stoppable
from cold_flower.server import drops, sites, turns

POLL_SECONDS = 0.5  # seconds between two looks at the run directory
RESUMES = 3  # times that a run which was lost with its SuperLink is taken up again
ASK_SECONDS = (
    15.0  # seconds between two questions to the SuperLink: each starts Flower's command line
)


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
    turns.check(config)
    check_strategy(config, config.buffer or config.quorum or config.sites.minimum)
    run_dir = Path(config.run_dir)
    if config.resume:
        check_same(run_dir, config)
        with Journal(run_dir).locked():  # the ServerApp holds it while it is at work
            pass
    else:
        check_new(run_dir)
    drops.check(config)
    progress = Progress(time.time())
    with stoppable(), live(config, progress) as page:

        def take(event: Event) -> None:
            progress.take(event)
            page(event)
            if event["line"]:  # else only the report shows it
                say(event["line"])

        status = _run(config, connection, say, take)
        for _ in range(RESUMES):
            if not _lost(run_dir, status):
                break
            say("the ServerApp ended without a result (the SuperLink was restarted?): resuming")
            status = _run(replace(config, resume=True), connection, say, take)
    judge(
        run_dir,
        status,
        no_result=f"the ServerApp wrote no {RESULT} into {run_dir} (does the SuperLink run on this "
        "machine, and may it write there?)",
        again=_again(run_dir),
    )


def _run(
    config: Config,
    connection: str,
    say: Callable[[str], object],
    take: Callable[[Event], object],
) -> str:
    """Submit and follow; return how it ended."""
    run_dir = Path(config.run_dir)
    (run_dir / RESULT).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="cf-") as scratch:
        app = stage(Path(scratch) / "cold-flower", config)
        fab = fab_sha256(app)
        say(f"run directory {run_dir}\ncode sha256 {code_sha256()}\nFAB sha256 {fab}")
        events = Events(run_dir)
        run = _submit(app, connection, fab)
        say(f"run {run} on {connection or 'the default SuperLink'}")
        try:
            return _follow(run, connection, run_dir, events, say, take)
        except Stopped:
            flwr("stop", run, connection)
            say("a site that finetunes ends that before it answers: give wait.nodes time for it")
            say(f"stopped; what arrived is kept: {_again(run_dir)}")
            raise


def _again(run_dir: Path) -> str:
    return f"add --resume --run-dir {shlex.quote(str(run_dir))}"


def _lost(run_dir: Path, status: str) -> bool:
    """Return whether a run had begun and failed without writing its result.

    Flower 1.41 ends the ServerApp when the SuperLink that started it goes away; what it had
    collected is in the run directory.
    """
    begun = (run_dir / CONFIG).exists() and not (run_dir / RESULT).exists()
    return begun and status.startswith("finished:failed")


def _submit(app: Path, connection: str, fab: str) -> str:
    answer = flwr("run", str(app), connection)
    if not answer.get("success") or not answer.get("run-id"):
        raise RunError(f"the SuperLink did not take the run: {error_of(answer)}")
    if not fab.startswith(str(answer["fab-hash"])):
        raise RunError(f"flwr sent another FAB ({answer['fab-hash']}) than was built ({fab[:8]})")
    return str(answer["run-id"])


def _follow(
    run: str,
    connection: str,
    run_dir: Path,
    events: Events,
    say: Callable[[str], object],
    take: Callable[[Event], object],
) -> str:
    """Say what the run does until it has ended; return its status."""
    asked, silent = -ASK_SECONDS, False
    while True:
        for event in events.new():
            take(event)
        if (run_dir / RESULT).exists() or time.monotonic() - asked > ASK_SECONDS:
            answer = flwr("ls", connection, "--run-id", run, seconds=STATUS_SECONDS)
            asked = time.monotonic()
            status = status_of(answer)
            if status.startswith("finished"):
                return status
            if not status and not silent:  # it may be restarting
                say(f"the SuperLink does not answer: {error_of(answer)}; waiting for it")
            silent = not status
        time.sleep(POLL_SECONDS)
