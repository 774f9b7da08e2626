"""ColD Fusion on Flower: evolve a pretrained language model without sharing data.

The Python API (docs/api.md)::

    run = cold_flower.simulate("demo", {"seed": 1})
    run.gains("frozen", group="seen")

Each name is imported when it is first used: ``import cold_flower`` loads no torch.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from cold_flower.errors import ColdFlowerError
from cold_flower.identity import __version__

if TYPE_CHECKING:
    from cold_flower.commands.api import compare, evaluate, fuse, simulate, statistics, tune
    from cold_flower.commands.card import card
    from cold_flower.commands.contribute import contribute
    from cold_flower.commands.leave import leave
    from cold_flower.commands.publish import publish
    from cold_flower.commands.worth import worth
    from cold_flower.data.suite import Suite, load_suite
    from cold_flower.reporting.run import Gain, Run, open_run

__all__ = [
    "ColdFlowerError",
    "Gain",
    "Run",
    "Suite",
    "__version__",
    "card",
    "compare",
    "contribute",
    "evaluate",
    "fuse",
    "leave",
    "load_suite",
    "open_run",
    "publish",
    "simulate",
    "statistics",
    "tune",
    "worth",
]

_HOMES = {
    "cold_flower.commands.api": ("compare", "evaluate", "fuse", "simulate", "statistics", "tune"),
    "cold_flower.commands.card": ("card",),
    "cold_flower.commands.contribute": ("contribute",),
    "cold_flower.commands.leave": ("leave",),
    "cold_flower.commands.publish": ("publish",),
    "cold_flower.commands.worth": ("worth",),
    "cold_flower.data.suite": ("Suite", "load_suite"),
    "cold_flower.reporting.run": ("Gain", "Run", "open_run"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            try:
                return getattr(import_module(module), name)
            except ModuleNotFoundError as error:
                raise ImportError(
                    f"{error}: cold-flower is not installed for {sys.executable}. Use the "
                    "environment that `make install` made: .venv/bin/python"
                ) from error
    raise AttributeError(f"module 'cold_flower' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
