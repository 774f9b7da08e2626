"""The only place where Flower's records meet tensors; every record key is named here."""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from typing import Any

import numpy
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from strategies.errors import Refused
from strategies.form import check_form
from strategies.fusion import Template

PROTOCOL = 1
"""Version of the messages; a contributor that speaks another is refused."""

ARRAYS = "arrays"  # ArrayRecord: the body, float32
CONFIG = "config"  # ConfigRecord to a contributor: iteration, base, seed, ...
REFERENCE = "reference"  # in CONFIG, instead of arrays: the published iteration that is the base
PROXIMAL_MU = "proximal-mu"  # in CONFIG: of the proximal term; Flower's FedProx names it so
SCORE = "score"  # in CONFIG of a train message: also the score of the base under finetuned
STATISTIC = "statistic"  # in CONFIG of a train message: also send it, its tensors prefixed
EXPLICIT = "explicit"  # in CONFIG: keys that the user set, so that no suite's recipe does
METRICS = "metrics"  # MetricRecord from a contributor
CONTRIBUTOR = "contributor"  # ConfigRecord: answer to a query
CONTRIBUTION = "contribution"  # ConfigRecord beside a trained body
XXH3 = "xxh3"  # in the above, by reference: XXH3 of the body that lies in the run directory
FACTS = ("device", "visible-gpus", "worker", "stopped")  # in the above: for the record only
SCORED = ("finetuned", "num-test-examples")  # in METRICS of a contribution, where SCORE asks
SECONDS = "statistic-seconds"  # in it, where STATISTIC asks
LISTED = (
    *("num-examples", "train-loss", "seconds", "steps"),
    *("dev-start", "dev-accuracy", "dev-majority", "improving"),
    *SCORED,
    SECONDS,
)
"""All that METRICS holds beside a trained body; nothing else of a contributor is sent."""
TRAINED = ("dev-start", "dev-accuracy", "dev-majority", "improving", "stopped")
"""What CONTRIBUTOR holds of a finetuned evaluation, beside its score."""
OF_DEV = ("steps", *TRAINED)
"""What tells of the dev rows: early stopping is decided on them."""
EXAMPLES = "num-examples"  # the key in METRICS that Flower's strategies weigh by

# What a reply may hold beside the arrays: far more than ours do, far less than would hurt.
MOST_RECORDS, MOST_KEYS, LONGEST_KEY, LONGEST_VALUE = 8, 64, 64, 10_000
MOST_EXAMPLES = 2**53  # a float counts no further
NUMPY = "numpy.ndarray"  # Flower's name for an Array that is a numpy file
HEADER = 1024  # bytes by which a numpy file may be larger than its values


def pack(items: Iterable[tuple[str, Tensor]]) -> ArrayRecord:
    """Turn named tensors into an ArrayRecord, one at a time."""
    record = ArrayRecord()
    for name, tensor in items:
        record[name] = array_of(tensor)
    return record


def array_of(tensor: Tensor) -> Array:
    """Encode one tensor as Flower does, a numpy file, but with one copy of its values."""
    values, header = tensor.detach().cpu().contiguous().numpy(), BytesIO()
    npy.write_array_header_1_0(header, npy.header_data_from_array_1_0(values))
    data = b"".join((header.getvalue(), values.reshape(-1).view(numpy.uint8).data))
    return Array(dtype=str(values.dtype), shape=values.shape, stype=NUMPY, data=data)


def tensor_of(array: Array) -> Tensor:
    """Decode one Array; it is the record's own bytes where they can be read so: never write to it.

    Raises:
        Refused: when the bytes are no numpy array of the stated dtype and shape.
    """
    try:
        values = _values_of(array)
        if (str(values.dtype), values.shape) == (array.dtype, tuple(array.shape)):
            return torch.from_numpy(values)
        held = f"{values.dtype} {values.shape}"
    except Exception as error:  # bytes from the wire: numpy may raise anything (zip, header, size)
        cause = text_of(error, 200) or type(error).__name__
        raise Refused(f"an array cannot be decoded: {cause}") from error
    raise Refused(f"an array says {array.dtype} {tuple(array.shape)} but holds {held}")


def _values_of(array: Array) -> NDArray[Any]:
    file = BytesIO(array.data)
    if array.stype == NUMPY and npy.read_magic(file) == (1, 0):
        shape, by_column, dtype = npy.read_array_header_1_0(file)
        count, begins = math.prod(shape), file.tell()
        if count > 0 and not by_column and begins % npy.ARRAY_ALIGN == 0:
            return numpy.frombuffer(array.data, dtype, count, begins).reshape(shape)
    return array.numpy()  # numpy refuses pickled objects, here and above


with warnings.catch_warnings():  # torch says once in a process that what it reads is not to be
    warnings.simplefilter("ignore")  # written to
    torch.from_numpy(numpy.frombuffer(bytes(1), numpy.uint8))


def unpack(record: ArrayRecord) -> Iterator[tuple[str, Tensor]]:
    """Yield the record's tensors in its order; not to be written to."""
    for name, array in record.items():
        yield name, tensor_of(array)


class Tensors(Mapping[str, Tensor]):
    """An ArrayRecord seen as tensors, each decoded when it is asked for; not to be written to.

    The last one is kept: as many readers as there are contributions go through a base together.
    """

    def __init__(self, record: ArrayRecord) -> None:
        self._record = record
        self._last: tuple[str | None, Tensor] = None, torch.empty(0)

    def __getitem__(self, name: str) -> Tensor:
        last = self._last
        if last[0] != name:
            last = self._last = name, tensor_of(self._record[name])
        return last[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._record)

    def __len__(self) -> int:
        return len(self._record)


def template_of(record: ArrayRecord) -> Template:
    """Return names, dtypes and shapes of a record of ours."""
    return {
        name: (getattr(torch, array.dtype), tuple(array.shape)) for name, array in record.items()
    }


def text_of(value: object, limit: int = 80) -> str:
    """Return text from the wire as a line that can be shown: short, without control codes."""
    return "".join(c if c.isprintable() else "?" for c in str(value)[:limit])


def check_size(content: RecordDict) -> None:
    """Refuse a reply with more than a reply can have, before any of it is looked at.

    Raises:
        Refused: too many records or keys, or one too long.
    """
    if len(content) > MOST_RECORDS:
        raise Refused(f"{len(content)} records, expected at most {MOST_RECORDS}")
    for name in content:
        if len(name) > LONGEST_KEY:
            raise Refused(f"a record's name has {len(name)} characters, at most {LONGEST_KEY}")
    small: list[Mapping[str, Any]] = []
    small += content.metric_records.values()
    small += content.config_records.values()
    for record in small:
        if len(record) > MOST_KEYS:
            raise Refused(f"a record with {len(record)} keys, expected at most {MOST_KEYS}")
        for key, value in record.items():
            if len(key) > LONGEST_KEY:
                raise Refused(f"a key has {len(key)} characters, expected at most {LONGEST_KEY}")
            size = len(value) if isinstance(value, str | bytes | list) else 1
            if size > LONGEST_VALUE:
                raise Refused(f"{text_of(key)!r} has length {size}, at most {LONGEST_VALUE}")


def most(form: tuple[torch.dtype, tuple[int, ...]]) -> int:
    """Return how many bytes an array of this dtype and shape may take."""
    dtype, shape = form
    return dtype.itemsize * math.prod(shape) + HEADER


def body_of(
    content: RecordDict, expected: Template, statistic: str = ""
) -> tuple[Template, Iterator[tuple[str, Tensor]]]:
    """Check a train reply's form; return the form, and what yields its tensors in that order.

    These are the base's and then, under its prefix, the statistic that was asked for. Each Array is
    dropped from the record as it is decoded, so that a reply is never held twice.

    Raises:
        Refused: no ``arrays`` or ``metrics`` record, a body or a statistic of another form.
    """
    if set(content.array_records) != {ARRAYS}:
        got = text_of(sorted(content.array_records))
        raise Refused(f"expected one ArrayRecord {ARRAYS!r}, got {got}")
    record = content.array_records[ARRAYS]
    form = check_form(
        {n: (a.dtype, tuple(a.shape)) for n, a in record.items()}, expected, statistic
    )
    for name, one in form.items():
        if (size := len(record[name].data)) > most(one):
            raise Refused(f"{name} comes in {size} bytes, expected at most {most(one)}")
    return form, ((name, tensor_of(record.pop(name))) for name in form)


def metrics_of(content: RecordDict) -> dict[str, float]:
    """Return a reply's metrics as plain numbers.

    Raises:
        Refused: not exactly one MetricRecord ``metrics`` with a positive
            ``num-examples``, or a metric that is a list or not finite.
    """
    if set(content.metric_records) != {METRICS}:
        raise Refused(
            f"expected one MetricRecord {METRICS!r}, got {text_of(sorted(content.metric_records))}"
        )
    record = content.metric_records[METRICS]
    if lists := [key for key, value in record.items() if isinstance(value, list)]:
        raise Refused(f"metric {text_of(lists[0])!r} is a list, expected a number")
    metrics: dict[str, float] = dict(record.items())  # type: ignore[arg-type]  # no lists left
    if bad := [key for key, value in metrics.items() if not math.isfinite(value)]:
        raise Refused(f"metric {text_of(bad[0])!r} is {metrics[bad[0]]}")
    if not 1 <= metrics.get(EXAMPLES, 0) <= MOST_EXAMPLES:
        raise Refused(
            f"metric {EXAMPLES!r} is {metrics.get(EXAMPLES)}, expected 1 to {MOST_EXAMPLES}"
        )
    return metrics


def config_of(content: RecordDict, key: str) -> dict[str, Any]:
    """Return a ConfigRecord as a dict; empty where there is none."""
    return dict(content.config_records.get(key, {}))


def facts(stated: Mapping[str, Any]) -> dict[str, str]:
    """Return what a reply says of its finetuning, and of where it ran, as text."""
    return {name: text_of(stated[name]) for name in FACTS if name in stated}


def trained(stated: Mapping[str, Any]) -> dict[str, float | str]:
    """Return what the reply to an evaluation says of its finetuning; empty unless it says all."""
    numbers, stopped = [stated.get(name) for name in TRAINED[:-1]], stated.get(TRAINED[-1])
    good = all(isinstance(value, int | float) and math.isfinite(value) for value in numbers)
    if not good or not isinstance(stopped, str):
        return {}
    return {name: stated[name] for name in TRAINED[:-1]} | {TRAINED[-1]: text_of(stopped)}


def train_reply(
    body: Iterable[tuple[str, Tensor]] | None,
    metrics: Mapping[str, float],
    contribution: Mapping[str, Any],
) -> RecordDict:
    """Build the answer to a train message; no body where it goes by reference."""
    content = RecordDict(
        {METRICS: MetricRecord(dict(metrics)), CONTRIBUTION: ConfigRecord(dict(contribution))}
    )
    if body is not None:
        content[ARRAYS] = pack(body)
    return content


def values_of(content: RecordDict) -> dict[str, dict[str, Any]]:
    """Return all that a message holds besides arrays, as plain values."""
    return {
        **{key: dict(record) for key, record in content.metric_records.items()},
        **{key: dict(record) for key, record in content.config_records.items()},
    }


def size_of(content: RecordDict) -> int:
    """Return the bytes of a message's arrays, as they are sent."""
    return sum(len(a.data) for record in content.array_records.values() for a in record.values())
