"""What makes a run's numbers beside its keys: versions, code, files of the user's own, data."""

import functools
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from cold_flower.config import Config
from cold_flower.data import files
from cold_flower.data.plan import plan
from cold_flower.data.task import Task
from cold_flower.errors import TaskError
from cold_flower.identity import code_sha256, versions

DATA = " data"  # after a task's name


def facts(config: Config) -> dict[str, str]:
    """Return ``versions``, ``code``, and by sha256 the user's files and each task's data.

    Of data that only their sites see, or that the hub gives, nothing is known here.

    Args:
        config: the run's, resolved.
    """
    own = {
        f"{key} file": hashlib.sha256(Path(name).read_bytes()).hexdigest()
        for key, name in config.files().items()
        if Path(name).is_file()
    }
    data = {} if config.sites.allow else dict(_data(plan(config).tasks))
    return {"versions": versions(), "code": code_sha256(), **own, **data}


def _data(tasks: Mapping[str, Task]) -> Iterator[tuple[str, str]]:
    """Yield of each task with files of its own what they hold; what is not there is left out."""
    for task in {task.name: task for task in tasks.values()}.values():
        digest = hashlib.sha256()
        with suppress(TaskError, OSError):  # who reads them says so
            if task.source != "files":
                continue
            for split, name in sorted(task.splits.items()):
                for file in files.paths(task, name) if name else ():
                    there = file.stat()
                    one = _sha256(file, there.st_size, there.st_mtime_ns)
                    digest.update(f"{split} {one}\n".encode())
            yield task.name + DATA, digest.hexdigest()


@functools.lru_cache(maxsize=1 << 14)
def _sha256(file: Path, size: int, changed: int) -> str:
    """Return a file's sha256; of one that has not changed, once in a process."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
