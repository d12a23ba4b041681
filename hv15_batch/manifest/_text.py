"""Lines and cells of text files: encodings, line ends, CSV."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from typing import IO, NoReturn

from hv15_batch.manifest.cells import MAX_CELL_CHARACTERS, Faults
from hv15_batch.manifest.rows import KNOWN_COLUMNS, Record, Unreadable, check_header
from hv15_batch.units import MIB

MAX_LINE_BYTES = 8 * MIB
"""Longest line: a record with several of the longest cells."""

UTF8_BOM = b"\xef\xbb\xbf"
FOREIGN_BOMS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
"""Longer ones first: UTF-32 begins with the mark of UTF-16. Source: Unicode 16.0, table 2-4."""

SAVE_AS_UTF8 = 'save it as UTF-8 (in a spreadsheet: "CSV UTF-8")'
LINE_END_RULE = "lines end with LF or CRLF, and a lone CR was found; save it with such line ends"


class Lines:
    """Iterator over the lines of a file, ends included, each checked for length and encoding."""

    def __init__(self, file: IO[bytes], faults: Faults) -> None:
        self._file = file
        self._faults = faults
        self._hash = hashlib.sha256()
        self._offset = 0
        self._starts_record = False
        self.number = 0
        """Line read last, from 1."""
        self.record_number = 1
        """Line on which the current record starts."""
        self.record_text = ""
        """That line without its end."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes read so far."""
        return self._hash.hexdigest()

    def start_record(self) -> None:
        """Take the next line as the first one of a record."""
        self._starts_record = True

    def __iter__(self) -> Iterator[str]:
        """Return itself: lines are read once."""
        return self

    def __next__(self) -> str:
        """Return the next line.

        Raises:
            Unreadable: It is too long, or no UTF-8 text; the fault has been noted.
        """
        data = self._file.readline(MAX_LINE_BYTES + 1)
        if not data:
            raise StopIteration
        self._hash.update(data)
        self.number += 1
        text = self._decode(data)
        self._offset += len(data)
        if self._starts_record:
            self._starts_record = False
            self.record_number = self.number
            self.record_text = text.rstrip("\r\n")
        return text

    def _decode(self, data: bytes) -> str:
        start = 0
        if self.number == 1:
            self._check_bom(data)
            start = len(UTF8_BOM) if data.startswith(UTF8_BOM) else 0
        if len(data) > MAX_LINE_BYTES:
            limit = f"a line has at most {MAX_LINE_BYTES // MIB} MiB, and this one more"
            shown = data[:80].decode("utf-8", "replace")
            self._refuse("line", shown, f"{limit}; write each record on a line of its own")
        if b"\0" in data:
            place = self._offset + data.index(0)
            rule = f"text holds no NUL, and the byte at offset {place} is one (a binary file, or "
            self._refuse("byte", "0x00", f"{rule}UTF-16); {SAVE_AS_UTF8}")
        try:
            return data[start:].decode()
        except UnicodeDecodeError as error:
            first = start + error.start
            rule = f"a manifest is UTF-8, and the byte at offset {self._offset + first} is not"
            self._refuse("byte", f"0x{data[first]:02x}", f"{rule}; {SAVE_AS_UTF8}")

    def _check_bom(self, data: bytes) -> None:
        for bom, encoding in FOREIGN_BOMS.items():
            if data.startswith(bom):
                rule = f"a manifest is UTF-8, and this file begins like {encoding}"
                self._refuse("bytes", f"0x{bom.hex()}", f"{rule}; {SAVE_AS_UTF8}")

    def _refuse(self, column: str, value: str, rule: str) -> NoReturn:
        self._faults.add(self.number, column, value, rule)
        raise Unreadable


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
