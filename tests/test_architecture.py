"""The folders are the architecture: imports point downwards only (src/catty/__init__.py draws the order)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "catty"

# What each folder may import from catty, beside itself and what lies at the bottom.
BOTTOM = {"errors", "constants", "labels", "__init__"}
ALLOWED = {
    "cli": {"setup", "client", "agents", "wire", "workspace"},
    "setup": {"client", "server", "engines", "image"},
    "client": {"workspace", "wire", "agents"},
    "server": {"engines", "image", "agents", "workspace", "wire"},
    "engines": {"image", "wire"},
    "image": set(),
    "runtime": {"workspace", "wire"},
    "agents": {"wire"},
    "workspace": set(),
    "wire": set(),
    "errors": set(),
}
MAX_LINES = 450


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names |= (
                {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                if node.module == "catty"
                else {node.module}
            )
    return {name.split(".")[1] for name in names if name.startswith("catty.")}


@pytest.mark.parametrize("folder", sorted(ALLOWED))
def test_imports_point_downwards(folder: str) -> None:
    for path in (SOURCE / folder).rglob("*.py"):
        foreign = imports_of(path) - BOTTOM - {folder} - ALLOWED[folder] - {"__version__"}
        assert not foreign, f"{path.relative_to(SOURCE)} imports {foreign}"


def test_every_folder_has_its_place() -> None:
    assert {path.name for path in SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(ALLOWED)


def test_modules_stay_small() -> None:
    long = {
        str(path.relative_to(SOURCE)): lines
        for path in SOURCE.rglob("*.py")
        if (lines := len(path.read_text().splitlines())) > MAX_LINES
    }
    assert not long
