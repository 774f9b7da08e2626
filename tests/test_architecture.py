"""The rooms and the arrows between them, and what may be imported where."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the bottom: an import may only go to the same floor or down.
FLOORS = (
    ("config", "keys", "errors", "seeds", "toml", "identity"),
    ("data",),
    ("models",),
    ("training",),
    ("repository",),
    ("reporting",),
    ("contributors",),
    ("server",),
    ("runtime",),
    ("commands",),
    ("answers",),
    ("server_app", "client_app"),
)
FLWR = (
    *("cold_flower.server", "cold_flower.server_app", "cold_flower.client_app"),
    *("cold_flower.answers", "strategies"),
)
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("strategies", "cold_flower", "simulations")
    for path in sorted((ROOT / folder).rglob("*.py"))
}


def imports(name: str) -> set[str]:
    """Return all that a module imports, wherever in it: our modules whole, of others the top."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in MODULES else str(node.module))
    ours = ("cold_flower", "strategies", "simulations")
    return {m if m.split(".")[0] in ours else m.split(".")[0] for m in found}


def floor(name: str) -> int:
    parts = name.split(".")
    if parts[1:] == []:
        return len(FLOORS)  # the Python API
    (found,) = (i for i, rooms in enumerate(FLOORS) if parts[1] in rooms)
    return found


@pytest.mark.parametrize("name", MODULES)
def test_arrows(name: str) -> None:
    found = imports(name)
    tops = {module.split(".")[0] for module in found}
    assert "ray" not in tops
    assert "flwr" not in tops or name.startswith(FLWR)
    match name.split(".")[0]:
        case "strategies":
            assert not tops & {"cold_flower", "simulations", "transformers", "datasets"}
            if name.startswith("strategies.fusion"):
                below = ("strategies.fusion", "strategies.names", "strategies.errors")
                assert all(m.startswith(below) for m in found if m.startswith("strategies"))
                assert "flwr" not in tops
        case "cold_flower":
            assert "simulations" not in tops
            up = [m for m in found if m.startswith("cold_flower") and floor(m) > floor(name)]
            assert not up
            if name.startswith("cold_flower.training"):
                assert not tops & {"datasets", "strategies"}


def test_no_import_goes_in_a_circle() -> None:
    # A package and what it re-exports from inside itself are one thing.
    inside = {
        name: {m for m in imports(name) if m in MODULES and not m.startswith(name + ".")}
        for name in MODULES
    }
    TopologicalSorter(inside).prepare()  # raises CycleError, naming the circle


def test_every_room_says_what_it_is_for() -> None:
    for (room,) in FLOORS[1:-2]:
        path = ROOT / "cold_flower" / room / "__init__.py"
        said = ast.get_docstring(ast.parse(path.read_text()))
        assert said
        assert len(said.splitlines()) <= 4
        assert f"`{room}" in (ROOT / "docs" / "architecture.md").read_text()


def isolated(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_importing_the_package_is_light() -> None:
    isolated(
        "import sys, cold_flower, cold_flower.commands.cli\n"
        "assert not {'torch', 'flwr', 'transformers'} & sys.modules.keys()"
    )
    isolated(  # Flower does so in the ServerApp's process, before it starts Ray
        "import sys, cold_flower.client_app\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )


def test_the_loops_run_without_flwr_ray_and_datasets() -> None:
    isolated(
        "import sys\n"
        "for name in ('flwr', 'ray', 'datasets'): sys.modules[name] = None\n"
        "import cold_flower.training.finetune, cold_flower.training.protocols\n"
    )
