"""The lines of a text file, checked for length and encoding."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterator
from typing import IO, NoReturn

from hv15_batch.manifest.cells import Faults
from hv15_batch.manifest.columns import Unreadable
from hv15_batch.manifest.formats._encodings import FOREIGN_BOMS, SAMPLE_BYTES, guess, kind_of
from hv15_batch.units import MIB

MAX_LINE_BYTES = 8 * MIB
"""Longest line: a record with several of the longest cells."""

UTF8_BOM = b"\xef\xbb\xbf"
SAVE_AS_UTF8 = 'save it as UTF-8 (in a spreadsheet: "CSV UTF-8")'
LINE_END_RULE = "lines end with LF or CRLF, and a lone CR was found; save it with such line ends"


class Lines:
    """Iterator over the lines of a file, ends included, each checked for length and encoding."""

    def __init__(
        self, file: IO[bytes], faults: Faults, max_line_bytes: int = MAX_LINE_BYTES
    ) -> None:
        self._file = file
        self._faults = faults
        self._max_line_bytes = max_line_bytes
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
        data = self._file.readline(self._max_line_bytes + 1)
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
        if len(data) > self._max_line_bytes:
            limit = f"a line has at most {self._max_line_bytes // MIB} MiB, and this one more"
            shown = data[:80].decode("utf-8", "replace")
            self._refuse("line", shown, f"{limit}; write each record on a line of its own")
        if b"\0" in data:
            self._refuse_nul(data)
        try:
            text = data[start:].decode()
            # Tools that join files leave a second byte order mark after the first.
            return text.lstrip("\ufeff") if start else text
        except UnicodeDecodeError as error:
            first = start + error.start
            found = guess(data + self._file.read(SAMPLE_BYTES))
            name = shlex.quote(self._faults.manifest)
            rule = (
                f"a manifest is UTF-8, and the byte at offset {self._offset + first} is not: it "
                f"seems to be {found.name}; {SAVE_AS_UTF8}, or: iconv -f {found.codec} -t UTF-8 "
                f"{name}"
            )
            self._refuse("byte", f"0x{data[first]:02x}", rule)

    def _refuse_nul(self, data: bytes) -> NoReturn:
        place = self._offset + data.index(0)
        what = "a binary file, or UTF-16"
        if data.count(0) * 4 > len(data):
            what = f"it seems to be {guess(data + self._file.read(SAMPLE_BYTES)).name}"
        rule = f"text holds no NUL, and the byte at offset {place} is one ({what}); {SAVE_AS_UTF8}"
        self._refuse("byte", "0x00", rule)

    def _check_bom(self, data: bytes) -> None:
        for bom, encoding in FOREIGN_BOMS.items():
            if data.startswith(bom):
                rule = f"a manifest is UTF-8, and this file begins like {encoding}"
                self._refuse("bytes", f"0x{bom.hex()}", f"{rule}; {SAVE_AS_UTF8}")
        if kind := kind_of(data):
            rule = f"a text file is text, and this one begins like {kind}"
            action = "open it in its program, and save it as CSV UTF-8"
            self._refuse("bytes", f"0x{data[:4].hex()}", f"{rule}; {action}")

    def _refuse(self, column: str, value: str, rule: str) -> NoReturn:
        self._faults.add(self.number, column, value, rule)
        raise Unreadable
