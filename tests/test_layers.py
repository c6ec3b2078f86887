"""The walls of the house: imports point down only, and the edge stays light."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import keystore

PACKAGE = Path(keystore.__file__).parent
_GUIDE = Path(__file__).parent.parent / "CONTRIBUTING.md"
_PICTURE = re.compile(r"^    ([a-z_]+(?:, [a-z_]+)*)  +\S", re.MULTILINE)
_LAYERS = _PICTURE.findall(_GUIDE.read_text(encoding="utf-8"))
RANK = {
    name: -place for place, names in enumerate(["__main__", *_LAYERS]) for name in names.split(", ")
}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Return the rooms of keystore that a module imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "keystore":
            found |= {f"keystore.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return {name.split(".")[1] for name in found if name.startswith("keystore.")}


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def test_the_picture_shows_every_room_once_and_no_other() -> None:
    shown = [name for names in _LAYERS for name in names.split(", ")]
    assert sorted(shown) == sorted({room_of(path) for path in MODULES} - {"__main__"})


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down_only(path: Path) -> None:
    room = room_of(path)
    for other in imports(path) - {room}:
        assert RANK[other] < RANK[room], f"{path.name} ({room}) imports {other}"


def test_the_edge_loads_none_of_the_admin_side() -> None:
    heavy = ["click", "pydantic", "sqlite_utils", "psycopg", "uuid_utils", "rich", "tuf"]
    program = f"import sys, keystore.edge; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_sync_engine_knows_no_driver() -> None:
    program = (
        "import sys, keystore.sync.engine;"
        "print([m for m in ('psycopg', 'tuf', 'obstore') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_is_past_400_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400
