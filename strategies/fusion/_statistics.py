"""What a rule may ask of a contributor beside its body: a statistic of its own training data.

A rule's attribute ``statistic`` names the kind, or is a function of its options that does. The
tensors travel and lie beside the body under a prefix.

- ``fisher``: a tensor for each of the body's, of its shape: the diagonal of the Fisher information.
- ``gram``: of each input that linear layers read X^T X / tokens; the name lists the weights of
  these layers, with commas. Of n numbers it is the upper triangle by rows, n (n + 1) / 2; where n
  is more than what a layer puts out (feed-forward), the diagonal alone, n; ``gram-full`` has no
  diagonals.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from strategies.errors import FusionError, Refused
from strategies.fusion._weights import Template, is_finite

KINDS = ("fisher", "gram", "gram-full")


def prefix(kind: str) -> str:
    """Return what stands before a statistic's names where it lies beside a body; empty for none."""
    return kind and f"{kind.partition('-')[0]}."


def kind_of(rule: Callable[..., Any], options: Mapping[str, object]) -> str:
    """Return which statistic a rule asks for with these options; empty for none.

    Raises:
        FusionError: one that nobody computes.
    """
    kind: Any = getattr(rule, "statistic", "")
    kind = kind(**options) if callable(kind) else kind
    if kind and kind not in KINDS:
        raise FusionError(f"a rule's statistic is {' or '.join(KINDS)}, got {kind!r}")
    return str(kind)


def check_form(kind: str, given: Template, body: Template) -> None:
    """Refuse names or shapes that a statistic of a body does not have.

    Args:
        kind: of `KINDS`.
        given: what came, without prefix.
        body: the base's.

    Raises:
        Refused: naming the first tensor that is missing, extra or of another form.
    """
    if not given:
        raise Refused(f"it sent no {prefix(kind)[:-1]} statistic, which the fusion rule needs")
    if kind == "fisher":
        learned = {key: shape for key, (dtype, shape) in body.items() if dtype.is_floating_point}
        if differing := sorted(learned.keys() ^ given.keys()):
            word = "missing" if differing[0] in learned else "unexpected"
            raise Refused(f"{word} fisher of {differing[0][:80]!r} (and {len(differing) - 1} more)")
        for name, shape in learned.items():
            if given[name][1] != shape:
                raise Refused(
                    f"fisher of {name} has shape {given[name][1]}, the tensor has {shape}"
                )
        return
    seen: set[str] = set()
    for names, (_, shape) in given.items():
        for name in names.split(","):
            form = body.get(name)
            if form is None or len(form[1]) != 2 or name in seen:
                raise Refused(f"a gram of {name[:80]!r}, which is no matrix, or has one already")
            seen.add(name)
        rows, size = body[names.partition(",")[0]][1]
        wanted = size if kind == "gram" and size > rows else packed(size)
        if shape != (wanted,) or any(body[name][1][1] != size for name in names.split(",")):
            raise Refused(f"{kind} of {names[:80]} has shape {shape}, expected ({wanted},)")


def check_values(kind: str, name: str, tensor: Tensor, body: Template) -> None:
    """Refuse numbers that a statistic, whose form was checked, cannot have.

    Raises:
        Refused: NaN, infinity, or a square that is negative.
    """
    if not is_finite(tensor):
        raise Refused(f"{kind} of {name[:80]} holds NaN or infinity")
    squares = tensor
    if kind != "fisher":
        squares = diagonal(tensor, size := body[name.partition(",")[0]][1][1])
    if squares.numel() and float(squares.min()) < 0:
        raise Refused(f"{kind} of {name[:80]} holds a negative square")
    if kind != "fisher" and len(tensor) != size:
        most = pack(torch.outer(squares, squares)).sqrt()
        if bool((tensor.abs() > most * 1.001 + 1e-6 * most.max()).any()):
            raise Refused(f"{kind} of {name[:80]} is no Gram matrix: a product exceeds its squares")


def packed(size: int) -> int:
    """Return how many numbers the upper triangle of a matrix has."""
    return size * (size + 1) // 2


def diagonal(gram: Tensor, size: int) -> Tensor:
    """Return the diagonal of a gram of ``size`` inputs, however it comes."""
    if len(gram) == size:
        return gram
    steps = torch.arange(size, 1, -1)  # rows of a triangle get shorter
    return gram[torch.cat([torch.zeros(1, dtype=torch.long), steps.cumsum(0)])]


def pack(gram: Tensor) -> Tensor:
    """Return the upper triangle of a symmetric matrix, by rows."""
    rows, columns = torch.triu_indices(*gram.shape, device=gram.device)
    return gram[rows, columns]


def unpack(triangle: Tensor, size: int) -> Tensor:
    """Return the symmetric matrix of an upper triangle."""
    gram = triangle.new_empty(size, size)
    rows, columns = torch.triu_indices(size, size)
    gram[rows, columns] = triangle
    gram[columns, rows] = triangle
    return gram
