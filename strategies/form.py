"""The form of weights: names, dtypes and shapes as the base has them, and finite numbers.

That of every reply is checked as it arrives, and at a site before it leaves; screened or not.
"""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from strategies.errors import Refused
from strategies.fusion import Template, is_finite
from strategies.fusion._statistics import check_form as check_statistic
from strategies.fusion._statistics import prefix


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


def check_form(
    given: Mapping[str, tuple[str, tuple[int, ...]]], expected: Template, statistic: str
) -> Template:
    """Refuse a body, or a statistic beside it, of another form; return the form of both.

    Args:
        given: as `check_template` takes it.
        expected: the body's.
        statistic: that was asked for beside it; empty for none.
    """
    before = prefix(statistic)
    beside = {name for name in given if before and name.startswith(before)}
    check_template({name: form for name, form in given.items() if name not in beside}, expected)
    if not statistic:
        return expected
    found = {name: given[name] for name in sorted(beside)}
    if odd := [name for name, (dtype, _) in found.items() if dtype != "float32"]:
        raise Refused(f"{odd[0][:80]} is {found[odd[0]][0]}, expected float32")
    form: Template = {name: (torch.float32, shape) for name, (_, shape) in found.items()}
    check_statistic(statistic, {n.removeprefix(before): f for n, f in form.items()}, expected)
    return expected | form


def finite(items: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Pass tensors through.

    Raises:
        Refused: at the first one that holds a NaN or an infinity.
    """
    for name, tensor in items:
        if not is_finite(tensor):
            raise Refused(f"{name} holds NaN or infinity")
        yield name, tensor
