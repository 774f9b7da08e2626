"""Contributors of a simulation, scored side by side: each in a process with one core.

A head is trained in many short steps, and between threads of one process every step ends with a
barrier: where something else wants a core, too, that takes twenty times as long.
"""

import multiprocessing
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType

import torch

from cold_flower.config import Config
from cold_flower.contributors.contributor import Contributor
from cold_flower.models.body import State
from cold_flower.runtime.machine import this_machine
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

    def __init__(self, config: Config, index: dict[str, int], folder: Path) -> None:
        self._index = index
        self._here = _Here(config, folder)
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Scorers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        if self._pool:
            self._pool.shutdown(wait=kind is None, cancel_futures=True)

    @property
    def names(self) -> list[str]:
        """Whose data score."""
        return [*self._index]

    def scores(self, body: State, *, protocol: str, split: str, iteration: int) -> dict[str, float]:
        """Return each contributor's score of a body, as a message of this iteration asks for it."""
        asked = (protocol, split, iteration)
        if torch.cuda.is_available() or sum(t.numel() for t in body.values()) < SMALL:
            with one_thread():
                return {name: self._here.score(body, i, *asked) for name, i in self._index.items()}
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "body.safetensors"
            write_safetensors(file, Weights(body).template(), body.items(), durable=False)
            found = self._workers().map(partial(_score, file, asked), self._index.values())
            return dict(zip(self._index, found, strict=True))

    def _workers(self) -> ProcessPoolExecutor:
        """Start the processes when they are first needed."""
        if self._pool is None:
            count = min(len(self._index), this_machine().cores)
            context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads
            self._pool = ProcessPoolExecutor(count, context, _start, (self._here,))
        return self._pool


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


_here: Sequence[_Here] = ()  # of a process of the pool


def _start(here: _Here) -> None:
    global _here
    torch.set_num_threads(1)
    _here = (here,)


def _score(file: Path, asked: tuple[str, str, int], index: int) -> float:
    return _here[0].score(dict(Weights(file).items()), index, *asked)
