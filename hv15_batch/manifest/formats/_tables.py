"""CSV with commas, semicolons or tabs, as spreadsheets and shells write it."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import chain

from hv15_batch.manifest.cells import MAX_CELL_CHARACTERS, Faults
from hv15_batch.manifest.columns import Columns, Unreadable
from hv15_batch.manifest.formats._lines import LINE_END_RULE, Lines
from hv15_batch.manifest.rows import Record

NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
"""Separators of cells. A bar is refused by name, because many prompts have one."""

MAX_HEADER_CHARACTERS = 10_000
"""So much of a header is searched for known names."""

TWICE = 'write a quotation mark inside a quoted cell twice ("")'

_GIVEN_SEPARATOR = re.compile(r'"?sep=([,;\t|])"?\s*', re.IGNORECASE)
"""First line that names the separator for Excel."""
_TYPE_LINE = re.compile(r'"?#TYPE\s')
"""First line of PowerShell's Export-Csv before version 6."""
COMMENT_RULE = (
    "a table has no comment lines, and here is one; delete it, or type manifest_literal=true if it "
    "is a prompt"
)


def read_table(lines: Lines, columns: Columns, faults: Faults, usual: str) -> Iterator[Record]:
    """Yield the records of a table; cells arrive unchanged, empty ones are left out.

    Args:
        lines: Of the file.
        columns: Takes the names of its header.
        faults: Where faults are noted.
        usual: The separator, unless the header shows another one.

    Raises:
        Unreadable: The rest cannot be split into cells; the fault has been noted.
    """
    first = _first_line(lines)
    if first is None:
        return
    given = _GIVEN_SEPARATOR.fullmatch(first)
    if given is not None or _TYPE_LINE.match(first):
        first = _first_line(lines)
        if first is None:
            return
    if first.lstrip().startswith("#"):
        faults.add(lines.record_number, "line", lines.record_text, COMMENT_RULE)
        raise Unreadable
    separator = given[1] if given else _separator(lines, columns, faults, usual)
    records = _read_cells(first, lines, faults, separator)
    header = [name.strip() for name in next(records, [])]
    places = columns.read_header(lines.record_number, header)
    nameless = [place for place, name in enumerate(header) if place and not name]
    for cells in records:
        if not any(map(str.strip, cells)):
            continue  # a blank line, or one of separators alone
        rule = None
        if nameless or len(cells) != len(header):
            rule = _cells_rule(cells, header, nameless, NAMES[separator])
        if rule is None and len(places) > 1 and not columns.reading.literal:
            rule = _comment_rule(cells)
        if rule:
            faults.add(lines.record_number, "line", lines.record_text, rule)
            continue
        yield Record(
            lines.record_number, {name: cells[place] for place, name in places if cells[place]}
        )


def _first_line(lines: Lines) -> str | None:
    """Return the next line that is not blank, as the start of a record; None at the end."""
    while True:
        lines.start_record()
        line = next(lines, None)
        if line is None or line.strip():
            return line


def _separator(lines: Lines, columns: Columns, faults: Faults, usual: str) -> str:
    """Return the separator with which most names of the header are known.

    Raises:
        Unreadable: The separator is not supported; the fault has been noted.
    """
    header = lines.record_text[:MAX_HEADER_CHARACTERS]
    counts = {
        separator: sum(columns.is_expected(name.strip(" \"'")) for name in header.split(separator))
        for separator in (usual, *NAMES)
        if separator in (usual, ",") or separator in header
    }
    best = max(counts, key=lambda separator: counts[separator])  # the first of the best ones
    if best == "|":
        rule = "cells are separated by commas, and here by vertical bars; save the file with commas"
        faults.add(lines.record_number, "header", header, rule)
        raise Unreadable
    return best


def _read_cells(first: str, lines: Lines, faults: Faults, separator: str) -> Iterator[list[str]]:
    # A quotation mark that is never closed would take the rest of the file for one cell. The
    # limit belongs to the process, so it is put back as it was.
    limit = csv.field_size_limit(MAX_CELL_CHARACTERS)
    reader = csv.reader(chain([first], lines), strict=True, delimiter=separator)
    try:
        while (cells := next(reader, None)) is not None:
            yield cells
            lines.start_record()
    except csv.Error as error:
        is_multi_line = lines.number > lines.record_number
        rule = _syntax_rule(str(error), NAMES[separator], is_multi_line=is_multi_line)
        faults.add(lines.record_number, "line", lines.record_text, rule)
        raise Unreadable from error
    finally:
        csv.field_size_limit(limit)


def _comment_rule(cells: list[str]) -> str | None:
    """Return the fault of a comment: a row with a filled first cell only. None for other rows."""
    is_comment = cells[0].lstrip().startswith(("#", "//")) and not any(map(str.strip, cells[1:]))
    return COMMENT_RULE if is_comment else None


def _syntax_rule(error: str, separator: str, *, is_multi_line: bool) -> str:
    """Return a message for an error of Python's csv module."""
    if "unexpected end" in error:
        return (
            "a quotation mark that opens a cell is closed, and here one is not; close it, and "
            f"{TWICE}"
        )
    if "field larger" in error:
        return (
            f"a cell has at most {MAX_CELL_CHARACTERS:,} characters, and here is one with more; "
            "shorten it, or close its quotation mark"
        )
    if "new-line character" in error:
        return LINE_END_RULE
    place = " some lines further on" if is_multi_line else ""
    return (
        f"a {separator} or the end of the line follows the quotation mark that closes a cell, and "
        f"here something else does{place}; close the cell where it ends, and {TWICE}"
    )


def _cells_rule(
    cells: list[str], header: list[str], nameless: list[int], separator: str
) -> str | None:
    """Return what is wrong with the number of cells, or None; surplus empty ones are no fault."""
    if len(cells) == 1 < len(header) and _comment_rule(cells):
        return COMMENT_RULE
    count = len(cells)
    while count > len(header) and not cells[count - 1].strip():
        count -= 1
    if count != len(header):
        rule = f"a record has a cell for each column, and here are {count} for {len(header)}"
        if count > len(header):
            return (
                f"{rule}; put a text with {separator}s in quotation marks, without a space before "
                "them"
            )
        return f"{rule}; add the missing {separator}s (an empty cell means the default)"
    for place in nameless:
        if cells[place].strip():
            return (
                f"a cell stands in a column with a name, and cell {place + 1} does not; name the "
                f"column in the header, or put a text with {separator}s in quotation marks"
            )
    return None
