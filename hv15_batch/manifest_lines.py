"""Lines of a text manifest, read in bounded pieces and hashed on the way.

A file that is no UTF-8 text, or one line of a gigabyte, is refused without reading it whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import IO, NoReturn

from hv15_batch.manifest_cells import Faults
from hv15_batch.manifest_columns import Unreadable

MAX_LINE_BYTES = 8 * 1024**2
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
            limit = f"a line has at most {MAX_LINE_BYTES // 1024**2} MiB, and this one more"
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
