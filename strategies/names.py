"""What a name may be, what a dotted one stands for, how a failed look-up is worded."""

import importlib
import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
"""A contributor's or a task's name; it becomes a file name, so nothing else will do."""


def import_attribute(name: str) -> Any:
    """Import ``package.module:attribute``.

    Raises:
        ImportError: it cannot be imported; the text says why.
    """
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (AttributeError, ValueError) as error:
        raise ImportError(error) from error


def unknown(kind: str, name: str, valid: Sequence[str]) -> str:
    """Name what was not found, the nearest valid names, then all of them."""
    return f"unknown {kind} {name!r}.{nearest(name, valid)} Valid: {', '.join(valid) or 'none'}."


def nearest(name: str, valid: Sequence[str]) -> str:
    """Ask whether a name that is nearly this was meant; empty where none is near."""
    near = get_close_matches(name, valid, n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
