"""Checks on what comes back, before it is fused: pure functions, values in, reason out."""

from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor

from strategies.errors import Refused
from strategies.fusion import Template, is_finite


def check_template(given: Mapping[str, tuple[str, tuple[int, ...]]], expected: Template) -> None:
    """Refuse names, dtypes or shapes that differ from the base's.

    Args:
        given: dtype (as numpy names it) and shape by tensor name.
        expected: the base's.

    Raises:
        Refused: naming the first tensor that is missing, extra or of another form.
    """
    if missing := sorted(expected.keys() - given.keys()):
        raise Refused(f"missing tensor {missing[0]} (and {len(missing) - 1} more)")
    if extra := sorted(given.keys() - expected.keys()):
        raise Refused(f"unexpected tensor {extra[0][:80]!r} (and {len(extra) - 1} more)")
    for name, (dtype, shape) in expected.items():
        wanted = str(dtype).removeprefix("torch.")
        got_dtype, got_shape = given[name]
        if got_shape != shape:
            raise Refused(f"{name} has shape {got_shape}, the base has {shape}")
        if got_dtype != wanted:
            raise Refused(f"{name} is {got_dtype}, expected {wanted}")


def finite(items: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Pass tensors through.

    Raises:
        Refused: at the first one that holds a NaN or an infinity.
    """
    for name, tensor in items:
        if not is_finite(tensor):
            raise Refused(f"{name} holds NaN or infinity")
        yield name, tensor
