"""Scripts of benchmarks/ and training/: what they import from this repository is there."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOTS = (ROOT / "benchmarks", ROOT / "tests", ROOT)
"""Where scripts look for modules, in this order."""
SCRIPTS = sorted(
    path for name in ("benchmarks", "training") for path in (ROOT / name).rglob("*.py")
)


def source_of(module: str) -> Path | None:
    """Return the file of a module of this repository; None for one of Python or a package."""
    for root in ROOTS:
        path = root.joinpath(*module.split("."))
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file
    return None


def names_in(source: Path) -> set[str]:
    """Return the names that a module defines or imports, and the modules beside a package's."""
    found = {path.stem for path in source.parent.iterdir() if source.name == "__init__.py"}
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.alias):
            found.add(node.asname or node.name)
    return found


def missing(script: Path) -> Iterator[str]:
    """Yield what a script imports and is not there; of other packages only their first name."""
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        source = source_of(node.module)
        if source is not None:
            names = names_in(source)
            yield from (f"{node.module}: {a.name}" for a in node.names if a.name not in names)
        elif node.module.startswith("hv15_batch."):
            yield node.module
        elif node.col_offset == 0 and not find_spec(node.module.split(".")[0]):
            yield node.module  # one within a function is asked for where it is used


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_a_script_imports_is_there(script: Path) -> None:
    assert list(missing(script)) == []
