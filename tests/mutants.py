"""Do the tests notice? Small faults, put into a copy of the code one at a time: `make mutants`.

    python -m tests.mutants [WORDS ...] [--jobs 2]     # those whose file or text has one of WORDS

`mutants.toml` lists them: by file, the text that is replaced, what by, and which tests are to
notice. A fault that changes nothing that a user could see says so (``equivalent``), and does not
count. The exit code is 1 if fewer than 90 % of the others are noticed, or where the list no longer
fits the code (a test of the suite looks at that, too).
"""

import argparse
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIST = ROOT / "tests" / "mutants.toml"
ENOUGH = 0.9
SECONDS = 300  # for the tests of one fault; a fault that never ends is noticed, too
COPIED = ("cold_flower", "strategies", "simulations", "tests", "benchmarks", "docs")
FILES = ("pyproject.toml", "README.md", "constraints.txt", "LICENSE")
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "transformers", "datasets", "flwr.serverapp", "pytest"])


@dataclass(frozen=True)
class Mutant:
    """One fault."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    """What pytest is given; ``-k`` and its words included."""
    equivalent: str = ""
    """Why nobody could see it."""

    @property
    def name(self) -> str:
        """Say where and what, in a line."""
        old, new = (" ".join(text.split())[:50] for text in (self.old, self.new))
        return f"{self.file}: {old} -> {new or 'nothing'}"

    def apply(self, text: str) -> str:
        """Return the file with the fault.

        Raises:
            ValueError: the text is not there, or more than once.
        """
        if (times := text.count(self.old)) != 1:
            raise ValueError(f"{self.name}: the text is there {times} times: repair {LIST.name}")
        return text.replace(self.old, self.new)


def mutants() -> Iterator[Mutant]:
    """Read the list."""
    for file, entry in tomllib.loads(LIST.read_text()).items():
        for old, new, *more in entry["faults"]:
            extra = dict(part.split(": ", 1) for part in more)
            tests = extra.get("tests", entry["tests"]).split()
            yield Mutant(file, old, new, tuple(_words(tests)), extra.get("equivalent", ""))


def _words(tests: Sequence[str]) -> Iterator[str]:
    """Expand ``fusion`` to tests/test_fusion.py; what follows -k is one expression."""
    for i, word in enumerate(tests):
        if word == "-k":
            yield from ("-k", " ".join(tests[i + 1 :]))
            return
        yield f"tests/test_{word}.py"


def copy(to: Path) -> None:
    """Copy what the tests need."""
    for name in COPIED:
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, to / name)


def noticed(tree: Path, mutant: Mutant) -> bool:
    """Put a fault into a tree, run its tests there, and take it out."""
    path = tree / mutant.file
    whole = path.read_text()
    path.write_text(mutant.apply(whole))
    try:
        return not passes(tree, mutant.tests)
    finally:
        path.write_text(whole)


def passes(tree: Path, tests: Sequence[str]) -> bool:
    """Run tests of a tree, in a process that has the large libraries already."""
    process = _CONTEXT.Process(target=_pytest, args=(tree, tests))
    process.start()
    process.join(SECONDS)
    if process.is_alive():
        with suppress(ProcessLookupError):  # it ended just now
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()
    if process.exitcode in (4, 5):  # pytest's codes for what it cannot find
        raise RuntimeError(f"pytest finds nothing to run: {' '.join(tests)}")
    return process.exitcode == 0


def _pytest(tree: Path, tests: Sequence[str]) -> None:
    os.setsid()
    with (tree / "out.txt").open("w") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    os.chdir(tree)
    os.environ["PYTHONPATH"] = str(tree)  # of what the tests start
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(tree))
    for name in [*sys.modules]:
        if name.split(".")[0] in COPIED:
            del sys.modules[name]
    import pytest
    import torch

    torch.set_num_threads(1)
    options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider"]
    early = "ignore::pytest.PytestAssertRewriteWarning"  # of a library that is there already
    sys.exit(pytest.main([*options, "-W", early, *tests]))


def main(words: Sequence[str], jobs: int) -> int:
    """Run those chosen; print what was not noticed and the score; return the exit code."""
    chosen = [m for m in mutants() if not words or any(w in m.file + m.old for w in words)]
    counted = [mutant for mutant in chosen if not mutant.equivalent]
    missed: list[Mutant] = []
    sound: dict[tuple[str, ...], bool] = {}
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="cf-mutants-") as folder:
        trees = [Path(folder) / str(number) for number in range(jobs)]
        for tree in trees:
            copy(tree)

        def work(number: int) -> None:
            for mutant in counted[number::jobs]:
                # Before it says anything, what is to notice has to pass.
                if mutant.tests not in sound:
                    sound[mutant.tests] = passes(trees[number], mutant.tests)
                if not sound[mutant.tests]:
                    raise RuntimeError(f"fails without any fault: {' '.join(mutant.tests)}")
                seen = noticed(trees[number], mutant)
                print("noticed" if seen else "MISSED ", mutant.name, flush=True)
                if not seen:
                    missed.append(mutant)

        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(work, range(jobs)))
    found = len(counted) - len(missed)
    share = found / len(counted) if counted else 1.0
    minutes = (time.monotonic() - started) / 60
    print(
        f"{found} of {len(counted)} faults noticed ({share:.1%}) in {minutes:.0f} min; "
        f"{len(chosen) - len(counted)} more change nothing that can be seen"
    )
    for mutant in missed:
        print(f"missed: {mutant.name}\n    by {' '.join(mutant.tests)}")
    return int(share < ENOUGH)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    sys.exit(main(arguments.words, arguments.jobs))
