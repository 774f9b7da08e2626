"""Lazy tensors, streamed safetensors files, fingerprints."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from strategies.fusion import (
    Fingerprint,
    Weights,
    fingerprint,
    is_finite,
    read_metadata,
    write_safetensors,
)

STATE = {
    "a": torch.arange(6.0).reshape(3, 2),
    "b": torch.tensor(2.5, dtype=torch.bfloat16),
    "c": torch.arange(3),
    "d": torch.zeros(0, 4),
}
TEMPLATE = {k: (t.dtype, tuple(t.shape)) for k, t in STATE.items()}


def test_a_streamed_file_is_a_safetensors_file(tmp_path) -> None:
    path = tmp_path / "x.safetensors"
    write_safetensors(path, TEMPLATE, STATE.items(), {"base": "abc"})
    read = load_file(path)
    assert read.keys() == STATE.keys()
    assert all(torch.equal(read[k], STATE[k]) and read[k].dtype == STATE[k].dtype for k in STATE)
    assert read_metadata(path) == {"base": "abc"}


def test_views_agree_whatever_they_stand_on(tmp_path) -> None:
    path = tmp_path / "x.safetensors"
    save_file(STATE, path)
    for weights in (Weights(STATE), Weights(path)):
        assert weights.template() == TEMPLATE | {k: weights.template()[k] for k in weights.keys()}
        assert weights.get("a").tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
        assert weights.get("b").item() == 2.5
    renamed = Weights(path, stored_as={"short": "a"})
    assert renamed.keys() == ["short"]
    assert torch.equal(renamed.get("short"), STATE["a"])


def test_a_failure_leaves_nothing_behind(tmp_path) -> None:
    def broken():
        yield "a", STATE["a"]
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_safetensors(tmp_path / "x.safetensors", TEMPLATE, broken())
    with pytest.raises(ValueError, match="expected tensor a"):
        write_safetensors(tmp_path / "x.safetensors", TEMPLATE, [("b", STATE["b"])])
    assert list(tmp_path.iterdir()) == []


def test_however_few_bytes_may_wait_the_fingerprint_is_the_same(monkeypatch) -> None:
    whole = fingerprint(STATE.items())
    monkeypatch.setattr("strategies.fusion._weights.AHEAD", 1)
    seen, passed = Fingerprint(), []
    for name, _ in seen.passing(STATE.items()):
        passed.append(name)
    assert passed == [*STATE]
    assert seen.hexdigest() == whole


def test_fingerprint_is_of_the_values_alone() -> None:
    assert fingerprint(STATE.items()) == fingerprint(reversed(STATE.items()))
    changed = {**STATE, "a": STATE["a"].clone()}
    assert fingerprint(changed.items()) == fingerprint(STATE.items())
    changed["a"][0, 0] += 1e-7
    assert fingerprint(changed.items()) != fingerprint(STATE.items())
    assert fingerprint({"a": torch.zeros(2, 3)}.items()) != fingerprint(
        {"a": torch.zeros(3, 2)}.items()
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_what_is_finite_is_told_by_values_not_by_their_sum(dtype) -> None:
    largest = torch.finfo(dtype).max
    assert is_finite(torch.full((4,), largest, dtype=dtype))  # the sum overflows
    assert is_finite(torch.empty(0, dtype=dtype)) and is_finite(torch.tensor(1.5, dtype=dtype))
    for bad in ([torch.inf], [-torch.inf, torch.inf], [torch.nan]):
        assert not is_finite(torch.tensor([1.0, *bad], dtype=dtype))
    assert is_finite(torch.tensor([1, 2]))
