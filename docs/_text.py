"""Texts that stand in the code, and the Markdown that is written from them."""

from __future__ import annotations

import ast
import inspect
import itertools
from collections.abc import Sequence
from types import ModuleType

NOTICE = "<!-- Written by docs/generate.py from the code, not by hand. -->\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *([_escaped(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _escaped(cell: str) -> str:
    """Return a cell in which only what stands as code keeps its angle brackets."""
    parts = cell.replace("|", "\\|").replace("\n", " ").split("`")
    parts[::2] = [part.replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)


def code(value: object) -> str:
    """Return a value as code, or nothing for nothing."""
    return f"`{value}`" if value not in (None, "") else ""


def docs_of(owner: type | ModuleType) -> dict[str, str]:
    """Return the texts that stand below the assignments of a class or module, by name."""
    statements = ast.parse(inspect.getsource(owner)).body
    if isinstance(owner, type):
        (definition,) = statements
        assert isinstance(definition, ast.ClassDef)
        statements = definition.body
    found = {}
    for statement, after in itertools.pairwise(statements):
        name = _assigned(statement)
        if name and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            found[name] = inspect.cleandoc(str(after.value.value)).replace("\n", " ")
    return found


def _assigned(statement: ast.stmt) -> str | None:
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        return statement.target.id
    if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
        return statement.targets[0].id
    return None
