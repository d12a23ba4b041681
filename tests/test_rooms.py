"""The rules of the rooms that import-linter does not hold: sizes, and what is private."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import hv15_batch

PACKAGE = Path(hv15_batch.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = sorted({path.parent for path in FILES})
SHORT = {"__init__.py", "__main__.py", "clock.py", "errors.py"}
"""Faces, entry points and the smallest vocabulary."""


def imports(path: Path) -> Iterator[str]:
    """Yield the dotted names of the package that a file imports, at its top or later."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.relative_to(PACKAGE.parent).as_posix())
def test_a_folder_has_few_files(folder: Path) -> None:
    files = sorted(path.name for path in folder.glob("*.py"))
    assert len(files) <= (14 if folder == PACKAGE else 15), files


@pytest.mark.parametrize("folder", FOLDERS[1:], ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_a_room_shows_at_most_twelve_files(folder: Path) -> None:
    shown = [path.name for path in folder.glob("*.py") if not path.name.startswith("_")]
    assert len(shown) <= 12, shown


def test_a_file_has_40_to_400_lines() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    wrong = {
        path.relative_to(PACKAGE).as_posix(): count
        for path, count in lines.items()
        if count > 400 or (count < 40 and path.name not in SHORT)
    }
    assert not wrong


@pytest.mark.parametrize("folder", ["benchmarks", "docs", "training"])
def test_a_script_has_at_most_400_lines(folder: str) -> None:
    scripts = sorted((PACKAGE.parent / folder).glob("*.py"))
    assert scripts
    for path in scripts:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path.name


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_a_private_file_is_imported_in_its_own_room_alone(path: Path) -> None:
    own = ".".join(["hv15_batch", *path.relative_to(PACKAGE).parts[:-1]])
    for name in imports(path):
        if not name.startswith("hv15_batch."):
            continue
        parts = name.split(".")
        private = next(
            (i for i, part in enumerate(parts) if is_private_file(parts[:i], part)), None
        )
        if private is not None:
            room = ".".join(parts[:private])
            assert f"{own}.".startswith(f"{room}."), f"{name} is private to {room}"


def is_private_file(parents: list[str], name: str) -> bool:
    """Whether the name is that of a file with an underscore, and not of something in a file."""
    place = PACKAGE.joinpath(*parents[1:])
    return name.startswith("_") and not name.startswith("__") and (place / f"{name}.py").is_file()
