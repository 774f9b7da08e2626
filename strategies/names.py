"""What a name may be, and how a failed look-up is worded."""

import re
from collections.abc import Sequence
from difflib import get_close_matches

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
"""A contributor's or a task's name; it becomes a file name, so nothing else will do."""


def unknown(kind: str, name: str, valid: Sequence[str]) -> str:
    """Name what was not found, the nearest valid names, then all of them."""
    near = get_close_matches(name, valid, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return f"unknown {kind} {name!r}.{hint} Valid: {', '.join(valid) or 'none'}."
