"""Contributors of a simulation, scored side by side: each in a process with one core.

A head is trained in many short steps, and between threads of one process every step ends with a
barrier: where something else wants a core, too, that takes twenty times as long. The processes are
``python -m`` this file, and not `multiprocessing`'s, which would run a caller's script again.
"""

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from cold_flower.config import Config
from cold_flower.contributors.contributor import Contributor
from cold_flower.errors import RunError
from cold_flower.models.base import load_base
from cold_flower.models.body import State
from cold_flower.runtime.machine import this_machine
from cold_flower.runtime.resources import footprint
from strategies.fusion import Weights, write_safetensors
from strategies.fusion._deltas import one_thread

SMALL = 5_000_000  # numbers: a smaller model is scored before a process has started


class Scorers:
    """Scores bodies by some contributors' data; a context manager.

    Args:
        config: of the run.
        index: of each contributor among the tasks of the run's plan, by name.
        folder: where they keep what is theirs.
    """

    def __init__(self, config: Config, index: Mapping[str, int], folder: Path) -> None:
        self._index, self._config = index, config
        self._here = _Here(config, folder)
        self._workers: list[_Worker] = []

    def __enter__(self) -> "Scorers":
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers:
            worker.end()

    @property
    def names(self) -> list[str]:
        """Whose data score."""
        return [*self._index]

    def scores(self, body: State, *, protocol: str, split: str, iteration: int) -> dict[str, float]:
        """Return each contributor's score of a body, as a message of this iteration asks for it.

        Raises:
            RunError: a process that scores has ended.
        """
        asked = (protocol, split, iteration)
        if torch.cuda.is_available() or sum(t.numel() for t in body.values()) < SMALL:
            with one_thread():
                return {name: self._here.score(body, i, *asked) for name, i in self._index.items()}
        self._start()
        free: SimpleQueue[_Worker] = SimpleQueue()
        for worker in self._workers:
            free.put(worker)

        def score(index: int) -> float:
            worker = free.get()
            try:
                return worker.score(file, index, *asked)
            finally:
                free.put(worker)

        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "body.safetensors"
            write_safetensors(file, Weights(body).template(), body.items(), durable=False)
            with ThreadPoolExecutor(len(self._workers)) as pool:
                found = [*pool.map(score, self._index.values())]
        return dict(zip(self._index, found, strict=True))

    def _start(self) -> None:
        """Start the processes when they are first needed: as many as cores and memory allow."""
        if self._workers:
            return
        machine, base = this_machine(), load_base(self._config.base_model)
        each = footprint(self._config, base, bf16=machine.bf16, cores=True)
        count = min(len(self._index), machine.cores, max(1, int(machine.memory / each)))
        self._workers = [_Worker(self._here) for _ in range(count)]


class _Here:
    """The contributors of one process, each made when it is first asked."""

    def __init__(self, config: Config, folder: Path) -> None:
        self._config, self._folder = config, folder
        self._made: dict[int, Contributor] = {}

    def score(self, body: State, index: int, protocol: str, split: str, iteration: int) -> float:
        if index not in self._made:
            self._made[index] = Contributor(self._config, index, self._folder)
        who, seed = self._made[index], self._config.seed
        scores, _ = who.evaluate(body, [protocol], iteration=iteration, seed=seed, split=split)
        return float(scores[protocol])


class _Worker:
    """A process that scores; it is told and answers by pickles through its pipes."""

    def __init__(self, here: _Here) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._tell(here)

    def score(self, *asked: Any) -> float:
        try:
            self._tell(asked)
            return float(pickle.load(self._process.stdout))  # type: ignore[arg-type]  # a pipe
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            code = self._process.wait()
            raise RunError(
                f"a process that scores ended with exit code {code}; why stands above. What was "
                "scored is kept: the same command goes on"
            ) from error

    def end(self) -> None:
        self._process.kill()  # it holds nothing
        self._process.communicate()

    def _tell(self, what: object) -> None:
        assert self._process.stdin
        pickle.dump(what, self._process.stdin)
        self._process.stdin.flush()


def _main() -> None:
    """Score what is asked for until the pipe is closed."""
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a library may print
    here: _Here = pickle.load(sys.stdin.buffer)
    while True:
        try:
            file, *asked = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(here.score(dict(Weights(file).items()), *asked), answers)
        answers.flush()


if __name__ == "__main__":
    _main()
