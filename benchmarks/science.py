"""Scores of real runs, kept small: benchmarks/results/science/<name>.json.

    python -m benchmarks.science main RUN...

takes each finished run of the folders that are named, or that lie in them, and writes what its
tables rest on: the keys that were set, every score, lengths of steps, what each took, and whether
its recipe trained; with the commit, the date, the machine and the versions of each. What the file
holds already stays, unless the same run comes again. `benchmarks.claims` computes the tables of
docs/results.md from these files.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.results import FOLDER, versions
from cold_flower.config import OF_A_RUN, Config
from cold_flower.identity import code_sha256
from cold_flower.reporting.conditions import Condition
from cold_flower.reporting.runs import RunDirectory, find
from cold_flower.repository.journal import CONFIG, values
from cold_flower.runtime.flower import completed

SCIENCE = FOLDER / "science"
_PATHS = ("suite", "base-model")  # by their last part alone
_OF_A_SCORE = ("iteration", "task", "protocol", "group", "metric", "n_test")


def keep(name: str, folders: Sequence[Path]) -> Path:
    """Write what is known of some runs beside what the file has; return the file."""
    runs, left_out = find(_inside(folders))
    left_out += [f"{run.folder}: it has not ended" for run in runs if not _ended(run)]
    for line in left_out:
        print(f"left out: {line}", file=sys.stderr)
    runs = [run for run in runs if _ended(run)]
    file = SCIENCE / f"{name}.json"
    of_all = {"date": time.strftime("%Y-%m-%d"), "machine": machine.name(), "versions": versions()}
    new = [{**of_all, "commit": _commit(run.folder), **_run(run)} for run in runs]
    again = [run["config"] for run in new]
    before = json.loads(file.read_text()) if file.exists() else []
    kept = [run for run in before if run["config"] not in again] + new
    kept.sort(key=lambda run: (run["config"]["seed"], json.dumps(run["config"])))
    SCIENCE.mkdir(parents=True, exist_ok=True)
    file.write_text("[\n" + ",\n".join(json.dumps(run) for run in kept) + "\n]\n")
    return file


def rows(name: str) -> list[dict[str, Any]]:
    """Return the runs of a file as they are kept."""
    kept: list[dict[str, Any]] = json.loads((SCIENCE / f"{name}.json").read_text())
    return kept


def load(name: str) -> list[RunDirectory]:
    """Return the runs of a file, as if their directories were here."""
    runs = []
    for kept in rows(name):
        run = RunDirectory(Path(), {**Config().flat(), **kept["config"]})
        seed = run.config["seed"]
        run.__dict__["scores"] = [
            {**dict(zip((*_OF_A_SCORE, "value"), row, strict=True)), "seed": seed}
            for row in kept["scores"]
        ]
        runs.append(run)
    return runs


def select(runs: Iterable[RunDirectory], label: str, **wanted: Any) -> Condition:
    """Return the seeds of the runs that have these values.

    Of a key's name ``_`` stands for ``-``, and ``__`` for a dot.

    Raises:
        ValueError: no run has them, or a seed twice.
    """
    keys = {key.replace("__", ".").replace("_", "-"): value for key, value in wanted.items()}
    chosen = [run for run in runs if all(run.config[k] == v for k, v in keys.items())]
    seeds = [run.config["seed"] for run in chosen]
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"{label}: seeds {seeds} have {keys}")
    return Condition(label, tuple(sorted(chosen, key=lambda run: run.config["seed"])))


def _inside(folders: Iterable[Path]) -> Iterator[Path]:
    """Yield every folder of runs in some folders: a comparison has one for each variant."""
    for folder in folders:
        below = [path for path in sorted(folder.iterdir()) if path.is_dir()]
        if any((path / CONFIG).exists() for path in (folder, *below)):
            yield folder
        else:
            yield from (path for path in below if any(path.glob(f"*/{CONFIG}")))


def _run(run: RunDirectory) -> dict[str, Any]:
    defaults = Config().flat()
    config = {k: v for k, v in run.config.items() if v != defaults[k] and k not in OF_A_RUN}
    config |= {key: Path(config[key]).name for key in _PATHS if key in config}
    seconds = run.progress.seconds
    return {
        "config": {**config, "seed": run.config["seed"]},
        "lengths": [round(m["length"], 4) for m in run.manifests if m.get("length")],
        "own-lengths": [round(m["own-length"], 4) for m in run.manifests if m.get("own-length")],
        "finetunings": len(run.contributions),
        "minutes": round(sum(seconds.values()) / 60, 1),
        "findings": run.findings,
        "scores": [
            [*(row[key] for key in _OF_A_SCORE), round(row["value"], 6)] for row in run.scores
        ],
    }


def _ended(run: RunDirectory) -> bool:
    """Return whether a run is complete; half of its scores would be compared with whole ones."""
    return completed(run.folder, run.config["iterations"])


def _commit(run: Path) -> str:
    """Return the commit whose code a run had, as far as it is this checkout's; else its hash."""
    codes = values(json.loads((run / CONFIG).read_text()), "code")
    if {*codes} == {code_sha256()}:
        git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    return f"code sha256 {', then '.join(code[:12] for code in codes)}"


if __name__ == "__main__":
    print(keep(sys.argv[1], [Path(path) for path in sys.argv[2:]]))
