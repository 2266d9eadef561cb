"""The floors of CONTRIBUTING.md, checked against the imports: downwards only, no circles, Lightning in its rooms."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "velm"
LIGHTNING = ("training", "planning", "doctor", "bulk", "_compat")
"""Rooms that may import Lightning."""


def floors() -> dict[str, int]:
    """Room -> floor, from the table in CONTRIBUTING.md: '| 2 | `encoders` `decoders` | ... |'."""
    text = (ROOT.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", text, re.MULTILINE)
    return {room: int(floor) for floor, rooms in rows for room in re.findall(r"`(\w+)`", rooms)}


FLOOR = floors()
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def imported(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in the file, type-checking imports included."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{path.name} imports relatively"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = names & set(MODULES)
            modules |= submodules
            if node.module != "velm" and names - submodules:
                modules.add(node.module)
            elif node.module == "velm":
                modules |= names
    return modules


def test_every_room_has_a_floor() -> None:
    assert {room_of(path) for path in FILES} == set(FLOOR)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_downwards(path: Path) -> None:
    room = room_of(path)
    for module in sorted(imported(path)):
        if not module.startswith("velm."):
            continue
        other = module.split(".")[1]
        assert other in FLOOR, f"{path.name} imports {module}: import from the module that defines the name"
        assert FLOOR[other] < FLOOR[room] or other == room, (
            f"{path.relative_to(ROOT)} (floor {FLOOR[room]}) imports {module} (floor {FLOOR[other]})"
        )


def test_no_circle_of_files() -> None:
    edges = {module: imported(path) & set(MODULES) - {module} for module, path in MODULES.items()}
    while leaves := {module for module, targets in edges.items() if not targets & set(edges)}:
        edges = {module: targets for module, targets in edges.items() if module not in leaves}
    assert not edges, f"files that import each other, or that import such a circle: {sorted(edges)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_lightning_stays_in_its_rooms(path: Path) -> None:
    if room_of(path) not in LIGHTNING:
        assert not {name for name in imported(path) if name.split(".")[0] in ("lightning", "pytorch_lightning")}


def test_layers_do_not_import_the_registry() -> None:
    for path in (ROOT / "layers").glob("*.py"):
        assert not {name for name in imported(path) if name.startswith("velm.registry")}
