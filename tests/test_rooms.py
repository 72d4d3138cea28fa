"""Imports go one way, and the method knows nothing of anomalib and Lightning."""

import ast
from pathlib import Path

import pytest

import anomalib_npgmf

PACKAGE = Path(anomalib_npgmf.__file__).parent
PARTS = ("logical", "structural", "composition", "merging")
BASE = {"backbone", "distributed", "disk", "fields", "precision"}
ALLOWED = {
    "distributed": set(),
    "disk": set(),
    "fields": set(),
    "precision": set(),
    "backbone": {"distributed", "disk", "precision"},
    **dict.fromkeys(PARTS, BASE),
    "metrics": {"distributed", "disk"},
    "data": {"disk", "host", "fields"},  # the compatibility list names what it works around
    "config": {*PARTS, "backbone", "fields"},
    "outputs": {"composition"},
    "torch_model": {*PARTS, *BASE, "config", "outputs"},
    "host": {*PARTS, *BASE, "config", "torch_model", "outputs", "metrics"},
    "export": {*PARTS, *BASE, "config", "torch_model", "host"},
    "lightning_model": {*PARTS, *BASE, "config", "torch_model", "host", "export"},
    "calibrate": {"disk", "host", "export", "lightning_model"},
    "benchmark": {*PARTS, *BASE, "config", "torch_model", "host", "export", "metrics", "data", "lightning_model"},
}


def _imports(room: str) -> dict[str, set[str]]:
    """Modules that the files of a room import when they run, by file; not those that only annotations need."""
    files = [PACKAGE / f"{room}.py"] if (PACKAGE / f"{room}.py").is_file() else sorted((PACKAGE / room).rglob("*.py"))
    assert files, room
    found: dict[str, set[str]] = {}
    for file in files:
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                node.body = []
        names = found.setdefault(str(file.relative_to(PACKAGE)), set())
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def test_every_room_is_known() -> None:
    rooms = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert rooms - {"__init__", "__pycache__"} == set(ALLOWED)


@pytest.mark.parametrize("room", [*PARTS, "backbone"])
def test_the_method_imports_neither_anomalib_nor_lightning(room: str) -> None:
    for file, names in _imports(room).items():
        foreign = [name for name in names if name.split(".")[0] in ("anomalib", "lightning")]
        assert not foreign, file


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_go_one_way(room: str) -> None:
    for file, names in _imports(room).items():
        others = {name.split(".")[1] for name in names if name.startswith("anomalib_npgmf.")}
        assert others <= ALLOWED[room] | {room, "__version__"}, file
