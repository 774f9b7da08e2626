"""Named tensors seen lazily, and safetensors files written as a stream.

A server that fuses N contributions must not hold N models. `Weights` therefore reads
one tensor at a time, from a dict or from a memory-mapped file, and `write_safetensors`
writes tensors one by one as they are computed, which ``safetensors.torch.save_file``
cannot do.
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy
import torch
from safetensors import safe_open
from torch import Tensor

Template = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""Tensor names with dtype and shape, in the model's order."""

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
AHEAD = 1 << 28  # bytes: while one core hashes a word embedding, another does some layers


class Weights:
    """A lazy view of one model's tensors.

    Args:
        source: tensors by name, or a safetensors file.
        name: the contributor's name; empty for a base.
        examples: how many training examples stand behind it.
        steps: how many optimizer steps made it of its base; 0 where that is not known.
        statistic: what it says of its data, where the rule asks for it (`_statistics`).
        stored_as: maps the names seen here to the names in ``source``; by default
            every tensor under its own name.
    """

    def __init__(
        self,
        source: Mapping[str, Tensor] | Path,
        *,
        name: str = "",
        examples: int = 1,
        steps: int = 0,
        statistic: "Weights | None" = None,
        stored_as: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.examples = examples
        self.steps = steps
        self.statistic = statistic
        self._source: Any = (
            safe_open(source, framework="pt") if isinstance(source, Path) else source
        )
        self._stored_as = stored_as or {key: key for key in self._source.keys()}  # noqa: SIM118 - no dict

    def keys(self) -> list[str]:
        """Return the tensors' names."""
        return list(self._stored_as)

    def get(self, key: str) -> Tensor:
        """Return a tensor; not to be written to."""
        source, stored = self._source, self._stored_as[key]
        tensor: Tensor = (
            source[stored] if isinstance(source, Mapping) else source.get_tensor(stored)
        )
        return tensor

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Yield names and tensors, one at a time."""
        return ((key, self.get(key)) for key in self.keys())

    def template(self) -> Template:
        """Return dtypes and shapes by name, without reading the tensors of a file."""
        if isinstance(self._source, Mapping):
            found = {key: self._source[stored] for key, stored in self._stored_as.items()}
            return {key: (t.dtype, tuple(t.shape)) for key, t in found.items()}
        slices = {key: self._source.get_slice(s) for key, s in self._stored_as.items()}
        return {key: (DTYPES[s.get_dtype()], tuple(s.get_shape())) for key, s in slices.items()}


def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor holds no NaN and no infinity."""
    if not tensor.is_floating_point():
        return True
    # The sum of finite numbers is finite unless it overflows, and fast; then look closely.
    # numpy's, for torch's threads would disturb those that hash meanwhile.
    with numpy.errstate(over="ignore", invalid="ignore"):
        whole = tensor.detach().float().cpu().numpy().sum()
    return bool(numpy.isfinite(whole)) or bool(torch.isfinite(tensor).all())


def _digest(name: str, tensor: Tensor, new: Callable[[bytes], Any]) -> tuple[str, bytes]:
    digest = new(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    digest.update(_raw(tensor))
    return name, digest.digest()


def _raw(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def fingerprint(items: Iterable[tuple[str, Tensor]]) -> str:
    """Return the sha256 of a body: name, dtype, shape and bytes of each tensor.

    The order of the tensors does not matter, nor the file format they come in: two
    bodies have one fingerprint exactly when they hold the same values.
    """
    return Fingerprint.of(items).hexdigest()


class Fingerprint:
    """The fingerprint of tensors that are on their way elsewhere, as by a file writer.

    Args:
        new: begins a digest of bytes; another than sha256 makes no identity, but may be faster.
    """

    def __init__(self, new: Callable[[bytes], Any] = hashlib.sha256) -> None:
        self._new = new
        self._digests: list[tuple[str, bytes]] = []

    @classmethod
    def of(cls, items: Iterable[tuple[str, Tensor]]) -> Self:
        """Return that of tensors that go nowhere else."""
        seen = cls()
        for _ in seen.passing(items):
            pass
        return seen

    def passing(self, items: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Pass tensors through and take note of each, in threads: nobody may write to them.

        What waits for its turn takes at most `AHEAD` bytes, and a tensor.
        """
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            waiting: deque[tuple[int, Future[tuple[str, bytes]]]] = deque()
            ahead = 0
            for name, tensor in items:
                waiting.append((tensor.nbytes, pool.submit(_digest, name, tensor, self._new)))
                ahead += tensor.nbytes
                yield name, tensor
                while ahead > AHEAD:
                    size, future = waiting.popleft()
                    self._digests.append(future.result())
                    ahead -= size
            self._digests += [future.result() for _, future in waiting]

    def hexdigest(self, without: str = "") -> str:
        """Return the digest of what has passed, ``without`` names that begin so."""
        counted = [
            d for name, d in sorted(self._digests) if not without or not name.startswith(without)
        ]
        return str(self._new(b"".join(counted)).hexdigest())


class SafetensorsWriter:
    """Writes tensors as they come, to a file that appears whole or not at all.

    A context manager: it writes under a temporary name and, at the end of the block,
    fsyncs and renames; an exception leaves nothing behind.

    Args:
        path: the file.
        template: the tensors to come, in their order.
        metadata: strings for the file's header.
        durable: whole also after a power cut; without, that is for its reader to check.
    """

    def __init__(
        self,
        path: Path,
        template: Template,
        metadata: Mapping[str, str] | None = None,
        *,
        durable: bool = True,
    ) -> None:
        self._path = path
        self._durable = durable
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}")
        self._due = list(template.items())[::-1]
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        end = 0
        for name, (dtype, shape) in template.items():
            start, end = end, end + dtype.itemsize * torch.Size(shape).numel()
            header[name] = {
                "dtype": _CODES[dtype],
                "shape": list(shape),
                "data_offsets": [start, end],
            }
        text = json.dumps(header).encode()
        self._header = text + b" " * (-len(text) % 8)

    def __enter__(self) -> Self:
        self._file = self._temporary.open("wb")
        self._file.write(len(self._header).to_bytes(8, "little") + self._header)
        return self

    def write(self, name: str, tensor: Tensor) -> None:
        """Write the next tensor of the template.

        Raises:
            ValueError: it is not the one that is due, or has another dtype or shape.
        """
        wanted, form = self._due.pop() if self._due else ("", None)
        if (name, (tensor.dtype, tuple(tensor.shape))) != (wanted, form):
            raise ValueError(f"expected tensor {wanted or 'none'} {form}, got {name}")
        self._file.write(_raw(tensor))

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            with self._file:
                if kind is None:
                    if self._due:
                        raise ValueError(f"tensor {self._due[-1][0]} was not written")
                    self._file.flush()
                    if self._durable:
                        os.fsync(self._file.fileno())
            if kind is None:
                self._temporary.replace(self._path)
        finally:
            self._temporary.unlink(missing_ok=True)


def write_safetensors(
    path: Path,
    template: Template,
    items: Iterable[tuple[str, Tensor]],
    metadata: Mapping[str, str] | None = None,
    *,
    durable: bool = True,
) -> None:
    """Write exactly the template's tensors, in its order: see `SafetensorsWriter`."""
    with SafetensorsWriter(path, template, metadata, durable=durable) as writer:
        for name, tensor in items:
            writer.write(name, tensor)


def read_metadata(path: Path) -> dict[str, str]:
    """Return the strings of a safetensors file's header."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})
