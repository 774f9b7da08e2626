"""Stopping: all that was started, once, whatever else is signalled meanwhile."""

import os
import signal
import subprocess
import threading
import time

import pytest

from cold_flower.runtime import processes
from cold_flower.runtime.machine import Machine
from cold_flower.runtime.processes import Stopped, stoppable, undisturbed
from cold_flower.runtime.resources import allocate
from cold_flower.runtime.simulate import LARGE_PAGES, _environment

STUBBORN = "trap '' TERM; sleep 100 & echo; wait; wait"


@pytest.fixture(autouse=True)
def heeded():
    """Heed Ctrl-C, also where the tests run in the background of a shell that ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def stubborn(monkeypatch, tmp_path):
    """Start a process that ignores SIGTERM, and a child that is somebody else's by now.

    The child has forgotten its environment: Ray's agents write their title over it.
    """
    monkeypatch.setattr(processes, "KILL_SECONDS", 0.5)
    process = subprocess.Popen(["bash", "-c", STUBBORN], cwd=tmp_path, stdout=subprocess.PIPE)
    orphan = subprocess.Popen(
        ["bash", "-c", "(env -i sleep 100 & echo $!)"], cwd=tmp_path, stdout=subprocess.PIPE
    )
    assert process.stdout and orphan.stdout
    process.stdout.readline()
    child = int(orphan.stdout.readline())
    orphan.wait()
    yield process, child, tmp_path
    for pipe in (process.stdout, orphan.stdout):
        pipe.close()


def test_everything_that_works_there_is_stopped(stubborn) -> None:
    process, child, folder = stubborn
    processes.stop(process, folder, patience=0.2)
    assert process.wait(5) is not None
    assert not processes.alive(child)
    assert not processes.working_in(folder) - {process.pid}


def test_a_signal_in_the_middle_of_stopping_leaks_nothing(stubborn) -> None:
    process, child, folder = stubborn
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    with stoppable(), undisturbed():
        timer.start()
        processes.stop(process, folder, patience=0.2)
        timer.join()
    assert process.wait(5) is not None
    assert not processes.alive(child)


def test_the_first_signal_stops_and_a_second_one_is_ignored() -> None:
    ended = []
    with pytest.raises(Stopped) as stopped, stoppable():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            ended.append(True)
    assert stopped.value.signum == signal.SIGTERM
    assert ended
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_was_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable():
            os.kill(os.getpid(), signal.SIGHUP)  # as under nohup
            time.sleep(0.05)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_in_a_thread_of_its_own_a_run_leaves_the_signals_alone() -> None:
    before = [signal.getsignal(sign) for sign in processes.ENDING]
    during = []

    def run() -> None:
        with stoppable(), undisturbed():
            during.extend(signal.getsignal(sign) for sign in processes.ENDING)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert during == before


def test_a_run_takes_large_pages_unless_the_user_says_otherwise(tmp_path, monkeypatch) -> None:
    one = allocate(Machine(2, 8e9), contributors=2, footprint=1e9)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert LARGE_PAGES.items() <= _environment(tmp_path, tmp_path, one).items()
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1")
    assert _environment(tmp_path, tmp_path, one)["GLIBC_TUNABLES"] == "glibc.malloc.check=1"


def test_a_process_is_asked() -> None:
    assert processes.ask("import json; print('a warning'); print(json.dumps([1, {'a': 2}]))") == [
        1,
        {"a": 2},
    ]
    with pytest.raises(RuntimeError, match=r"^ValueError: no such GPU$"):
        processes.ask("raise ValueError('no such GPU')")
    with pytest.raises(RuntimeError, match="no reason given"):
        processes.ask("raise SystemExit(1)")
    with pytest.raises(subprocess.TimeoutExpired):
        processes.ask("import time; time.sleep(9)", 0.2)
