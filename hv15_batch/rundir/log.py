"""The Parquet log of a run directory: append a record, read them, last attempt per clip.

One writer for each folder (the parent). A segment is rewritten whole and renamed after each
attempt, so that `pandas.read_parquet("<run_dir>/log")` works at every moment.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hv15_batch.errors import LogSchemaError, system_message
from hv15_batch.files import check_regular
from hv15_batch.record import ClipRecord
from hv15_batch.redaction import redacted_or_none
from hv15_batch.rundir.paths import RunDir
from hv15_batch.rundir.publish import publishing
from hv15_batch.rundir.schema import SCHEMA_VERSION, arrow_schema
from hv15_batch.units import GIB, MIB

_MAX_REASON_CHARACTERS = 300

SEGMENT_ROWS = 128
"""Rows per segment: rewriting a full one with fsync takes about 7 ms."""
MAX_SEGMENT_BYTES = 256 * MIB
MAX_SEGMENT_ROWS = 1_000_000
MAX_TABLE_BYTES = 2 * GIB
"""Limit for an unpacked segment: a text that is repeated takes only a few bytes in the file."""
_THRIFT_BYTES = 64 * MIB
_THRIFT_ITEMS = 1_000_000
"""Limit for the footer, before memory is allocated for it; our own has 200 KiB."""
_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*-[0-9]{4,}\.parquet")
"""`<run_id>-<nnnn>.parquet`. A file with another name, or without our metadata, is foreign."""
_MOST_NAMED = 3
_OF_THE_FILE = (None, errno.EINVAL, errno.EISDIR, errno.EFBIG)
"""Error numbers of `files.check_regular` and Arrow for a file that is no segment."""


class RunLog:
    """Appends this run's records to its own segments."""

    def __init__(self, folder: Path, run_id: str) -> None:
        """Start without a segment; the first record makes one."""
        self._folder = folder
        self._run_id = run_id
        self._schema = arrow_schema()
        self._number = 0
        self._kept: list[ClipRecord] = []  # those that could not be written yet
        self._table = self._schema.empty_table()
        self.segment = self._path()
        """The segment of the last record."""

    def _path(self) -> Path:
        return self._folder / f"{self._run_id}-{self._number:04d}.parquet"

    def append(self, record: ClipRecord) -> None:
        """Append the record to the log. It is on the disk when this returns.

        Raises:
            OSError: It could not be written, and is kept for the next call or `flush`. The log is
                as before.
        """
        self._kept.append(record)
        self._write_kept()

    def flush(self) -> None:
        """Append the records that could not be written before; raise like `append`."""
        self._write_kept()

    def _write_kept(self) -> None:
        while self._kept:
            self._write(self._kept[0])
            del self._kept[0]

    def _write(self, record: ClipRecord) -> None:
        if self._table.num_rows == SEGMENT_ROWS:
            self._table = self._schema.empty_table()
            self._number += 1
        values = vars(record) | {"error_message": redacted_or_none(record.error_message)}
        row = pa.Table.from_pylist([values], schema=self._schema)
        table = pa.concat_tables([self._table, row]).combine_chunks()
        path = self._path()
        with publishing(path, makes_folder=True) as temporary:
            pq.write_table(table, temporary)
        self._table, self.segment = table, path


def num_rows(segment: Path) -> int:
    """Return how many records a segment has; raise like `read_records`."""
    with _open_segment(segment) as (file, _, _):
        return int(file.metadata.num_rows)


def read_records(log_folder: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Return all records of a log and of all shards; columns that a segment lacks are null.

    Args:
        log_folder: `RunDir.log`.
        columns: Which columns; None means all.

    Raises:
        LogSchemaError: A segment is unreadable or written by a newer version.
    """
    schema = arrow_schema()
    if columns is not None:
        schema = pa.schema([schema.field(name) for name in columns])
    read = (_read_segment(path, schema) for path in segments(log_folder))
    tables = [table for table in read if table is not None]
    return pa.concat_tables(tables) if tables else schema.empty_table()


def read_last_attempts(
    log_folder: Path, columns: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Return the last attempt per `settings_sha256`, in the order of first attempts.

    The last attempt has the highest `attempt`, which is counted under the lock. The clock may be
    set back. Benchmark repetitions are left out, because they make no clip.
    """
    needed = {"settings_sha256", "attempt", "repeat"}
    wanted = None if columns is None else list(dict.fromkeys([*columns, *sorted(needed)]))
    return last_attempts(read_rows(log_folder, wanted))


def read_rows(log_folder: Path, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Return all records as dictionaries, oldest segment first; raise like `read_records`."""
    if not segments(log_folder):
        return []  # before Arrow makes an array, which imports pandas: 0.5 s
    return list(_rows(read_records(log_folder, columns)))


def last_attempts(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the last attempt per clip of these records, like `read_last_attempts`."""
    last: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["repeat"] is not None:
            continue
        key = row["settings_sha256"]
        if key not in last or (row["attempt"] or 0) >= (last[key]["attempt"] or 0):
            last[key] = row
    return list(last.values())


def bring_to_current_schema(log_folder: Path) -> int:
    """Rewrite segments of older schema versions; return how many. Needs the folder's lock.

    Those of shards are left to them: the readers of this module read older ones too.

    Raises:
        LogSchemaError: a segment is unreadable or written by a newer version.
    """
    schema = arrow_schema()
    rewritten = 0
    for path in _segments_in(log_folder):
        if _version(path) in (None, SCHEMA_VERSION):
            continue  # foreign, or current
        with _open_segment(path) as (file, written, _):
            table = _columns(file, written, schema)
        with publishing(path) as temporary:
            pq.write_table(table, temporary)
        rewritten += 1
    return rewritten


LogState = tuple[tuple[str, int, int], ...]
"""Path, bytes and time in nanoseconds of each segment."""


def log_state(log_folder: Path) -> LogState:
    """Return what changes whenever a record is added to a log, or to that of a shard."""
    found = []
    for path in segments(log_folder):
        with suppress(FileNotFoundError):
            status = path.stat()
            found.append((str(path), status.st_size, status.st_mtime_ns))
    return tuple(found)


def segments(log_folder: Path) -> list[Path]:
    """Return the files with a segment's name, those of all shards included, oldest first."""
    shards = [run_dir.own_log for run_dir in RunDir(log_folder.parent).shard_dirs()]
    found = (path for folder in [log_folder, *shards] for path in _segments_in(folder))
    return sorted(found, key=lambda path: path.name)


def _segments_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.glob("*.parquet") if _SEGMENT.fullmatch(p.name))


def foreign_note(log_folder: Path) -> str | None:
    """Return a line about Parquet files in a log's folder that are foreign; None without any.

    Foreign files are neither read nor changed.
    """
    if not log_folder.is_dir():
        return None
    visible = [p for p in log_folder.glob("*.parquet") if not p.name.startswith(".")]
    foreign = sorted(p.name for p in visible if not _is_segment(p))
    if not foreign:
        return None
    named = ", ".join(foreign[:_MOST_NAMED])
    more = f" and {len(foreign) - _MOST_NAMED} more" if len(foreign) > _MOST_NAMED else ""
    return (
        f"{log_folder}: {named}{more}: not part of this log, so hv15-batch ignores it; "
        "pandas.read_parquet would read it with the folder: move it elsewhere."
    )


def _is_segment(path: Path) -> bool:
    """Whether a file has a segment's name and, if it can be read, a segment's metadata."""
    if not _SEGMENT.fullmatch(path.name):
        return False
    try:
        return _version(path) is not None
    except LogSchemaError:  # damaged or newer: reading it reports that
        return True


def _version(path: Path) -> int | None:
    """Return a segment's schema version, None for a foreign file; raise like `read_records`."""
    try:
        status = path.stat()
    except OSError:
        return _stated_version(path, 0, 0)  # raises
    return _stated_version(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=16384)
def _stated_version(path: Path, size: int, modified_ns: int) -> int | None:
    """As `_version`; a run asks for it twice, and a file of other bytes or time is another one."""
    with _open_segment(path) as (_, _, version):
        return version


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=1024):
        yield from batch.to_pylist()


def _read_segment(path: Path, schema: pa.Schema) -> pa.Table | None:
    with _open_segment(path) as (file, written, version):
        return None if version is None else _columns(file, written, schema)


@contextmanager
def _open_segment(path: Path) -> Iterator[tuple[pq.ParquetFile, pa.Schema, int | None]]:
    """Open a segment and yield it with its schema and schema version (None for a foreign file)."""
    try:
        check_regular(path, MAX_SEGMENT_BYTES)
        with pq.ParquetFile(
            path,
            thrift_string_size_limit=_THRIFT_BYTES,
            thrift_container_size_limit=_THRIFT_ITEMS,
        ) as file:
            _check_size(file.metadata)
            written = file.schema_arrow  # computed at each access
            stated = (written.metadata or {}).get(b"schema_version")
            version = None
            if stated is not None and "settings_sha256" in written.names:
                version = int(stated)
            if version is not None and version > SCHEMA_VERSION:
                raise LogSchemaError(
                    f"{path}: schema version {version} is newer than {SCHEMA_VERSION}; "
                    "update hv15_batch to the version that wrote it."
                )
            yield file, written, version
    except LogSchemaError:
        raise
    except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno not in _OF_THE_FILE:  # a fault of the disk
            plain = OSError(error.errno, os.strerror(error.errno))
            raise LogSchemaError(f"{path}: cannot be read ({system_message(plain)}).") from error
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        reason = reason[:_MAX_REASON_CHARACTERS]
        raise LogSchemaError(
            f"{path}: not a readable log segment ({reason}); move it out of the folder; then its "
            "clips are rendered again, or decoded again from their latents."
        ) from error


def _check_size(metadata: pq.FileMetaData) -> None:
    """Check the sizes in a footer before memory is allocated for them.

    Raises:
        ValueError: It has more rows or bytes than any log.
    """
    groups = [metadata.row_group(n) for n in range(metadata.num_row_groups)]
    num_rows = max(metadata.num_rows, sum(group.num_rows for group in groups))
    num_bytes = sum(group.total_byte_size for group in groups)
    sizes = [metadata.num_rows, *(n for g in groups for n in (g.num_rows, g.total_byte_size))]
    if min(sizes) < 0 or num_rows > MAX_SEGMENT_ROWS or num_bytes > MAX_TABLE_BYTES:
        raise ValueError(f"it claims {num_rows:,} rows and {num_bytes:,} bytes")


def _read_limited(file: pq.ParquetFile, written: pa.Schema, names: list[str]) -> pa.Table:
    """Return columns of a segment; read it in batches if it could be too large for memory."""
    metadata = file.metadata
    sizes = [metadata.row_group(n).total_byte_size for n in range(metadata.num_row_groups)]
    if metadata.num_rows * sum(sizes) <= MAX_TABLE_BYTES:  # if each row were all of the file
        return file.read(columns=names)
    batches, num_bytes = [], 0
    for batch in file.iter_batches(batch_size=SEGMENT_ROWS, columns=names):
        num_bytes += batch.nbytes
        if num_bytes > MAX_TABLE_BYTES:
            raise ValueError(f"it unpacks to more than {MAX_TABLE_BYTES // GIB} GiB")
        batches.append(batch)
    return pa.Table.from_batches(batches, pa.schema([written.field(name) for name in names]))


def _columns(file: pq.ParquetFile, written: pa.Schema, schema: pa.Schema) -> pa.Table:
    """Return a segment's rows in a schema; columns that it lacks are null."""
    present = set(written.names)
    table = _read_limited(file, written, [name for name in schema.names if name in present])
    columns = [
        table[f.name].cast(f.type)
        if f.name in present
        else pa.nulls(file.metadata.num_rows, f.type)
        for f in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)
