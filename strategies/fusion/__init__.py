"""Fusion rules: each combines the contributors' bodies into one.

A rule is one file ``strategies/fusion/<name>.py`` holding a function of that name::

    def name(base: Weights, given: Sequence[Weights], *, seed: int, option=1.0):
        yield key, tensor          # for every key of the base, in the base's order

The tensor is not written to again: while it is copied away, the next one is being made.
Its keyword-only parameters (but ``seed``) are its options, and their annotations say what
they may be (`_options`). ``given`` arrives sorted by contributor name, non-empty, with the
base's keys and shapes: `load` sees to it. A rule that needs more than one contribution has
an attribute ``min_contributions``: the number, or a function of the options that returns it. One
that needs a statistic of the contributors' data has an attribute ``statistic`` (`_statistics`), one
that needs metrics of 1 or more beside a body ``metrics``, their names; these two may also be
functions of the options.
"""

import inspect
import pkgutil
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from strategies.errors import FusionError, StrategyError
from strategies.fusion._options import accepts
from strategies.fusion._options import check as check_option
from strategies.fusion._statistics import kind_of
from strategies.fusion._weights import (
    DTYPES,
    Fingerprint,
    SafetensorsWriter,
    Template,
    Weights,
    fingerprint,
    is_finite,
    read_metadata,
    write_safetensors,
)
from strategies.names import import_attribute, unknown

__all__ = [
    "DTYPES",
    "Fingerprint",
    "Rule",
    "SafetensorsWriter",
    "Template",
    "Weights",
    "check_option",
    "explain",
    "fingerprint",
    "is_finite",
    "load",
    "names",
    "read_metadata",
    "write_safetensors",
]

Rule = Callable[..., Iterator[tuple[str, Tensor]]]


def names() -> list[str]:
    """List the rules found in this folder."""
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in found if not name.startswith("_"))


def options(rule: Rule) -> dict[str, inspect.Parameter]:
    """Return a rule's options by name: its keyword-only parameters without ``seed``."""
    parameters = inspect.signature(rule).parameters.values()
    return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "seed"}


def explain(name: str) -> str:
    """Return a rule's name, options with defaults, and what its file says at the top.

    Raises:
        FusionError: no such rule, or its file cannot be read.
    """
    rule = _find(name)
    said_above = sys.modules[f"{__name__}.{name}"].__doc__ or ""
    lines = [name, *textwrap.indent(said_above.strip(), "    ").splitlines()]
    known = options(rule).values()
    said = [f"{p.name} = {p.default!r}  ({accepts(p)})" for p in known] or ["none"]
    lines += ["", "    Options: " + said[0], *(" " * 13 + option for option in said[1:])]
    return "\n".join(lines)


def load(name: str, **chosen: object) -> Rule:
    """Return the rule ``name`` with options bound.

    One of somebody else's is ``"package.module:function"``, or ``"folder/file.py:function"``.

    The result is called as ``rule(base, given, seed=...)``; it checks ``given``
    (number, names, keys, shapes) and hands it to the rule sorted by name, so that the
    order of arrival cannot matter. Its ``min_contributions`` says how many it needs, its
    ``statistic`` what beside bodies, if anything.

    Raises:
        FusionError: no such rule, or an option that it does not have or that cannot be this.
    """
    rule = _find(name)
    known = options(rule)
    for key, value in chosen.items():
        if key not in known:
            raise FusionError(unknown(f"option of fusion rule {name}", key, sorted(known)))
        check_option(f"fusion rule {name}", known[key], value)
    try:
        inspect.signature(rule).bind(None, [], seed=0, **chosen)
    except TypeError as error:
        raise FusionError(
            f"fusion rule {name} cannot be called as rule(base, given, *, seed, <options>): {error}"
        ) from error
    everything = {key: option.default for key, option in known.items()} | chosen
    kind = kind_of(rule, everything)
    least = getattr(rule, "min_contributions", 1)
    if callable(least):
        least = least(**everything)
        name = f"{name} ({', '.join(f'{k} = {v}' for k, v in everything.items())})"

    def checked(
        base: Weights, given: Sequence[Weights], *, seed: int = 0
    ) -> Iterator[tuple[str, Tensor]]:
        ordered = sorted(given, key=lambda weights: weights.name)
        _check(name, base, ordered, least)
        if kind and (silent := [one.name for one in ordered if not one.statistic]):
            raise FusionError(
                f"fusion rule {name} needs a statistic of the data, {kind}, which {len(silent)} of "
                f"{len(given)} contributions come without: {', '.join(silent)}"
            )
        made = _called(name, rule, lambda: rule(base, ordered, seed=seed, **chosen))
        return _as_promised(name, base, rule, made)

    checked.min_contributions = least  # type: ignore[attr-defined]  # a function has any
    checked.statistic = kind  # type: ignore[attr-defined]
    checked.plain_mean = getattr(rule, "plain_mean", False)  # type: ignore[attr-defined]
    metrics = getattr(rule, "metrics", ())
    checked.metrics = metrics(**everything) if callable(metrics) else metrics  # type: ignore[attr-defined]
    return checked


def _called(name: str, rule: Rule, function: Callable[[], Any]) -> Any:
    """Call what a rule has written; where it fails, say in which of its lines and why.

    Raises:
        FusionError: it raised what its author did not foresee.
    """
    try:
        return function()
    except (StrategyError, OSError, MemoryError):
        raise
    except (Exception, SystemExit) as error:  # somebody else's code
        frames = traceback.extract_tb(error.__traceback__)
        code = getattr(inspect.unwrap(rule), "__code__", None)
        own = [frame for frame in frames if code and frame.filename == code.co_filename]
        place, (said, *_) = (own or frames)[-1], [*str(error).splitlines(), ""]
        raise FusionError(
            f"fusion rule {name} failed in {place.filename}, line {place.lineno}: "
            f"{type(error).__name__}: {said}"
        ) from error


def _as_promised(name: str, base: Weights, rule: Rule, made: Any) -> Iterator[tuple[str, Tensor]]:
    """Pass a rule's tensors through; refuse what no base can be: the first one is named."""
    expected = "expected an iterator of (key, tensor)"
    if not isinstance(made, Iterable) or isinstance(made, Mapping | str | Tensor):
        raise FusionError(f"fusion rule {name} returns {type(made).__name__}, {expected}")
    source = iter(made)
    for key, (dtype, shape) in base.template().items():
        found = _called(name, rule, lambda: next(source, None))
        if found is not None and not _is_pair(found):
            raise FusionError(f"fusion rule {name} yields {type(found).__name__}, {expected}")
        if found is None or found[0] != key:
            raise FusionError(f"fusion rule {name} yields {found and found[0]}, due is {key}")
        tensor = found[1]
        if (tensor.dtype, tuple(tensor.shape)) != (dtype, shape):
            raise FusionError(
                f"fusion rule {name}: {key} is {tensor.dtype} {tuple(tensor.shape)}, the base's is "
                f"{dtype} {shape}"
            )
        if not is_finite(tensor):
            raise FusionError(f"fusion rule {name}: {key} holds NaN or infinity")
        yield key, tensor
    if (more := _called(name, rule, lambda: next(source, None))) is not None:
        what = more[0] if _is_pair(more) else type(more).__name__
        raise FusionError(f"fusion rule {name} yields {what}, which the base does not have")


def _is_pair(found: Any) -> bool:
    """Return whether this is a name and a tensor."""
    two = isinstance(found, tuple) and len(found) == 2
    return two and isinstance(found[0], str) and isinstance(found[1], Tensor)


def _find(name: str) -> Rule:
    ours = ":" not in name
    if ours and name not in names():
        yours = " Or one of yours: file.py:function."
        raise FusionError(unknown("fusion rule", name, names()) + yours)
    try:
        rule: Rule = import_attribute(f"{__name__}.{name}:{name}" if ours else name)
    except ImportError as error:
        raise FusionError(f"fusion rule {name!r} cannot be loaded: {error}") from error
    if not callable(rule):
        raise FusionError(f"fusion rule {name!r} is not a function")
    return rule


def _check(name: str, base: Weights, given: Sequence[Weights], least: int) -> None:
    if len(given) < least:
        raise FusionError(f"fusion rule {name} needs {least} contributions, got {len(given)}")
    if len({weights.name for weights in given}) != len(given):
        raise FusionError(f"two contributions share a name: {[w.name for w in given]}")
    template = base.template()
    for weights in given:
        other = weights.template()
        if missing := template.keys() ^ other.keys():
            raise FusionError(f"contribution {weights.name}: not in both models: {min(missing)}")
        for key, (_, shape) in template.items():
            if other[key][1] != shape:
                raise FusionError(
                    f"contribution {weights.name}: {key} has shape {other[key][1]}, "
                    f"the base has {shape}"
                )
