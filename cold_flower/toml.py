"""Read a TOML file that somebody wrote."""

import tomllib
from pathlib import Path
from typing import Any

from cold_flower.errors import ColdFlowerError


def read(path: Path, what: str, error: type[ColdFlowerError]) -> dict[str, Any]:
    """Read a TOML file.

    Args:
        path: the file.
        what: it is, for the message: ``suite file``.
        error: the kind to raise.

    Raises:
        ColdFlowerError: of that kind; it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text())
    except OSError as cause:
        raise error(f"{what} {path} cannot be read: {cause.strerror}") from cause
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as cause:
        raise error(f"{what} {path} is not TOML: {cause}") from cause
