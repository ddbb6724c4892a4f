from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WALK = (ROOT / "docs" / "walk.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", WALK)))
ROOMS = sorted(set(re.findall(r"`([\w/]+/)`", WALK)))


def top_level_names(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def test_the_walk_names_something() -> None:
    assert len(NAMED) > 30
    assert len(ROOMS) > 10


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_what_the_walk_names_is_there(path: str, name: str) -> None:
    assert (ROOT / path).is_file()
    assert not name or name in top_level_names(ROOT / path)


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_of_the_walk_are_there(room: str) -> None:
    assert (ROOT / room).is_dir()


def test_every_room_has_its_line() -> None:
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"build", "tests", "benchmarks", "docs"}
    assert {room for room in rooms if f"`{room}/`" not in WALK} <= {"presets"}
