"""The terminal that progress is shown on: its size, and lines that fit into it."""

from __future__ import annotations

import os
import shutil
import unicodedata
from collections.abc import Iterator
from typing import TextIO

_COMMAND = "hv15-batch "
"""A command in a line starts with this."""
_INDENT = "  "


def can_redraw(out: TextIO) -> bool:
    """Whether lines can be redrawn: on a terminal that is not dumb."""
    return out.isatty() and os.environ.get("TERM") != "dumb"


def size_of(out: TextIO) -> tuple[int, int]:
    """Return a terminal's columns and rows of now; 80 and 24 if unknown."""
    try:
        columns, rows = os.get_terminal_size(out.fileno())
    except (OSError, ValueError):
        columns = rows = 0
    if columns > 0 and rows > 0:
        return columns, rows
    return shutil.get_terminal_size()


def fit(text: str, columns: int) -> str:
    """Return a line that takes at most so many columns, cut in the middle if necessary."""
    if width(text) <= columns:
        return text
    head, tail = _start(text, columns // 2), _start(text[::-1], (columns - 1) // 2)[::-1]
    return f"{head}…{tail}"


def laid_out(line: str, columns: int) -> list[str]:
    """Return a line as lines of at most so many columns, broken between words.

    A command has a line of its own and is never broken. A terminal wraps a long one, so that it can
    be copied whole. A single word that is too long is cut in the middle.
    """
    if width(line) <= columns:
        return [line]
    head, command, tail = line.partition(_COMMAND)
    if command:
        before = list(_broken(head.rstrip(), columns)) if head.strip() else []
        return [*before, f"{_INDENT if before else ''}{command}{tail}"]
    return list(_broken(line, columns))


def num_rows(line: str, columns: int) -> int:
    """Return how many rows a line takes on a terminal."""
    return max(1, -(-width(line) // columns))


def _broken(text: str, columns: int) -> Iterator[str]:
    """Yield the lines of a text, broken between words; all but the first are indented."""
    line = ""
    indent = text[: len(text) - len(text.lstrip())]
    for word in text.split():
        longer = f"{line} {word}" if line else f"{indent}{word}"
        if line and width(longer) > columns:
            yield line
            indent = _INDENT
            longer = f"{indent}{word}"
        line = fit(longer, columns)
    yield line


def width(text: str) -> int:
    """Return how many columns a text takes."""
    return sum(map(_columns, text))


def _start(text: str, columns: int) -> str:
    taken = 0
    for index, character in enumerate(text):
        taken += _columns(character)
        if taken > columns:
            return text[:index]
    return text


def _columns(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1
