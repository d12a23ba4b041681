"""Manifest files as records: CSV, JSON Lines, Parquet and plain text, told apart by suffix.

Knows files and syntax; what a cell may hold is the business of `cells` and `rows`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from hv15_batch.manifest._text import LINE_END_RULE, Lines, read_csv
from hv15_batch.manifest.cells import Faults
from hv15_batch.manifest.rows import (
    Record,
    Unreadable,
    check_header,
    is_index_column,
    is_known_column,
    unknown_column_rule,
)
from hv15_batch.units import MIB, format_value

if TYPE_CHECKING:
    import pyarrow as pa


MAX_INTEGER_DIGITS = 100
"""Longest integer taken from JSON: the time to read one grows with its square."""

PARQUET_BATCH_ROWS = 1_024

ARRAY_RULE = (
    "JSON Lines has one object on each line, and this file is a JSON array; write one object on "
    "each line, without the list and the commas around them"
)


class RecordReader:
    """Iterates once over the records of a manifest and hashes its bytes on the way."""

    def __init__(self, path: Path, faults: Faults, content: bytes | None = None) -> None:
        self._path = path
        self._faults = faults
        self._content = content
        self.sha256 = ""
        """SHA-256 of the file's bytes, once the iteration has ended without a fault."""

    def __iter__(self) -> Iterator[Record]:
        """Yield the records; what cannot be read is noted as a fault and ends the iteration."""
        suffix = self._path.suffix.lower()
        with self._open() as file:
            try:
                if suffix == ".parquet":
                    self.sha256 = _file_sha256(file)
                    yield from _read_parquet(file, self._faults)
                else:
                    lines = Lines(file, self._faults)
                    read = {".csv": read_csv, ".txt": _read_text}.get(suffix, _read_json_lines)
                    yield from read(lines, self._faults)
                    self.sha256 = lines.sha256
            except Unreadable:
                return

    def _open(self) -> IO[bytes]:
        return self._path.open("rb") if self._content is None else BytesIO(self._content)


def _file_sha256(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(MIB):
        digest.update(chunk)
    return digest.hexdigest()


def _read_text(lines: Lines, faults: Faults) -> Iterator[Record]:
    for line in lines:
        prompt = line.removesuffix("\n").removesuffix("\r")
        if "\r" in prompt:
            faults.add(lines.number, "line", prompt, LINE_END_RULE)
        elif prompt.strip():
            yield Record(lines.number, {"prompt": prompt})


class _RefusedJson(ValueError):
    """A line that is JSON and no record; the text says what is allowed."""


def _read_json_lines(lines: Lines, faults: Faults) -> Iterator[Record]:
    decoder = json.JSONDecoder(
        object_pairs_hook=_unique_pairs, parse_constant=_refuse_constant, parse_int=_bounded_int
    )
    unknown: set[str] = set()
    is_first = True
    for line in lines:
        text = line.strip()
        if not text:
            continue
        if is_first and text.startswith("["):
            faults.add(lines.number, "line", text, ARRAY_RULE)
            raise Unreadable
        is_first = False
        try:
            record = decoder.decode(text)
            if not isinstance(record, dict):
                raise _RefusedJson(
                    'a line is one JSON object, such as {"prompt": "a cat"}, and here is something '
                    "else; write one object on each line, without a list around them"
                )
        except (ValueError, RecursionError) as error:
            faults.add(lines.number, "line", text, _json_rule(error))
            continue
        for name in record:
            if not (is_known_column(name) or is_index_column(name) or name in unknown):
                unknown.add(name)
                faults.add(lines.number, "column", name, unknown_column_rule(name))
        yield Record(lines.number, record)


def _json_rule(error: Exception) -> str:
    if isinstance(error, _RefusedJson):
        return str(error)
    if isinstance(error, json.JSONDecodeError):
        return (
            f"a line is one JSON object, and this one breaks at character {error.colno} "
            f"({error.msg}); correct it"
        )
    return "a line is one JSON object, and this one is nested too deeply; write plain values"


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                rule = f"a name stands once in an object, and {format_value(name)} stands twice"
                raise _RefusedJson(f"{rule}; remove one")
            seen.add(name)
    return record


def _refuse_constant(name: str) -> None:
    raise _RefusedJson(f"numbers are finite, and {name} is not; write null for the default")


def _bounded_int(text: str) -> int:
    if len(text) > MAX_INTEGER_DIGITS:
        raise _RefusedJson(
            f"an integer has at most {MAX_INTEGER_DIGITS} digits, and here is one of "
            f"{len(text):,}; put it in quotation marks if it is text"
        )
    return int(text)


def _read_parquet(file: IO[bytes], faults: Faults) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = 0
    try:
        parquet = pq.ParquetFile(file)
        columns = check_header(1, parquet.schema_arrow.names, faults)
        for batch in parquet.iter_batches(PARQUET_BATCH_ROWS):
            # By place: a name may come twice, which is a fault already noted.
            chosen = batch.select([place for place, _ in columns])
            for cells in _with_shortest_decimals(chosen).to_pylist():
                row += 1
                yield Record(row, cells)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        rule = f"a whole Parquet file can be read, and this one breaks after row {row} ({reason})"
        faults.add(row + 1, "file", Path(faults.manifest).name, f"{rule}; write it again")


def _with_shortest_decimals(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the batch with 23.976 where a narrow float column has 23.97599983215332.

    Both are the same float32, and 23.976 is what was written and what a CSV would hold.
    """
    import pyarrow as pa

    for place, field in enumerate(batch.schema):
        if pa.types.is_float16(field.type) or pa.types.is_float32(field.type):
            narrow = field.type.to_pandas_dtype()
            values = [
                v if v is None or v.is_integer() else float(str(narrow(v)))
                for v in batch.column(place).to_pylist()
            ]
            batch = batch.set_column(place, field.name, pa.array(values, pa.float64()))
    return batch
