"""Processes: who lives, one to ask, and how to end what was started, with all that it started."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

KILL_SECONDS = 5  # after these, what still runs is killed
_PR_SET_PDEATHSIG = 1  # of Linux' prctl
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """The user, or a signal, stopped the run; everything it had started is gone.

    Args:
        signum: which signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__()
        self.signum = signum


@contextmanager
def _signals(handler: Any, signs: Sequence[signal.Signals]) -> Iterator[None]:
    """Handle signals in this way; in the main thread, for Python gives no other any."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [(sign, signal.signal(sign, handler)) for sign in signs]
    try:
        yield
    finally:
        for sign, earlier in before:
            signal.signal(sign, earlier)


def stoppable() -> AbstractContextManager[None]:
    """Turn the signals that end a program into `Stopped`, once: nothing stays behind."""

    def stop(signum: int, _: object) -> None:
        for sign in ENDING:  # an impatient second Ctrl-C would leave processes behind
            signal.signal(sign, signal.SIG_IGN)
        raise Stopped(signum)

    # What the parent had ignored stays ignored: nohup, or a job in the background.
    return _signals(stop, [s for s in ENDING if signal.getsignal(s) is not signal.SIG_IGN])


def undisturbed() -> AbstractContextManager[None]:
    """Ignore the signals that end a program: one in the middle of stopping would leak."""
    return _signals(signal.SIG_IGN, ENDING)


def tool(name: str) -> str:
    """Return a command of the environment that this runs in."""
    return str(Path(sys.executable).parent / name)


def ask(code: str, seconds: float | None = None) -> Any:
    """Run Python in a process of its own; return the JSON on the last line that it printed.

    Raises:
        RuntimeError: it failed, with the last line of its complaint.
        subprocess.TimeoutExpired: it took longer than ``seconds``.
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=seconds
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or "no reason given").splitlines()[-1])
    return json.loads(done.stdout.strip().splitlines()[-1])


def end_with_parent() -> None:
    """Have Linux stop this process when its parent is killed, so that no run is orphaned."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def stop(process: "subprocess.Popen[bytes] | None", folder: Path, patience: float = 15) -> None:
    """Stop a process and all that it started, some of it in sessions of its own.

    Args:
        process: the SuperLink; None if it was not even known when the stop came.
        folder: where all of them work, and nothing else. Ray starts processes while it is
            being stopped, they outlive their parents, and its agents write their title over
            their environment.
        patience: seconds for an orderly end.
    """
    family = descendants(process.pid) if process else set()
    if process:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    started = time.monotonic()
    while left := [pid for pid in family | working_in(folder) if alive(pid)]:
        waited = time.monotonic() - started
        if waited > 2 * KILL_SECONDS:  # not even SIGKILL ends them: nothing more can be done
            break
        if waited > KILL_SECONDS:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def descendants(pid: int) -> set[int]:
    """Return a process and all that it started, as far as `ps` knows."""
    try:
        listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True)
    except OSError:  # no `ps` here: the SuperLink stops its children, too
        return {pid}
    pairs = [tuple(map(int, line.split())) for line in listed.stdout.splitlines()]
    family = [pid]
    for parent in family:  # grows while it is walked
        family += [child for child, its_parent in pairs if its_parent == parent]
    return set(family)


def working_in(folder: Path) -> set[int]:
    """Find the processes that work in a folder or below it; on Linux only, elsewhere none."""
    pids, folder = set(), folder.resolve()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended, or is not ours
            if (process / "cwd").readlink().is_relative_to(folder):
                pids.add(int(process.name))
    return pids


def alive(pid: int) -> bool:
    """Return whether a process still runs; one that ended and waits for its parent does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    if not Path("/proc/self").exists():  # not Linux
        return True
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False
