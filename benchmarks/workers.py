"""Processes that measure, alone or side by side; spawned, without Ray.

A worker is told in lines of JSON what to prepare (``["module:function", {options}]``; the function
loads, warms up, and returns what is to be measured), and then, as often as wanted, to "go". It
answers each with a line. So no import and no first kernel is measured, and all begin together.
"""

import gc
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Self

GO = "go"
Answer = dict[str, Any]


class WorkerError(Exception):
    """A worker could not do what it was asked for."""


class Workers:
    """The workers of a benchmark; they live until the context ends, or one of them fails.

    Args:
        threads: of each; 0 = its share of the cores.
    """

    def __init__(self, threads: int = 0) -> None:
        self._threads = threads
        self._running: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._running)

    def prepare(
        self, many: int, what: str, options: Mapping[str, Any], by: float = math.inf
    ) -> None:
        """Have so many workers prepare the same, each with a ``seed`` of its own.

        Args:
            many: so many, of which those that are missing are started.
            what: ``module:function``.
            options: its keyword arguments.
            by: when to give up, in seconds of `time.monotonic`.

        Raises:
            WorkerError: one failed, or they were not done in time.
        """
        command = [sys.executable, "-m", "benchmarks.workers"]
        while len(self._running) < many:
            # In a session of its own: what it starts can be ended with it.
            pipe = subprocess.PIPE
            self._running.append(
                subprocess.Popen(
                    command, stdin=pipe, stdout=pipe, text=True, start_new_session=True
                )
            )
        threads = self._threads or max(1, len(os.sched_getaffinity(0)) // many)
        self._ask([[threads, what, {**options, "seed": seed}] for seed in range(many)], by)

    def go(self, many: int, by: float = math.inf) -> list[Answer]:
        """Have so many measure what they prepared, at the same time; return their answers.

        Raises:
            WorkerError: as `prepare`.
        """
        return self._ask([GO] * many, by)

    def _ask(self, lines: Sequence[Any], by: float) -> list[Answer]:
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self._kill()

        left = min(max(0.0, by - time.monotonic()), threading.TIMEOUT_MAX)
        timer = threading.Timer(left, give_up)
        timer.daemon = True
        timer.start()
        asked = self._running[: len(lines)]
        try:
            for process, line in zip(asked, lines, strict=True):
                with suppress(BrokenPipeError):  # it is gone, and so has no answer
                    print(json.dumps(line), file=process.stdin, flush=True)
            answers = [_answer(process) for process in asked]
        except WorkerError as error:
            self.close()  # the others may be in the middle of something
            raise WorkerError("was not done in time") if late.is_set() else error from None
        finally:
            timer.cancel()
        return answers

    def close(self) -> None:
        """End them, and what they started."""
        self._kill()
        for process in self._running:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with suppress(BrokenPipeError):
                    pipe.close()  # type: ignore[union-attr]  # both are pipes
        self._running = []

    def _kill(self) -> None:
        for process in self._running:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _answer(process: "subprocess.Popen[str]") -> Answer:
    line = process.stdout.readline()  # type: ignore[union-attr]  # a pipe
    if not line:
        raise WorkerError(f"its process ended with code {process.wait()}")
    answer: Answer = json.loads(line)
    if "failed" in answer:
        raise WorkerError(answer["failed"])
    return answer


def main() -> None:
    """Do what the lines say."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print is no answer
    run: Callable[[], Answer] | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if asked == GO:
                assert run is not None
                answer = run()
            else:
                run = None
                gc.collect()  # a model is a circle
                threads, what, options = asked
                name, _, function = what.partition(":")
                module = importlib.import_module(name)
                if torch := sys.modules.get("torch"):
                    torch.set_num_threads(threads)
                    torch.cuda.empty_cache()
                run, answer = getattr(module, function)(**options), {}
        except Exception as error:
            answer = {"failed": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
