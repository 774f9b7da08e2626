"""A run's drop box: a folder into which anybody may put a finetuned model, at any time.

::

    <dropbox>/alice/                     a transformers folder: waits
    <dropbox>/taken/0003-alice/          went into iteration 3
    <dropbox>/refused/alice/ alice.txt   cannot be fused, and why
    <dropbox>/.run                       whose it is: the run's id

A model is moved in one step, and never deleted. So an iteration that was stopped takes the same
models again when it goes on: those that were taken for it.
"""

import json
import shutil
import time
from collections.abc import Container, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cold_flower.config import Config
from cold_flower.errors import ConfigError, ModelError, RunError
from cold_flower.repository.publish import new_folder
from strategies.names import NAME
from strategies.records import MOST_EXAMPLES

FOLDER = "dropbox"  # in a run directory
STATED = "contribution.json"  # in a model's folder: what its owner says of it
TAKEN, REFUSED, OWNER = "taken", "refused", ".run"
SETTLED = 3.0  # seconds without a change, after which a folder has been copied whole


@dataclass(frozen=True)
class Stated:
    """What an owner says of a model; all of it may be left out."""

    base: str = ""
    """Fingerprint of the base that it was finetuned from."""
    examples: int = 0
    """How many it was finetuned on."""

    @classmethod
    def read(cls, folder: Path) -> "Stated":
        """Read it in a model's folder.

        Raises:
            ModelError: it is there, and not as it has to be.
        """
        path = folder / STATED
        if not path.exists():
            return cls()
        try:
            given: Any = json.loads(path.read_text("utf-8"))
            if not isinstance(given, dict) or given.keys() - {"base", "examples"}:
                raise ValueError("expected an object with base, examples or both")
            base, examples = given.get("base", ""), given.get("examples", 0)
            if not isinstance(base, str):
                raise ValueError("base is the sha256 that the base's manifest.json states")
            if type(examples) is not int or not 0 <= examples <= MOST_EXAMPLES:
                raise ValueError(f"examples is a number, 1 to {MOST_EXAMPLES}")
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(f"{STATED} cannot be used: {error}") from error
        return cls(base, examples)


def folder_of(config: Config, run_dir: Path) -> Path:
    """Return where a run's drop box is, or would be."""
    return Path(config.dropbox) if config.dropbox else run_dir / FOLDER


class Dropbox:
    """The models of one drop box.

    Args:
        folder: where it is, or would be.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: dict[str, tuple[Mapping[str, tuple[int, int]], float]] = {}

    def check(self, run: str) -> None:
        """Check that this is no other run's box: that one would fuse what was put there for this.

        Args:
            run: id of the run; empty of one that has not begun.

        Raises:
            ConfigError: it is, naming the way out.
        """
        owner = self._owner()
        if owner != run if owner else any((self.folder / TAKEN).glob("*")):
            raise ConfigError(
                f"dropbox = {self.folder} is another run's: each run has a box of its own. If that "
                f"run is over, move {OWNER} and {TAKEN} away from there"
            )

    def claim(self, run: str) -> None:
        """Make the box a run's own, where it is there.

        Raises:
            ConfigError: it is another's.
        """
        self.check(run)
        with suppress(OSError), (self.folder / OWNER).open("w" if self._torn() else "x") as file:
            file.write(f"{run}\n")
        self.check(run)

    def _owner(self) -> str:
        """Return whose it is; empty of nobody's, or where a crash left no more than the file."""
        owner = self.folder / OWNER
        return owner.read_text().strip() if owner.exists() else ""

    def _torn(self) -> bool:
        return (self.folder / OWNER).exists() and not self._owner()

    def put(self, name: str, files: Mapping[str, Path], stated: Stated) -> Path:
        """Copy a model into the box: it appears there whole, or not at all. Return its folder.

        Args:
            name: of the contribution.
            files: what to copy, by name in the folder.
            stated: what its owner says.

        Raises:
            RunError: one of this name waits there.
            OSError: no space.
        """
        target = self.folder / name
        if target.exists():
            raise RunError(
                f"{target} waits to be taken already: an iteration takes one of each name. Give "
                "this one another --name, or remove that one"
            )
        with new_folder(target) as folder:
            for inside, path in files.items():
                shutil.copyfile(path, folder / inside)
            if given := {key: value for key, value in asdict(stated).items() if value}:
                (folder / STATED).write_text(json.dumps(given) + "\n")
        return target

    def waiting(self) -> tuple[list[str], list[str]]:
        """Return the names of models that wait, and what is there that has no such name."""
        names: list[str] = []
        others: list[str] = []
        for path in sorted(self.folder.glob("[!.]*")):
            if path.name not in (TAKEN, REFUSED):
                good = NAME.fullmatch(path.name) and path.is_dir()
                (names if good else others).append(path.name)
        return names, others

    def whole(self, name: str) -> bool:
        """Return whether a model that waits has not changed for `SETTLED` seconds, as seen here.

        No clock but this process's is asked: a file may bring any time with it.
        """
        found = {}
        for path in sorted((self.folder / name).rglob("*")):
            with suppress(FileNotFoundError):  # a copy has temporary files
                status = path.lstat()
                found[str(path)] = status.st_size, status.st_mtime_ns
        before, since = self._seen.get(name, ({}, 0.0))
        if before != found or not before:
            self._seen[name] = found, time.monotonic()
            return False
        return time.monotonic() - since >= SETTLED

    def take(self, name: str, iteration: int) -> Path:
        """Move a model that waits: from now on it is this iteration's. Return its folder."""
        self._seen.pop(name, None)
        target = self.folder / TAKEN / f"{iteration:04d}-{name}"
        target.parent.mkdir(exist_ok=True)
        (self.folder / name).rename(target)
        return target

    def taken(self, iteration: int) -> dict[str, Path]:
        """Return the models that were taken for an iteration, by name."""
        before = f"{iteration:04d}-"
        there = sorted((self.folder / TAKEN).glob(f"{before}*"))
        return {path.name.removeprefix(before): path for path in there}

    def give_back(self, after: int, gone: Container[str] = ()) -> list[str]:
        """Have models wait again that were taken for iterations with higher numbers; name them.

        Where another of the name waits meanwhile, one stays where it is, and so do those of who is
        ``gone``.
        """
        back = []
        for path in sorted((self.folder / TAKEN).glob("[0-9]*-*")):
            number, _, name = path.name.partition("-")
            if int(number) > after and name not in gone and not (self.folder / name).exists():
                path.rename(self.folder / name)
                back.append(name)
        return back

    def refuse(self, folder: Path, name: str, reason: str) -> Path:
        """Put a model that was taken aside, with the reason beside it; return its folder."""
        refused = self.folder / REFUSED
        refused.mkdir(exist_ok=True)
        number, target = 1, refused / name
        while target.exists():
            number += 1
            target = refused / f"{name}.{number}"
        (refused / f"{target.name}.txt").write_text(reason + "\n")
        folder.rename(target)
        return target
