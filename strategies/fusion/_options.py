"""What an option of a rule may be: its annotation in the rule's signature says it.

    def rule(base, given, *, seed: int, beta: Annotated[float, Range("[0, 0.5)")] = 0.2)

A ``Literal`` lists the valid choices, a ``Mapping[str, ...]`` is a table, ``|`` joins two of
these; an option without annotation takes what its default is.
"""

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from inspect import Parameter
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from strategies.errors import FusionError

F = TypeVar("F", bound=Callable[..., Any])


class Range:
    """The numbers of an interval, written as in mathematics: ``(0, 1]``, ``[0, inf)``."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._low, self._high = map(float, text[1:-1].split(","))

    def __contains__(self, value: float) -> bool:
        above = value >= self._low if self._text[0] == "[" else value > self._low
        return above and (value <= self._high if self._text[-1] == "]" else value < self._high)

    def __str__(self) -> str:
        return self._text


def share(part: float, of: int) -> int:
    """Return floor(part * of) of the number that was meant: 29 for 0.29 of 100, not 28."""
    return math.floor(Fraction(part).limit_denominator(10**9) * of)


def needs(least: Callable[..., int]) -> Callable[[F], F]:
    """Declare how many contributions a rule needs, as a function of its options.

    ``least`` is called with all options by name when the rule is loaded, and may raise
    `FusionError` where two of them do not go together.
    """

    def declare(rule: F) -> F:
        rule.min_contributions = least  # type: ignore[attr-defined]  # a function has any
        return rule

    return declare


def check(owner: str, option: Parameter, value: object) -> None:
    """Raise `FusionError` if an option of a rule (or class) cannot have this value.

    It says what it can be.
    """
    kind = _kind(option)
    if not _fits(kind, value):
        raise FusionError(f"option {option.name} of {owner} is {_words(kind)}, got {value!r}")


def accepts(option: Parameter) -> str:
    """Return in words what an option may be: ``a float in [0, 0.5)``."""
    return _words(_kind(option))


def _kind(option: Parameter) -> Any:
    if option.annotation is not Parameter.empty and not isinstance(option.annotation, str):
        return option.annotation
    return Any if option.default in (None, Parameter.empty) else type(option.default)


def _fits(kind: Any, value: Any) -> bool:
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _fits(args[0], value) and all(value in r for r in args[1:] if isinstance(r, Range))
    if origin in (Union, UnionType):
        return any(_fits(arg, value) for arg in args)
    if origin is Literal:
        return any(type(value) is type(arg) and value == arg for arg in args)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(_fits(args[1], v) for v in value.values())
    if kind is Any:
        return True
    if kind in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if kind is float else origin or kind)


def _words(kind: Any) -> str:
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return " in ".join([_words(args[0]), *(str(r) for r in args[1:] if isinstance(r, Range))])
    if origin in (Union, UnionType):
        return " or ".join(_words(arg) for arg in args)
    if origin is Literal:
        return " or ".join(map(repr, args))
    if origin is Mapping:
        return f"a table whose values are each {_words(args[1])}"
    name = getattr(origin or kind, "__name__", str(kind))
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"
