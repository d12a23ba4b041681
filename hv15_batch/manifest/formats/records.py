"""A manifest file as records; the suffix decides how it is read."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import IO

from hv15_batch.manifest.cells import Faults
from hv15_batch.manifest.columns import Columns, Reading, Unreadable
from hv15_batch.manifest.formats._json import read_json, read_json_lines
from hv15_batch.manifest.formats._lines import LINE_END_RULE, MAX_LINE_BYTES, Lines
from hv15_batch.manifest.formats._parquet import read_parquet
from hv15_batch.manifest.formats._tables import read_table
from hv15_batch.manifest.rows import Record
from hv15_batch.units import MIB

MAX_JSON_BYTES = 64 * MIB
"""Largest `.json` file, which is held in memory as a whole; JSON Lines is not."""

_SEPARATORS = {".csv": ",", ".tsv": "\t"}


class RecordReader:
    """Iterates once over the records of a manifest and hashes its bytes on the way."""

    def __init__(
        self, path: Path, faults: Faults, reading: Reading, content: bytes | None = None
    ) -> None:
        """Take the file; nothing is read yet.

        Args:
            path: The file.
            faults: Where faults are noted.
            reading: The settings for reading it.
            content: JSON Lines instead of the file.
        """
        self._path = path
        self._faults = faults
        self._content = content
        self._columns = Columns(reading, faults)
        self.sha256 = ""
        """SHA-256 of the file's bytes, after an iteration without a fault."""

    @property
    def notes(self) -> list[str]:
        """Notes about the columns, after the iteration has ended."""
        return self._columns.notes

    def __iter__(self) -> Iterator[Record]:
        """Yield the records; an unreadable part is noted as a fault and ends the iteration."""
        suffix = self._path.suffix.lower()
        with self._open() as file:
            try:
                if suffix == ".parquet":
                    self.sha256 = _file_sha256(file)
                    yield from read_parquet(file, self._columns, self._faults)
                else:
                    yield from self._read_text(suffix, file)
            except Unreadable:
                return

    def _read_text(self, suffix: str, file: IO[bytes]) -> Iterator[Record]:
        limit = MAX_JSON_BYTES if suffix == ".json" else MAX_LINE_BYTES
        lines = Lines(file, self._faults, limit)
        if suffix in _SEPARATORS:
            yield from read_table(lines, self._columns, self._faults, _SEPARATORS[suffix])
        elif suffix == ".txt":
            yield from _read_prompts(lines, self._faults)
            self._columns.finish()
        elif suffix == ".json":
            yield from read_json(lines, self._columns, self._faults)
        else:
            yield from read_json_lines(lines, self._columns, self._faults)
        self.sha256 = lines.sha256

    def _open(self) -> IO[bytes]:
        """Open the file.

        Raises:
            OSError: It cannot be read, or is no longer a regular file.
        """
        if self._content is not None:
            return BytesIO(self._content)
        file = open(self._path, "rb", opener=_open_without_waiting)
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise OSError(None, "no regular file")
        return file


def _open_without_waiting(path: str, flags: int) -> int:
    """Open a file without waiting for the writer of a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


def _file_sha256(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(MIB):
        digest.update(chunk)
    return digest.hexdigest()


def _read_prompts(lines: Lines, faults: Faults) -> Iterator[Record]:
    for line in lines:
        prompt = line.removesuffix("\n").removesuffix("\r")
        if "\r" in prompt:
            faults.add(lines.number, "line", prompt, LINE_END_RULE)
        elif prompt.strip():
            yield Record(lines.number, {"prompt": prompt})
