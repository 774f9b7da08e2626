"""Where Flower's records meet tensors."""

import io
import math
import pickle

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from strategies import records
from strategies.errors import Refused

STATE = {"w": torch.randn(3, 2), "s": torch.tensor(1.5)}


def test_tensors_come_back_as_they_went() -> None:
    back = dict(records.unpack(records.pack(STATE.items())))
    assert all(torch.equal(back[k], STATE[k]) for k in STATE)
    lazy = records.Tensors(records.pack(STATE.items()))
    assert list(lazy) == list(STATE)
    assert len(lazy) == 2
    assert torch.equal(lazy["w"], STATE["w"])
    assert lazy["w"] is lazy["w"]  # decoded once


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 3), (70, 3)])
def test_an_array_is_the_file_that_flower_writes_and_is_read_without_a_copy(dtype, shape) -> None:
    values = np.ones(shape, dtype)
    ours, flowers = records.array_of(torch.from_numpy(values)), Array(values)
    assert (ours.dtype, tuple(ours.shape), ours.stype, ours.data) == (
        *(flowers.dtype, tuple(flowers.shape), flowers.stype, flowers.data),
    )
    read = records.tensor_of(flowers)
    assert (str(read.dtype), tuple(read.shape)) == (f"torch.{dtype}", shape)
    assert torch.equal(read, torch.from_numpy(values))
    if values.size:
        assert np.shares_memory(read.numpy(), np.frombuffer(flowers.data, np.uint8))


def test_what_lies_otherwise_is_copied() -> None:
    """By column, as numpy may write it; of a later version of the format; at an odd place."""
    by_column = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, by_column, version=(2, 0))
    odd = Array(by_column.copy("C")).data.replace(b" \n", b"\n").replace(b"v\x00{", b"u\x00{")
    assert len(odd) == len(Array(by_column).data) - 1
    for data in (Array(by_column).data, buffer.getvalue(), odd):
        read = records.tensor_of(Array("float32", (2, 3), "numpy.ndarray", data))
        assert read.tolist() == [[0, 1, 2], [3, 4, 5]]
        assert not np.shares_memory(read.numpy(), np.frombuffer(data, np.uint8))


def test_nothing_is_unpickled() -> None:
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb()], dtype=object), allow_pickle=True)
    archive = io.BytesIO()
    np.savez(archive, np.zeros(1))
    huge = buffer.getvalue().replace(b"'shape': (1,)", b"'shape': (9**99,)")
    garbage = (pickle.dumps(Bomb()), b"", b"\x93NUMPY", b"PK\x03\x04", archive.getvalue(), huge)
    for data in (buffer.getvalue(), *garbage):
        with pytest.raises(Refused, match="cannot be decoded"):
            records.tensor_of(Array("float32", (1,), "numpy.ndarray", data))


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        ("'>f4'", "(4,)"),
        ("'<f4'", "(-4,)"),
        ("'<f4'", "(2**62, 4)"),
        ("'<f4'", "(5,)"),  # more than there is
        ("'|O'", "(2,)"),
        ("[('a', '<f4'), ('b', '|O')]", "(1,)"),
        ("('<f4', (2,))", "(4,)"),
        ("'<f8'", "(2,)"),
        ("'<U1'", "(4,)"),
        ("'|V0'", "(4,)"),
    ],
)
def test_a_header_that_is_not_the_arrays_is_refused(dtype, shape) -> None:
    text = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}"
    header = text.encode().ljust(117) + b"\n"
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(16)
    assert len(data) == 128 + 16
    with pytest.raises(Refused, match="an array "):
        records.tensor_of(Array("float32", (4,), "numpy.ndarray", data))


def test_an_array_that_lies_about_its_form_is_refused() -> None:
    honest = Array(np.zeros((2, 2), dtype=np.float32))
    with pytest.raises(Refused, match=r"says float32 \(4,\) but holds float32 \(2, 2\)"):
        records.tensor_of(Array("float32", (4,), honest.stype, honest.data))


def test_a_reply_is_emptied_as_it_is_read() -> None:
    record = records.pack(STATE.items())
    content = RecordDict({records.ARRAYS: record})
    template = {k: (t.dtype, tuple(t.shape)) for k, t in STATE.items()}
    form, reader = records.body_of(content, template)
    assert form == template
    next(reader)
    assert list(content.array_records[records.ARRAYS]) == ["s"]


def test_a_reply_without_its_records_is_refused() -> None:
    with pytest.raises(Refused, match="expected one ArrayRecord 'arrays', got \\[\\]"):
        records.body_of(RecordDict(), {})
    with pytest.raises(Refused, match="expected one MetricRecord"):
        records.metrics_of(RecordDict({"arrays": ArrayRecord()}))
    for wrong in (
        {},
        {"num-examples": 0},
        {"num-examples": [3]},
        {"num-examples": math.inf},
        {"num-examples": 0.5},
    ):
        with pytest.raises(Refused, match="num-examples"):
            records.metrics_of(RecordDict({"metrics": MetricRecord(wrong)}))
    with pytest.raises(Refused, match="metric 'loss' is nan"):
        records.metrics_of(RecordDict({"metrics": MetricRecord({"loss": math.nan})}))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({f"r{i}": ConfigRecord() for i in range(9)}, "9 records, expected at most 8"),
        ({"r" * 65: ConfigRecord()}, "a record's name has 65 characters"),
        ({"r": ConfigRecord({f"k{i}": 1 for i in range(65)})}, "a record with 65 keys"),
        ({"r": ConfigRecord({"k" * 65: 1})}, "a key has 65 characters"),
        ({"r": ConfigRecord({"k": "x" * 10_001})}, "'k' has length 10001"),
        ({"r": MetricRecord({"k": [1] * 10_001})}, "'k' has length 10001"),
    ],
)
def test_a_reply_holds_no_more_than_it_can_need(content, words) -> None:
    with pytest.raises(Refused, match=words):
        records.check_size(RecordDict(content))


def test_an_array_brings_no_more_bytes_than_its_shape_needs() -> None:
    sent = records.pack([("w", torch.zeros(2, 3))])
    template = records.template_of(sent)
    array = sent["w"]
    sent["w"] = Array(array.dtype, array.shape, array.stype, array.data + bytes(2000))
    with pytest.raises(Refused, match=r"w comes in \d+ bytes, expected at most 1048"):
        records.body_of(RecordDict({"arrays": sent}), template)
