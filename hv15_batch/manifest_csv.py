"""CSV manifests (RFC 4180): records with the line they start on, faults in a user's words."""

from __future__ import annotations

import csv
from collections.abc import Iterator

from hv15_batch.manifest_cells import MAX_CELL_CHARACTERS, Faults
from hv15_batch.manifest_columns import KNOWN_COLUMNS, Record, Unreadable, check_header
from hv15_batch.manifest_lines import LINE_END_RULE, Lines

SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
"""What spreadsheets and databases write instead of commas."""

MAX_HEADER_CHARACTERS = 10_000
"""How far into a header known names are looked for."""

TWICE = 'write a quotation mark inside a quoted cell twice ("")'


def read_csv(lines: Lines, faults: Faults) -> Iterator[Record]:
    """Yield the records of a CSV file; cells arrive unchanged, empty ones are left out.

    Raises:
        Unreadable: The rest cannot be told apart into cells; the fault has been noted.
    """
    records = _read_cells(lines, faults)
    header: list[str] = []
    for cells in records:
        if cells and (len(cells) > 1 or cells[0].strip()):
            _check_separator(lines, faults)
            header = [name.strip() for name in cells]
            break
    else:
        return
    columns = check_header(lines.record_number, header, faults)
    nameless = [place for place, name in enumerate(header) if place and not name]
    for cells in records:
        if not cells or (len(cells) == 1 < len(header) and not cells[0].strip()):
            continue  # a blank line
        rule = _cells_rule(cells, header, nameless)
        if rule:
            faults.add(lines.record_number, "line", lines.record_text, rule)
            continue
        yield Record(
            lines.record_number, {name: cells[place] for place, name in columns if cells[place]}
        )


def _read_cells(lines: Lines, faults: Faults) -> Iterator[list[str]]:
    # A quotation mark that is never closed would take the rest of the file for one cell. The
    # limit belongs to the process, so it is put back as it was.
    limit = csv.field_size_limit(MAX_CELL_CHARACTERS)
    reader = csv.reader(lines, strict=True)
    try:
        while True:
            lines.start_record()
            cells = next(reader, None)
            if cells is None:
                return
            yield cells
    except csv.Error as error:
        if reader.line_num == lines.number == lines.record_number == 1:
            _check_separator(lines, faults)
        rule = _syntax_rule(str(error), is_multi_line=lines.number > lines.record_number)
        faults.add(lines.record_number, "line", lines.record_text, rule)
        raise Unreadable from error
    finally:
        csv.field_size_limit(limit)


def _syntax_rule(error: str, is_multi_line: bool) -> str:
    """Say in a user's words what Python's csv module has found."""
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
        "a comma or the end of the line follows the quotation mark that closes a cell, and here "
        f"something else does{place}; close the cell where it ends, and {TWICE}"
    )


def _cells_rule(cells: list[str], header: list[str], nameless: list[int]) -> str | None:
    """Return what is wrong with the number of cells, or None."""
    if len(cells) != len(header):
        rule = f"a record has a cell for each column, and here are {len(cells)} for {len(header)}"
        if len(cells) > len(header):
            return f"{rule}; put a text with commas in quotation marks, without a space before them"
        return f"{rule}; add the missing commas (an empty cell means the default)"
    for place in nameless:
        if cells[place].strip():
            return (
                f"a cell stands in a column with a name, and cell {place + 1} does not; "
                "name the column in the header, or put a text with commas in quotation marks"
            )
    return None


def _check_separator(lines: Lines, faults: Faults) -> None:
    """Refuse a header whose names are separated by something else than commas."""
    header = lines.record_text[:MAX_HEADER_CHARACTERS]
    if _has_known_name(header, ","):
        return
    for separator, name in SEPARATORS.items():
        if separator in header and _has_known_name(header, separator):
            rule = f"cells are separated by commas, and here by {name}"
            faults.add(lines.record_number, "header", header, f"{rule}; save the file with commas")
            raise Unreadable


def _has_known_name(header: str, separator: str) -> bool:
    return any(name.strip(" \"'").lower() in KNOWN_COLUMNS for name in header.split(separator))
