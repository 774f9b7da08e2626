"""The import arrows, the names, and what may be imported where."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    p
    for folder in ("strategies", "cold_flower", "simulations")
    for p in (ROOT / folder).rglob("*.py")
)
FLWR = {
    "strategies/exchange.py",
    "strategies/records.py",
    "strategies/inbox.py",
    "strategies/cold_fusion.py",
    "cold_flower/roster.py",
    "cold_flower/client_app.py",
    "cold_flower/server_app.py",
    "cold_flower/evaluation.py",
    "cold_flower/strategy.py",
    "cold_flower/attendance.py",
    "cold_flower/sites.py",
}


def imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            found.add(str(node.module))
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    tops = {module.split(".")[0] for module in imported(path)}
    assert "ray" not in tops
    assert ("flwr" in tops) <= (name in FLWR)
    if name.startswith("strategies/fusion/"):
        allowed = {"strategies.fusion", "strategies.names", "strategies.errors"}
        own = {m for m in imported(path) if m.startswith("strategies")}
        assert all(any(m == a or m.startswith(a + ".") for a in allowed) for m in own)
        assert not tops & {"transformers", "datasets", "flwr"}
    if name.startswith("strategies/"):
        assert not tops & {"cold_flower", "simulations", "transformers", "datasets"}
    if name.startswith("cold_flower/"):
        assert "simulations" not in tops


def isolated(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_importing_the_package_is_light() -> None:
    isolated("import sys, cold_flower, cold_flower.cli; assert 'torch' not in sys.modules")


def test_the_loops_run_without_flwr_ray_and_datasets() -> None:
    isolated(
        "import sys\n"
        "for name in ('flwr', 'ray', 'datasets'): sys.modules[name] = None\n"
        "import cold_flower.finetune, cold_flower.evaluate\n"
    )
