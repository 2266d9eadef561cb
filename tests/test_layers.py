"""The house plan, held: imports point downwards, siblings leave each other alone, Lightning stays in its room."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "velm"

# room (or file) -> floor; a room may import from lower floors and from itself
FLOORS = {
    0: ["version", "specs", "plugins", "registry", "outputs", "layers"],
    1: ["encoders", "decoders", "losses", "metrics", "data"],
    2: ["model", "parts", "manifest"],
    3: ["checkpoint", "generation"],
    4: ["pipeline", "explain", "evaluation", "testing", "doctor"],
    5: ["training"],
    6: ["cli", "commands", "__main__"],
}
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
# inside one floor: who may lean on whom
BESIDE = {
    ("plugins", "specs"), ("registry", "specs"), ("registry", "plugins"), ("registry", "version"),
    ("model", "parts"),
    ("explain", "pipeline"), ("evaluation", "pipeline"), ("evaluation", "explain"), ("cli", "commands"),
    ("__main__", "cli"),
}  # fmt: skip
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Every module that a file names in an import, wherever in the file it stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, f"{path.name} imports relatively"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names if node.module == "velm" else {node.module}
    return found


def test_every_room_has_a_floor() -> None:
    assert {room_of(path) for path in FILES} == set(FLOOR)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_point_downwards(path: Path) -> None:
    room = room_of(path)
    for module in sorted(imported(path)):
        if not module.startswith("velm."):
            continue
        other = module.split(".")[1]
        assert other in FLOOR, f"{path.name} imports {module}: from velm's public names, not from where it lives"
        below = FLOOR[other] < FLOOR[room] or other == room or (room, other) in BESIDE
        assert below, f"{path.relative_to(ROOT)} (floor {FLOOR[room]}) imports {module} (floor {FLOOR[other]})"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_lightning_lives_in_training(path: Path) -> None:
    if room_of(path) not in ("training", "cli"):
        assert not {name for name in imported(path) if name.split(".")[0] in ("lightning", "pytorch_lightning")}


def test_layers_do_not_know_the_registry() -> None:
    for path in (ROOT / "layers").glob("*.py"):
        assert not {name for name in imported(path) if name.startswith("velm.registry")}
