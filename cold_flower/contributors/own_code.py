"""A site's own code, a trainer or a ClientApp: where it fails, one line says where and why.

The line stays at the site, for an error's text may quote its data.
"""

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cold_flower.errors import OwnCodeError, SiteError, first_line
from strategies.names import import_attribute


def imported(name: str, beside: Path) -> Any:
    """Import ``module:attribute``, installed or from a folder, or that folder's ``file.py:...``.

    Raises:
        SiteError: it is not there, or importing it fails.
    """
    if str(beside) not in sys.path:
        sys.path.append(str(beside))  # at the end: it hides nothing
    try:
        file = name.rpartition(":")[0].endswith(".py")
        return import_attribute(str(beside / name) if file else name)
    except (Exception, SystemExit) as error:  # a module may raise anything as it is read
        cause = error.__cause__ or error
        raise SiteError(
            f"{name!r} cannot be imported: {_where_and_why(cause, beside)}. Expected module:name, "
            f"installed or beside site.toml in {beside}"
        ) from error


def called(name: str, function: Callable[..., Any], *arguments: Any, beside: Path) -> Any:
    """Call a site's own function.

    Args:
        name: of it, for the message.
        function: the trainer, or the ClientApp.
        arguments: what it gets.
        beside: the folder of site.toml, where its code is looked for.

    Raises:
        OwnCodeError: it raised anything, with file and line.
        torch.OutOfMemoryError: a GPU is full.
    """
    try:
        return function(*arguments)
    except torch.OutOfMemoryError:
        raise
    except (Exception, SystemExit) as error:
        where = _where_and_why(error, beside, otherwise=True)
        raise OwnCodeError(f"{name!r} failed: {where}") from error


def _where_and_why(error: BaseException, beside: Path, *, otherwise: bool = False) -> str:
    """Return the last line of the site's own that led to an error, and the error.

    Args:
        error: what was raised.
        beside: the folder of that code.
        otherwise: where none of it is there (it is installed), name the line that raised it.
    """
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    own = [f for f in frames if Path(f.filename).is_relative_to(beside)]
    own = [f for f in own if "site-packages" not in f.filename]
    own = own or (frames if otherwise else [])
    where = f"{own[-1].filename}, line {own[-1].lineno}: " if own else ""
    return f"{where}{type(error).__name__}: {first_line(error)}"
