"""What a name may be, what a dotted one stands for, how a failed look-up is worded."""

import importlib
import importlib.util
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
"""A contributor's or a task's name; it becomes a file name, so nothing else will do."""


def import_attribute(name: str) -> Any:
    """Import ``package.module:attribute``, installed, or ``folder/file.py:attribute``.

    Raises:
        ImportError: it cannot be imported; the text says why, and where it was looked for.
    """
    module, found, attribute = name.rpartition(":")
    if not found:
        raise ImportError("it has no colon before what is to be imported")
    try:
        is_file = module.endswith(".py")
        return getattr(
            _run(Path(module)) if is_file else importlib.import_module(module), attribute
        )
    except ModuleNotFoundError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):
            file = f"{module.replace('.', '/')}.py:{attribute}"
            raise ImportError(
                f"{error} among what is installed; a file goes by its path: {file}"
            ) from error
        raise
    except ImportError:
        raise
    except (Exception, SystemExit) as error:  # somebody else's code
        raise ImportError(f"{type(error).__name__}: {error}") from error


def absolute(name: str) -> str:
    """Return a name of `import_attribute` that means the same in any directory."""
    module, _, attribute = name.rpartition(":")
    return f"{Path(module).resolve()}:{attribute}" if module.endswith(".py") else name


def _run(path: Path) -> ModuleType:
    """Run a file as a module of its own: anew each time, for its author may be changing it."""
    path = path.resolve()
    loader = _Anew(str(path), str(path))
    spec = importlib.util.spec_from_file_location(str(path), path, loader=loader)
    if not path.is_file() or spec is None:
        raise ImportError(f"there is no file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    loader.exec_module(module)
    return module


class _Anew(SourceFileLoader):
    """Compiles the file each time.

    Bytecode that was kept passes for that of a file which was edited within the same second and
    has the same size.
    """

    def get_code(self, fullname: str) -> CodeType:
        """Return the code of the file as it is now."""
        return self.source_to_code(self.get_data(self.path), self.path)


def unknown(kind: str, name: str, valid: Sequence[str]) -> str:
    """Name what was not found, the nearest valid names, then all of them."""
    return f"unknown {kind} {name!r}.{nearest(name, valid)} Valid: {', '.join(valid) or 'none'}."


def nearest(name: str, valid: Sequence[str]) -> str:
    """Ask whether a name that is nearly this was meant; empty where none is near."""
    near = get_close_matches(name, valid, n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
