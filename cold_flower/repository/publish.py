"""Write the folder of a base so that it is never half visible, and the weights in it."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from cold_flower.errors import ModelError
from strategies.fusion import Fingerprint, Template, Weights, fingerprint, write_safetensors

_METADATA = {"format": "pt"}  # as transformers saves its own


def replace_text(path: Path, text: str) -> None:
    """Write a text file, or replace it, in one step."""
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)


def link(file: Path, folder: Path) -> None:
    """Hard-link a file into a folder, or copy it: now it may be replaced, never written to."""
    try:
        os.link(file, folder / file.name)
    except OSError:  # another disk, or one without links
        shutil.copy2(file, folder)


def check_space(needed: int, folder: Path) -> None:
    """Check that a disk has room.

    Args:
        needed: bytes.
        folder: to be written; it need not exist.

    Raises:
        ModelError: it has less.
    """
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if needed > (free := shutil.disk_usage(there).free):
        raise ModelError(f"no space for {folder}: it takes {needed:,} bytes, there are {free:,}")


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill; then make it durable and give it its name.

    If filling it fails, nothing is left.
    """
    temporary = target.parent / f".{target.name}"
    shutil.rmtree(temporary, ignore_errors=True)  # an attempt that was killed may have left it
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in (*temporary.rglob("*"), temporary):
            fsync(path)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync(target.parent)


def add_body(file: Path, body: Mapping[str, Tensor], prefix: str) -> str:
    """Put a body into a saved model's file, before its other tensors; return its sha256."""
    model = Weights(file)
    tensors = {prefix + name: tensor for name, tensor in body.items()}
    tensors |= {n: model.get(n) for n in model.keys() if n not in tensors}  # noqa: SIM118 - no dict
    write_safetensors(file, Weights(tensors).template(), tensors.items(), _METADATA)
    return fingerprint(body.items())


def replace_body(
    parent: Weights, file: Path, body: Weights, names: Sequence[str], prefix: str
) -> str:
    """Write a parent's tensors with another body, one at a time; return the body's sha256.

    Args:
        parent: the tensors of the model that the body replaces.
        file: where to write them.
        body: the new body, matched by name.
        names: of the body, in the order of the file.
        prefix: what stands before them in the file.
    """
    template = parent.template()
    stored = [prefix + name for name in names]
    others = [name for name in template if name not in set(stored)]
    ordered: Template = {name: template[name] for name in (*stored, *others)}
    hashed = Fingerprint()

    def tensors() -> Iterator[tuple[str, Tensor]]:
        passing = hashed.passing((name, body.get(name)) for name in names)
        yield from ((prefix + name, tensor) for name, tensor in passing)
        yield from ((name, parent.get(name)) for name in others)

    write_safetensors(file, ordered, tensors(), _METADATA)
    return hashed.hexdigest()


def fsync(path: Path) -> None:
    """Make a file or a folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
